"""Exact arithmetic for greedy picks: rows as fixed-point numbers, their sums as integers, one deciding expression.

A greedy choice made in floating point depends on how a product was blocked, on the order of a sum, on the device. Here it does
not. A row is rounded once to a grid (multiples of 2^-40, times a power of two for raw vectors), by arithmetic on that row
alone. Sums of such rows are integers below 2^62, so any split of the rows adds up to the same bits. The deciding value of a row
is one float64 expression of that row and those sums, reduced along the contiguous row: numpy adds it up in the same order
whatever the number of rows beside it. Equal rows have equal values.
"""

from dataclasses import dataclass

import numpy as np

BITS = 40
MAX_ROWS = 1 << (62 - BITS)
EXACT_ROWS = 1 << (52 - BITS)  # sums of so many rows are exact in float64: 40 + 12 bits
UNIT_64 = 2.0**-53
TAME = 30  # binary orders of magnitude within which float32 products neither overflow nor lose digits


@dataclass(frozen=True)
class Grid:
    """How rows become exact: made unit vectors or left raw, then rounded to multiples of `scale`."""

    unit: bool
    scale: float

    def lengths(self, raw: np.ndarray) -> np.ndarray:
        """The L2 norm of each row, from that row alone: float64 [n]."""
        wide = raw.astype(np.float64)
        return np.sqrt((wide * wide).sum(axis=1))

    def rows(self, raw: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Exact rows: float64 [n, d], multiples of the scale. lengths: those of the rows, where they are known."""
        rows = raw.astype(np.float64)
        if self.unit:
            rows /= (self.lengths(raw) if lengths is None else lengths)[:, None]
        rows /= self.scale
        np.rint(rows, out=rows)
        rows *= self.scale
        return rows

    def total(self, rows: np.ndarray) -> np.ndarray:
        """The exact sum of exact rows, in units of the scale: int64 [d]."""
        total = np.zeros(rows.shape[1], dtype=np.int64)
        for start in range(0, len(rows), EXACT_ROWS):
            total += (rows[start : start + EXACT_ROWS].sum(axis=0) / self.scale).astype(np.int64)
        return total


def largest_entry(raw: np.ndarray) -> float:
    """The largest magnitude of an entry: what the grid of raw vectors is made from."""
    return max(
        (float(np.abs(raw[s : s + EXACT_ROWS]).max(initial=0.0)) for s in range(0, len(raw), EXACT_ROWS)), default=0.0
    )


def tame(raw: np.ndarray, unit: bool, largest: float) -> np.ndarray:
    """Rows whose entries are so large or small that products in float32 would fail, times a power of two; others as they are.

    Unit vectors are scaled row by row, raw ones all by the same power: the picks stay the same.

    Args:
        largest: the largest entry of all rows, wherever they are (raw vectors).
    """
    if not unit:
        power = wildness(largest)
        return np.ldexp(raw.astype(np.float64), -power).astype(raw.dtype) if power else raw
    out = raw
    for start in range(0, len(raw), EXACT_ROWS):
        peak = np.abs(raw[start : start + EXACT_ROWS]).max(axis=1, initial=0.0).astype(np.float64)
        power = np.frexp(peak)[1]
        wild = np.flatnonzero(np.abs(power) > TAME)
        if len(wild):
            if out is raw:
                out = raw.copy()
            out[start + wild] = np.ldexp(raw[start + wild].astype(np.float64), -power[wild, None])
    return out


def make_grid(kernel: str, largest: float) -> Grid:
    """The grid of a kernel on tame rows: "cosine" (unit vectors) or "l2" (raw, as fine as the largest entry allows).

    Raises:
        ValueError: another kernel.
    """
    if kernel == "cosine":
        return Grid(True, 2.0**-BITS)
    if kernel == "l2":
        return raw_grid(largest * 2.0 ** -wildness(largest))
    raise ValueError(f"kernel {kernel!r}: expected 'cosine' or 'l2'")


def raw_grid(largest: float) -> Grid:
    """The finest grid on which entries up to `largest` have 40 bits."""
    return Grid(False, 2.0 ** (np.ceil(np.log2(largest)) - BITS) if largest else 1.0)


def wildness(largest: float) -> int:
    """The power of two by which raw rows are scaled down, 0 for tame ones."""
    power = int(np.floor(np.log2(largest))) if largest else 0
    return power if abs(power) > TAME else 0


def deciding_values(rows: np.ndarray, weight: float, direction: np.ndarray) -> np.ndarray:
    """weight |x|^2 - 2 x . direction of exact rows, each from that row alone: float64 [n]."""
    return weight * (rows * rows).sum(axis=1) - 2.0 * (rows * direction).sum(axis=1)


def check_rows(raw: np.ndarray, unit: bool) -> None:
    """Raises ValueError naming the first row that has a NaN, an infinite value, or no direction."""
    for start in range(0, len(raw), EXACT_ROWS):
        block = raw[start : start + EXACT_ROWS]
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise ValueError(f"row {start + int(np.argmin(finite))} of the embeddings has a NaN or infinite value")
        if unit:
            alive = block.any(axis=1)
            if not alive.all():
                raise ValueError(f"row {start + int(np.argmin(alive))} of the embeddings is all zeros: it has no direction; "
                                 "remove it, or use raw vectors (--normalize none)")  # fmt: skip
