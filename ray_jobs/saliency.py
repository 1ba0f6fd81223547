"""saliency: how much each patch of an image tells of its class, by Grad-CAM of the backbone. A task is a shard."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
import torch

from adq.extractor import InputTransform
from adq.images import UndecodableImage, decode
from adq.patches import fits, grid
from adq.saliency import grad_cam, patch_saliency, whole_input
from adq.shards import DataSet, ahead, read_ranges
from palette.encodings import resized
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.frozen import Frozen, check_classes, shared_weights
from ray_jobs.ingest import Index
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job
    from ray_jobs.weights import Extractor

VERSION = 1
Row = tuple[str, int, int, int]  # key, label, offset and size of the image
NONE = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Plan:
    """What an actor must know."""

    stage: Stage
    data: DataSet
    arch: str
    transform: InputTransform
    resize: int
    device: str
    batch_size: int
    threads: int
    decoders: int


class SaliencyActor(Frozen):
    """Ranks the patches of a shard."""

    def work(self, weights: list[ray.ObjectRef], shard: str, rows: list[Row]) -> Part:
        self.ready(weights)
        found: list[tuple[str, np.ndarray]] = []
        for batch, loaded in ahead(self._loaded(shard, rows)):
            found += self._ranked(batch, loaded)
        return self.plan.stage.commit_table(shard, _table(found))

    def _loaded(self, shard: str, rows: list[Row]) -> Iterator[tuple[list[Row], list]]:
        """Batches of rows, each with what `_load` makes of them."""
        for start in range(0, len(rows), self.plan.batch_size):
            batch = rows[start : start + self.plan.batch_size]
            files = read_ranges(self.plan.data, shard, [(offset, size) for _, _, offset, size in batch])
            yield batch, list(self.pool.map(self._load, files))

    def _ranked(self, rows: list[Row], loaded: list) -> Iterator[tuple[str, np.ndarray]]:
        yield from ((key, NONE) for (key, _, _, _), image in zip(rows, loaded, strict=True) if image is None)
        rows = [row for row, image in zip(rows, loaded, strict=True) if image is not None]
        images = [image for image in loaded if image is not None]
        if not images:
            return
        inputs = torch.stack([image for image, _ in images]).to(self.plan.device)
        labels = torch.tensor([label for _, label, _, _ in rows], device=self.plan.device)
        maps = grad_cam(self.model, self.plan.transform.normalise(inputs), labels).cpu()
        for (key, _, _, _), (_, (height, width)), map_ in zip(rows, images, maps, strict=True):
            cut = grid(height, width)
            extent = height / cut.side, width / cut.side
            yield key, patch_saliency(map_[None], cut.rows, cut.columns, extent)[0].numpy()

    def _load(self, data: bytes) -> tuple[torch.Tensor, tuple[int, int]] | None:
        """The network's input, and the (height, width) of the image, which itself is not held: it may be large."""
        try:
            image = resized(decode(data), self.plan.resize)
        except UndecodableImage:
            return None  # `ray_jobs.encode` says which and why
        if not fits(image.height, image.width):
            return None  # which stays as it is
        return whole_input(image, self.plan.transform), (image.height, image.width)


def _table(found: list[tuple[str, np.ndarray]]) -> pa.Table:
    values = [np.ascontiguousarray(value, dtype="<f4") for _, value in found]
    return pa.table({
        "key": [key for key, _ in found], "rows": pa.array([value.shape[0] for value in values], pa.int32()),
        "columns": pa.array([value.shape[1] for value in values], pa.int32()),
        "saliency": pa.array([value.tobytes() for value in values], pa.binary()),
    })  # fmt: skip


def check(extractor: "Extractor", index: Index) -> None:
    """What can be known before hours are spent. Raises ValueError: the backbone knows other classes than the data."""
    check_classes(extractor, index, ", or drop the patches that the others tell best: --saliency fill-error")


def run(job: "Job", index: Index, extractor: "Extractor", resize: int) -> Manifest:
    """Rank the patches of every image that can be decoded and has a grid of patches, or find it done.

    Args:
        resize: shorter side that images are brought to first; 0: as they are.

    Raises:
        ValueError: the backbone knows other classes than the data.
    """
    check(extractor, index)
    compute = job.compute
    stage = Stage(
        job.store, "saliency", VERSION,
        inputs={"index": index.manifest.content, "weights": extractor.manifest.content},
        config={
            "arch": extractor.arch, "transform": asdict(extractor.transform), "resize": resize, "device": job.device,
            "batch_size": compute.batch_size, "threads": compute.threads,
        },
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        rows = _rows(index)
        progress = Progress("saliency", sum(map(len, rows.values())))
        missing = [shard for shard in rows if shard not in parts]
        progress.add(sum(len(rows[shard]) for shard in rows if shard in parts))

        def on_done(part: Part) -> None:
            parts[part.name] = part
            progress.add(part.rows)

        if missing:
            state = shared_weights(extractor)
            plan = Plan(
                stage, index.data, extractor.arch, extractor.transform, resize, job.device, compute.batch_size,
                compute.threads, job.decoders,
            )  # fmt: skip
            size = pool_size(job.cluster, compute, job.device, len(missing))
            tasks = [(shard, rows[shard]) for shard in missing]
            map_actors(SaliencyActor, (plan,), tasks, size, compute, job.device, on_done, state)
        return [parts[shard] for shard in rows], {"images": sum(map(len, rows.values()))}

    return job.stage(stage, work)


def _rows(index: Index) -> dict[str, list[Row]]:
    """The images of each shard, in the order in which they lie there."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in index.table().to_pylist():
        member = index.image_member(row["members"])
        rows[row["shard"]].append((row["key"], row["label"], member["offset"], member["size"]))
    return {shard: sorted(found, key=lambda row: row[2]) for shard, found in sorted(rows.items())}


def by_key(manifest: Manifest) -> dict[str, np.ndarray]:
    """float32 [rows, columns] of every image; [0, 0] where it cannot be decoded, or is too large."""
    table = manifest.tables()
    return {
        key: np.frombuffer(data, "<f4").reshape(rows, columns)
        for key, rows, columns, data in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    }
