"""score: the texture, diversity and importance of every bin. Three stages, so that an ablation repeats only what it changes:
discriminator (trained once for all bins), ratios (eq. 5, exact, by actors over parts of bins), score (put together)."""

import io
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from adq.diversity import Discriminator
from adq.scores import COLUMNS, Stored, bin_scores, discriminate, image_scores
from ray_jobs.actors import cause, map_actors, pool_size
from ray_jobs.bins import matrix, sorted_features
from ray_jobs.options import Selection
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import parquet_bytes, parquet_table

VERSION = 1
TRAINING = 3  # of the discriminator
BLOCK = 4096  # rows of a bin that are one task
PROJECTED = ("by_0", "by_1", "own_view")

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job


def _inputs(extract: Manifest) -> tuple[list[str], Stored, Stored]:
    """Keys, and [penultimate ; pooled intermediate] features of the images and of their views, in the order of the keys.

    Each part is put into its place as it is read: the features are in memory once, as they are stored.
    """
    order = sorted_features(extract, [])["key"].combine_chunks()
    names = ("embedding", "pooled", "view", "view_pooled")
    columns: dict[str, np.ndarray] = {}
    for part in extract.parts:
        table = extract.table(part.name, ["key", "error", *names])
        table = table.filter(pc.is_null(table["error"])).combine_chunks()
        if not table.num_rows:
            continue
        places = pc.index_in(table["key"].combine_chunks(), value_set=order).to_numpy()
        for name in names:
            values = matrix(table, name)
            if name not in columns:
                columns[name] = np.empty((len(order), values.shape[1]), dtype=values.dtype)
            columns[name][places] = values
    embedding, pooled, view, view_pooled = (columns[name] for name in names)
    return order.to_pylist(), Stored((embedding, pooled)), Stored((view, view_pooled))


def _train(stage: Stage, extract: Manifest, config: Discriminator, seed: int, threads: int) -> tuple[list[Part], dict]:
    """Both heads, every image projected by them, and how well they learned. Runs in a Ray task of its own, and commits them there:
    the entry point has no room for so much."""
    torch.set_num_threads(threads)
    keys, images, views = _inputs(extract)
    made = discriminate(keys, images, views, config, seed)
    del images, views  # what is committed takes as much again
    summary = {"images": len(keys)} | {f"retrieval_{when}": round(v, 4) for when, v in made.retrieval.items()}
    summary |= {"loss": [round(float(loss), 5) for loss in made.losses.mean(axis=0)]}
    if config.steps:
        summary |= {"loss_first": summary["loss"][0], "loss_last": round(float(made.losses[:, -10:].mean()), 5)}
    columns = [pa.array(keys), pa.array(made.projected["half"], pa.int8())]
    for name in PROJECTED:
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(made.projected[name].ravel()), config.dim))
    buffer = io.BytesIO()
    torch.save(made.heads, buffer)
    projected = parquet_bytes(pa.table(columns, names=["key", "half", *PROJECTED]))
    parts = [
        stage.commit("heads.pt", buffer.getvalue(), 2, "pt"), stage.commit("projected", projected, len(keys), "parquet"),
    ]  # fmt: skip
    return parts, summary


def _projected(trained: Manifest, bins: Manifest) -> tuple[dict[str, np.ndarray], int]:
    """What the actors of eq. 5 share, and of how many images. Runs in a Ray task: it goes from there into the object store.

    Raises:
        ValueError: the bins are of other images.
    """
    table = trained.table("projected")
    if bins.table("bins", ["key"])["key"] != table["key"]:
        raise ValueError("bins and features hold other keys; run bins again")
    return {name: matrix(table, name) for name in PROJECTED} | {"half": table["half"].to_numpy()}, table.num_rows


