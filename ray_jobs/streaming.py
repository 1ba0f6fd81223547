"""A training set that is read from its shards anew in each epoch.

A stream reads whole shards: worker r of w takes an interval of the concatenated samples of an epoch's seeded order of shards.
"""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from adq.batches import Batch, crops_of
from adq.randomness import numpy_generator, torch_generator
from adq.recipe import Recipe
from adq.shards import ahead
from ray_jobs.shard_reader import Encoded, ShardReader

SHUFFLE = 4096  # encoded images in the shuffle buffer
SHARE_BATCH = 256


@dataclass(frozen=True)
class Streamed:
    """A set that is read from its shards anew in each epoch; its soft labels are, too: `labels` are always the hard ones.

    Nobody knows before which images cannot be decoded, and every worker must take every step: where they may be left out, the
    image that the worker decoded last stands in for each of them.
    """

    reader: ShardReader
    leave_out: bool = False
    dropped = 0
    croppable = True

    @property
    def labels(self) -> np.ndarray:
        return self.reader.labels

    @property
    def keys(self) -> list[str]:
        return self.reader.keys

    def epoch(
        self, recipe: Recipe, seed: int, epoch: int, rank: int, world: int, crop: bool = False, first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch for one worker: sizes and crops as in `adq.batches.epoch_batches`, every image once.

        Args:
            first: the batch to begin with. Files before it are read, and decoded only where some may be left out: which image
                then stands in for others depends on them.
        """
        total, size = len(self.labels), recipe.batch_size
        counts = [min(size, total - start) for start in range(0, total, size)]
        sizes = np.array([[len(range(r, count, world)) for count in counts] for r in range(world)])
        begin = int(sizes[:rank].sum())
        shards = sorted(self.reader.positions)
        order = torch.randperm(len(shards), generator=torch_generator(seed, "shards", epoch)).tolist()
        samples = self._between([shards[i] for i in order], begin, begin + int(sizes[rank].sum()))
        shuffled = _shuffled(samples, numpy_generator(seed, "shuffle", epoch, rank))
        starts = itertools.accumulate(counts, initial=0)
        at = zip(starts, counts, strict=False)
        passed = 0 if self.leave_out else first
        draws = (crops_of(seed, epoch, *one, rank, world) if crop else None for one in islice(at, passed, None))
        samples = islice(shuffled, int(sizes[rank, :passed].sum()), None)
        batches = self._batches(samples, sizes[rank, passed:].tolist(), counts[passed:], draws)
        return ahead(islice(batches, first - passed, None))

    def _batches(
        self, samples: Iterator[Encoded], sizes: list[int], counts: list[int], draws: Iterator[Tensor | None]
    ) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.reader.threads) as pool:
            last: list[Encoded] = []
            for size, count, boxes in zip(sizes, counts, draws, strict=True):
                batch, images = self._decoded(list(islice(samples, size)), last, pool, boxes)
                last = batch[-1:] or last
                yield images, self.reader.batch_labels(batch), count

    def _decoded(
        self, batch: list[Encoded], last: list[Encoded], pool: ThreadPoolExecutor, draws: Tensor | None
    ) -> tuple[list[Encoded], Tensor]:
        """A batch and its images, the sample before it in the place of each that is left out; before the first is `last`."""
        try:
            return batch, self.reader.decoded(batch, pool, draws)
        except ValueError:
            if not self.leave_out:
                raise
        there = list(
            zip(batch, pool.map(lambda sample: isinstance(self.reader.decode(sample), Tensor), batch), strict=True)
        )
        good = [*last, *(sample for sample, decodes in there if decodes)]
        out = good[:1]
        for sample, decodes in there:
            out.append(sample if decodes or not good else out[-1])
        batch = out[1:] if good else batch
        return batch, self.reader.decoded(batch, pool, draws)

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
        wanted = (sample for sample in samples if sample.position % every == 0)
        with ThreadPoolExecutor(self.reader.threads) as pool:
            while batch := list(islice(wanted, SHARE_BATCH)):
                if self.leave_out:
                    images = pool.map(self.reader.decode, batch)
                    batch = [s for s, image in zip(batch, images, strict=True) if isinstance(image, Tensor)]
                if batch:
                    yield np.array([sample.position for sample in batch]), self.reader.decoded(batch, pool)


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
