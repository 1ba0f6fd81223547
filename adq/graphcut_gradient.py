"""GraphCut over last-layer gradients, which are never made.

The gradient of the cross-entropy loss in the last layer of a sample is the outer product of delta = softmax - one-hot
and [1; h], its embedding with the bias's 1: C (d + 1) numbers, 769,000 on ImageNet. The cosine of two such products is
the product of two cosines,

    cos(delta_i, delta_j) cos([1; h_i], [1; h_j])

so a class of n samples needs its n x n similarities alone. They are exact: unit vectors are cut into two parts of 24
and 20 bits whose products add up in float64 without rounding, in any order, so that an entry depends on its two samples
alone. Rounded to 2^-40, their sums are integers, and the greedy compares integers.
"""

from collections.abc import Callable

import numpy as np

from adq.fixed_point import BITS, check_rows

HIGH, LOW = 24, 44
LARGEST_GROUP = 12_000  # samples; four float64 matrices of that side are 4.6 GB


def gradient_similarities(embeddings: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Cosines of last-layer gradients in units of 2^-40: int64 [n, n].

    Args:
        embeddings: float [n, d], h.
        errors: float [n, C], delta.
    """
    with_bias = np.concatenate([np.ones((len(embeddings), 1)), embeddings], axis=1)
    product = _cosines(errors) * _cosines(with_bias)
    return np.rint(np.ldexp(product, BITS, out=product), out=product).astype(np.int64)


def gradient_bins(
    embeddings: np.ndarray, errors: np.ndarray | None, labels: np.ndarray, num_bins: int,
    bin_sizes: Callable[[int, int], np.ndarray], on_step: Callable[[int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """`graphcut_bins` with the gradient kernel, inside each class."""
    errors = _checked(embeddings, errors)
    bins, ranks = np.empty(len(labels), dtype=np.int64), np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(np.asarray(labels) == label)
        greedy = _Pairs(_group(embeddings[members], errors[members]), 1.0)
        for number, size in enumerate(bin_sizes(len(members), num_bins)[:-1]):
            picked = members[greedy.run(int(size))]
            bins[picked] = number
            ranks[picked] = int(greedy.taken.sum()) - int(size) + np.arange(size)
            greedy.next_bin()
        rest = members[~greedy.taken]
        bins[rest], ranks[rest] = num_bins - 1, len(members) - len(rest) + np.arange(len(rest))
        if on_step:
            on_step(len(members))
    return bins, ranks


def gradient_select(embeddings: np.ndarray, errors: np.ndarray | None, budget: int, lam: float) -> np.ndarray:
    """`graphcut_select` with the gradient kernel."""
    return _Pairs(_group(embeddings, _checked(embeddings, errors)), float(lam)).run(budget)


class _Pairs:
    """Greedy picks of eq. 2 from the similarities of all pairs, int64 [n, n]."""

    def __init__(self, similarities: np.ndarray, lam: float):
        self.similarities, self.lam = similarities, lam
        self.taken = np.zeros(len(similarities), dtype=bool)
        self.norms = np.diagonal(similarities).copy()
        self.to_total, self.to_chosen = similarities.sum(axis=1), np.zeros(len(similarities), dtype=np.int64)
        self.count, self.size = len(similarities), 0

    def next_bin(self) -> None:
        self.to_total, self.to_chosen = self.to_total - self.to_chosen, np.zeros_like(self.to_chosen)
        self.count, self.size = self.count - self.size, 0

    def run(self, picks: int) -> np.ndarray:
        out = np.empty(picks, dtype=np.int64)
        for i in range(picks):
            if self.lam == 1.0:
                values = (2 * self.size - self.count) * self.norms - 2 * (2 * self.to_chosen - self.to_total)
                values[self.taken] = np.iinfo(np.int64).min
            else:
                weight = 2.0 * self.size - self.lam * self.count
                values = weight * self.norms - 2.0 * (2.0 * self.to_chosen - self.lam * self.to_total)
                values[self.taken] = -np.inf
            pick = int(values.argmax())  # the first of equals
            self.to_chosen += self.similarities[pick]
            self.taken[pick] = True
            self.size += 1
            out[i] = pick
        return out


def _checked(embeddings: np.ndarray, errors: np.ndarray | None) -> np.ndarray:
    if errors is None or np.ndim(errors) != 2 or len(errors) != len(embeddings):
        shape = None if errors is None else np.shape(errors)
        raise ValueError(f"kernel 'gradient' needs errors [{len(embeddings)}, C], softmax minus one-hot; got {shape}")
    check_rows(embeddings, unit=False)
    try:
        check_rows(np.asarray(errors), unit=True)
    except ValueError as error:
        raise ValueError(f"errors of the gradient kernel: {error}") from error
    return np.asarray(errors)


def _group(embeddings: np.ndarray, errors: np.ndarray) -> np.ndarray:
    if len(embeddings) > LARGEST_GROUP:
        raise ValueError(
            f"{len(embeddings)} samples in one group: the gradient kernel holds all pairs, of at most {LARGEST_GROUP}; "
            "use kernel 'cosine'"
        )
    return gradient_similarities(embeddings, errors)


def _cosines(rows: np.ndarray) -> np.ndarray:
    """Cosines of all pairs, each from its two rows alone: float64 [n, n]."""
    unit = rows.astype(np.float64)
    unit /= np.abs(unit).max(axis=1, keepdims=True)
    unit /= np.sqrt((unit * unit).sum(axis=1))[:, None]
    high = np.rint(np.ldexp(unit, HIGH))
    low = np.rint(np.ldexp(unit - np.ldexp(high, -HIGH), LOW))
    # Integers: |high| is at most 2^24 as a vector and |low| 2^19 sqrt(d), so every partial sum stays below 2^53.
    cross = high @ low.T
    cross += cross.T.copy()
    return np.ldexp(high @ high.T, -2 * HIGH) + np.ldexp(cross, -HIGH - LOW)
