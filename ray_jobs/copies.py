"""A data set in several encodings, each made once, and the payload of any part of a copy: what budgets are spent on."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adq.randomness import numpy_generator
from palette.encodings import ORIGINAL
from ray_jobs import decode, encode, saliency, weights
from ray_jobs.budget import DoesNotFit, images_that_fit
from ray_jobs.encode import Storage
from ray_jobs.grid import Selected, Variant
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.loading import Rows
from ray_jobs.members import check_names, image_members
from ray_jobs.options import Backbone
from ray_jobs.payload import compact_bytes, payload_bytes
from ray_jobs.store import canonical_json, sha256

SAMPLED = 1000  # images whose containers say how much less indexed PNGs take there than their files


class Fitting(NamedTuple):
    """As many images of a method as fit into a budget."""

    rows: Rows  # of the copy
    payload: int
    moved: float


class Copies:
    """The data set in each encoding: the same keys in the same order, but for images that cannot be decoded.

    Args:
        backbone: ranks patches, where a network does. seed: of random saliency. skip_corrupt: copies leave out images that cannot
            be decoded.
    """

    def __init__(self, job: Job, index: Index, backbone: Backbone, seed: int = 0, skip_corrupt: bool = False):
        self.job, self.index, self.backbone, self.seed, self.skip_corrupt = job, index, backbone, seed, skip_corrupt
        self._made: dict[str, Index] = {}
        self._ratios: dict[str, float] = {}

    def check(self, storages: Sequence[Storage]) -> None:
        """What can be known before hours are spent.

        Raises:
            ValueError: members beside images that have the names of files to be made; the backbone knows other classes than the
                data.
        """
        for storage in storages:
            self._check_names(storage)
        if any(storage.needs_network for storage in storages):
            saliency.check(weights.run(self.job, self.index, self.backbone), self.index)

    def of(self, storage: Storage) -> Index:
        """The encoded data set."""
        name = f"{storage.encoding()} {storage.saliency}"
        if name not in self._made:
            self._made[name] = self.index if storage.encoding() == ORIGINAL else self._make(storage)
        return self._made[name]

    def _make(self, storage: Storage) -> Index:
        job, index, ranked, encoding = self.job, self.index, None, storage.encoding()
        self._check_names(storage)
        if storage.needs_network:
            ranked = saliency.run(job, index, weights.run(job, index, self.backbone), encoding.resize)
        seed = self.seed if encoding.patches and storage.saliency == "random" else 0
        inputs = [index.manifest.content, asdict(storage), ranked.content if ranked else "", seed, encode.VERSION]
        out = job.store.path(f"encoded/{sha256(canonical_json(inputs))[:16]}")
        done = encode.run(job, index, storage, out, ranked, seed, self.skip_corrupt)
        return encode.encoded_index(job, index, encoding, out, done.parts)

    def _check_names(self, storage: Storage) -> None:
        encoding = storage.encoding()
        check_names(self.index, encoding.extensions, f"--encodings {encoding}")

    @cached_property
    def readable(self) -> np.ndarray:
        """Rows of the source that can be stored: all, or, with `skip_corrupt`, those that can be decoded."""
        lost = decode.undecoded(decode.run(self.job, self.index)) if self.skip_corrupt else ()
        return np.flatnonzero(~pc.is_in(self.index.table()["key"], value_set=pa.array(lost, pa.string())).to_numpy())

    def rows(self, storage: Storage, positions: np.ndarray) -> np.ndarray:
        """Rows of the source as rows of a copy; those that it left out have none."""
        copy = self.of(storage)
        if copy.images == self.index.images:
            return positions
        keys = self.index.table()["key"].take(pa.array(positions))
        found = pc.index_in(keys, value_set=copy.table()["key"].combine_chunks())
        return found.drop_null().to_numpy().astype(np.int64)

    def part(self, storage: Storage, positions: np.ndarray) -> Rows:
        """Some images as rows of a copy."""
        rows, copy = self.rows(storage, positions), self.of(storage)
        keys = copy.table()["key"].take(pa.array(rows)).to_pylist()
        sizes = image_members(copy).image_bytes
        return Rows(rows, sha256(canonical_json(keys)), int(sizes[rows].sum()))

    def payload(self, storage: Storage, positions: np.ndarray) -> int:
        """Bytes of the containers of some images."""
        return payload_bytes(self.of(storage), self.rows(storage, positions))

    def guess(self, storage: Storage, positions: np.ndarray) -> int:
        """The same, near enough and at once: of indexed PNGs, whoever made them, only some are coded for it, and once."""
        copy, name = self.of(storage), str(storage.encoding())
        if name not in self._ratios:
            count = min(SAMPLED, copy.images)
            some = np.sort(numpy_generator(0, "palettised").choice(copy.images, count, replace=False))
            self._ratios[name] = payload_bytes(copy, some) / compact_bytes(copy, some)
        return round(compact_bytes(copy, self.rows(storage, positions)) * self._ratios[name])

    def fitting(self, selected: Selected, variant: Variant, storage: Storage, budget: int, seed: int) -> Fitting:
        """As many images of a method as fit into a budget.

        Raises:
            DoesNotFit: not even one image a class does.
        """
        total, least = self.index.images, len(self.index.classes)

        def rows(count: int) -> Rows:
            return selected.of(variant, count / total, seed)[0]

        first = int(budget * total / self.guess(storage, np.arange(total)))
        count = images_that_fit(
            budget, total, lambda count: self.guess(storage, rows(count).positions), least, first=first
        )
        while (payload := self.payload(storage, rows(count).positions)) > budget:
            if count == least:
                raise DoesNotFit(f"{least:,} images take {payload:,} bytes: more than the budget of {budget:,}")
            count = max(least, min(count - 1, int(count * budget / payload)))
        found, outcome = selected.of(variant, count / total, seed)
        return Fitting(self.part(storage, found.positions), payload, outcome.moved)
