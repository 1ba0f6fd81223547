"""sample: quotas and draws. Keep ratio and alpha enter here, not above."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adq.sampling import class_table, draw, in_pick_order, kept, moved, shares
from ray_jobs.ingest import Index
from ray_jobs.options import Selection
from ray_jobs.stages import Manifest, Part, Stage

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job

VERSION = 1


def run(job: "Job", index: Index, bins: Manifest | None, scores: Manifest | None, selection: Selection) -> Manifest:
    """Choose the images, or find them chosen.

    Args:
        bins: None for the method random. scores: for the method adq alone.

    Returns:
        A manifest with the parts quotas (bin, class, size, share, quota, drawn) and subset (key, label, bin, shard, members).
    """
    kept(selection.keep, index.images)
    config = {"method": selection.method, "keep": selection.keep, "seed": selection.seed}
    if selection.method != "graphcut":
        config |= {"balance": selection.balance}
    if selection.method == "adq":
        config |= {"alpha": selection.alpha, "allocation": selection.allocation}
    inputs = {"index": index.manifest.content}
    inputs |= {m.stage.name: m.content for m in (bins, scores) if m is not None}
    stage = Stage(job.store, "sample", VERSION, inputs, config)

    def work(stage: Stage) -> tuple[list[Part], dict]:
        table = index.table()
        if bins is not None:
            order = bins.table("bins", ["key", "bin", "rank"])
            table = table.filter(pc.is_in(table["key"], value_set=order["key"].combine_chunks()))
            number, ranks = order["bin"].to_numpy(), order["rank"].to_numpy()
        else:
            number = np.zeros(table.num_rows, dtype=np.int64)
        keys, labels = table["key"].to_pylist(), table["label"].to_numpy()
        sizes = np.zeros((int(number.max()) + 1, len(index.classes)), dtype=np.int64)
        np.add.at(sizes, (number, labels), 1)
        importance = scores.table("scores")["importance"].to_numpy() if scores else np.zeros(len(sizes))
        alpha = selection.alpha if selection.method == "adq" else 0.0
        allocation = selection.allocation if selection.method == "adq" else "share"
        dq = class_table(importance, sizes, selection.keep, 0.0, "share", selection.balance, selection.seed)
        if selection.method == "graphcut":
            chosen = in_pick_order(keys, number, ranks, kept(selection.keep, len(keys)), selection.seed)
            quota = np.zeros_like(sizes)
            np.add.at(quota, (number[chosen], labels[chosen]), 1)
        else:
            quota = class_table(importance, sizes, selection.keep, alpha, allocation, selection.balance, selection.seed)
            chosen = draw(keys, number, labels, quota, selection.seed)
        drawn = np.zeros_like(sizes)
        np.add.at(drawn, (number[chosen], labels[chosen]), 1)
        subset = table.filter(pa.array(chosen))
        subset = subset.add_column(2, "bin", pa.array(number[chosen], pa.int32()))
        parts = [
            stage.commit_table(
                "quotas", _quota_table(importance, sizes, quota, drawn, kept(selection.keep, len(keys)), alpha)
            ),
            stage.commit_table("subset", subset),
        ]
        per_class = drawn.sum(axis=0)[sizes.sum(axis=0) > 0]
        summary = {
            "images": int(chosen.sum()), "moved": round(moved(quota.sum(axis=1), dq.sum(axis=1)), 6),
            "smallest_class": int(per_class.min()), "largest_class": int(per_class.max()),
            "quotas": quota.sum(axis=1).tolist(), "dq_quotas": dq.sum(axis=1).tolist(), "sizes": sizes.sum(axis=1).tolist(),
        }  # fmt: skip
        if not per_class.min():
            print(f"warning: {int((per_class == 0).sum())} classes keep no image; raise --keep")
        return parts, summary

    def log(run, manifest: Manifest) -> None:
        from ray_jobs import figures

        s = manifest.summary
        sizes, quotas, dq = (np.array(s[name]) for name in ("sizes", "quotas", "dq_quotas"))
        run.metric_series(
            [(n, {"bin_kept_share": quotas[n] / max(sizes[n], 1), "bin_quota": quotas[n]}) for n in range(len(sizes))]
        )
        run.figure(figures.bin_shares(np.arange(len(sizes)), sizes, quotas, dq, selection.keep), "figures/shares.png")

    return job.stage(stage, work, log=log)


def _quota_table(importance, sizes, quota, drawn, total: int, alpha: float) -> pa.Table:
    """A row for every bin and class; share is the bin's real-valued share of its images before rounding."""
    wanted = shares(importance, sizes.sum(axis=1), total, alpha) / np.maximum(sizes.sum(axis=1), 1)
    bins, classes = np.indices(sizes.shape)
    return pa.table({
        "bin": bins.ravel().astype(np.int32), "class": classes.ravel().astype(np.int32), "size": sizes.ravel(),
        "share": np.repeat(wanted, sizes.shape[1]), "quota": quota.ravel(), "drawn": drawn.ravel(),
    })  # fmt: skip
