"""One of several choices for each image, so that all together stay within a budget of bytes and lose little.

An allocation by rate and distortion on each image's lower convex hull (Shoham and Gersho, Efficient bit allocation for an arbitrary
set of quantizers, IEEE Trans. ASSP 1988).
"""

from itertools import count

import numpy as np


def allocate(rates: np.ndarray, distortions: np.ndarray, budget: float, groups: np.ndarray | None = None) -> np.ndarray:
    """The choice of each image that makes the total distortion small while the total rate stays within the budget.

    From the choices of the least rate, always the step with the largest fall in distortion for its bytes, of those that fit. While
    every such step fits, the steps run along the lower convex hulls, and the total is the least that any choice of this rate has;
    what is then left of the budget is filled with the smaller steps that fit. The total is above the least possible by less
    than one step of a hull, and more budget never makes it larger.

    Args:
        rates: float [N, M], bytes. distortions: float [N, M], of any scale.
        budget: bytes.
        groups: int [N]; images of one group get one choice.

    Returns:
        int64 [N], places in the M choices. Of equal steps each unit's first ones come first, then those of the lowest image, or
        of the group with the lowest number, then the lowest place.

    Raises:
        ValueError: shapes that differ, numbers that are not finite, or a budget below the least total rate.
    """
    rates, distortions = np.asarray(rates, dtype=np.float64), np.asarray(distortions, dtype=np.float64)
    if rates.ndim != 2 or not rates.size or rates.shape != distortions.shape:
        raise ValueError(
            f"rates {list(rates.shape)}, distortions {list(distortions.shape)}; expected both [N, M], not empty"
        )
    if not (np.isfinite(rates).all() and np.isfinite(distortions).all()):
        raise ValueError("a rate or distortion is not finite")
    if groups is None:
        return _allocated(rates, distortions, budget)
    groups = np.asarray(groups)
    if groups.dtype.kind not in "iu" or groups.shape != (len(rates),):
        raise ValueError(f"groups are {groups.dtype} {list(groups.shape)}; expected whole numbers [{len(rates)}]")
    choice = _allocated(_sums(rates, groups), _sums(distortions, groups), budget)
    return choice[np.unique(groups, return_inverse=True)[1]]


def least_rate(rates: np.ndarray, groups: np.ndarray | None) -> float:
    """The total of the least rates, the smallest budget that `allocate` takes."""
    return _sums(rates, groups).min(axis=1).sum()


def _sums(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Sums [G, M] of the values [N, M] of each group, groups ascending; the values themselves without groups."""
    if groups is None:
        return values
    numbers, member = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, member, values)
    return sums


def _allocated(rates: np.ndarray, distortions: np.ndarray, budget: float) -> np.ndarray:
    every = np.arange(len(rates))
    choice = np.lexsort((distortions, rates))[:, 0]
    least = rates[every, choice].sum()
    if not least <= budget:
        raise ValueError(f"the smallest choices take {least:,.1f} bytes, more than the budget of {budget:,.1f}")
    # Of the loop below, all at once, what comes before the first step that does not fit.
    unit, place, cost = _hull_steps(rates, distortions, choice)
    fitting = np.searchsorted(least + np.cumsum(cost), budget, side="right")
    choice[unit[:fitting]] = place[:fitting]  # of a unit's steps the last one stays
    rest = budget - rates[every, choice].sum()
    while True:
        slopes, costs = _slopes(rates, distortions, choice)
        slopes[costs > rest] = 0
        unit, place = np.unravel_index(slopes.argmax(), slopes.shape)
        if not slopes[unit, place] > 0:
            return choice
        choice[unit] = place
        rest -= costs[unit, place]


def _hull_steps(rates: np.ndarray, distortions: np.ndarray, choice: np.ndarray) -> tuple[np.ndarray, ...]:
    """All steps along the units' hulls from `choice`, the steepest first: their units, places and bytes."""
    now, every, limit, steps = choice.copy(), np.arange(len(rates)), np.full(len(rates), np.inf), []
    for turn in count():
        slopes, costs = _slopes(rates, distortions, now)
        place = slopes.argmax(axis=1)
        limit = np.minimum(limit, slopes[every, place])  # a hull flattens; rounding must not say otherwise
        unit = np.flatnonzero(limit > 0)
        steps.append((limit[unit], np.full_like(unit, turn), unit, place[unit], costs[unit, place[unit]]))
        now[unit] = place[unit]
        if not len(unit):
            slope, turns, unit, place, cost = (np.concatenate(column) for column in zip(*steps, strict=True))
            order = np.lexsort((unit, turns, -slope))
            return unit[order], place[order], cost[order]


def _slopes(rates: np.ndarray, distortions: np.ndarray, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every other choice: the fall of the distortion per byte, 0 where it does not fall; and the bytes. Both [N, M]."""
    every = np.arange(len(rates))
    costs = rates - rates[every, choice, None]
    falls = distortions[every, choice, None] - distortions
    worth = (falls > 0) & (costs > 0)
    return np.where(worth, falls / np.where(worth, costs, 1), 0), costs
