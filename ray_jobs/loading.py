"""Training data from shards: in memory, decoded or encoded, or streamed where a set is larger than the memory for it.

In memory, images lie in the order of the index, so the order of the shards never matters. A stream reads whole shards:
worker r of w takes an interval of the concatenated samples of an epoch's seeded order of shards.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from adq.extractor import InputTransform
from adq.features import load
from adq.images import UndecodableImage
from adq.randomness import numpy_generator, torch_generator
from adq.shards import join, read_samples
from adq.training import Batch, ImageSet, Recipe, TensorImages, epoch_batches
from ray_jobs.ingest import Index

MEMORY_GB = 4.0  # of images in one worker; a constant, since what a machine has free must not decide results
SHUFFLE = 4096  # encoded images in the shuffle buffer of a stream
SHOWN = 10  # undecodable images that an error lists
SHARE_BATCH = 256

Encoded = tuple[int, bytes]  # position in the index, image file


def how_to_hold(index: Index, transform: InputTransform, memory_gb: float = MEMORY_GB) -> str:
    """decoded, encoded or streamed: the first for which the images fit into `memory_gb`."""
    budget = memory_gb * 1e9
    if index.images * 3 * transform.crop**2 <= budget:
        return "decoded"
    return "encoded" if index.image_bytes <= budget else "streamed"


def order_kind(how: str) -> str:
    """What of `how_to_hold` decides the order of training, and so belongs to a result's identity."""
    return "stream" if how == "streamed" else "memory"


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
        table = self.index.table()
        members = table["members"].combine_chunks()
        inner = members.flatten()
        is_image = pc.match_substring_regex(
            pc.struct_field(inner, "name"), f"(?i)\\.({'|'.join(self.index.image_ext)})$"
        )
        offsets = np.empty(table.num_rows, dtype=np.int64)
        rows = pc.list_parent_indices(members).filter(is_image).to_numpy()
        offsets[rows] = pc.struct_field(inner, "offset").filter(is_image).to_numpy()
        shards = table["shard"].to_numpy()
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


@dataclass(frozen=True)
class EncodedImages:
    """Image files in memory, decoded on access by threads."""

    reader: ShardReader
    samples: list[Encoded]  # by position among those that are held
    labels: np.ndarray

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.reader.threads)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: np.ndarray) -> Tensor:
        return self.reader.decoded([self.samples[i] for i in indices], self._pool)


@dataclass(frozen=True)
class Held:
    """A set in memory, in the order of the index. `dropped` rows of the index could not be decoded."""

    images: ImageSet
    keys: list[str]
    dropped: int

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels

    def epoch(self, recipe: Recipe, seed: int, epoch: int, rank: int, world: int) -> Iterator[Batch]:
        """The batches of an epoch for one worker: see `adq.training.epoch_batches`."""
        batches = epoch_batches(self.images, recipe, seed, epoch, rank, world)
        return batches if isinstance(self.images, TensorImages) else ahead(batches)

    def share(self, rank: int, world: int, every: int = 1) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(positions, uint8 images) of one worker's share: all workers' together are each position k * every once."""
        wanted = np.arange(0, len(self.labels), every)
        mine = wanted[slice(*interval(len(wanted), rank, world))]
        for start in range(0, len(mine), SHARE_BATCH):
            positions = mine[start : start + SHARE_BATCH]
            yield positions, self.images.batch(positions)


@dataclass(frozen=True)
class Streamed:
    """A set that is read from its shards anew in each epoch."""

    reader: ShardReader
    dropped = 0  # an image that cannot be decoded is always an error here

    @property
    def labels(self) -> np.ndarray:
        return self.reader.labels

    @property
    def keys(self) -> list[str]:
        return self.reader.keys

    def epoch(self, recipe: Recipe, seed: int, epoch: int, rank: int, world: int) -> Iterator[Batch]:
        """The batches of an epoch for one worker: sizes as in `adq.training.epoch_batches`, every image once."""
        total, size = len(self.labels), recipe.batch_size
        counts = [min(size, total - start) for start in range(0, total, size)]
        sizes = np.array([[len(range(r, count, world)) for count in counts] for r in range(world)])
        first = int(sizes[:rank].sum())
        shards = sorted(self.reader.positions)
        order = torch.randperm(len(shards), generator=torch_generator(seed, "shards", epoch)).tolist()
        samples = self._between([shards[i] for i in order], first, first + int(sizes[rank].sum()))
        shuffled = _shuffled(samples, numpy_generator(seed, "shuffle", epoch, rank))
        return ahead(self._batches(shuffled, sizes[rank].tolist(), counts))

    def _batches(self, samples: Iterator[Encoded], sizes: list[int], counts: list[int]) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.reader.threads) as pool:
            for size, count in zip(sizes, counts, strict=True):
                batch = list(islice(samples, size))
                labels = self.labels[[position for position, _ in batch]] if batch else np.zeros(0, dtype=np.int64)
                yield self.reader.decoded(batch, pool), torch.from_numpy(labels), count

    def _between(self, shards: Iterable[str], first: int, last: int) -> Iterator[Encoded]:
        """Samples `first` to `last` of the concatenated shards; shards outside are not opened."""
        start = 0
        for shard in shards:
            size = len(self.reader.positions[shard])
            inside = max(first - start, 0), min(last - start, size)
            if inside[0] < inside[1]:
                yield from self.reader.encoded(shard, *inside)
            start += size

    def share(self, rank: int, world: int, every: int = 1) -> Iterator[tuple[np.ndarray, Tensor]]:
        """As `Held.share`; the worker's interval is one of the shards' order."""
        samples = self._between(sorted(self.reader.positions), *interval(len(self.labels), rank, world))
        wanted = (sample for sample in samples if sample[0] % every == 0)
        with ThreadPoolExecutor(self.reader.threads) as pool:
            while batch := list(islice(wanted, SHARE_BATCH)):
                yield np.array([position for position, _ in batch]), self.reader.decoded(batch, pool)


def interval(count: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous interval of worker `rank`: intervals are disjoint, cover `count`, and differ by at most one."""
    return rank * count // world, (rank + 1) * count // world


