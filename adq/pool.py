"""What a coreset method may look at, and how many images of each class it keeps."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adq.sampling import class_table

if TYPE_CHECKING:  # it loads torch
    from adq.dynamics import Dynamics

BLOCK = 4096  # rows checked at once


@dataclass(frozen=True)
class Pool:
    """N images, in the bytewise order of their keys: "lowest index" is the lowest key."""

    keys: list[str]
    labels: np.ndarray  # int64 [N]
    embeddings: np.ndarray | None = None  # float32 [N, d], rows of any length
    bins: np.ndarray | None = None  # int64 [N], of graphcut_bins
    ranks: np.ndarray | None = None  # int64 [N], of graphcut_bins
    dynamics: "Dynamics | None" = None
    classes: int | None = None  # classes of the data set, where the last ones may have no image

    def __post_init__(self):
        count = len(self.keys)
        for before, after in itertools.pairwise(self.keys):
            if not before < after:
                raise ValueError(f"keys must be distinct and in bytewise order: {after!r} comes after {before!r}")
        if np.shape(self.labels) != (count,) or (count and np.min(self.labels) < 0):
            raise ValueError(f"{count} keys need as many labels from 0 on, got shape {np.shape(self.labels)}")
        if self.classes is not None and count and np.max(self.labels) >= self.classes:
            raise ValueError(f"label {np.max(self.labels)} of {self.classes} classes")
        if self.embeddings is not None and (np.ndim(self.embeddings) != 2 or len(self.embeddings) != count):
            raise ValueError(f"{count} keys need embeddings [{count}, d], got shape {np.shape(self.embeddings)}")
        for name in ("bins", "ranks"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != (count,):
                raise ValueError(f"{count} keys, but {name} of shape {np.shape(values)}")
        if self.dynamics is not None and len(self.dynamics.el2n) != count:
            raise ValueError(f"{count} keys, but dynamics of {len(self.dynamics.el2n)} images")

    def counts(self) -> np.ndarray:
        """Images of each class: int64 [C]."""
        return np.bincount(self.labels, minlength=self.classes or 0)


def check(pool: Pool, total: int, *needs: str, direction: bool = False) -> None:
    """Raises ValueError for a total outside 1 to N, what a method needs and the pool lacks, or unusable embeddings.

    Args:
        needs: of "embeddings", "bins", "dynamics". direction: rows of zeros are unusable too (cosine has no angle for them).
    """
    if not 1 <= total <= len(pool.keys):
        raise ValueError(f"total {total}: expected 1 to {len(pool.keys)}, the images that there are")
    for need in needs:
        if getattr(pool, need) is None:
            raise ValueError(f"the method needs {need}, which the pool does not have")
    if "embeddings" not in needs:
        return
    for start in range(0, len(pool.keys), BLOCK):
        rows = pool.embeddings[start : start + BLOCK]
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"the embedding of {pool.keys[start + int(np.argmin(finite))]} has a NaN or infinite value"
            )
        if direction and not (alive := rows.any(axis=1)).all():
            raise ValueError(
                f"the embedding of {pool.keys[start + int(np.argmin(alive))]} is all zeros: it has no direction"
            )


def class_totals(labels: np.ndarray, total: int, seed: int, classes: int | None = None) -> np.ndarray:
    """Images kept of each class, in proportion by largest remainder: those of `adq.sampling.class_table` with one bin.

    Args:
        labels: int [N]. total: 1 to N. seed: breaks ties of equal remainders.
        classes: C, where it is more than the largest label + 1.

    Returns:
        int64 [C], summing to `total`.
    """
    counts = np.bincount(labels, minlength=classes or 0)[None]
    return class_table(np.zeros(1), counts, total / len(labels), alpha=0.0, seed=seed)[0]


def by_class(pool: Pool, total: int, seed: int, pick: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Let `pick` choose inside each class: (positions of its images, ascending; how many) -> places in these positions.

    Returns:
        int64 [total], class after class, each in pick order.
    """
    totals = class_totals(pool.labels, total, seed, pool.classes)
    members = np.split(np.argsort(pool.labels, kind="stable"), np.cumsum(pool.counts())[:-1])
    return np.concatenate(
        [mine[pick(mine, int(wanted))] for mine, wanted in zip(members, totals, strict=True) if wanted]
    )


def highest(score: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` highest scores, highest first, ties to the lowest place: int64 [count]."""
    return np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")[:count]
