"""distill: a data set as a few synthetic images a class in few colours: ingest, start, experts (tm), distill, write.

The two stages that Ray Train runs are in `distilling`, what is written is in `distilled`.
"""

import math
import posixpath
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from adq.shards import absolute, locate
from palette.codec import LARGEST_SIDE
from palette.initialize import STARTS, WITH_EMBEDDINGS
from palette.losses import LossWeights
from palette.network import MODES
from palette.objectives import AHEAD
from palette.recipe import Distillation, Trajectories
from ray_jobs import distilled, distilled_budget, distilling, ingest, write
from ray_jobs.classifier import input_side
from ray_jobs.cluster import probe
from ray_jobs.distilling import Share
from ray_jobs.experts import Experts, Network, train
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.options import Compute, Data, Place, option
from ray_jobs.stages import Manifest, Stage
from ray_jobs.workers import CHECKPOINT_SECONDS, Group

IMAGES_PER_CLASS = 10


@dataclass(frozen=True)
class Distilling:
    """What is distilled, and how."""

    matching: str = option("dm", "dm: distributions of embeddings; tm: trajectories of experts.", ("dm", "tm"))
    images_per_class: int | None = option(None, "Synthetic images a class. [default: 10]")
    bytes_per_class: int = option(
        0, "Bytes of the container a class, instead of --images-per-class: as many images as fit; 0: not used."
    )
    colors: int = option(0, "Colours of an image; 0: 32 below 64 px, else 64.")
    mode: str = option(
        "direct", "Palettes: a network's, direct, soft (the paper's form), means of buckets, or none.", MODES
    )
    start: str = option("graphcut", "Real images chosen by GraphCut, at random or next to k-means; or noise.", STARTS)
    lam: str = option(
        "balanced", "Lambda of GraphCut: a number (the paper's is 1), or balanced: 2 k / n for k of n images."
    )
    steps: int = option(20_000, "Steps of the distillation.")
    image_lr: float | None = option(
        None, "Learning rate of the images. [default: dm 1, 10 from 50 images a class; tm 1000]"
    )
    batch_real: int = option(256, "Real images a class and step, for dm.")
    start_epochs: int = option(5, "Epochs of the network whose embeddings serve the starts graphcut and kmeans.")
    warmup_epochs: int = option(0, "Epochs of the palette network on real images, before the first step.")
    palette_lr: float = option(0.05, "Learning rate of the palette network.")
    palette_task_weight: float = option(1.0, "Weight of the matching loss on the palette network.")
    maximum_color: float = option(1.0, "Weight of the maximum colour loss.")
    palette_balance: float | None = option(None, "Weight of the palette balance loss. [default: log K]")
    color_assignment: float = option(3.0, "Weight of the colour assignment loss.")
    student_steps: int = option(80, "Steps of the student, for tm.")
    student_batch: int = option(0, "Synthetic images a step of the student; 0: all.")
    first_start: int = option(0, "Largest start epoch at the first step, for tm.")
    last_start: int = option(15, "Largest start epoch from the middle of the run.")
    step_size: float = option(0.01, "The student's step size at the start: it is learned.")
    step_size_lr: float = option(1e-7, "Learning rate of the step size.")
    threshold: float = option(1.2, "Steps whose loss is larger change nothing.")
    soft_labels: bool = option(False, "Learn a logit for each class of each image, for tm.")
    label_lr: float = option(3.0, "Learning rate of the soft labels.")
    compile: bool = option(False, "torch.compile for the network of dm: a minute at the start, then faster steps.")
    seed: int = option(0, "Seed of the distillation.")
    workers: int = option(1, "Ray Train workers, each with a GPU on cuda; classes are shared out over them (dm).")

    def __post_init__(self):
        if self.images_per_class is not None and self.bytes_per_class:
            raise ValueError("--images-per-class and --bytes-per-class: give one of them")
        if self.bytes_per_class < 0:
            raise ValueError(f"--bytes-per-class {self.bytes_per_class}: expected 0 (not used) or more")
        if self.bytes_per_class and self.mode == "none":
            raise ValueError(
                "--bytes-per-class counts palettes and indices, of which --mode none has none; give --images-per-class"
            )
        if self.start_epochs < 1 or self.workers < 1:
            raise ValueError(f"--start-epochs {self.start_epochs}, --workers {self.workers}: expected 1 or more")
        if self.matching == "tm" and self.workers > 1:
            raise ValueError(
                f"--workers {self.workers} with --matching tm: a student learns from all classes together; use --workers 1"
            )
        if self.matching == "dm" and self.soft_labels:
            raise ValueError("--soft-labels are learned with --matching tm alone")
        self.recipe(IMAGES_PER_CLASS if self.images_per_class is None else self.images_per_class, 32)

    @property
    def graphcut_weight(self) -> float | str:
        """Lambda of GraphCut."""
        try:
            value = self.lam if self.lam == "balanced" else float(self.lam)
        except ValueError:
            value = math.nan
        if value != "balanced" and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--lam {self.lam}: expected balanced, or a number of at least 0")
        return value

    def colors_at(self, side: int) -> int:
        return self.colors or (32 if side < 64 else 64)

    def recipe(self, images_per_class: int, side: int, depth: int = 3, width: int = 128) -> Distillation:
        """What `palette.distill` takes. Raises ValueError for what it does not."""
        return Distillation(
            images_per_class=images_per_class, colors=self.colors_at(side), matching=self.matching, mode=self.mode,
            start=self.start, lam=self.graphcut_weight, steps=self.steps, image_lr=self.image_lr, batch_real=self.batch_real,
            depth=depth, width=width, compiled=self.compile, seed=self.seed, palette_lr=self.palette_lr,
            palette_task_weight=self.palette_task_weight, warmup_epochs=self.warmup_epochs,
            weights=LossWeights(self.maximum_color, self.palette_balance, self.color_assignment),
            trajectories=Trajectories(
                self.student_steps, self.student_batch or None, self.first_start, self.last_start, self.step_size,
                self.step_size_lr, self.threshold, self.soft_labels, self.label_lr,
            ),
        )  # fmt: skip

    def resolved(self, network: Network, index: Index, leave_out: bool = False) -> Distillation:
        """The recipe for a data set. Raises ValueError for what its classes or its images do not allow."""
        side, classes = network.side(index), index.classes
        depth = network.blocks(side)
        if self.mode != "none" and side > LARGEST_SIDE:
            raise ValueError(f"--image-size: {side} pixels; the container holds images of up to {LARGEST_SIDE}")
        if self.workers > len(classes):
            raise ValueError(f"--workers {self.workers}: each needs a class, there are {len(classes)}")
        count = IMAGES_PER_CLASS if self.images_per_class is None else self.images_per_class
        if self.bytes_per_class:
            budget, colors, soft = self.bytes_per_class, self.colors_at(side), self.soft_labels
            if self.start == "noise":  # of which nothing is known
                count = distilled_budget.surely(budget, side, colors, classes, soft)
            else:
                count = distilled_budget.probably(budget, index, network.transform(side), colors, soft, leave_out)
        recipe = self.recipe(count, side, depth, network.width)
        counts = index.manifest.summary["class_counts"]
        fewest = min(range(len(classes)), key=counts.__getitem__)
        if self.start != "noise" and counts[fewest] < count:
            raise ValueError(
                f"class {classes[fewest]} has {counts[fewest]} images, {count} synthetic ones cannot start from them; use "
                "--start noise, or fewer images a class"
            )
        return recipe