def _shuffled(samples: Iterator[Encoded], generator: np.random.Generator) -> Iterator[Encoded]:
    held = list(islice(samples, SHUFFLE))
    for sample in samples:
        at = int(generator.integers(len(held)))
        held[at], sample = sample, held[at]
        yield sample
    yield from (held[i] for i in generator.permutation(len(held)))


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; while one is used, a thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = thread.submit(next, batches, None)
            yield batch


def open_set(
    index: Index,
    transform: InputTransform,
    how: str,
    threads: int,
    leave_out: bool = False,
    rows: np.ndarray | None = None,
) -> Held | Streamed:
    """The images of an index at a network's input resolution.

    Args:
        how: of `how_to_hold`.
        threads: that decode.
        leave_out: drop images that cannot be decoded instead of failing; a stream always fails.
        rows: rows of the index that are wanted, ascending; all by default, and always all of a stream.

    Raises:
        ValueError: images that cannot be decoded, with key and shard; shards that changed since ingest.
    """
    reader = ShardReader(replace(index), transform, threads)
    if how == "streamed":
        return Streamed(reader)
    rows = np.arange(len(reader.keys)) if rows is None else rows
    place = np.full(len(reader.keys), -1)
    place[rows] = np.arange(len(rows))
    side = transform.crop
    images = torch.zeros((len(rows), 3, side, side) if how == "decoded" else (0,), dtype=torch.uint8)
    samples: list[Encoded | None] = [None] * len(rows)
    failed: dict[int, UndecodableImage] = {}

    def keep(sample: Encoded) -> None:
        position = sample[0]
        if place[position] < 0:
            return
        if how == "encoded":
            samples[place[position]] = sample
            if not leave_out:
                return
        image = reader.decode(sample)
        if not isinstance(image, Tensor):
            failed[position] = image
        elif how == "decoded":
            images[place[position]] = image

    with ThreadPoolExecutor(threads) as pool:
        for shard in sorted(shard for shard, there in reader.positions.items() if (place[there] >= 0).any()):
            waiting = reader.encoded(shard)
            while chunk := list(islice(waiting, 64 * threads)):
                list(pool.map(lambda part: [keep(sample) for sample in part], _split(chunk, threads)))
    if not leave_out:
        reader.check(failed)
    good = np.array([p for p in rows if p not in failed], dtype=np.int64)
    keys, labels = [reader.keys[p] for p in good], reader.labels[good]
    if how == "encoded":
        return Held(EncodedImages(reader, [samples[place[p]] for p in good], labels), keys, len(failed))
    return Held(TensorImages(images[place[good]] if failed else images, labels), keys, len(failed))


def _split(items: list, parts: int) -> list[list]:
    return [items[i::parts] for i in range(parts)]
