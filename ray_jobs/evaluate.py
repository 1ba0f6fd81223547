"""evaluate: networks trained on data sets and tested on held-out images, with Ray Train; last-epoch top-1.

A (set, architecture, seed) is one training: a stage of its own, known by its data and configuration, so another table that
needs it finds it done. All trainings of a call share one worker group, which all trains one after the other.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace

import pyarrow as pa

from adq.extractor import InputTransform, input_transform
from adq.training import Recipe, default_recipe
from palette.export import SOFT
from ray_jobs import ingest, recipe_files
from ray_jobs.accuracy import accuracies, as_text
from ray_jobs.classifier import Classifier, input_side
from ray_jobs.held_out import check_decodable, check_test
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.loading import MEMORY_GB, Rows, how_to_hold, order_kind, some_rows
from ray_jobs.mlflow_run import Run
from ray_jobs.options import Compute, Data, Place, option
from ray_jobs.payload import payload_bytes, tar_bytes
from ray_jobs.recorder import Recorder
from ray_jobs.shard_reader import has_soft_labels
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.trainings import PART, Plan, Training, facts_of, train_and_test
from ray_jobs.workers import CHECKPOINT_SECONDS, Group, run_group

VERSION = 1  # of a training
TABLE = 5  # of the table
LABELS = ("hard", "soft", "both")


@dataclass(frozen=True)
class Evaluation:
    """How training sets are compared."""

    arch: str | None = option(
        None, "Networks by name. [default: resnet18 on GPUs, convnet-d3 on CPUs]", metavar="NAME,NAME"
    )
    seeds: int = option(3, "Trainings of each network on each set, with seeds 0, 1, ...")
    epochs: int | None = option(
        None, "Epochs of a training. [default: the recipe's; without --recipe 200, and 90 from 96 px]"
    )
    steps: int | None = option(None, "Optimizer steps of a training, instead of --epochs: a fixed cost for any set.")
    train_batch: int = option(0, "Images a step, of all workers together; 0: what the network's recipe says.")
    lr: float = option(0.0, "Learning rate; 0: what the network's recipe says.")
    recipe: str | None = option(
        None,
        f"Training settings: a TOML file, or the name of one that comes along ({', '.join(recipe_files.names())}); the options "
        "above win over it. [default: the network's own]",
        metavar="NAME|FILE",
    )
    image_size: int = option(
        0, "Side in pixels at which networks see the images; 0: the test images' own below 96, else 224."
    )
    width: int = option(128, "Channels of a ConvNet whose name gives none.")
    compile: bool = option(
        False,
        "torch.compile for the networks: seconds at the start of a worker, then faster steps; needs a C++ compiler there.",
    )
    bfloat16: bool = option(False, "Train in bfloat16 on CPUs, too: faster on those that have instructions for it.")
    labels: str = option(
        "hard",
        f"What is trained on: hard labels, soft ones (logits, a .{SOFT} member of each sample), or both, a row each. Tests count "
        "hard ones.",
        LABELS,
    )
    workers: int = option(1, "Ray Train workers, each with a GPU on cuda; they share every training.")
    memory: float = option(MEMORY_GB, "Gigabytes of images that a worker holds; larger sets stream from their shards.")

    def __post_init__(self):
        if self.epochs is not None and self.steps is not None:
            raise ValueError("--epochs and --steps: give one of them")
        for name in ("seeds", "width", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected 1 or more")
        for name in ("train_batch", "lr", "image_size", "memory"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 or more")
        if self.labels not in LABELS:
            raise ValueError(f"--labels {self.labels}: expected one of {', '.join(LABELS)}")
        if self.recipe is not None:
            recipe_files.read(self.recipe)

    def archs(self, device: str) -> list[str]:
        given = self.arch or ("resnet18" if device == "cuda" else "convnet-d3")
        if not (names := list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))):
            raise ValueError(f"--arch {self.arch}: expected at least one network")
        return names

    def recipe_for(self, arch: str, side: int) -> Recipe:
        """What --recipe says of a network, or its own recipe at this image side; other options win over both."""
        if self.recipe is None:
            recipe = default_recipe(arch, side, self.epochs, self.steps)
        else:
            recipe = recipe_files.read(self.recipe).recipe(arch)
            if (self.epochs, self.steps) != (None, None):
                recipe = replace(recipe, epochs=self.epochs, steps=self.steps)
        recipe = replace(recipe, batch_size=self.train_batch) if self.train_batch else recipe
        recipe = replace(
            recipe, compile=recipe.compile or self.compile, bfloat16=recipe.bfloat16 or self.bfloat16
        )  # fmt: skip
        return replace(recipe, lr=self.lr, lr_batch=0) if self.lr else recipe


def evaluate(
    job: Job,
    sets: Mapping[str, Index],
    test: Index,
    options: Evaluation,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> pa.Table:
    """Train every network on every set, or find it done.

    Args:
        sets: training sets by name.
        test: held-out images.

    Returns:
        set, arch, seed, images, bytes (payload: of the container of the images and the labels that are trained on), tar_bytes,
        top1, train_loss; a row a training. Where a set is trained on both kinds of labels, its name says which.

    Raises:
        ValueError: classes that differ, images that cannot be decoded, soft labels that are asked for and missing or none,
            workers that the cluster cannot hold.
        FloatingPointError: a training diverged.
    """
    for name, index in sets.items():
        check_test(name, index, test, warn=options.labels != "soft")
    check_decodable(job, test, options)
    every = [Wanted(name, index, range(options.seeds)) for name, index in sets.items()]
    plan = planned(job, [one for each in every for one in labelled(each, options.labels)], test, options)
    names = [f.name for f in fields(options) if f.name not in ("memory", "labels")]  # the trainings say which labels
    stage = Stage(
        job.store, "evaluate", TABLE,
        inputs={training.name: training.stage.digest for training in plan.trainings},
        config={name: getattr(options, name) for name in names} | {"device": job.device},
    )  # fmt: skip
    recorder = Recorder(job, plan)

    def work(stage: Stage) -> tuple[list[Part], dict]:
        pending = {t.stage.digest: t for t in plan.trainings if PART not in t.stage.committed()}
        group = Group(options.workers, job.compute.threads, job.device, stage, checkpoint_seconds)
        if pending:
            group.check()
            with recorder.live(list(pending.values())):
                run_group(group, train_and_test, replace(plan, trainings=tuple(pending.values())), recorder.on_note)
        group.clean()
        rows = [finish(training) for training in plan.trainings]
        part = stage.commit_table("accuracy", pa.Table.from_pylist(rows))
        return [part], {"trainings": len(rows), "test_images": test.images}

    def log(_: Run, __: Manifest) -> None:
        for training in plan.trainings:
            recorder.record(training)

    return job.stage(stage, work, "trainings", log).table("accuracy")


@dataclass(frozen=True)
class Wanted:
    """A set to train on, and the seeds of its trainings."""

    name: str
    index: Index
    seeds: Iterable[int]
    rows: Rows | None = None  # all
    soft: bool = False  # trained on soft labels


def labelled(wanted: Wanted, labels: str) -> list[Wanted]:
    """A set with the labels of `Evaluation.labels`: with both, twice where it has soft ones, else with hard ones alone.

    Raises:
        ValueError: soft labels are asked for and there are none; an image without one beside others; no logits. Names the key.
    """
    if labels == "hard":
        return [wanted]
    if has_soft_labels(wanted.index):
        soft = replace(wanted, soft=True)
        both = [replace(one, name=f"{one.name}, {kind} labels") for one, kind in ((wanted, "hard"), (soft, "soft"))]
        return [soft] if labels == "soft" else both
    if labels == "soft":
        raise ValueError(
            f"--labels soft: {wanted.index.data.root} has none: no sample has a .{SOFT} member (distill --matching tm "
            "--soft-labels writes them); use --labels hard, or both"
        )
    return [wanted]


def planned(job: Job, wanted: Iterable[Wanted], test: Index, options: Evaluation) -> Plan:
    """The trainings of each set, network and seed; no shard is read yet."""
    side = options.image_size or input_side(test.side)
    trainings, test_how = [], {}
    for one in wanted:
        positions = one.rows.positions if one.rows else None
        payload, tars = payload_bytes(one.index, positions, one.soft), tar_bytes(one.index, positions)
        for arch in options.archs(job.device):
            transform, recipe = input_transform(arch, side), options.recipe_for(arch, side)
            how, rows = held(one, transform, options.memory, recipe.augment)
            test_how[side] = how_to_hold(test, transform, options.memory)
            for seed in one.seeds:
                classifier = Classifier(arch, len(test.classes), options.width, transform, recipe, seed)
                config = classifier.config() | {
                    "order": order_kind(how), "test_order": order_kind(test_how[side]), "workers": options.workers,
                    "threads": job.compute.threads, "device": job.device,
                } | ({"labels": "soft"} if one.soft else {})  # fmt: skip
                inputs = {"train": one.index.manifest.content, "test": test.manifest.content}
                inputs |= {"rows": rows.digest} if rows else {}
                stage = Stage(job.store, "training", VERSION, inputs, config)
                found = Training(one.name, replace(one.index), classifier, how, stage, rows, one.soft, payload, tars)
                trainings.append(found)
    return Plan(tuple(trainings), replace(test), test_how)


def check_parts(job: Job, index: Index, parts: Mapping[str, float], options: Evaluation, side: int) -> None:
    """What can be known of trainings on parts of a set before these are chosen.

    Args:
        parts: their shares of the images, by their names.

    Raises:
        ValueError: one would not fit into `options.memory`; the cluster cannot hold the workers; a network is unknown, or cannot
            take images of this side.
    """
    if options.workers > 1:
        Group(options.workers, job.compute.threads, job.device, index.manifest.stage).check()
    for arch in options.archs(job.device):
        transform, recipe = input_transform(arch, side), options.recipe_for(arch, side)
        Classifier(arch, len(index.classes), options.width, transform, recipe, 0).build()
        for name, share in parts.items():
            rows = some_rows(index, round(share * index.images))
            held(Wanted(name, index, (), rows), transform, options.memory, recipe.augment)


def held(wanted: Wanted, transform: InputTransform, memory: float, augment: str) -> tuple[str, Rows | None]:
    """How a worker holds a set; a part of one is read by itself where the whole would not fit."""
    soft_classes = len(wanted.index.classes) if wanted.soft else 0
    how = how_to_hold(wanted.index, transform, memory, soft_classes, augment)
    if wanted.rows is None or how != "streamed":
        return how, wanted.rows
    if wanted.rows.images == wanted.index.images:
        return how, None
    how = how_to_hold(wanted.rows, transform, memory, soft_classes, augment)
    if how == "streamed":
        raise ValueError(
            f"{wanted.name}: {wanted.rows.images:,} images, {wanted.rows.image_bytes / 1e9:.1f} GB, do not fit into --memory "
            f"{memory:g}: raise it, or write the selection as shards (compress --out) and give these to evaluate"
        )
    return how, replace(wanted.rows, alone=True)


def finish(training: Training) -> dict:
    """Write the manifest of a training whose result is committed; its row of the table."""
    facts = facts_of(training)
    if training.stage.manifest() is None:
        training.forget()  # of a command that ended between a commit and this, or before others trained it
        training.stage.finish(
            [training.stage.committed()[PART]], {"top1": facts["top1"], "train_loss": facts["losses"][-1]}
        )
    return {
        "set": training.set, "arch": training.classifier.arch, "seed": training.classifier.seed,
        "images": training.count, "bytes": training.payload, "tar_bytes": training.tars,
        "top1": facts["top1"], "train_loss": facts["losses"][-1],
    }  # fmt: skip


def run(
    train: tuple[str, ...], test: tuple[str, ...], options: Evaluation, data: Data, compute: Compute, place: Place
) -> None:
    """The command: ingest both sets, train, test, and print the table.

    Args:
        data: how both sets are read; its own shards are not used.
    """
    identity = ["evaluate", train, test, asdict(options), asdict(data)]
    with opened(place, compute, "evaluate", identity) as job:
        job.run.params({"train": " ".join(train), "test": " ".join(test)} | asdict(options))
        given = {"train": train, "test": test}
        sets = {name: ingest.run(job, replace(data, data=shards), False, name) for name, shards in given.items()}
        name = posixpath.basename(sets["train"].data.root) or "train"
        table = evaluate(job, {name: sets["train"]}, sets["test"], options)
        job.report(f"{as_text(accuracies(table))}\n")