def discriminator(job: "Job", extract: Manifest, selection: Selection) -> Manifest:
    """Train the discriminator, or find it done: one for all bins, two halves, each image scored by the one that never saw it."""
    config = Discriminator(temperature=selection.temperature)
    stage = Stage(
        job.store, "discriminator", TRAINING, {"extract": extract.content},
        {"seed": selection.seed, "threads": job.compute.threads} | asdict(config),
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        task = ray.remote(num_cpus=min(job.compute.threads, job.cluster.cpus), max_retries=3)(_train)
        try:
            return ray.get(task.remote(stage, extract, config, selection.seed, job.compute.threads))
        except ray.exceptions.RayTaskError as error:
            raise cause(error) from error

    def log(run, manifest: Manifest) -> None:
        from ray_jobs import figures

        losses = manifest.summary["loss"]
        run.metric_series([(step, {"discriminator_loss": loss}) for step, loss in enumerate(losses)])
        run.figure(
            figures.loss_curve(range(len(losses)), losses, "Discriminator: InfoNCE"), "figures/discriminator_loss.png"
        )

    return job.stage(stage, work, log=log)


class RatioActor:
    """An actor that evaluates eq. 5 for a block of a bin, its sum over the whole bin."""

    def __init__(self, stage: Stage, temperature: float, threads: int):
        torch.set_num_threads(threads)
        self.stage, self.temperature, self.data = stage, temperature, None

    def ready(self, projected: list[ray.ObjectRef]) -> None:
        self.data = self.data or ray.get(projected[0])

    def work(self, projected: list[ray.ObjectRef], name: str, members: np.ndarray, start: int) -> Part:
        """Args: members: positions [n] of the bin's images, in key order. start: first row of the block."""
        self.ready(projected)
        rows = slice(start, start + BLOCK)
        ratio, cosine = image_scores(self.data, members, rows, self.temperature)
        return self.stage.commit_table(name, pa.table({"position": members[rows], "ratio": ratio, "cosine": cosine}))


def bin_ratios(job: "Job", bins: Manifest, trained: Manifest, selection: Selection) -> Manifest:
    """Eq. 5 for every image, or find it done."""
    stage = Stage(
        job.store, "ratios", VERSION, {"bins": bins.content, "discriminator": trained.content},
        {"temperature": selection.temperature, "threads": job.compute.threads, "block": BLOCK},
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        number = bins.table("bins", ["bin"])["bin"].to_numpy()
        tasks = []
        for n in range(selection.bins):
            members = np.flatnonzero(number == n)
            tasks += [(f"bin-{n:04d}-{s:09d}", members, s) for s in range(0, len(members), BLOCK)]
        progress = Progress("ratios", len(number))
        progress.add(sum(part.rows for part in parts.values()))
        missing = [task for task in tasks if task[0] not in parts]

        def on_done(part: Part) -> None:
            parts[part.name] = part
            progress.add(part.rows)

        if missing:
            columns, read = ray.remote(num_cpus=1, num_returns=2, max_retries=3)(_projected).remote(trained, bins)
            try:
                ray.get(read)
            except ray.exceptions.RayTaskError as error:
                raise cause(error) from error
            arguments = (stage, selection.temperature, job.compute.threads)
            size = pool_size(job.cluster, job.compute, "cpu", len(missing))
            map_actors(RatioActor, arguments, missing, size, job.compute, "cpu", on_done, columns)
        return [parts[name] for name, _, _ in tasks], {"images": len(number)}

    return job.stage(stage, work)


def run(job: "Job", extract: Manifest, bins: Manifest, selection: Selection) -> Manifest:
    """The scores of every bin: part "scores" has the columns of COLUMNS."""
    trained = discriminator(job, extract, selection)
    ratio_stage = bin_ratios(job, bins, trained, selection)
    stage = Stage(
        job.store, "score", VERSION, {"bins": bins.content, "ratios": ratio_stage.content, "extract": extract.content},
        {"diversity": selection.diversity, "score_norm": selection.score_norm, "scores": selection.scores, "seed": selection.seed},
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        number = bins.table("bins", ["bin"])["bin"].to_numpy()
        texture = sorted_features(extract, ["texture"])["texture"].to_numpy().astype(np.float64)
        per_image = pa.concat_tables([parquet_table(ratio_stage.stage.read(part)) for part in ratio_stage.parts])
        ratio, cosine = np.empty(len(number)), np.empty(len(number))
        position = per_image["position"].to_numpy()
        ratio[position], cosine[position] = per_image["ratio"].to_numpy(), per_image["cosine"].to_numpy()
        table = pa.table(
            bin_scores(
                number, selection.bins, texture, ratio, cosine, selection.seed, selection.diversity, selection.score_norm,
                selection.scores,
            )
        )  # fmt: skip
        columns = table.select(["representativeness", "diversity", "importance"]).to_pydict()
        return [stage.commit_table("scores", table)], {"bins": selection.bins} | columns

    def log(run, manifest: Manifest) -> None:
        from ray_jobs import figures

        table = manifest.table("scores").to_pydict()
        names = [name for name in COLUMNS if name not in ("bin", "size")]
        run.metric_series([(n, {f"bin_{name}": table[name][n] for name in names}) for n in range(len(table["bin"]))])
        run.figure(figures.bin_scores({name: np.array(table[name]) for name in COLUMNS}), "figures/scores.png")

    return job.stage(stage, work, what="bins", log=log)
