"""experts: trajectories of networks trained on the real data, for trajectory matching. One task an expert over the cluster.

An expert is a stage of its own, known by its data, recipe, seed and number: more experts, or another distillation, find those
that are trained. Inside an expert, a checkpoint in the store lets it go on after its last epochs.
"""

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adq.extractor import InputTransform, input_transform
from adq.models import build
from adq.process import settle
from adq.shards import locate
from adq.training import correct
from palette.experts import ExpertRecipe, train_expert
from palette.matching import unflatten
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.cluster import check_memory
from ray_jobs.ingest import Index
from ray_jobs.loading import open_set
from ray_jobs.options import Compute, Data, Place, option
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job
    from ray_jobs.mlflow_run import Run

VERSION = 1
TRAJECTORY, CURVE = "trajectory", "curve"
CHECKPOINT_SECONDS = 15.0  # between two checkpoints, at an epoch's end
TESTED = 2000  # training images, at most, on which an expert's accuracy is measured


@dataclass(frozen=True)
class Network:
    """The ConvNet that is matched, and the images that it sees."""

    depth: int = option(0, "Blocks of the ConvNet; 0: 3 below 64 px, 4 below 128, else 5.")
    width: int = option(128, "Channels of the ConvNet.")
    image_size: int = option(0, "Side in pixels, to which images are resized and cropped; 0: the data's own.")

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"--width {self.width}: expected 1 or more")
        if not 0 <= self.depth <= 9 or self.image_size < 0:
            raise ValueError(
                f"--depth {self.depth}, --image-size {self.image_size}: expected a depth of 1 to 9, a size, or 0"
            )

    def side(self, index: Index) -> int:
        return self.image_size or index.side

    def blocks(self, side: int) -> int:
        """The depth. Raises ValueError where images of this side are too small for it."""
        depth = self.depth or (3 if side < 64 else 4 if side < 128 else 5)
        if side >> depth < 1:
            raise ValueError(f"--depth {depth}: a ConvNet halves the image {depth} times, {side} pixels are too few")
        return depth

    def transform(self, side: int) -> InputTransform:
        return input_transform(self.name(side), side)

    def name(self, side: int) -> str:
        return f"convnet-d{self.blocks(side)}-w{self.width}"


@dataclass(frozen=True)
class Experts:
    """Experts for trajectory matching: plain SGD on augmented real images, a checkpoint an epoch."""

    experts: int = option(10, "Networks that are trained on the real data, for --matching tm.")
    expert_epochs: int = option(50, "Epochs of an expert: at least the largest start epoch + 2.")
    expert_batch: int = option(256, "Images a step of an expert.")
    expert_lr: float = option(0.01, "Learning rate of an expert.")
    expert_momentum: float = option(0.0, "Momentum of an expert.")
    expert_seed: int = option(0, "Seed of the experts.")

    def __post_init__(self):
        if self.experts < 1:
            raise ValueError(f"--experts {self.experts}: expected 1 or more")
        self.recipe(1, 1)

    def recipe(self, depth: int, width: int) -> ExpertRecipe:
        return ExpertRecipe(self.expert_epochs, self.expert_batch, self.expert_lr, self.expert_momentum, depth, width)


@dataclass(frozen=True)
class Plan:
    """What an actor must know to train experts."""

    index: Index
    transform: InputTransform
    recipe: ExpertRecipe
    seed: int
    device: str
    threads: int
    decoders: int  # threads that decode, which decide no result
    leave_out: bool
    checkpoint_seconds: float


