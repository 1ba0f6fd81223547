"""What one actor does of GraphCut: it holds rows of the features, and answers what the driver asks of them."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from adq.fixed_point import check_rows, largest_entry
from adq.graphcut import block_of, class_bins
from ray_jobs.actors import RETRIES
from ray_jobs.class_means import ClassSums, class_sums, nearest
from ray_jobs.stages import Part, Stage
from ray_jobs.store import parquet_table

Share = list[ray.ObjectRef]  # one reference, to an actor's parts or to what `by_class` made of them


class Piece(NamedTuple):
    """A part of the features, and where its rows belong: indices int64, -1 for images that could not be decoded; labels int64."""

    stage: Stage
    part: Part
    indices: np.ndarray
    labels: np.ndarray


class NotBegun(RuntimeError):
    """An actor was started again and has no block yet."""


class GraphCutActor:
    """Rows of some parts (scope "global") or of some classes (scope "class").

    Every method is told the rows, as a reference in a list, and the class means to subtract, or none: an actor that was started
    again has neither.
    """

    def __init__(self, threads: int, device: str):
        torch.set_num_threads(threads)
        self.device, self.block, self.rows, self.centred = device, None, None, False

    def process(self) -> int:
        return os.getpid()

    def _hold(self, share: Share, means: np.ndarray | None) -> None:
        """Read the rows and subtract the means, once."""
        if self.rows is None:
            pieces = _fetched(ray.get(share[0]))
            found = [read_piece(piece) if isinstance(piece, Piece) else piece for piece in pieces]
            rows, indices, labels = _joined(found)
            order = np.argsort(indices)
            self.rows, self.indices, self.labels = rows[order], indices[order], labels[order]
        if means is not None and not self.centred:
            self.rows, self.centred = self.rows - means[self.labels], True

    def check(self, share: Share, means: np.ndarray | None, unit: bool) -> tuple[str, int] | None:
        """The first bad row: its trouble and its index."""
        self._hold(share, means)
        for place in range(0, len(self.rows), 4096):
            try:
                check_rows(self.rows[place : place + 4096], unit)
            except ValueError:
                for i in range(place, min(place + 4096, len(self.rows))):
                    try:
                        check_rows(self.rows[i : i + 1], unit)
                    except ValueError as error:
                        return str(error).partition("embeddings ")[2], int(self.indices[i])
        return None

    def largest(self, share: Share, means: np.ndarray | None) -> float:
        self._hold(share, means)
        return largest_entry(self.rows)

    def sums(self, share: Share, means: np.ndarray | None, unit: bool, largest: float, classes: int) -> ClassSums:
        self._hold(share, means)
        return class_sums(self.rows, self.labels, unit, largest, classes)

    def nearest(
        self, share: Share, means: np.ndarray | None, bins: np.ndarray, unit_means: np.ndarray, num_bins: int
    ) -> np.ndarray:
        self._hold(share, means)
        return nearest(self.rows, self.labels, bins[self.indices], unit_means, num_bins)

    def class_bins(
        self, share: Share, means: np.ndarray | None, num_bins: int, kernel: str, largest: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indices, bins, ranks) of whole classes."""
        self._hold(share, means)
        if not len(self.rows):
            return self.indices, self.indices, self.indices
        bins, ranks = class_bins(self.rows, self.labels, num_bins, kernel, largest, device=self.device)
        return self.indices, bins, ranks

    def begin(self, share: Share, means: np.ndarray | None, kernel: str, largest: float, taken: np.ndarray) -> None:
        self._hold(share, means)
        self.block = block_of(self.rows, self.indices, kernel, largest, self.device, taken)

    def call(self, name: str, *args):
        """A method of the block. Raises NotBegun where there is none."""
        if self.block is None:
            raise NotBegun
        return getattr(self.block, name)(*args)


def _fetched(pieces: Sequence) -> list:
    return [ray.get(piece) if isinstance(piece, ray.ObjectRef) else piece for piece in pieces]


def _joined(found: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    return [np.concatenate(column) for column in zip(*found, strict=True)]


def read_piece(piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows float32 [n, d], indices, labels) of the images that could be decoded."""
    table = parquet_table(piece.stage.read(piece.part), ["embedding", "error"])
    table = table.filter(pc.is_null(table["error"])).combine_chunks()
    array = table["embedding"].combine_chunks()
    good = piece.indices >= 0
    if isinstance(array, pa.ChunkedArray) or len(array) != int(good.sum()):
        raise ValueError(f"{piece.part.path}: {len(array)} features, {int(good.sum())} expected")
    rows = (
        array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
        if len(array)
        else np.zeros((0, 0), np.float32)
    )
    return rows, piece.indices[good], piece.labels[good]


@ray.remote(max_retries=RETRIES)
def by_class(pieces: list[Piece], owner: np.ndarray, groups: int) -> list:
    """The rows of some parts, one share for each group of classes."""
    rows, indices, labels = _joined([read_piece(piece) for piece in pieces])
    shares = [(rows[mine], indices[mine], labels[mine]) for g in range(groups) for mine in [owner[labels] == g]]
    return shares if groups > 1 else shares[0]
