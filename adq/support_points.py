"""Ours: support points of what is typical: images whose energy distance to the head of each class's GraphCut order is least.

Two ideas, each of which helped alone where it was developed (tests/bench/PROTOCOL.md). The tail of the GraphCut order holds what
is odd in a class, of which little can be learnt when little is kept: it is left out. And a random draw from the head covers it
unevenly: support points (Mak and Joseph, Annals of Statistics 2018) are picked so that they are distributed like the head, by the
energy distance (Szekely and Rizzo, 2013) between picks x_1 ... x_k and the head Y,

    2 E |x - y| - E |x - x'| - E |y - y'|,

greedily: given the picks before it, the k-th is the row of least k mean_y |x - y| - sum_i |x - x_i|. Near to all of the head,
and far from each other, with no kernel or weight to choose; the more is kept, the nearer the picks come to all of it.
"""

from collections.abc import Iterator

import numpy as np

from adq.exact_products import exact_rows
from adq.pool import Pool, by_class, check
from adq.prefix import check_depth, head

FIRST, WIDENING = 0.6, 0.4
DISTANCE_BITS = 24  # distances are multiples of 2^-24, so that their sums are exact
BLOCK = 1024  # rows whose distances to all are made at once
KEPT_ROWS = 1 << 13  # up to so many rows (0.3 GB) all distances are kept, and none is made for each pick


def depth_at(keep: float) -> float:
    """The share of the order that is covered at a keep ratio: 0.6, and all of it where everything is kept."""
    return FIRST + WIDENING * keep


def support_points(pool: Pool, total: int, seed: int, depth: float | None = None) -> np.ndarray:
    """Support points of the first `depth` of each class in GraphCut order, the class totals those of a stratified draw.

    Distances are of unit vectors. Products are exact and distances whole multiples of 2^-24, so that picks depend on no library,
    and ties go to the lowest index. Time per class of n images in the head and k picks: n^2 d + k n d.

    Args:
        pool: with embeddings, and bins and ranks of scope "class".
        seed: breaks ties of class totals alone.
        depth: above 0 and up to 1; by default `depth_at` of total / N. A class always offers as many as it must give.

    Returns:
        int64 [total], class after class in pick order. Raises ValueError as `adq.pool.check`, for such a depth, or as
        `adq.prefix.head`.
    """
    check(pool, total, "embeddings", "bins", "ranks", direction=True)
    depth = depth_at(total / len(pool.keys)) if depth is None else check_depth(depth)

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        rows = head(pool, mine, count, depth)
        return rows[_nearest_to_all(exact_rows(pool.embeddings[mine[rows]], unit=True), count)]

    return by_class(pool, total, seed, pick)


def _nearest_to_all(rows: np.ndarray, count: int) -> np.ndarray:
    """The picks, int64 [count], of exact unit rows float64 [n, d]."""
    kept = np.empty((len(rows), len(rows)), dtype=np.int32) if len(rows) <= KEPT_ROWS else None
    to_all = np.zeros(len(rows), dtype=np.int64)
    for number, part in enumerate(_distances(rows, rows)):
        block = slice(number * BLOCK, number * BLOCK + len(part))
        to_all[block] = part.sum(axis=1)
        if kept is not None:
            kept[block] = part
    to_picks, taken, picks = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=bool), []
    for k in range(1, count + 1):
        # In whole numbers, times n: at most n k 2^25, below 2^63 for any class whose distances could be computed.
        values = k * to_all - len(rows) * to_picks
        values[taken] = np.iinfo(np.int64).max
        picks.append(int(values.argmin()))
        taken[picks[-1]] = True
        if kept is not None:
            to_picks += kept[picks[-1]]  # the products are exact, so that rows are columns
        else:
            to_picks += np.concatenate([part[:, 0] for part in _distances(rows, rows[picks[-1] :][:1])])
    return np.array(picks)


def _distances(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Euclidean distances, block by block of the rows, int64 [BLOCK, m] in units of 2^-24."""
    for start in range(0, len(rows), BLOCK):
        squares = np.maximum(2.0 - 2.0 * (rows[start : start + BLOCK] @ others.T), 0.0)
        yield np.rint(np.sqrt(squares) * 2.0**DISTANCE_BITS).astype(np.int64)
