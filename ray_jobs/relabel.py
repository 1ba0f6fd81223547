"""relabel: images with the soft labels of a trained network, their teacher, beside them, as `evaluate --labels soft` trains on.

What a distilled set with soft labels gains by its labels alone is seen beside plain images that have them, too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
import torch

from adq.extractor import InputTransform
from adq.features import load
from adq.images import UndecodableImage
from adq.shards import DataSet, absolute, tar_bytes
from palette.export import SOFT
from ray_jobs import encode, ingest, weights, write
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.cluster import probe
from ray_jobs.frozen import Frozen, shared_weights
from ray_jobs.ingest import COPY, Index, undecodable
from ray_jobs.job import Job, opened
from ray_jobs.loading import Rows
from ray_jobs.members import Row, read_members
from ray_jobs.options import Backbone, Compute, Data, Place
from ray_jobs.payload import payload_bytes
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import Store
from ray_jobs.write import Output

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.weights import Extractor

VERSION = 2


@dataclass(frozen=True)
class Plan:
    """What an actor must know."""

    stage: Stage
    data: DataSet
    rename: bool
    arch: str
    transform: InputTransform
    device: str
    threads: int
    decoders: int


class Teacher(Frozen):
    """Writes shards of images with their soft labels."""

    def work(self, weights: list[ray.ObjectRef], name: str, rows: list[Row], images: list[str]) -> Part:
        """A shard of these rows.

        Args:
            images: the name of each row's image among its members.

        Raises:
            ValueError: images that cannot be decoded.
        """
        self.ready(weights)
        plan = self.plan
        found = read_members(plan.data, rows)
        tried = list(self.pool.map(self._load, [found[row[0], image] for row, image in zip(rows, images, strict=True)]))
        if bad := [
            (row[1], row[0], str(one)) for row, one in zip(rows, tried, strict=True) if isinstance(one, Exception)
        ]:
            raise undecodable(bad, COPY)
        members = []
        for (key, _, own), soft in zip(rows, self.soft_labels(torch.stack(tried)), strict=True):
            names = [one["name"] for one in own if not one["name"].lower().endswith(f".{SOFT}")]  # its old one goes
            members += [(write.member_name(key, name, plan.rename), found[key, name]) for name in names]
            members.append((f"{write.member_name(key, names[0], plan.rename).rpartition('.')[0]}.{SOFT}", soft))
        return plan.stage.commit(name, tar_bytes(members), len(rows), "tar")

    def _load(self, data: bytes) -> torch.Tensor | UndecodableImage:
        try:
            return load(data, self.plan.transform)
        except UndecodableImage as error:
            return error


def make(job: Job, index: Index, teacher: "Extractor", out: str, rows: Rows | None = None) -> Manifest:
    """Write images with their soft labels as shards, or find them there.

    Args:
        rows: some of the index; all by default.

    Raises:
        ValueError: the folder holds something else; the teacher knows other classes; images that cannot be decoded.
        OSError: the folder cannot be written.
    """
    compute, stage = job.compute, _output(job, index, teacher, out, rows)
    stage.claim()

    def work(stage: Stage) -> tuple[list[Part], dict]:
        table = index.table() if rows is None else index.table().take(pa.array(rows.positions))
        tasks = [
            (name, some, [index.image_member(members)["name"] for _, _, members in some])
            for name, some in write.plan(table, 0)
        ]
        parts = stage.committed()
        missing = [task for task in tasks if task[0] not in parts]
        progress = Progress("relabel", table.num_rows)
        progress.add(table.num_rows - sum(len(task[1]) for task in missing))

        def on_done(part: Part) -> None:
            parts[part.name] = part
            progress.add(part.rows)

        if missing:
            state = shared_weights(teacher, index)
            plan = Plan(
                stage, index.data, index.key_prefix == "shard", teacher.arch, teacher.transform, job.device, compute.threads,
                job.decoders,
            )  # fmt: skip
            size = pool_size(job.cluster, compute, job.device, len(missing))
            map_actors(Teacher, (plan,), missing, size, compute, job.device, on_done, state)
        shards = [parts[name] for name, *_ in tasks]
        names = "".join(f"{name}\n" for name in index.classes).encode()
        classes = stage.commit("classes", names, len(index.classes), "txt")
        positions = None if rows is None else rows.positions
        summary = {
            "images": table.num_rows, "payload_bytes": payload_bytes(index, positions),
            "soft_payload_bytes": payload_bytes(index, positions, soft=True), "tar_bytes": sum(part.bytes for part in shards),
        }  # fmt: skip
        return [*shards, classes], summary

    return job.stage(stage, work)


def _output(job: Job, index: Index, teacher: "Extractor", out: str, rows: Rows | None) -> Output:
    inputs = {"index": index.manifest.content, "weights": teacher.manifest.content}
    return Output(
        Store.at(out), "relabel", VERSION, inputs | ({"rows": rows.digest} if rows else {}),
        {"arch": teacher.arch, "transform": asdict(teacher.transform), "threads": job.compute.threads, "device": job.device},
    )  # fmt: skip


def relabelled(job: Job, index: Index, teacher: "Extractor", rows: Rows) -> Index:
    """Some images of an index with their soft labels, in the store."""
    wanted = _output(job, index, teacher, job.store.root, rows)
    out = job.store.path(f"relabelled/{wanted.digest[:16]}")
    made = make(job, index, teacher, out, rows)
    return encode.read_back(job, index, out, _shards(made.parts), "relabelled")


def _shards(parts: Sequence[Part]) -> list[str]:
    return [part.path for part in parts if part.path.endswith(".tar")]


def run(train: tuple[str, ...], data: Data, backbone: Backbone, compute: Compute, place: Place, out: str) -> None:
    """The command: load the teacher or train it on the data, label the images of `train`, write them."""
    identity = ["relabel", train, asdict(data), asdict(backbone), absolute(out)]
    with opened(place, compute, "relabel", identity) as job:
        job.run.params({"train": " ".join(train)} | {k: v for k, v in asdict(backbone).items() if v is not None})
        write.check(out)
        probe(job.cluster, [absolute(out)])
        index = ingest.run(job, replace(data, data=train), False, "train")
        whole = ingest.run(job, data) if data.data else index
        teacher = weights.run(job, whole, backbone)
        made = make(job, index, teacher, out)
        job.run.metrics(made.summary)
        job.run.dataset("relabelled", absolute(out), made.content, "subset", made.summary["images"])
        job.report(
            f"{made.summary['images']:,} images with soft labels of {teacher.arch}, {made.summary['soft_payload_bytes']:,} bytes "
            f"payload, {made.summary['payload_bytes']:,} with hard ones, {made.summary['tar_bytes']:,} as tars\n"
            f"shards   {absolute(out)}"
        )
