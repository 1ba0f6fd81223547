"""Ours: a random draw from the head of each class's GraphCut order, which is wider the more images are kept.

GraphCut picks what is typical first and what is odd last. With a handful of images a class, typical ones teach most; the more are
kept, the more their likeness costs, until a plain stratified draw is right. DQ takes the same share of every bin at any keep ratio;
this takes from the first bins alone when little is kept.
"""

import math

import numpy as np

from adq.pool import Pool, by_class, check
from adq.randomness import key_order

FIRST, WIDENING = 0.25, 4.0
UNORDERED = 10  # the most of a class whose order need not be known: one in ten


def depth_at(keep: float) -> float:
    """The share of the order from which is drawn at a keep ratio: 0.29 at 1 %, 0.65 at 10 %, all from 18.75 % on."""
    return min(1.0, FIRST + WIDENING * keep)


def prefix(pool: Pool, total: int, seed: int, depth: float | None = None) -> np.ndarray:
    """Images drawn from the first `depth` of each class in GraphCut order, the class totals those of a stratified draw.

    Args:
        pool: with bins and ranks of scope "class".
        depth: above 0 and up to 1; by default `depth_at` of total / N. A class always offers as many as it must give.

    Returns:
        int64 [total], class after class, each in the order of its draw. Raises ValueError as `adq.pool.check`, for such a depth, or
        as `head`.
    """
    check(pool, total, "bins", "ranks")
    depth = depth_at(total / len(pool.keys)) if depth is None else check_depth(depth)

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        rows = head(pool, mine, count, depth)
        return rows[key_order([pool.keys[i] for i in mine[rows]], seed, "draw")[:count]]

    return by_class(pool, total, seed, pick)


def head(pool: Pool, mine: np.ndarray, count: int, depth: float) -> np.ndarray:
    """The first share of a class in GraphCut order, at least `count` images.

    GraphCut fills the last bin with what is left, in key order, so a head that ends inside it takes from it by key. That is let
    be where the last bin holds at most a tenth of the class, as with ten bins or more: keys then decide among the oddest tenth
    alone. With fewer bins they would decide more, with one bin everything.

    Args:
        mine: int64 [n], the positions of its images.

    Returns:
        Places in `mine`, ascending.

    Raises:
        ValueError: bins of scope "global"; a head that ends inside a last bin of more than a tenth of the class.
    """
    bins, ranks, size = pool.bins[mine], pool.ranks[mine], len(mine)
    if ranks.max() >= size:
        raise ValueError(
            f"class {pool.labels[mine[0]]} has {size} images, but GraphCut ranks up to {ranks.max()}: the order inside each class "
            "is needed, not that over all images; use --scope class"
        )
    wanted, last = max(count, math.ceil(depth * size)), int((bins == bins.max()).sum())
    if size - last < wanted < size and last > size / UNORDERED:
        raise ValueError(
            f"--bins {bins.max() + 1}: the first {wanted} of the {size} images of class {pool.labels[mine[0]]} in GraphCut order "
            f"are needed, but the last bin holds {last}, which have no order; use --bins {UNORDERED} or more, or a smaller --depth"
        )
    return np.sort(np.lexsort((ranks, bins))[:wanted])


def check_depth(depth: float) -> float:
    """Raises ValueError for what is no share of an order."""
    if not 0 < depth <= 1:
        raise ValueError(f"depth {depth}: expected a share of the order, above 0 and up to 1")
    return depth
