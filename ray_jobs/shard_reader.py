"""The samples of an ingested data set, read from its shards and decoded, in any order."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from adq.extractor import InputTransform
from adq.features import load
from adq.images import UndecodableImage
from adq.shards import join, read_samples
from ray_jobs.ingest import Index

SHOWN = 10  # undecodable images that an error lists

Encoded = tuple[int, bytes]  # position in the index, image file


class Members(NamedTuple):
    """Of every row of an index, int64 [N]."""

    offsets: np.ndarray  # of the image, in its shard
    image_bytes: np.ndarray
    payload: np.ndarray  # bytes of all members


def image_members(index: Index) -> Members:
    """Where the images of an index lie, and how large they are."""
    members = index.table()["members"].combine_chunks()
    inner, parents = members.flatten(), pc.list_parent_indices(members)
    is_image = pc.match_substring_regex(pc.struct_field(inner, "name"), f"(?i)\\.({'|'.join(index.image_ext)})$")
    rows = parents.filter(is_image).to_numpy()
    sizes = pc.struct_field(inner, "size")
    found = Members(*(np.zeros(index.table().num_rows, dtype=np.int64) for _ in Members._fields))
    found.offsets[rows] = pc.struct_field(inner, "offset").filter(is_image).to_numpy()
    found.image_bytes[rows] = sizes.filter(is_image).to_numpy()
    np.add.at(found.payload, parents.to_numpy(), sizes.to_numpy())
    return found


@dataclass(frozen=True)
class ShardReader:
    """The samples of an index, by shard; positions are rows of the index."""

    index: Index
    transform: InputTransform
    threads: int

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
        for sample in islice(read_samples(self.index.data, shard, self.index.image_ext), len(expected)):
            position = int(expected[given])
            if self.index.key(shard, sample["__key__"]) != self.keys[position]:
                break
            given += 1
            if given > first:
                yield position, next(sample[ext] for ext in self.index.image_ext if ext in sample)
        if given < len(expected):
            raise ValueError(f"{join(self.index.data.root, shard)}: changed since ingest; run again to ingest it anew")

    def decode(self, sample: Encoded) -> Tensor | UndecodableImage:
        """uint8 [3, S, S], or why there is none."""
        try:
            return load(sample[1], self.transform)
        except UndecodableImage as error:
            return error

    def decoded(self, samples: Sequence[Encoded], pool: ThreadPoolExecutor) -> Tensor:
        """uint8 [b, 3, S, S]. Raises ValueError for an undecodable image, with its key and shard."""
        images = list(pool.map(self.decode, samples))
        self.check({p: image for (p, _), image in zip(samples, images, strict=True) if not isinstance(image, Tensor)})
        return torch.stack(images) if images else torch.zeros((0, 3, *[self.transform.crop] * 2), dtype=torch.uint8)

    def check(self, failed: dict[int, UndecodableImage]) -> None:
        if not failed:
            return
        shards = self.index.table()["shard"]
        lines = [
            f"{join(self.index.data.root, shards[p].as_py())}: key {self.keys[p]!r} cannot be decoded ({error})"
            for p, error in sorted(failed.items())
        ]
        more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise ValueError("\n  ".join(lines[:SHOWN]) + more + "\nmend these images, or leave them out of the shards")
