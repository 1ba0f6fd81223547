"""Means of classes, the same wherever the rows are: exact sums, one division."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adq.fixed_point import EXACT_ROWS, Grid, largest_entry, make_grid, raw_grid


class ClassSums(NamedTuple):
    sums: np.ndarray  # int64 [C, d], in units of the scale
    counts: np.ndarray  # int64 [C]
    scale: float


def class_sums(rows: np.ndarray, labels: np.ndarray, unit: bool, largest: float, classes: int) -> ClassSums:
    """Exact sums of each class's rows, raw or as unit vectors. Rows without direction count as zeros."""
    grid = make_grid("cosine", 1.0) if unit else raw_grid(largest)
    sums = np.zeros((classes, rows.shape[1]), dtype=np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        for start in range(0, len(mine), EXACT_ROWS):
            sums[label] += grid.total(_exact(rows[mine[start : start + EXACT_ROWS]], grid))
    return ClassSums(sums, np.bincount(labels, minlength=classes), grid.scale)


def means_of(parts: Sequence[ClassSums]) -> np.ndarray:
    """float32 [C, d]; zeros for a class without rows."""
    parts = [part for part in parts if part.counts.any()]
    total, counts = sum(part.sums for part in parts), sum(part.counts for part in parts)
    return (total * parts[0].scale / np.maximum(counts, 1)[:, None]).astype(np.float32)


def class_means(rows: np.ndarray, labels: np.ndarray, unit: bool = False) -> np.ndarray:
    """The mean of each class's rows: float32 [C, d]."""
    return means_of([class_sums(rows, labels, unit, largest_entry(rows), int(labels.max()) + 1)])


def nearest(rows: np.ndarray, labels: np.ndarray, bins: np.ndarray, means: np.ndarray, num_bins: int) -> np.ndarray:
    """Of each bin, how many rows are nearest to the mean of their own class, on unit vectors: int64 [m]."""
    half = 0.5 * (means.astype(np.float64) ** 2).sum(axis=1)
    right = np.zeros(num_bins, dtype=np.int64)
    for start in range(0, len(rows), EXACT_ROWS):
        part = slice(start, start + EXACT_ROWS)
        unit = _exact(rows[part], make_grid("cosine", 1.0))
        hits = (unit @ means.T.astype(np.float64) - half).argmax(axis=1) == labels[part]
        right += np.bincount(bins[part][hits], minlength=num_bins)
    return right


def _exact(rows: np.ndarray, grid: Grid) -> np.ndarray:
    lengths = grid.lengths(rows)
    return grid.rows(rows, np.where(lengths > 0, lengths, 1.0))
