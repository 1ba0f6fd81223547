"""The trainings of an evaluation, and what the workers do with them: train, test, commit, one after the other."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from adq.training import Recipe, images_seen, steps_per_epoch
from ray_jobs.classifier import Classifier, Note, count_correct, fit
from ray_jobs.ingest import Index
from ray_jobs.loading import Held, Rows, open_set
from ray_jobs.stages import Stage
from ray_jobs.store import canonical_json, parquet_table
from ray_jobs.streaming import Streamed

if TYPE_CHECKING:  # it loads Ray Train, which not every worker needs
    from ray_jobs.workers import Member

PART = "correct"


@dataclass(frozen=True)
class Training:
    """One network trained on one set with one seed; its stage holds whether each test image was classified correctly."""

    set: str
    index: Index
    classifier: Classifier
    how: str
    stage: Stage
    rows: Rows | None = None  # all
    soft: bool = False  # trained on soft labels
    payload: int = 0  # bytes of the container of its images and the labels that are trained on
    tars: int = 0  # bytes of its samples as tars

    @property
    def name(self) -> str:
        return f"{self.set} {self.classifier.arch} seed {self.classifier.seed}"

    @property
    def count(self) -> int:
        """Images in the set."""
        return (self.rows or self.index).images

    @property
    def state(self) -> str:
        """The file in the store in which a worker that has the training to itself keeps how far it is."""
        return f"{self.stage.folder}/state.pt"

    def forget(self) -> None:
        """Remove the state, if there is one."""
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            self.stage.store.remove(self.state)

    @property
    def images(self) -> int:
        """Images trained on, over all epochs."""
        return images_of(self.classifier.recipe, self.count)


def images_of(recipe: Recipe, count: int) -> int:
    """Images that a training on a set of `count` images sees, over all epochs."""
    steps = recipe.total_steps(steps_per_epoch(count, recipe.batch_size))
    return images_seen(steps, count, recipe.batch_size)


@dataclass(frozen=True)
class Plan:
    """What a worker must know of an evaluation."""

    trainings: tuple[Training, ...]
    test: Index
    test_how: Mapping[int, str]  # by the side at which images are seen

    def pending(self) -> list[Training]:
        """The trainings that are not committed, each once."""
        return list({t.stage.digest: t for t in self.trainings if PART not in t.stage.committed()}.values())


class Opened:
    """The sets that a worker has open: one to train on and one to test with, as the trainings come to need them."""

    def __init__(self, plan: Plan, threads: int):
        self.plan, self.threads = plan, threads
        self._open: dict[str, tuple[object, Held | Streamed]] = {}

    def train(self, training: Training) -> Held | Streamed:
        rows = training.rows
        if rows is None or rows.alone:
            return self._set("train", training.index, training, training.how, rows)
        # Images that nothing chose may be undecodable.
        whole = self._set("train", training.index, training, training.how, leave_out=training.how == "decoded")
        return whole.take(rows.positions)

    def test(self, training: Training) -> Held | Streamed:
        return self._set("test", self.plan.test, training, self.plan.test_how[training.classifier.transform.crop])

    def _set(
        self, role: str, index: Index, training: Training, how: str, rows: Rows | None = None, leave_out: bool = False
    ) -> Held | Streamed:
        transform = training.classifier.transform
        soft = training.soft and role == "train"  # tests count hard labels
        wanted = (index.manifest.content, transform, how, rows.digest if rows else None, soft, leave_out)
        if role not in self._open or self._open[role][0] != wanted:
            self._open.pop(role, None)  # before the next one takes memory
            positions = None if rows is None else rows.positions
            self._open[role] = wanted, open_set(index, transform, how, self.threads, leave_out, positions, soft)
        return self._open[role][1]


def train_and_test(member: "Member", plan: Plan) -> None:
    """Every worker of the group: the trainings that are not committed, one after the other."""
    # No worker can finish the first training before all have looked.
    pending = plan.pending()
    opened = Opened(plan, member.threads)
    for training in pending:
        if note := train_one(member, training, opened):
            member.tell(note)


def train_one(member: "Member", training: Training, opened: Opened) -> Note | None:
    """Train, test and commit; what there is to tell, on the first worker."""
    train_set, test_set = opened.train(training), opened.test(training)
    model, losses = fit(member, training.classifier, train_set, training.stage.digest)
    right = count_correct(member, model, test_set, training.classifier.transform)
    if member.rank:
        return None
    top1 = float(right.mean())
    table = pa.table({"key": test_set.keys, "correct": right})
    facts = canonical_json({"top1": top1, "losses": losses})
    training.stage.commit_table(PART, table.replace_schema_metadata({"summary": facts}))
    return Note(training.stage.digest, 0, tuple(losses), top1)


def facts_of(training: Training) -> dict:
    """top1, and losses by epoch, of a training that is committed."""
    return json.loads(_table(training).schema.metadata[b"summary"])


def correct_of(training: Training) -> np.ndarray:
    """bool [T] of a training that is committed: whether each test image, in the order of the keys, was classified correctly."""
    return _table(training)["correct"].to_numpy()


def _table(training: Training) -> pa.Table:
    return parquet_table(training.stage.read(training.stage.committed()[PART]))
