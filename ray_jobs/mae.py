"""mae: a masked autoencoder trained on the data itself with Ray Train: the weights with which dropped patches are filled."""

import io
import posixpath
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from adq.augmentation import AUGMENTATIONS
from adq.mae import BASES, MAE, PRESETS, MAEConfig, fresh
from adq.mae_training import MAERecipe, train
from adq.mae_weights import to_bytes
from adq.patches import grid
from adq.shards import absolute, locate
from ray_jobs.classifier import SPEAK_SECONDS
from ray_jobs.ingest import Index
from ray_jobs.loading import Held, how_to_hold, open_set, order_kind
from ray_jobs.mae_exam import SERIES, SHOWN, Exam, Rest, held_out, opened_exam, picture
from ray_jobs.options import Compute, Data, Place, option
from ray_jobs.shard_reader import ShardReader
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import Store
from ray_jobs.streaming import Streamed
from ray_jobs.watch import Steps, Watch
from ray_jobs.workers import CHECKPOINT_SECONDS, Group, Member, run_group

if TYPE_CHECKING:  # what only the driver needs is not loaded by the workers
    from ray_jobs.job import Job
    from ray_jobs.mlflow_run import Run

VERSION = 2
WEIGHTS, HISTORY, SCORES, PICTURE = "weights", "history", "held_out", "reconstructed"
SCORED = 10  # times in a run
KEEPING = 0.05  # share of the time that checkpoints may take: those of a large network are gigabytes
POINTS = 200  # of the loss, at most
EXTENSIONS = (".pt", ".pth")


