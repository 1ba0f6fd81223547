"""What every table about ADQ is compared with: the same quotas without their meaning.

Min-max normalisation turns pure noise into quotas that move a tenth of the images, so being different from DQ is no merit by
itself. An importance that helps must beat the same numbers given to other bins, and bins that mean nothing.
"""

import math

import numpy as np

from adq.randomness import key_order, numpy_generator

CONTROLS = ("adq-permuted", "adq-reversed", "adq-random-bins")
PERMUTATIONS = 5  # of the importance, in a table that is to say something of ADQ


def is_control(method: str) -> bool:
    """Whether a method, with or without settings after a colon, is there to judge ADQ and not to be used."""
    return method.partition(":")[0] in CONTROLS


def permuted(importance: np.ndarray, seed: int, number: int = 0) -> np.ndarray:
    """The importance [m] of the bins in another order, drawn by the seed; with two bins or more, never the same order.

    Args:
        number: each is an order that the numbers before it in the seed are not, as far as m! - 1 orders go round.
    """
    generator, m = numpy_generator(seed, "permuted importance"), len(importance)
    others = math.factorial(min(m, 20)) - 1
    number, drawn = number % others if others else 0, [tuple(range(m))] if others else []
    while True:
        order = tuple(generator.permutation(m).tolist())
        if order not in drawn:
            drawn.append(order)
            if len(drawn) > number + bool(others):
                return np.asarray(importance)[list(order)]


def reversed_importance(importance: np.ndarray) -> np.ndarray:
    """The importance [m] from last to first: most to the bin that ADQ gives least, where the scores are monotone."""
    return np.asarray(importance)[::-1].copy()


def random_bins(keys: list[str], bins: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Bins drawn at random that are as large as `bins`, of every class too: int [N]."""
    out = np.empty(len(keys), dtype=np.asarray(bins).dtype)
    order = key_order(keys, seed, "random bins")
    by_class = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    places = np.lexsort((bins, labels))
    out[by_class] = np.asarray(bins)[places]
    return out
