"""How sure a difference between two methods is: intervals over seeds and test images, and many questions asked at once.

A result is an array bool [S, T]: whether network s (trained with seed s, on that seed's selection) classifies test image t
correctly. Two methods are compared seed by seed and image by image, since they share draws, initial weights and test set.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adq.randomness import numpy_generator


class Difference(NamedTuple):
    """A difference of two mean accuracies, as shares, with its 95 % interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap_difference(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], draws: int = 10_000, seed: int = 0
) -> Difference:
    """The mean over conditions of first minus second, by a bootstrap over seeds AND test images (percentile interval).

    A draw takes S seeds and T test images with replacement, the same ones for both methods and for all conditions, so that what
    the conditions share is not counted twice.

    Args:
        first, second: for every condition (a keep ratio, say), bool [S, T].

    Returns:
        The p-value is twice the share of draws on the other side of 0 (Efron and Tibshirani, 1993), at least 2 / (draws + 1).

    Raises:
        ValueError: shapes that differ.
    """
    if len(first) != len(second) or not first or len({np.shape(a) for a in (*first, *second)}) != 1:
        raise ValueError(f"expected pairs of [S, T], all of one shape: {[np.shape(a) for a in (*first, *second)]}")
    gap = np.mean(
        [np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64) for a, b in zip(first, second, strict=True)],
        0,
    )
    generator = numpy_generator(seed, "bootstrap")
    seeds, images = gap.shape
    found = np.empty(draws)
    for draw in range(draws):
        # Weights of a draw with replacement: how often each seed and each image comes.
        rows = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds)
        columns = np.bincount(generator.integers(images, size=images), minlength=images)
        found[draw] = rows @ gap @ columns / (seeds * images)
    low, high = np.quantile(found, [0.025, 0.975])
    other_side = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return Difference(float(gap.mean()), float(low), float(high), min(1.0, 2 * (other_side + 1) / (draws + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values for several questions at once (Holm, 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, which in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[which]))
        adjusted[which] = largest
    return adjusted
