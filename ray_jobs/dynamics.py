"""dynamics: how each image is learnt in a short training, for the methods that select by difficulty."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from adq.dynamics import Dynamics, Known, Recorder, known, short_recipe
from adq.extractor import InputTransform, input_transform
from adq.training import TensorImages, predict
from ray_jobs.classifier import Classifier, fit
from ray_jobs.ingest import Index, undecodable
from ray_jobs.loading import Held, how_to_hold, open_set, order_kind
from ray_jobs.options import Backbone
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import canonical_json, parquet_table
from ray_jobs.streaming import Streamed
from ray_jobs.watch import of_epochs
from ray_jobs.workers import Group, Member, run_group

if TYPE_CHECKING:  # what only the driver needs is not loaded by the workers
    from ray_jobs.job import Job
    from ray_jobs.mlflow_run import Run

VERSION = 3
COLUMNS = ("el2n", "forgetting", "confidence")
PART = "dynamics"


@dataclass(frozen=True)
class Plan:
    """What a worker must know to train a network and watch it learn."""

    stage: Stage
    index: Index
    classifier: Classifier
    how: str
    leave_out: bool


class Watch:
    """The network's knowledge of every training image after each epoch, predicted by all workers together."""

    def __init__(self, member: Member, data: Held | Streamed, transform: InputTransform):
        self.member, self.data, self.transform = member, data, transform
        self.recorder = Recorder(data.labels)
        # In a stream, images that cannot be decoded are found on the way.
        self.seen = np.zeros(len(data.labels), dtype=bool)

    def after_epoch(self, model: nn.Module) -> None:
        """Raises RuntimeError where an image was predicted more than once."""
        member, labels = self.member, self.data.labels
        found = torch.zeros((4, len(labels)), dtype=torch.float64)
        for positions, images in self.data.share(member.rank, member.world):
            mine = labels[positions]
            batch = TensorImages(images, mine)
            logits = predict(model, batch, np.arange(len(positions)), self.transform, member.device)
            columns = np.stack([np.ones(len(mine)), *known(logits, mine, positions)])
            found.index_add_(1, torch.from_numpy(positions), torch.from_numpy(columns))
        counted, error, confidence, correct = member.sum(found).numpy()
        if (counted > 1).any():
            raise RuntimeError(f"{int((counted > 1).sum())} of {len(labels)} images were predicted more than once")
        self.seen = counted == 1
        self.recorder.take(Known(error, confidence.astype(np.float32), correct == 1))

    def state(self) -> dict:
        arrays = self.recorder.state() | {"seen": self.seen}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def restore(self, state: dict) -> None:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        self.seen = arrays.pop("seen")
        self.recorder = Recorder(self.data.labels, arrays)

    def table(self) -> pa.Table:
        """A row an image that was predicted, in the order of the index."""
        told, rows = self.recorder.dynamics(), np.flatnonzero(self.seen)
        columns = {name: pa.array(getattr(told, name)[rows].astype(np.float32)) for name in COLUMNS}
        columns["correct"] = pa.array(told.correct[:, rows].T.tolist(), pa.list_(pa.bool_()))
        return pa.table({"key": [self.data.keys[row] for row in rows], **columns})


def run(job: "Job", index: Index, backbone: Backbone, skip_corrupt: bool) -> Manifest:
    """Watch the extractor's network learn the data by `short_recipe`, with a group of workers, or find it done.

    Raises:
        ValueError: more workers than the cluster has room for; some images cannot be decoded and may not be left out.
    """
    arch, side = backbone.name(index.side, job.device), backbone.side(index.side)
    transform = input_transform(arch, side)
    recipe = short_recipe(arch, side)
    classifier = Classifier(arch, len(index.classes), 0, transform, recipe, backbone.feature_seed, "watched")
    how = how_to_hold(index, transform, augment=recipe.augment)
    stage = Stage(
        job.store, "dynamics", VERSION, {"index": index.manifest.content},
        classifier.config() | {
            "order": order_kind(how), "threads": job.compute.threads, "train_workers": backbone.train_workers,
            "device": job.device,
        },
    )  # fmt: skip
    group = Group(backbone.train_workers, job.compute.threads, job.device, stage)

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        if PART not in parts:
            group.check()
            plan = Plan(stage, index, classifier, how, skip_corrupt)
            run_group(group, _work, plan, of_epochs("dynamics", recipe.epochs, index.images))
            parts = stage.committed()
        group.clean()
        losses = json.loads(parquet_table(stage.read(parts[PART])).schema.metadata[b"losses"])
        return [parts[PART]], {
            "images": parts[PART].rows,
            "epochs": recipe.epochs,
            "train_loss": losses[-1],
            "recipe": asdict(recipe),
        }

    def log(run: "Run", manifest: Manifest) -> None:
        losses = json.loads(manifest.table(PART).schema.metadata[b"losses"])
        run.metric_series((epoch, {"train_loss": loss}) for epoch, loss in enumerate(losses, 1))

    manifest = job.stage(stage, work, "images", log)
    if manifest.summary["images"] < index.images and not skip_corrupt:  # found done: it was made with --skip-corrupt
        table, seen = index.table(), manifest.table(PART, ["key"])["key"].combine_chunks()
        lost = table.filter(pc.invert(pc.is_in(table["key"], value_set=seen))).select(["shard", "key"]).to_pylist()
        raise undecodable([(row["shard"], row["key"], "left out by an earlier command") for row in lost])
    return manifest


def _work(member: Member, plan: Plan) -> None:
    classifier = plan.classifier
    data = open_set(plan.index, classifier.transform, plan.how, member.threads, plan.leave_out)
    watch = Watch(member, data, classifier.transform)
    _, losses = fit(member, classifier, data, plan.stage.digest, watch)
    if member.rank == 0:
        table = watch.table().replace_schema_metadata({"losses": canonical_json(losses)})
        plan.stage.commit_table(PART, table)


def dynamics_by_key(manifest: Manifest) -> tuple[list[str], Dynamics]:
    """The keys, in their order, and how their images were learnt."""
    table = manifest.table(PART)
    correct = np.array(table["correct"].to_pylist(), dtype=bool).T
    return table["key"].to_pylist(), Dynamics(*(table[name].to_numpy() for name in COLUMNS), correct)
