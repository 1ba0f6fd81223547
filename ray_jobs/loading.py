"""Training data from shards: in memory, decoded or encoded, or streamed where a set is larger than the memory for it.

In memory, images lie in the order of the index, so the order of the shards never matters.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from adq.augmentation import RESIZED_CROP
from adq.extractor import InputTransform
from adq.images import UndecodableImage
from adq.shards import ahead
from adq.training import Batch, ImageSet, Recipe, TensorImages, epoch_batches
from ray_jobs.ingest import Index
from ray_jobs.shard_reader import Encoded, ShardReader
from ray_jobs.streaming import SHARE_BATCH, Streamed, interval

FEW = 0.25  # of a shard's images: fewer are read one by one, more with the whole shard
MEMORY_GB = 4.0  # of images in one worker; a constant, since what a machine has free must not decide results


@dataclass(frozen=True, eq=False)
class Rows:
    """A part of a data set, as rows of its index: what a selection keeps, without shards of its own."""

    positions: np.ndarray  # int64 [n], ascending
    digest: str  # of their keys
    image_bytes: int
    alone: bool = False  # read without the rest, since the whole set would not fit the memory

    @property
    def images(self) -> int:
        return len(self.positions)


def some_rows(index: Index, images: int) -> Rows:
    """So many images of a set, of its mean size: for what must be known of a selection before there is one."""
    return Rows(np.arange(images), "", index.image_bytes * images // index.images)


def how_to_hold(
    what: Index | Rows,
    transform: InputTransform,
    memory_gb: float = MEMORY_GB,
    soft_classes: int = 0,
    augment: str = "none",
) -> str:
    """decoded, encoded or streamed: the first for which the images, and soft labels of so many classes, fit into `memory_gb`.

    Random resized crops are cut from whole images, so that sets that are trained on with them are not held decoded.
    """
    budget = memory_gb * 1e9 - what.images * 4 * soft_classes
    if what.images * 3 * transform.crop**2 <= budget and augment != RESIZED_CROP:
        return "decoded"
    return "encoded" if what.image_bytes <= budget else "streamed"


def order_kind(how: str) -> str:
    """What of `how_to_hold` decides the order of training, and so belongs to a result's identity."""
    return "stream" if how == "streamed" else "memory"


@dataclass(frozen=True)
class EncodedImages:
    """Image files in memory, decoded on access by threads."""

    reader: ShardReader
    samples: list[Encoded]  # by position among those that are held
    labels: np.ndarray  # int64 [N], or float32 [N, C] of soft ones

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.reader.threads)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: np.ndarray, draws: Tensor | None = None) -> Tensor:
        return self.reader.decoded([self.samples[i] for i in indices], self._pool, draws)


@dataclass(frozen=True)
class Held:
    """A set in memory, in the order of the index, with hard or soft labels."""

    images: ImageSet
    keys: list[str]
    reader: ShardReader
    failed: Mapping[int, UndecodableImage] = field(default_factory=dict)  # rows of the index that are left out

    @property
    def dropped(self) -> int:
        return len(self.failed)

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels

    @property
    def croppable(self) -> bool:
        return isinstance(self.images, EncodedImages)

    def epoch(
        self, recipe: Recipe, seed: int, epoch: int, rank: int, world: int, crop: bool = False, first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch for one worker: see `adq.batches.epoch_batches`."""
        batches = epoch_batches(self.images, recipe, seed, epoch, rank, world, crop, first)
        return batches if isinstance(self.images, TensorImages) else ahead(batches)

    def take(self, rows: np.ndarray) -> "Held":
        """The images at some rows of the index, int64 [n], as if these alone had been opened.

        Raises:
            ValueError: one of them could not be decoded. Names key and shard.
        """
        self.reader.check({int(row): self.failed[row] for row in rows if row in self.failed})
        rows = rows - np.searchsorted(np.array(sorted(self.failed), dtype=np.int64), rows)  # places among those held
        keys, labels = [self.keys[row] for row in rows], self.labels[rows]
        if isinstance(self.images, EncodedImages):
            samples = [self.images.samples[row] for row in rows]
            return Held(replace(self.images, samples=samples, labels=labels), keys, self.reader)
        return Held(TensorImages(self.images.batch(rows), labels), keys, self.reader)

    def share(self, rank: int, world: int, every: int = 1) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(positions, uint8 images) of one worker's share: all workers' together are each position k * every once."""
        wanted = np.arange(0, len(self.labels), every)
        mine = wanted[slice(*interval(len(wanted), rank, world))]
        for start in range(0, len(mine), SHARE_BATCH):
            positions = mine[start : start + SHARE_BATCH]
            yield positions, self.images.batch(positions)


def open_set(
    index: Index,
    transform: InputTransform,
    how: str,
    threads: int,
    leave_out: bool = False,
    rows: np.ndarray | None = None,
    soft: bool = False,
) -> Held | Streamed:
    """The images of an index at a network's input resolution.

    Args:
        how: of `how_to_hold`.
        threads: that decode.
        leave_out: drop images that cannot be decoded instead of failing; in a stream, others stand in for them.
        rows: rows of the index that are wanted, ascending; all by default, and always all of a stream.
        soft: batches have soft labels, float32 [b, C], which every sample must hold.

    Raises:
        ValueError: images that cannot be decoded and soft labels that are none, with key and shard; shards that changed since
            ingest. A stream raises it when it comes to them.
    """
    reader = ShardReader(replace(index), transform, threads, soft)
    if how == "streamed":
        return Streamed(reader, leave_out)
    rows = np.arange(len(reader.keys)) if rows is None else rows
    place = np.full(len(reader.keys), -1)
    place[rows] = np.arange(len(rows))
    side = transform.crop
    images = torch.zeros((len(rows), 3, side, side) if how == "decoded" else (0,), dtype=torch.uint8)
    probabilities = np.zeros((len(rows), len(index.classes) if soft else 0), dtype=np.float32)
    samples: list[Encoded | None] = [None] * len(rows)
    failed: dict[int, UndecodableImage] = {}

    def keep(sample: Encoded) -> None:
        position = sample.position
        if place[position] < 0:
            return
        if soft:
            probabilities[place[position]] = reader.probabilities(sample)
        if how == "encoded":
            samples[place[position]] = sample._replace(soft=b"")
            if not leave_out:
                return
        image = reader.decode(sample)
        if not isinstance(image, Tensor):
            failed[position] = image
        elif how == "decoded":
            images[place[position]] = image

    with ThreadPoolExecutor(threads) as pool:
        for shard, there in sorted(reader.positions.items()):
            wanted = there[place[there] >= 0]
            if not len(wanted):
                continue
            few = len(wanted) < FEW * len(there)
            waiting = reader.chosen(shard, wanted) if few else reader.encoded(shard)
            while chunk := list(islice(waiting, 64 * threads)):
                list(pool.map(lambda part: [keep(sample) for sample in part], _split(chunk, threads)))
    if not leave_out:
        reader.check(failed)
    good = np.array([p for p in rows if p not in failed], dtype=np.int64)
    keys = [reader.keys[p] for p in good]
    labels = probabilities[place[good]] if soft else reader.labels[good]
    if how == "encoded":
        return Held(EncodedImages(reader, [samples[place[p]] for p in good], labels), keys, reader, failed)
    return Held(TensorImages(images[place[good]] if failed else images, labels), keys, reader, failed)


def _split(items: list, parts: int) -> list[list]:
    return [items[i::parts] for i in range(parts)]
