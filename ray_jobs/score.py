"""score: the texture, diversity and importance of every bin. Three stages, so that an ablation repeats only what it changes:
discriminator (trained once for all bins), ratios (eq. 5, exact, by actors over parts of bins), score (put together)."""

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from adq.diversity import (
    Discriminator,
    bootstrap_error,
    cosines,
    diversity,
    halves,
    project,
    ratios,
    retrieval,
    top_share,
    train_discriminator,
)  # fmt: skip
from adq.importance import importance, normalize
from adq.randomness import numpy_generator
from ray_jobs.actors import cause, map_actors, pool_size
from ray_jobs.bins import matrix, sorted_features
from ray_jobs.options import Selection
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import parquet_bytes, parquet_table

VERSION = 1
TRAINING = 2  # of the discriminator
BLOCK = 4096  # rows of a bin that are one task
RETRIEVAL_LIMIT = 1000
SCORE_COLUMNS = (
    "bin", "size", "representativeness", "representativeness_se", "diversity", "diversity_se", "top_1_percent_share",
    "representativeness_normalized", "diversity_normalized", "importance",
)  # fmt: skip

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job


@dataclass(frozen=True)
class Stored:
    """Features as they are stored, columns side by side; float32 where rows are taken. See `adq.diversity.Features`."""

    columns: tuple[np.ndarray, ...]  # [N, .] each, float32 or float16
    rows: np.ndarray | None = None  # those that are meant, int64 [n]; all by default

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), sum(column.shape[1] for column in self.columns)

    def __len__(self) -> int:
        return len(self.columns[0]) if self.rows is None else len(self.rows)

    def __getitem__(self, wanted: slice | torch.Tensor) -> torch.Tensor:
        wanted = wanted if isinstance(wanted, slice) else wanted.numpy()
        rows = wanted if self.rows is None else self.rows[wanted]
        return torch.from_numpy(np.concatenate([column[rows].astype(np.float32) for column in self.columns], axis=1))

    def of(self, rows: np.ndarray) -> "Stored":
        return Stored(self.columns, rows)


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


def _train(
    extract: Manifest, config: Discriminator, seed: int, threads: int, device: str
) -> tuple[bytes, pa.Table, dict]:
    """Both heads, every image projected by them, and how well they learned. Runs in a Ray task of its own."""
    torch.set_num_threads(threads)
    keys, images, views = _inputs(extract)
    side = halves(keys, seed)
    projected, own_view = [], torch.empty(len(keys), config.dim)
    states, summary = {}, {"images": len(keys)}
    found = {"before": [], "after": []}
    losses = np.zeros((2, config.steps))
    for half in (0, 1):
        mine, other = np.flatnonzero(side == half), np.flatnonzero(side != half)

        def on_step(step: int, loss: float, half: int = half) -> None:
            losses[half, step] = loss

        own, others = (images.of(mine), views.of(mine)), (images.of(other), views.of(other))
        untrained = train_discriminator(*own, Discriminator(**{**asdict(config), "steps": 0}), seed, str(half))
        head = train_discriminator(*own, config, seed, str(half), on_step)
        found["before"].append(retrieval(untrained, *others, RETRIEVAL_LIMIT))
        found["after"].append(retrieval(head, *others, RETRIEVAL_LIMIT))
        projected.append(project(head, images))
        own_view[torch.from_numpy(other)] = project(head, views.of(other))
        states |= {f"{half}.{name}": value for name, value in head.state_dict().items()}
    summary |= {f"retrieval_{when}": round(float(np.mean(v)), 4) for when, v in found.items()}
    summary |= {"loss": [round(float(loss), 5) for loss in losses.mean(axis=0)]}
    if config.steps:
        summary |= {"loss_first": summary["loss"][0], "loss_last": round(float(losses[:, -10:].mean()), 5)}
    columns = [pa.array(keys), pa.array(side, pa.int8())]
    for values in (*projected, own_view):
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().ravel()), config.dim))
    buffer = io.BytesIO()
    torch.save(states, buffer)
    return buffer.getvalue(), pa.table(columns, names=["key", "half", "by_0", "by_1", "own_view"]), summary


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
            state, table, summary = ray.get(task.remote(extract, config, selection.seed, job.compute.threads, "cpu"))
        except ray.exceptions.RayTaskError as error:
            raise cause(error) from error
        parts = [
            stage.commit("heads.pt", state, 2, "pt"),
            stage.commit("projected", parquet_bytes(table), table.num_rows, "parquet"),
        ]
        return parts, summary

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
        rows = members[start : start + BLOCK]
        ratio, cosine = np.empty(len(rows)), np.empty(len(rows))
        for half in (0, 1):
            mine = np.flatnonzero(self.data["half"][rows] == half)
            if not len(mine):
                continue
            # An image is scored by the discriminator that was trained on the other half, and so are its negatives.
            projected = torch.from_numpy(self.data[f"by_{1 - half}"][members])
            views = torch.zeros_like(projected)
            at = torch.from_numpy(mine + start)
            views[at] = torch.from_numpy(self.data["own_view"][rows[mine]])
            ratio[mine] = ratios(projected, views, at, self.temperature).numpy()
            cosine[mine] = cosines(projected, at).numpy()
        return self.stage.commit_table(name, pa.table({"position": rows, "ratio": ratio, "cosine": cosine}))


