"""evaluate: networks trained on data sets and tested on held-out images, with Ray Train; last-epoch top-1.

A (set, architecture, seed) is one training: a stage of its own, known by its data and configuration, so another table that
needs it finds it done. All trainings of a call share one worker group, which all trains one after the other.
"""

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace

import pyarrow as pa

from adq.extractor import input_transform
from adq.training import Recipe, default_recipe
from ray_jobs import ingest
from ray_jobs.accuracy import accuracies, as_text
from ray_jobs.classifier import Classifier, Note, input_side
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.loading import MEMORY_GB, how_to_hold, order_kind
from ray_jobs.mlflow_run import Run
from ray_jobs.options import Compute, Data, Place, option
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import canonical_json, sha256
from ray_jobs.trainings import PART, Plan, Training, facts_of, train_and_test
from ray_jobs.workers import CHECKPOINT_SECONDS, Group, run_group

VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """How training sets are compared."""

    arch: str | None = option(
        None, "Networks by name. [default: resnet18 on GPUs, convnet-d3 on CPUs]", metavar="NAME,NAME"
    )
    seeds: int = option(3, "Trainings of each network on each set, with seeds 0, 1, ...")
    epochs: int | None = option(None, "Epochs of a training. [default: 200; 90 from 96 px]")
    steps: int | None = option(None, "Optimizer steps of a training, instead of --epochs: a fixed cost for any set.")
    train_batch: int = option(0, "Images a step, of all workers together; 0: what the network's recipe says.")
    lr: float = option(0.0, "Learning rate; 0: what the network's recipe says.")
    image_size: int = option(
        0, "Side in pixels at which networks see the images; 0: the test images' own below 96, else 224."
    )
    width: int = option(128, "Channels of a ConvNet whose name gives none.")
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

    def archs(self, device: str) -> list[str]:
        given = self.arch or ("resnet18" if device == "cuda" else "convnet-d3")
        return list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))

    def recipe(self, arch: str, side: int) -> Recipe:
        recipe = default_recipe(arch, side, self.epochs, self.steps)
        recipe = replace(recipe, batch_size=self.train_batch) if self.train_batch else recipe
        return replace(recipe, lr=self.lr) if self.lr else recipe


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
        set, arch, seed, images, bytes (of the image files), top1, train_loss; a row a training.

    Raises:
        ValueError: classes that differ, images that cannot be decoded, workers that the cluster cannot hold.
        FloatingPointError: a training diverged.
    """
    for name, index in sets.items():
        _check_classes(name, index, test)
    plan = _plan(job, sets, test, options)
    stage = Stage(
        job.store, "evaluate", VERSION,
        inputs={training.name: training.stage.digest for training in plan.trainings},
        config={f.name: getattr(options, f.name) for f in fields(options) if f.name != "memory"} | {"device": job.device},
    )  # fmt: skip
    recorder = _Recorder(job, plan)

    def work(stage: Stage) -> tuple[list[Part], dict]:
        pending = {t.stage.digest: t for t in plan.trainings if PART not in t.stage.committed()}
        group = Group(options.workers, job.compute.threads, job.device, stage, checkpoint_seconds)
        if pending:
            group.check()
            with recorder.live(list(pending.values())):
                run_group(group, train_and_test, replace(plan, trainings=tuple(pending.values())), recorder.on_note)
        group.clean()
        rows = [_finish(training) for training in plan.trainings]
        part = stage.commit_table("accuracy", pa.Table.from_pylist(rows))
        return [part], {"trainings": len(rows), "test_images": test.images}

    def log(_: Run, __: Manifest) -> None:
        for training in plan.trainings:
            recorder.record(training)

    return job.stage(stage, work, "trainings", log).table("accuracy")


def _check_classes(name: str, index: Index, test: Index) -> None:
    if index.classes != test.classes:
        differ = [c for c in (*index.classes, *test.classes) if (c in index.classes) != (c in test.classes)]
        raise ValueError(
            f"the classes of {index.data.root} ({len(index.classes)}) are not those of {test.data.root} ({len(test.classes)}), "
            f"in this order; {'they differ in ' + ', '.join(differ[:5]) if differ else 'the order differs'}; see --classes"
        )
    counts = index.manifest.summary["class_counts"]
    if missing := [c for c, count in zip(index.classes, counts, strict=True) if not count]:
        print(f"warning: {name} has no images of {', '.join(missing[:5])}; they cannot be learnt from it", flush=True)


def _plan(job: Job, sets: Mapping[str, Index], test: Index, options: Evaluation) -> Plan:
    side = options.image_size or input_side(test.side)
    trainings, test_how = [], {}
    for name, index in sets.items():
        for arch in options.archs(job.device):
            transform, recipe = input_transform(arch, side), options.recipe(arch, side)
            how, test_how[side] = (
                how_to_hold(index, transform, options.memory),
                how_to_hold(test, transform, options.memory),
            )
            for seed in range(options.seeds):
                classifier = Classifier(arch, len(test.classes), options.width, transform, recipe, seed)
                config = classifier.config() | {
                    "order": order_kind(how), "test_order": order_kind(test_how[side]), "workers": options.workers,
                    "threads": job.compute.threads, "device": job.device,
                }  # fmt: skip
                inputs = {"train": index.manifest.content, "test": test.manifest.content}
                stage = Stage(job.store, "training", VERSION, inputs, config)
                trainings.append(Training(name, replace(index), classifier, how, stage))
    return Plan(tuple(trainings), replace(test), test_how)


def _finish(training: Training) -> dict:
    facts = facts_of(training)
    if training.stage.manifest() is None:
        training.stage.finish(
            [training.stage.committed()[PART]], {"top1": facts["top1"], "train_loss": facts["losses"][-1]}
        )
    return {
        "set": training.set, "arch": training.classifier.arch, "seed": training.classifier.seed,
        "images": training.index.images, "bytes": training.index.image_bytes, "top1": facts["top1"],
        "train_loss": facts["losses"][-1],
    }  # fmt: skip


class _Recorder:
    """MLflow and the progress line, both in the driver: what the workers tell, and what they committed."""

    def __init__(self, job: Job, plan: Plan):
        self.job, self.plan = job, plan
        self.runs: dict[str, Run] = {}
        self.recorded: set[str] = set()
        self.stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def live(self, pending: list[Training]) -> Iterator[None]:
        """While a group works; a training that is under way when it fails is marked as failed."""
        self.progress = Progress("evaluate", sum(training.images for training in pending))
        self.left = len(pending)
        with self.stack:
            yield

    def on_note(self, note: Note) -> None:
        for training in [t for t in self.plan.trainings if t.stage.digest == note.identity]:
            if training.name not in self.runs and training.name not in self.recorded:
                self.runs[training.name] = self.stack.enter_context(self._child(training))
            if note.top1 is not None:
                self.record(training)
            elif training.name in self.runs:
                losses = enumerate(note.losses, 1)
                self.runs[training.name].metric_series((epoch, {"train_loss": loss}) for epoch, loss in losses)
        self.left -= note.top1 is not None
        shown = f"{training.name}, " + (f"top-1 {note.top1:.1%}, " if note.top1 is not None else "")
        self.progress.add(note.images, f"{shown}{self.left} of {len(self.plan.trainings)} trainings left")

    def record(self, training: Training) -> None:
        """Log a training that is committed, once."""
        if training.name in self.recorded:
            return
        self.recorded.add(training.name)
        facts, index, test = facts_of(training), training.index, self.plan.test
        run = self.runs.pop(training.name, None) or self._child(training)
        run.metric_series((epoch, {"train_loss": loss}) for epoch, loss in enumerate(facts["losses"], 1))
        run.metrics({"top1": facts["top1"], "images": index.images, "bytes": index.image_bytes})
        run.dataset(training.set, index.data.root, index.manifest.content, "train", index.images)
        run.dataset("test", test.data.root, test.manifest.content, "test", test.images)
        run.finish()

    def _child(self, training: Training) -> Run:
        classifier = training.classifier
        recipe = {f.name: getattr(classifier.recipe, f.name) for f in fields(classifier.recipe)}
        params = {"set": training.set, "arch": classifier.arch, "seed": classifier.seed, **recipe}
        params |= {name: training.stage.config[name] for name in ("workers", "threads", "device", "order")}
        digest = sha256(canonical_json([training.set, training.stage.digest]))
        return self.job.child(training.name, digest, params | {"image_size": classifier.transform.crop})


def run(
    train: tuple[str, ...], test: tuple[str, ...], options: Evaluation, data: Data, compute: Compute, place: Place
) -> None:
    """The command: ingest both sets, train, test, and print the table.

    Args:
        data: how both sets are read; its own shards are not used.
    """
    identity = ["evaluate", train, test, asdict(options), asdict(data)]
    with opened(place, compute, "evaluate", identity) as job:
        given = {"train": train, "test": test}
        sets = {name: ingest.run(job, replace(data, data=shards), False, name) for name, shards in given.items()}
        name = posixpath.basename(sets["train"].data.root) or "train"
        table = evaluate(job, {name: sets["train"]}, sets["test"], options)
        print(f"\n{as_text(accuracies(table))}\n\n{job.where_to_look()}")
