"""Which images a method keeps, whatever the method: a draw from quotas of the bins, or its own picks.

ADQ, its controls and DQ share one path, so that they differ in the importance and in nothing else.
"""

from dataclasses import dataclass

import numpy as np

from adq.controls import CONTROLS, permuted, random_bins, reversed_importance
from adq.coresets import METHODS, Pool
from adq.sampling import class_table, draw, kept, moved

BY_IMPORTANCE = ("adq", *CONTROLS)
BY_BINS = (*BY_IMPORTANCE, "dq")  # a quota for every bin, and a draw inside
ALL_METHODS = (*BY_IMPORTANCE, *METHODS)


def needs(method: str) -> frozenset[str]:
    """Of "embeddings", "bins", "scores" and "dynamics", what must be made for a method."""
    if method in BY_IMPORTANCE:
        return frozenset({"embeddings", "bins", "scores"})
    more = {"embeddings"} if "bins" in METHODS[method].needs else set()
    return METHODS[method].needs | more


def looks_at(method: str) -> frozenset[str]:
    """What is handed to a method: not the embeddings of which its bins were cut, unless it looks at them itself."""
    return needs(method) - {"embeddings"} | (METHODS[method].needs if method in METHODS else frozenset())


@dataclass(frozen=True)
class Choice:
    """What a method keeps of a pool of N images, in tables of m bins and C classes."""

    chosen: np.ndarray  # bool [N]
    bins: np.ndarray  # int64 [N]: those that the tables are of; all 0 for a method without bins
    importance: np.ndarray  # float64 [m], as it was used; 0 for a method that reads none
    sizes: np.ndarray  # int64 [m, C]
    quota: np.ndarray  # int64 [m, C]: what was wanted
    drawn: np.ndarray  # int64 [m, C]: what was found
    dq: np.ndarray  # int64 [m, C]: the quotas of DQ

    @property
    def moved(self) -> float:
        """The share of the images that stand in other bins than those of DQ's choice."""
        return moved(self.quota.sum(axis=1), self.dq.sum(axis=1))


def choose(
    pool: Pool,
    method: str,
    keep: float,
    seed: int,
    importance: np.ndarray | None = None,
    alpha: float = 0.65,
    allocation: str = "share",
    balance: str = "class",
    permutation: int = 0,
    **settings: float,
) -> Choice:
    """Choose images of a pool.

    Args:
        method: of ALL_METHODS. keep: the keep ratio, in (0, 1]. seed: of the draw.
        importance: float [m] of `adq.importance`, for those in BY_IMPORTANCE, which alone read alpha and allocation too.
        alpha, allocation, balance: as in `adq.sampling.class_table`.
        permutation: the number of adq-permuted's among those of the seed.
        settings: of the method's own function, those that `Method.settings` names.

    Raises:
        ValueError: an unknown method, one that lacks what it looks at, or settings that cannot be.
    """
    if method not in ALL_METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(ALL_METHODS)}")
    known = METHODS[method].settings if method in METHODS else ()
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"method {method} has no setting {unknown[0]!r}; known: {', '.join(known) or 'none'}")
    if method in BY_BINS and pool.bins is None:
        raise ValueError(f"{method} needs the bins of the images")
    if method in BY_IMPORTANCE and importance is None:
        raise ValueError(f"{method} needs the importance of each bin")
    binned = pool.bins is not None and looks_at(method) & {"bins", "scores"}
    bins = np.asarray(pool.bins, dtype=np.int64) if binned else np.zeros(len(pool.keys), dtype=np.int64)
    if method == "adq-random-bins":
        bins = random_bins(pool.keys, bins, pool.labels, seed)
    sizes = _table(bins, pool.labels, int(bins.max()) + 1, len(pool.counts()))
    if method not in BY_IMPORTANCE:
        importance, alpha, allocation = np.zeros(len(sizes)), 0.0, "share"
    if method == "adq-permuted":
        importance = permuted(importance, seed, permutation)
    if method == "adq-reversed":
        importance = reversed_importance(importance)
    dq = class_table(importance, sizes, keep, 0.0, "share", balance, seed)
    if method in BY_BINS or method == "random":
        quota = class_table(importance, sizes, keep, alpha, allocation, balance, seed)
        chosen = draw(pool.keys, bins, pool.labels, quota, seed)
    else:
        chosen = np.zeros(len(pool.keys), dtype=bool)
        chosen[METHODS[method].function(pool, kept(keep, len(pool.keys)), seed, **settings)] = True
        quota = _table(bins[chosen], pool.labels[chosen], *sizes.shape)
    drawn = _table(bins[chosen], pool.labels[chosen], *sizes.shape)
    return Choice(chosen, bins, np.asarray(importance, dtype=np.float64), sizes, quota, drawn, dq)


def _table(bins: np.ndarray, labels: np.ndarray, m: int, classes: int) -> np.ndarray:
    table = np.zeros((m, classes), dtype=np.int64)
    np.add.at(table, (bins, labels), 1)
    return table