@dataclass(frozen=True)
class Painting:
    """Which masked autoencoder is trained, and how."""

    size: str = option(
        "small-32", "Sizes of the network: small-SIDE for images of that side; vit-large is the published one.", tuple(PRESETS)
    )  # fmt: skip
    steps: int = option(20_000, "Optimizer steps.")
    train_batch: int = option(64, "Images a step, of all workers together.")
    lr: float = option(1e-3, "Learning rate of AdamW, after its warm-up.")
    mask_ratio: float = option(0.25, "Share of an image that is hidden in training.")
    block: int = option(0, "Side in pixels of what is hidden at once; 0: ADQ's patches, 8 below 96 px, else 16.")
    base: str | None = option(
        None, "What the network's output is added to: none, or a fill of the known pixels. [default: the size's]", BASES
    )
    augment: str = option(
        "flip", "flip mirrors half of the images; the others are those of classifiers.", ("flip", *AUGMENTATIONS)
    )
    bfloat16: bool = option(False, "Train in bfloat16 on CPUs, too: faster on those that have instructions for it.")
    seed: int = option(0, "Seed of the weights, the order, the augmentation and the masks.")
    workers: int = option(1, "Ray Train workers, each with a GPU on cuda; they share every step.")

    def __post_init__(self):
        if self.size not in PRESETS or (self.base is not None and self.base not in BASES):
            raise ValueError(
                f"--size {self.size}, --base {self.base}: expected one of {', '.join(PRESETS)}, and of {', '.join(BASES)}"
            )
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: expected 1 or more")
        self.recipe.block_of(self.config)

    @property
    def config(self) -> MAEConfig:
        config = PRESETS[self.size]
        return config if self.base is None else replace(config, base=self.base)

    @property
    def recipe(self) -> MAERecipe:
        side = self.config.image_size
        return MAERecipe(
            self.steps, self.train_batch, self.lr, mask_ratio=self.mask_ratio, block=self.block or grid(side, side).side,
            augment=self.augment, bfloat16=self.bfloat16,
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a worker must know."""

    stage: Stage
    index: Index
    config: MAEConfig
    recipe: MAERecipe
    seed: int
    how: str
    leave_out: bool


def train_mae(
    job: "Job", index: Index, options: Painting, leave_out: bool = False, checkpoint_seconds: float = CHECKPOINT_SECONDS
) -> Manifest:
    """Train a masked autoencoder, or find it done.

    Returns:
        The stage: `weights` (a file of `to_bytes`), `history` (loss by step), `held_out` (loss and PSNR by step), and
        `reconstructed`, a PNG. Its summary has the PSNR in dB on dropped patches of held-out images: psnr, psnr_mean,
        psnr_harmonic.

    Raises:
        ValueError: images that cannot be decoded, fewer than two, workers that the cluster cannot hold.
        FloatingPointError: the training diverged.
    """
    if index.images < 2:
        raise ValueError(f"a masked autoencoder needs an image to train on and one to test it with, not {index.images}")
    config, recipe = options.config, options.recipe
    how = how_to_hold(index, config.transform)
    stage = Stage(
        job.store, "mae", VERSION, {"index": index.manifest.content},
        asdict(recipe) | {
            "network": asdict(config), "seed": options.seed, "order": order_kind(how), "leave_out": leave_out,
            "workers": options.workers, "threads": job.compute.threads, "device": job.device,
        },
    )  # fmt: skip
    group = Group(options.workers, job.compute.threads, job.device, stage, checkpoint_seconds)
    names = [WEIGHTS, HISTORY, SCORES, PICTURE]
    live: list[Run] = []

    def work(stage: Stage) -> tuple[list[Part], dict]:
        live.append(job.child(stage.name, stage.digest, stage.config))
        if not set(names) <= stage.committed().keys():
            group.check()
            plan = Plan(stage, index, config, recipe, options.seed, how, leave_out)
            run_group(group, _work, plan, Watch("mae", live[0], recipe.steps))
        group.clean()
        parts = stage.committed()
        scores = Manifest(stage, (parts[SCORES],), {}, "").table(SCORES)
        facts = {name.removeprefix(SERIES): scores[name].to_pylist()[-1] for name in scores.column_names}
        images = int(scores.schema.metadata[b"images"])
        return [parts[name] for name in names], {"steps": facts.pop("step"), "images": images} | facts

    def log(run: "Run", manifest: Manifest) -> None:
        # What was logged while it worked, the run of the stage does not know.
        run = live[0] if live else run
        for part in (HISTORY, SCORES):
            run.metric_series((row.pop("step"), row) for row in manifest.table(part).to_pylist())
        run.artifact_bytes(manifest.bytes(PICTURE), "figures/reconstructed.png")

    return job.stage(stage, work, "steps", log)


def _work(member: Member, plan: Plan) -> None:
    """Train, from the group's checkpoint, and commit; the first worker scores and commits."""
    data, exam = _opened(plan, member)
    model, recipe = fresh(plan.config, plan.seed), plan.recipe
    state = member.checkpoint() or {"training": None, "history": [], "scores": []}
    history, scores = [tuple(row) for row in state["history"]], [tuple(row) for row in state["scores"]]
    first = state["training"]["step"] if state["training"] else 0
    every, unsaid = max(1, recipe.steps // POINTS), []
    kept = spoken = time.monotonic()
    member.tell(Steps(first, first, ()))

    def on_step(step: int, loss: float) -> None:
        nonlocal spoken
        if step % every == 0 or step == recipe.steps:
            history.append((step, {f"{SERIES}loss": loss}))
            unsaid.append(history[-1])
        if time.monotonic() - spoken >= SPEAK_SECONDS:
            member.tell(Steps(first, step, tuple(unsaid)))
            unsaid.clear()
            spoken = time.monotonic()

    def save(step: int, checkpoint: Callable[[], dict]) -> None:
        nonlocal kept
        if exam is not None and step * SCORED // recipe.steps > (step - 1) * SCORED // recipe.steps:
            scores.append((step, exam.score(model, member.device)))
            unsaid.append(scores[-1])
        if member.due(kept):
            began = time.monotonic()
            member.keep({"training": checkpoint(), "history": history, "scores": scores})
            kept = time.monotonic() + (time.monotonic() - began) / KEEPING

    train(
        model, partial(data.epoch, recipe, plan.seed, rank=member.rank, world=member.world), recipe, plan.seed,
        member.device, member.rank, member.world, state["training"], save, on_step,
    )  # fmt: skip
    if exam is not None:
        member.tell(Steps(first, recipe.steps, tuple(unsaid)))
        _commit(plan.stage, model, exam, history, scores, member.device)


def _opened(plan: Plan, member: Member) -> tuple[Held | Streamed, Exam | None]:
    """What is trained on, and on the first worker what it is tested with."""
    reader = ShardReader(plan.index, plan.config.transform, member.threads)
    out = held_out(reader.keys)
    if plan.how == "streamed":
        data = Streamed(Rest(reader, out), plan.leave_out)
    else:
        kept = np.flatnonzero(~out)
        data = open_set(plan.index, plan.config.transform, plan.how, member.threads, plan.leave_out, kept)
    if member.rank:
        return data, None
    return data, opened_exam(reader, out, plan.leave_out)


def _commit(stage: Stage, model: MAE, exam: Exam, history: list, scores: list, device: str) -> None:
    fills = exam.fills()
    rows = [{"step": step} | row | fills for step, row in scores]
    stage.commit_table(HISTORY, pa.Table.from_pylist([{"step": step} | row for step, row in history]))
    stage.commit_table(SCORES, pa.Table.from_pylist(rows).replace_schema_metadata({"images": str(len(exam.pixels))}))
    image = io.BytesIO()
    picture(model, exam, rows[-1], device).savefig(image, format="png")
    stage.commit(PICTURE, image.getvalue(), min(SHOWN, len(exam.pixels)), "png")
    stage.commit(WEIGHTS, to_bytes(model), len(model.state_dict()), "pt")


def run(options: Painting, data: Data, compute: Compute, place: Place, out: str) -> Manifest:
    """The command: ingest, train, write the weights and the figure, say what came out.

    Args:
        out: a file (.pt or .pth), or a folder for mae.pt; what is there is replaced.
    """
    from ray_jobs import ingest
    from ray_jobs.job import opened

    path = absolute(out)
    path = path if path.endswith(EXTENSIONS) else posixpath.join(path, "mae.pt")
    folder, name = Store.at(posixpath.dirname(path)), posixpath.basename(path)
    folder.check_writable()
    shards = locate(data.data)
    identity = ["mae", shards.root, shards.shards, asdict(data), asdict(options)]
    with opened(place, compute, f"mae {options.size}", identity) as job:
        job.run.params(asdict(options))
        found = train_mae(job, ingest.run(job, data), options, data.skip_corrupt)
        folder.write(name, found.bytes(WEIGHTS))
        figure = f"{posixpath.splitext(name)[0]}.png"
        folder.write(figure, found.bytes(PICTURE))
        facts = found.summary
        job.run.metrics({key: value for key, value in facts.items() if key.startswith("psnr")})
        job.report(
            f"PSNR on dropped patches of {facts['images']:,} held-out images: {facts['psnr']:.2f} dB, harmonic "
            f"{facts['psnr_harmonic']:.2f}, mean {facts['psnr_mean']:.2f}\n"
            f"weights  {folder.path(name)}\nfigure   {folder.path(figure)}"
        )
    return found
