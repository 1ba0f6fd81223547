"""A distilled set as it passes from the workers to the files, and its containers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from palette.codec import LARGEST, encode
from palette.distill import Distilled
from palette.quantize import paint
from ray_jobs.stages import Manifest


@dataclass(frozen=True)
class DistilledSet:
    """A distilled set, class by class."""

    images: np.ndarray  # uint8 [n, S, S, 3]
    labels: np.ndarray  # int64 [n]
    palettes: np.ndarray | None  # uint8 [n, K, 3]; None in full colour
    indices: np.ndarray | None  # uint8 [n, S, S]
    soft_labels: np.ndarray | None  # float16 logits [n, C]

    def first(self, count: int) -> "DistilledSet":
        """The first `count` images of every class."""
        starts = np.searchsorted(self.labels, self.labels)
        rows = np.arange(len(self.labels)) - starts < count
        return DistilledSet(*(None if part is None else part[rows] for part in vars(self).values()))


def as_table(result: Distilled) -> pa.Table:
    """A row an image: label, palette and indices or image, and soft where labels are; bytes as they lie in memory."""
    parts = {"palette": result.palettes, "indices": result.indices} if result.palettes is not None else {
        "image": result.images
    }  # fmt: skip
    parts |= {"soft": result.soft_labels} if result.soft_labels is not None else {}
    columns = {name: pa.array([row.numpy().tobytes() for row in part], pa.binary()) for name, part in parts.items()}
    return pa.table({"label": pa.array(result.labels.numpy(), pa.int32())} | columns)


def read_set(distill: Manifest) -> DistilledSet:
    """The set of a finished stage, of all its workers."""
    names = sorted(part.name for part in distill.parts if part.name.startswith("set/"))
    table = pa.concat_tables(distill.table(name) for name in names)
    side, count = distill.stage.config["image_size"], table.num_rows

    def column(name: str, kind: type, *shape: int) -> np.ndarray | None:
        if name not in table.column_names:
            return None
        return np.frombuffer(b"".join(table[name].to_pylist()), kind).reshape(count, *shape).copy()

    palettes, indices = column("palette", np.uint8, -1, 3), column("indices", np.uint8, side, side)
    if palettes is None:
        images = column("image", np.uint8, side, side, 3)
    else:
        images = paint(torch.from_numpy(palettes), torch.from_numpy(indices)).numpy()
    return DistilledSet(
        images, table["label"].to_numpy().astype(np.int64), palettes, indices, column("soft", np.float16, -1)
    )


def images_in_container(side: int, colors: int) -> int:
    """The most images that one container holds."""
    return LARGEST // (side * side + 3 * colors + 64)


def containers(found: DistilledSet, classes: Sequence[str]) -> Iterator[tuple[str, bytes, int]]:
    """(name, bytes, images): one container, or as many as the set needs; none in full colour."""
    if found.palettes is None:
        return
    labels = found.labels if found.soft_labels is None else found.soft_labels
    most = images_in_container(found.indices.shape[1], found.palettes.shape[1])
    for n, start in enumerate(range(0, len(labels), most)):
        part = slice(start, start + most)
        name = "distilled" if len(labels) <= most else f"distilled-{n:05d}"
        data = encode(found.palettes[part], found.indices[part], labels[part], classes)
        yield name, data, len(labels[part])
