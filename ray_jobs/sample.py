"""sample: quotas and draws, or the picks of another method. Keep ratio and alpha enter here, not above."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adq.coresets import METHODS
from adq.pool import Pool
from adq.sampling import kept, literal_shares, shares
from adq.selection import BY_BINS, BY_IMPORTANCE, Choice, choose, looks_at, needs
from ray_jobs.bins import embeddings_by_key
from ray_jobs.dynamics import dynamics_by_key
from ray_jobs.ingest import Index
from ray_jobs.options import Selection
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import canonical_json, sha256

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job

VERSION = 3
# Those of a method's own function, and what stands for its default.
SETTINGS = {f.name: f.default for f in fields(Selection) if any(f.name in one.settings for one in METHODS.values())}


def reads(method: str) -> tuple[str, ...]:
    """The fields of Selection, other than the keep ratio and the seed, on which a method's choice hangs."""
    wanted = needs(method)
    found = ("bins", "scope", "normalize", "centre") if wanted & {"bins", "scores"} else ()
    found += ("scores", "diversity", "temperature", "score_norm") if "scores" in wanted else ()
    found += ("alpha", "allocation") if method in BY_IMPORTANCE else ()
    found += METHODS[method].settings if method in METHODS else ()
    found += ("permutation",) if method == "adq-permuted" else ()
    return found + (("balance",) if method in BY_BINS or method == "random" else ())


@dataclass(frozen=True)
class Seen:
    """What the methods look at: finished stages, as far as they are needed."""

    bins: Manifest | None = None
    scores: Manifest | None = None
    extract: Manifest | None = None
    dynamics: Manifest | None = None
    own: tuple | None = None  # the user's embeddings, of `bins.own_embeddings`
    undecoded: tuple[str, ...] = ()  # keys of images that nothing may choose
    held: dict = field(default_factory=dict, compare=False)  # the embeddings read last, for the next selection

    def embeddings(self) -> tuple[np.ndarray, list[str]]:
        """Embeddings float32 [N, d] and keys of every image that could be decoded, in the order of the keys."""
        name = tuple(part for part in (self.extract and self.extract.content, self.own and self.own[3]) if part)
        if name not in self.held:
            self.held.clear()
            self.held[name] = embeddings_by_key(self.extract, self.own)[:2]
        return self.held[name]

    def contents(self, method: str) -> dict[str, str]:
        """By stage, the digests of what a method's choice hangs on."""
        wanted = needs(method)
        direct = {"bins": self.bins, "scores": self.scores, "dynamics": self.dynamics}
        if "embeddings" in looks_at(method):  # with bins, too: other embeddings can have the same ones
            direct["embeddings"] = self.extract
        found = {name: m.content for name, m in direct.items() if m is not None and name in wanted | {"embeddings"}}
        found |= {"own": self.own[3]} if self.own else {}
        return found | ({"undecoded": sha256(canonical_json(self.undecoded))} if self.undecoded else {})


def run(job: "Job", index: Index, seen: Seen, selection: Selection, quiet: bool = False) -> Manifest:
    """Choose the images, or find them chosen.

    Args:
        quiet: no line and no run of its own.

    Returns:
        A manifest with the parts quotas (bin, class, size, share, quota, drawn) and subset (key, label, bin, shard, members).
    """
    kept(selection.keep, index.images)
    method = selection.method
    config = {"method": method, "keep": selection.keep, "seed": selection.seed}
    own = reads(method)  # those before are in the contents of the bins and scores
    config |= {name: getattr(selection, name) for name in ("balance", "alpha", "allocation") if name in own}
    settings = {
        name: value for name in SETTINGS if name in own and (value := getattr(selection, name)) != SETTINGS[name]
    }
    config |= ({"depth": "by the keep ratio"} if "depth" in own else {}) | settings
    if "permutation" in own and selection.permutation:
        config |= {"permutation": selection.permutation}
    inputs = {"index": index.manifest.content} | seen.contents(method)
    stage = Stage(job.store, "sample", VERSION, inputs, config)

    def work(stage: Stage) -> tuple[list[Part], dict]:
        table, pool = _pool(index, seen, method)
        importance = seen.scores.table("scores")["importance"].to_numpy() if "scores" in needs(method) else None
        alpha, allocation = (selection.alpha, selection.allocation) if method in BY_IMPORTANCE else (0.0, "share")
        made = choose(
            pool, method, selection.keep, selection.seed, importance, alpha, allocation, selection.balance,
            selection.permutation, **settings,
        )  # fmt: skip
        subset = table.filter(pa.array(made.chosen))
        subset = subset.add_column(2, "bin", pa.array(made.bins[made.chosen], pa.int32()))
        parts = [
            stage.commit_table("quotas", _quota_table(made, kept(selection.keep, len(pool.keys)), alpha, allocation)),
            stage.commit_table("subset", subset),
        ]
        per_class = made.drawn.sum(axis=0)[made.sizes.sum(axis=0) > 0]
        summary = {
            "images": int(made.chosen.sum()), "moved": round(made.moved, 6),
            "smallest_class": int(per_class.min()), "largest_class": int(per_class.max()),
            "quotas": made.quota.sum(axis=1).tolist(), "dq_quotas": made.dq.sum(axis=1).tolist(),
            "sizes": made.sizes.sum(axis=1).tolist(),
        }  # fmt: skip
        if not per_class.min() and not quiet:
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

    return job.quietly(stage, work) if quiet else job.stage(stage, work, log=log)


def _pool(index: Index, seen: Seen, method: str) -> tuple[pa.Table, Pool]:
    """The rows of the index that can be chosen, and what the method may look at, in the same order."""
    table, wanted = index.table(), needs(method)
    if seen.undecoded:  # bins, embeddings and dynamics do without them, too
        table = table.filter(pc.invert(pc.is_in(table["key"], value_set=pa.array(seen.undecoded))))
    bins = ranks = embeddings = dynamics = None
    if "bins" in wanted:
        order = seen.bins.table("bins", ["key", "bin", "rank"])
        keys, bins, ranks = order["key"], order["bin"].to_numpy(), order["rank"].to_numpy()
        table = table.filter(pc.is_in(table["key"], value_set=keys.combine_chunks()))
    if "embeddings" in looks_at(method):
        embeddings, keys = seen.embeddings()
        table = table.filter(pc.is_in(table["key"], value_set=pa.array(keys)))
    if "dynamics" in wanted:
        keys, dynamics = dynamics_by_key(seen.dynamics)
        table = table.filter(pc.is_in(table["key"], value_set=pa.array(keys)))
    labels = table["label"].to_numpy().astype(np.int64)
    return table, Pool(table["key"].to_pylist(), labels, embeddings, bins, ranks, dynamics, len(index.classes))


def _quota_table(made: Choice, total: int, alpha: float, allocation: str) -> pa.Table:
    """A row for every bin and class; share is the bin's real-valued share of its images before rounding."""
    in_bins = made.sizes.sum(axis=1)
    if allocation == "literal":
        wanted = literal_shares(made.importance, in_bins, alpha)
    else:
        alpha = 1.0 if allocation == "code" else alpha
        wanted = shares(made.importance, in_bins, total, alpha) / np.maximum(in_bins, 1)
    bins, classes = np.indices(made.sizes.shape)
    return pa.table({
        "bin": bins.ravel().astype(np.int32), "class": classes.ravel().astype(np.int32), "size": made.sizes.ravel(),
        "share": np.repeat(wanted, made.sizes.shape[1]), "quota": made.quota.ravel(), "drawn": made.drawn.ravel(),
    })  # fmt: skip
