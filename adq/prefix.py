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


def depth_at(keep: float) -> float:
    """The share of the order from which is drawn at a keep ratio: 0.29 at 1 %, 0.65 at 10 %, all from 18.75 % on."""
    return min(1.0, FIRST + WIDENING * keep)


def prefix(pool: Pool, total: int, seed: int, depth: float | None = None) -> np.ndarray:
    """Images drawn from the first `depth` of each class in GraphCut order, the class totals those of a stratified draw.

    Args:
        pool: with bins and ranks of scope "class".
        depth: above 0 and up to 1; by default `depth_at` of total / N. A class always offers as many as it must give.

    Returns:
        int64 [total], class after class, each in the order of its draw. Raises ValueError as `adq.pool.check`, or for such a depth.
    """
    check(pool, total, "bins", "ranks")
    depth = depth_at(total / len(pool.keys)) if depth is None else check_depth(depth)

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        rows = head(pool, mine, count, depth)
        return rows[key_order([pool.keys[i] for i in mine[rows]], seed, "draw")[:count]]

    return by_class(pool, total, seed, pick)


def head(pool: Pool, mine: np.ndarray, count: int, depth: float) -> np.ndarray:
    """The first share of a class in GraphCut order, at least `count` images.

    Args:
        mine: int64 [n], the positions of its images.

    Returns:
        Places in `mine`, ascending.
    """
    order = np.lexsort((pool.ranks[mine], pool.bins[mine]))
    return np.sort(order[: max(count, math.ceil(depth * len(mine)))])


def check_depth(depth: float) -> float:
    """Raises ValueError for what is no share of an order."""
    if not 0 < depth <= 1:
        raise ValueError(f"depth {depth}: expected a share of the order, above 0 and up to 1")
    return depth
