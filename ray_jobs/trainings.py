"""The trainings of an evaluation, and what the workers do with them: train, test, commit, one after the other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from adq.training import steps_per_epoch
from ray_jobs.classifier import Classifier, Note, count_correct, fit
from ray_jobs.ingest import Index
from ray_jobs.loading import Held, Streamed, open_set
from ray_jobs.stages import Stage
from ray_jobs.store import canonical_json, parquet_table
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

    @property
    def name(self) -> str:
        return f"{self.set} {self.classifier.arch} seed {self.classifier.seed}"

    @property
    def images(self) -> int:
        """Images trained on, over all epochs."""
        recipe = self.classifier.recipe
        return recipe.total_steps(steps_per_epoch(self.index.images, recipe.batch_size)) * recipe.batch_size


@dataclass(frozen=True)
class Plan:
    """What a worker must know of an evaluation."""

    trainings: tuple[Training, ...]
    test: Index
    test_how: Mapping[int, str]  # by the side at which images are seen


def train_and_test(member: Member, plan: Plan) -> None:
    """Every worker of the group: the trainings that are not committed, one after the other."""
    # No worker can finish the first training before all have looked.
    pending = [training for training in plan.trainings if PART not in training.stage.committed()]
    opened: dict[str, tuple[object, Held | Streamed]] = {}

    def data(role: str, index: Index, training: Training, how: str) -> Held | Streamed:
        wanted = (index.manifest.content, training.classifier.transform)
        if role not in opened or opened[role][0] != wanted:
            opened.pop(role, None)  # before the next one takes memory
            opened[role] = wanted, open_set(index, training.classifier.transform, how, member.threads)
        return opened[role][1]

    for training in pending:
        transform = training.classifier.transform
        train_set = data("train", training.index, training, training.how)
        test_set = data("test", plan.test, training, plan.test_how[transform.crop])
        model, losses = fit(member, training.classifier, train_set, training.stage.digest)
        right = count_correct(member, model, test_set, transform)
        if member.rank == 0:
            top1 = float(right.mean())
            table = pa.table({"key": test_set.keys, "correct": right})
            facts = canonical_json({"top1": top1, "losses": losses})
            training.stage.commit_table(PART, table.replace_schema_metadata({"summary": facts}))
            member.tell(Note(training.stage.digest, 0, tuple(losses), top1))


def facts_of(training: Training) -> dict:
    """top1, and losses by epoch, of a training that is committed."""
    part = training.stage.committed()[PART]
    return json.loads(parquet_table(training.stage.read(part)).schema.metadata[b"summary"])