@dataclass(frozen=True)
class Wanted:
    """Everything that a command asks for."""

    options: Distilling
    network: Network
    experts: Experts
    data: Data
    out: str

    def __post_init__(self):
        needed = self.options.last_start + AHEAD
        if self.options.matching == "tm" and self.experts.expert_epochs < needed:
            raise ValueError(
                f"--expert-epochs {self.experts.expert_epochs}: a largest start epoch of {self.options.last_start} "
                f"(--last-start) needs experts of at least {needed} epochs"
            )

    def identity(self) -> dict:
        """What makes this another pipeline."""
        root = locate(self.data.data)
        parts = {name: asdict(getattr(self, name)) for name in ("options", "network", "experts", "data")}
        return {"root": root.root, "shards": root.shards, "out": absolute(self.out)} | parts


def stages(job: Job, wanted: Wanted, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> Mapping[str, Manifest]:
    """Ingest, start, experts, distill, write; what is finished is not run again.

    Returns:
        The manifests by stage: ingest, start and experts where they are needed, distill, distilled.
    """
    options, out, leave_out = wanted.options, absolute(wanted.out), wanted.data.skip_corrupt
    write.check(out)
    probe(job.cluster, [out])
    index = ingest.run(job, wanted.data)
    recipe = options.resolved(wanted.network, index, leave_out)
    Group(options.workers, job.compute.threads, job.device, index.manifest.stage).check()
    done, trained = {"ingest": index.manifest}, ()
    if recipe.start in WITH_EMBEDDINGS:
        done["start"] = distilling.start(job, index, wanted.network, recipe, options.start_epochs, leave_out)
    if recipe.matching == "tm":
        found = train(job, index, wanted.network, wanted.experts, leave_out)
        done["experts"], trained = found.manifest, found.each
    side = wanted.network.side(index)
    transform = wanted.network.transform(side)
    stage = Stage(
        job.store, "distill", distilling.VERSION, {name: manifest.content for name, manifest in done.items()},
        asdict(recipe) | {
            "image_size": side, "workers": options.workers, "threads": job.compute.threads, "device": job.device,
            "leave_out": leave_out,
        },
    )  # fmt: skip
    distilled.check_owner(out, stage)
    share = Share(stage, index, transform, recipe, leave_out, done.get("start"), trained)
    done["distill"] = distilling.distil(job, share, options.workers, checkpoint_seconds)
    budget = options.bytes_per_class * len(index.classes)
    done["distilled"] = distilled.run(job, index, done["distill"], transform, out, budget)
    return done


def run(wanted: Wanted, compute: Compute, place: Place) -> Mapping[str, Manifest]:
    """The command: connect, distil, say what came out."""
    options = wanted.options
    name = f"distill {options.matching} {options.mode}"
    with opened(place, compute, name, ["distill", wanted.identity()]) as job:
        given = asdict(wanted.data) | asdict(wanted.network) | asdict(wanted.experts) | asdict(options)
        job.run.params({k: v for k, v in given.items() if v is not None})
        done = stages(job, wanted)
        _report(job, done, wanted, place)
    return done


def _report(job: Job, done: Mapping[str, Manifest], wanted: Wanted, place: Place) -> None:
    s, out, side = done["distilled"].summary, absolute(wanted.out), done["distill"].stage.config["image_size"]
    job.run.metrics(s)
    job.run.dataset("distilled", out, done["distilled"].content, "subset", s["images"])
    containers = [posixpath.basename(part.path) for part in done["distilled"].parts if part.path.endswith(".tessera")]
    size = [] if side == input_side(side) else ["--image-size", str(side)]
    store = [] if place.store == Place.store else ["--store", place.store]
    command = shlex.join(["python", "-m", "ray_jobs", "evaluate", "--train", out, *size, *store])
    if s["images"] < s["distilled_images"]:
        print(f"left out: the last {s['distilled_images'] - s['images']:,} images, which the bytes do not hold")
    job.report(
        f"{s['images']:,} images, {s['images_per_class']} a class, {s['payload_bytes']:,} bytes payload "
        f"({s['bytes_per_image']:,.0f} an image), {s['tar_bytes'] / 1e6:.2f} MB as tars\n"
        f"shards     {out}\n"
        + (f"container  {posixpath.join(out, containers[0])}\n" if containers else "")
        + f"evaluate   {command} --test SHARDS"
    )