def bin_ratios(job: "Job", bins: Manifest, trained: Manifest, selection: Selection) -> Manifest:
    """Eq. 5 for every image, or find it done."""
    stage = Stage(
        job.store, "ratios", VERSION, {"bins": bins.content, "discriminator": trained.content},
        {"temperature": selection.temperature, "threads": job.compute.threads, "block": BLOCK},
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        table = trained.table("projected")
        order = bins.table("bins", ["key", "bin"])
        if order["key"] != table["key"]:
            raise ValueError("bins and features hold other keys; run bins again")
        number = order["bin"].to_numpy()
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
            columns = {name: matrix(table, name) for name in ("by_0", "by_1", "own_view")} | {
                "half": table["half"].to_numpy()
            }
            arguments = (stage, selection.temperature, job.compute.threads)
            size = pool_size(job.cluster, job.compute, "cpu", len(missing))
            map_actors(RatioActor, arguments, missing, size, job.compute, "cpu", on_done, columns)
        return [parts[name] for name, _, _ in tasks], {"images": len(number)}

    return job.stage(stage, work)


def run(job: "Job", extract: Manifest, bins: Manifest, selection: Selection) -> Manifest:
    """The scores of every bin: part "scores" has the columns of SCORE_COLUMNS."""
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
        table = _scores(number, texture, ratio, cosine, selection)
        columns = table.select(["representativeness", "diversity", "importance"]).to_pydict()
        return [stage.commit_table("scores", table)], {"bins": selection.bins} | columns

    def log(run, manifest: Manifest) -> None:
        from ray_jobs import figures

        table = manifest.table("scores").to_pydict()
        names = [name for name in SCORE_COLUMNS if name not in ("bin", "size")]
        run.metric_series([(n, {f"bin_{name}": table[name][n] for name in names}) for n in range(len(table["bin"]))])
        run.figure(figures.bin_scores({name: np.array(table[name]) for name in SCORE_COLUMNS}), "figures/scores.png")

    return job.stage(stage, work, what="bins", log=log)


def _scores(
    number: np.ndarray, texture: np.ndarray, ratio: np.ndarray, cosine: np.ndarray, selection: Selection
) -> pa.Table:
    rows = []
    for n in range(selection.bins):
        mine = np.flatnonzero(number == n)
        if not len(mine):
            raise ValueError(f"bin {n} is empty: every class has fewer images than bins; lower --bins")

        def div(chosen: np.ndarray, mine: np.ndarray = mine) -> float:
            return diversity(ratio[mine[chosen]], cosine[mine[chosen]], selection.diversity)

        def rep(chosen: np.ndarray, mine: np.ndarray = mine) -> float:
            return float(texture[mine[chosen]].mean())

        everything = np.arange(len(mine))
        errors = [bootstrap_error(f, len(mine), numpy_generator(selection.seed, "bootstrap", n)) for f in (rep, div)]
        rows.append((n, len(mine), rep(everything), errors[0], div(everything), errors[1], top_share(ratio[mine])))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    scores = [normalize(columns[i], selection.score_norm) for i in (2, 4)]
    total = importance(columns[2], columns[4], selection.score_norm, selection.scores)
    return pa.table(dict(zip(SCORE_COLUMNS, [*columns, *scores, total], strict=True)))
