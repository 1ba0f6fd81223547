"""What becomes of trainings while they run and when they are done: a line on the terminal, runs in MLflow."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields

from ray_jobs.classifier import Note
from ray_jobs.job import Job
from ray_jobs.mlflow_run import Run
from ray_jobs.progress import Progress
from ray_jobs.store import canonical_json, sha256
from ray_jobs.trainings import Plan, Training, facts_of


class Recorder:
    """MLflow and the progress line, both in the driver: what the workers tell, and what they committed.

    Args:
        parents: by the name of a training, the MLflow run under which it goes; without it, the job's.
    """

    def __init__(self, job: Job, plan: Plan, parents: Mapping[str, Run] | None = None):
        self.job, self.plan, self.parents = job, plan, parents or {}
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
        run.metrics({
            "top1": facts["top1"], "images": training.count, "bytes": training.payload, "tar_bytes": training.tars,
        })  # fmt: skip
        content = index.manifest.content if training.rows is None else training.rows.digest
        run.dataset(training.set, index.data.root, content, "train", training.count)
        run.dataset("test", test.data.root, test.manifest.content, "test", test.images)
        run.finish()

    def _child(self, training: Training) -> Run:
        classifier = training.classifier
        recipe = {f.name: getattr(classifier.recipe, f.name) for f in fields(classifier.recipe)}
        params = {"set": training.set, "arch": classifier.arch, "seed": classifier.seed, **recipe}
        params |= {name: training.stage.config[name] for name in ("workers", "threads", "device", "order")}
        digest = sha256(canonical_json([training.set, training.stage.digest]))
        parent = self.parents.get(training.name, self.job.run)
        params |= {"image_size": classifier.transform.crop, "labels": "soft" if training.soft else "hard"}
        return self.job.tracker.run(training.name, digest, parent=parent.id, params=params)
