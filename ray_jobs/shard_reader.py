"""The samples of an ingested data set, read from its shards and decoded, in any order."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adq.extractor import InputTransform
from adq.features import load
from adq.images import UndecodableImage
from adq.shards import join, read_ranges, read_samples
from palette.export import SOFT, soft_label
from ray_jobs.ingest import Index
from ray_jobs.members import image_members, member_bytes, read_members

SHOWN = 10  # undecodable images that an error lists
LOOKED_AT = 16  # soft labels of a set that are read before anything is trained


class Encoded(NamedTuple):
    """A sample as its shard holds it."""

    position: int  # row of the index
    image: bytes
    soft: bytes = b""  # the member of its soft label, where that is asked for


def has_soft_labels(index: Index) -> bool:
    """Whether the images of a set have soft labels, by its index; the first of them are read.

    Raises:
        ValueError: some images have one and others have none; the first ones are no logits of the classes. Names the key.
    """
    there, table = member_bytes(index, SOFT) > 0, index.table()
    if not there.any():
        return False
    if not there.all():
        raise ValueError(
            f"{_where(index, int(there.argmin()))} has no soft label (.{SOFT} member), as {(~there).sum():,} of {len(there):,} "
            "images; give every image one, or use --labels hard"
        )
    first = []
    for row, sample in enumerate(table.slice(0, LOOKED_AT).to_pylist()):
        member = next(m for m in sample["members"] if m["name"].lower().endswith(f".{SOFT}"))
        (data,) = read_ranges(index.data, sample["shard"], [(member["offset"], member["size"])])
        first.append(_logits(index, row, data))
    if all((logits >= 0).all() and abs(logits.sum() - 1) < 0.002 for logits in first):
        raise ValueError(
            f"{_where(index, 0)} and the next ones hold probabilities; a soft label is C logits, whose softmax is taken: "
            "store the probabilities' logarithms"
        )
    return True


def _logits(index: Index, row: int, data: bytes) -> np.ndarray:
    if not data:
        raise ValueError(f"{_where(index, row)} has no soft label (.{SOFT} member); see --labels")
    try:
        return soft_label(data, len(index.classes))
    except ValueError as error:
        raise ValueError(f"{_where(index, row)}: {error}; see --labels") from error


def _where(index: Index, row: int) -> str:
    table = index.table()
    return f"{join(index.data.root, table['shard'][row].as_py())}: key {table['key'][row].as_py()!r}"


@dataclass(frozen=True)
class ShardReader:
    """The samples of an index, by shard; positions are rows of the index."""

    index: Index
    transform: InputTransform
    threads: int
    soft: bool = False  # soft labels are read along

    @cached_property
    def keys(self) -> list[str]:
        return self.index.table()["key"].to_pylist()

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.index.table()["label"].to_numpy().astype(np.int64)

    @cached_property
    def positions(self) -> dict[str, np.ndarray]:
        """Rows of the index for each shard, in the order of the shard."""
        members = image_members(self.index)
        offsets, shards = members.offsets, self.index.table()["shard"].to_numpy()
        order = np.lexsort((offsets, shards))
        names, starts = np.unique(shards[order], return_index=True)
        return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))

    def encoded(self, shard: str, first: int = 0, last: int | None = None) -> Iterator[Encoded]:
        """Samples `first` to `last` of a shard. Raises ValueError where it is not what was ingested."""
        expected = self.positions[shard][:last]
        given = 0
        wanted = (*self.index.image_ext, SOFT) if self.soft else self.index.image_ext
        for sample in islice(read_samples(self.index.data, shard, wanted), len(expected)):
            position = int(expected[given])
            if self.index.key(shard, sample["__key__"]) != self.keys[position]:
                break
            given += 1
            if given > first:
                image = next(sample[ext] for ext in self.index.image_ext if ext in sample)
                yield Encoded(position, image, sample.get(SOFT, b"") if self.soft else b"")
        if given < len(expected):
            raise ValueError(f"{join(self.index.data.root, shard)}: changed since ingest; run again to ingest it anew")

    def chosen(self, shard: str, rows: np.ndarray) -> Iterator[Encoded]:
        """The samples of a shard at some rows of the index, read without the others. Raises ValueError as `encoded`."""
        table = self.index.table().take(pa.array(rows)).select(["key", "shard", "members"])
        samples = [(row["key"], shard, row["members"]) for row in table.to_pylist()]
        found = read_members(self.index.data, samples)
        for row, (key, _, members) in zip(rows.tolist(), samples, strict=True):
            soft = (
                next((m["name"] for m in members if m["name"].lower().endswith(f".{SOFT}")), None)
                if self.soft
                else None
            )
            image = found[key, self.index.image_member(members)["name"]]
            yield Encoded(row, image, found[key, soft] if soft else b"")

    def decode(self, sample: Encoded, draw: Tensor | None = None) -> Tensor | UndecodableImage:
        """uint8 [3, S, S], or why there is none; with a `draw` of `adq.augmentation.crop_draws`, of a box of the image."""
        try:
            return load(sample.image, self.transform, draw)
        except UndecodableImage as error:
            return error

    def decoded(self, samples: Sequence[Encoded], pool: ThreadPoolExecutor, draws: Tensor | None = None) -> Tensor:
        """uint8 [b, 3, S, S], of boxes where there are `draws`. Raises ValueError for an undecodable image: its key and shard."""
        images = list(pool.map(self.decode, samples, repeat(None) if draws is None else draws))
        pairs = zip(samples, images, strict=True)
        self.check({sample.position: image for sample, image in pairs if not isinstance(image, Tensor)})
        return torch.stack(images) if images else torch.zeros((0, 3, *[self.transform.crop] * 2), dtype=torch.uint8)

    def probabilities(self, sample: Encoded) -> np.ndarray:
        """Its soft label, float32 [C]. Raises ValueError for one that is none, with its key and shard."""
        logits = _logits(self.index, sample.position, sample.soft)
        shares = np.exp(logits - logits.max())
        return (shares / shares.sum()).astype(np.float32)

    def batch_labels(self, samples: Sequence[Encoded]) -> Tensor:
        """int64 [b], or float32 [b, C] of soft ones. Raises ValueError as `probabilities`."""
        if not self.soft:
            return torch.from_numpy(self.labels[np.array([sample.position for sample in samples], dtype=np.int64)])
        rows = np.array([self.probabilities(sample) for sample in samples], dtype=np.float32)
        return torch.from_numpy(rows.reshape(len(samples), len(self.index.classes)))

    def check(self, failed: dict[int, UndecodableImage]) -> None:
        if not failed:
            return
        lines = [f"{_where(self.index, p)} cannot be decoded ({error})" for p, error in sorted(failed.items())]
        more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise ValueError(
            "\n  ".join(lines[:SHOWN])
            + more
            + "\nmend these images, or leave them out: of the shards, or by --skip-corrupt where a job has it"
        )