class Trainer:
    """An actor that holds the real images and trains experts on them, one after the other."""

    def __init__(self, plan: Plan):
        settle(plan.threads)
        self.plan, self.images = plan, None

    def ready(self, _shared: list) -> None:
        """Load the images, once an actor."""
        if self.images is None:
            plan = self.plan
            self.images = open_set(plan.index, plan.transform, "decoded", plan.decoders, plan.leave_out).images

    def work(self, shared: list, number: int, stage: Stage) -> int:
        """Train an expert, from its checkpoint where there is one, and commit it."""
        self.ready(shared)
        plan, checkpoint = self.plan, Checkpoint(stage, self.plan.checkpoint_seconds)
        state = checkpoint.load()
        losses: list[float] = [] if state is None else state["losses"]
        sums: list[float] = []

        def save(_: int, expert: Callable[[], dict]) -> None:
            losses.append(float(np.mean(sums, dtype=np.float64)))
            sums.clear()
            checkpoint.save(lambda: {"expert": expert(), "losses": losses})

        labels = torch.from_numpy(self.images.labels)
        trajectory = train_expert(
            self.images.images.permute(0, 2, 3, 1).contiguous(), labels, len(plan.index.classes), plan.recipe, plan.seed,
            number, plan.device, None if state is None else state["expert"], save, lambda _, loss: sums.append(loss),
        )  # fmt: skip
        buffer = io.BytesIO()
        np.save(buffer, trajectory.numpy(), allow_pickle=False)
        stage.commit(TRAJECTORY, buffer.getvalue(), len(trajectory), "npy")
        curve = pa.table({"epoch": range(1, len(losses) + 1), "loss": losses})
        top1 = self._top1(trajectory[-1])
        stage.commit_table(CURVE, curve.replace_schema_metadata({"top1": str(top1)}))
        checkpoint.remove()
        return number

    def _top1(self, parameters: Tensor) -> float:
        """Accuracy on some of the training images."""
        plan, side = self.plan, self.plan.transform.crop
        model = build(f"convnet-d{plan.recipe.depth}-w{plan.recipe.width}", len(plan.index.classes), side)
        model.load_state_dict(unflatten(model, parameters))
        chosen = np.arange(0, len(self.images), -(-len(self.images) // TESTED))
        return float(correct(model, self.images, chosen, plan.transform, plan.device).mean())


class Checkpoint:
    """An expert that is under way, in its stage's folder; tensors and plain values alone."""

    def __init__(self, stage: Stage, seconds: float):
        self.store, self.name, self.seconds = stage.store, f"{stage.folder}/unfinished.pt", seconds
        self.saved = time.monotonic()

    def load(self) -> dict | None:
        if self.store.size(self.name) is None:
            return None
        return torch.load(io.BytesIO(self.store.read(self.name)), map_location="cpu", weights_only=True)

    def save(self, state: Callable[[], dict]) -> None:
        """Keep what `state` makes, where it is time to."""
        if time.monotonic() - self.saved >= self.seconds:
            buffer = io.BytesIO()
            torch.save(state(), buffer)
            self.store.write(self.name, buffer.getvalue())
            self.saved = time.monotonic()

    def remove(self) -> None:
        self.store.remove(self.name)


@dataclass(frozen=True)
class Trained:
    """Finished experts: the stage of all, and each one's, which holds its trajectory."""

    manifest: Manifest
    each: tuple[Manifest, ...]


def trajectory(expert: Manifest) -> Tensor:
    """float32 [epochs + 1, P]: an expert's parameters before the first epoch and after each."""
    return torch.from_numpy(np.load(io.BytesIO(expert.bytes(TRAJECTORY)), allow_pickle=False))


def train(
    job: "Job",
    index: Index,
    network: Network,
    options: Experts,
    leave_out: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Trained:
    """Train the experts, or find them done.

    Args:
        leave_out: images that cannot be decoded, instead of failing.

    Raises:
        ValueError: images that cannot be decoded or are too small for the network.
        FloatingPointError: an expert diverged.
    """
    side = network.side(index)
    recipe, transform = options.recipe(network.blocks(side), network.width), network.transform(side)
    config = asdict(recipe) | {
        "image_size": side, "seed": options.expert_seed, "leave_out": leave_out, "threads": job.compute.threads,
        "device": job.device,
    }  # fmt: skip
    inputs = {"index": index.manifest.content}
    each = [Stage(job.store, "expert", VERSION, inputs, config | {"expert": n}) for n in range(options.experts)]
    stage = Stage(
        job.store, "experts", VERSION, {f"{n:05d}": expert.digest for n, expert in enumerate(each)}, config
    )  # fmt: skip
    live: list[Run] = []

    def work(stage: Stage) -> tuple[list[Part], dict]:
        live.append(job.child(stage.name, stage.digest, stage.config))
        missing = [(n, e) for n, e in enumerate(each) if not {TRAJECTORY, CURVE} <= e.committed().keys()]
        progress = Progress("experts", len(missing), "experts")

        def on_done(number: int) -> None:
            _log(live[0], number, _finish(each[number]))
            progress.add()

        if missing:
            check_memory(
                2 * index.images * 3 * side**2,
                f"twice {index.images:,} images of {side} pixels",
                "give a smaller --image-size",
            )
            decoders = max(job.compute.threads, job.decoders)
            plan = Plan(index, transform, recipe, options.expert_seed, job.device, job.compute.threads, decoders, leave_out,
                        checkpoint_seconds)  # fmt: skip
            size = pool_size(job.cluster, job.compute, job.device, len(missing))
            map_actors(Trainer, (plan,), missing, size, job.compute, job.device, on_done)
        rows = [{"expert": n} | _finish(expert).summary for n, expert in enumerate(each)]
        part = stage.commit_table("experts", pa.Table.from_pylist(rows))
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("loss", "top1")}
        return [part], {"experts": len(each), "epochs": recipe.epochs, **means}

    def log(run: "Run", _: Manifest) -> None:
        for number, expert in enumerate(each):
            _log(live[0] if live else run, number, expert.manifest())

    manifest = job.stage(stage, work, "experts", log)
    if any(expert.manifest() is None for expert in each):  # removed since: a trajectory takes much room
        work(stage)
    return Trained(manifest, tuple(expert.manifest() for expert in each))


def _finish(stage: Stage) -> Manifest:
    """The manifest of an expert whose parts are committed."""
    parts = stage.committed()
    curve, found = parts[CURVE], stage.manifest()
    if found is not None:
        return found
    table = Manifest(stage, (curve,), {}, "").table(CURVE)
    summary = {"loss": table["loss"].to_pylist()[-1], "top1": float(table.schema.metadata[b"top1"])}
    return stage.finish([parts[TRAJECTORY], curve], summary)


def _log(run: "Run", number: int, expert: Manifest) -> None:
    curve = expert.table(CURVE).to_pylist()
    run.metric_series((row["epoch"], {f"loss/expert_{number:03d}": row["loss"]}) for row in curve)
    run.metric_series([(number, {"expert_top1": expert.summary["top1"]})])


def run(network: Network, options: Experts, data: Data, compute: Compute, place: Place) -> Trained:
    """The command: ingest, train the experts, say what came out."""
    from ray_jobs import ingest
    from ray_jobs.job import opened

    shards = locate(data.data)
    identity = ["experts", shards.root, shards.shards, asdict(data), asdict(network), asdict(options)]
    with opened(place, compute, f"{options.experts} experts", identity) as job:
        job.run.params({name: value for part in (network, options) for name, value in asdict(part).items()})
        found = train(job, ingest.run(job, data), network, options, data.skip_corrupt)
        summary, size = found.manifest.summary, sum(e.part(TRAJECTORY).bytes for e in found.each)
        job.run.metrics({name: summary[name] for name in ("loss", "top1")})
        job.report(
            f"{summary['experts']} experts of {summary['epochs']} epochs, {size / 1e6:.1f} MB: loss {summary['loss']:.3f}, "
            f"{summary['top1']:.1%} of their training images"
        )
    return found
