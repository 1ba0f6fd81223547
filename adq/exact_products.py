"""Rows whose products are exact: a matrix product that decides, whatever library, blocking or number of threads made it.

Rows of length at most 1 are rounded once to multiples of 2^-25. A product of two entries is then a multiple of 2^-50, and every
partial sum of a product of two rows is about 1 at most (Cauchy-Schwarz): all of them are numbers of float64, so nothing is
rounded in any order of addition, and equal rows have equal values. (The 40 bits of `fixed_point` leave sums exact, not products.)
"""

import numpy as np

BITS = 25
SIMILARITY_BITS = 24  # multiples of 2^-24 up to 1 are exact in float32, their sums over 2^29 of them in float64


def exact_rows(raw: np.ndarray, unit: bool) -> np.ndarray:
    """Rows on the grid, as unit vectors, or all divided by one power of two that is at least the longest row's length.

    Args:
        raw: float [n, d], finite; without rows of zeros if `unit`.

    Returns:
        float64 [n, d].
    """
    rows = raw.astype(np.float64)
    lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    if unit:
        rows /= lengths
    elif longest := lengths.max(initial=0.0):
        rows *= 2.0 ** -np.ceil(np.log2(longest))
    rows *= 2.0**BITS
    np.rint(rows, out=rows)
    rows *= 2.0**-BITS
    return rows


def similarities(rows: np.ndarray, block: int = 1024) -> np.ndarray:
    """(1 + cos) / 2 of all pairs of exact unit rows, to multiples of 2^-24: float32 [n, n]."""
    out = np.empty((len(rows), len(rows)), dtype=np.float32)
    for start in range(0, len(rows), block):
        cosines = rows[start : start + block] @ rows.T
        cosines += 1.0
        cosines *= 2.0 ** (SIMILARITY_BITS - 1)
        np.rint(cosines, out=cosines)
        cosines *= 2.0**-SIMILARITY_BITS
        out[start : start + block] = cosines
    return out


def nearest(rows: np.ndarray, count: int, block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest other rows of each exact row, ties to the lowest index.

    Returns:
        int64 [n, count], ascending in each row, and their exact squared distances, float64 [n, count].
    """
    places, distances = np.empty((len(rows), count), dtype=np.int64), np.empty((len(rows), count))
    if not count:
        return places, distances
    squares = (rows * rows).sum(axis=1)
    for start in range(0, len(rows), block):
        squared = squares[start : start + block, None] + squares - 2.0 * (rows[start : start + block] @ rows.T)
        here = np.arange(len(squared))
        squared[here, start + here] = np.inf
        most = np.partition(squared, count - 1, axis=1)[:, count - 1, None]
        chosen = squared <= most
        for i in np.flatnonzero(chosen.sum(axis=1) > count):
            equal = np.flatnonzero(squared[i] == most[i])
            chosen[i, equal[count - int((squared[i] < most[i]).sum()) :]] = False
        places[start : start + block] = np.nonzero(chosen)[1].reshape(-1, count)
        distances[start : start + block] = np.take_along_axis(squared, places[start : start + block], axis=1)
    return places, distances
