"""Coresets from the geometry of the embeddings, inside each class: herding, k-centre, moderate, facility location.

Every pick is decided by exact values or by one float64 expression of a row; equal values go to the lowest index. Memory is that
of a class's embeddings in float64, a few times over, and no table of all pairs but what `facility_location` keeps.
"""

import heapq
from collections.abc import Callable, Iterable

import numpy as np

from adq.exact_products import Similarities, exact_rows
from adq.pool import Pool, by_class, check

KEPT_BYTES = 1 << 31  # of the similarities of a class
AHEAD = 32  # rows at the head of the heap that are made together


def herding(pool: Pool, total: int, seed: int) -> np.ndarray:
    """Herding on unit vectors: each pick brings the mean of the picks nearest to the class mean.

    Welling, ICML 2009, in the form of iCaRL (Rebuffi et al., CVPR 2017, arXiv 1611.07725): of what is left, the k-th pick has
    the least |mu - (x + S) / k| with S the sum of the picks before, which for unit vectors is the largest x . (k mu - S).

    Returns:
        int64 [total], class after class in pick order. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total, "embeddings", direction=True)
    return by_class(pool, total, seed, lambda mine, count: _herd(exact_rows(pool.embeddings[mine], unit=True), count))


def _herd(rows: np.ndarray, count: int) -> np.ndarray:
    mean, chosen = rows.sum(axis=0) / len(rows), np.zeros(rows.shape[1])
    to_mean, to_chosen = rows @ mean, np.zeros(len(rows))
    taken, picks = np.zeros(len(rows), dtype=bool), []
    for k in range(1, count + 1):
        values = np.where(taken, -np.inf, k * to_mean - to_chosen)
        # How far a product of d terms, taken k times, may be off: nearer values are compared by the expression itself.
        doubt = 8.0 * k * (rows.shape[1] + k) * 2.0**-53
        near = np.flatnonzero(values >= values.max() - doubt)
        pick = near[np.argmax((rows[near] * (k * mean - chosen)).sum(axis=1))]
        picks.append(pick)
        taken[pick] = True
        chosen += rows[pick]
        to_chosen += rows @ rows[pick]
    return np.array(picks)


def k_centre(pool: Pool, total: int, seed: int) -> np.ndarray:
    """Greedy k-centre (Sener and Savarese, ICLR 2018, arXiv 1708.00489): the row farthest from all picks is next.

    Euclidean distance of the embeddings as they are (to 2^-25 of the longest of the class); the first pick is the nearest to
    the class mean.

    Returns:
        int64 [total], class after class in pick order. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total, "embeddings")
    return by_class(pool, total, seed, lambda mine, count: _farthest(exact_rows(pool.embeddings[mine], False), count))


def _farthest(rows: np.ndarray, count: int) -> np.ndarray:
    squares = (rows * rows).sum(axis=1)
    picks = [int(np.argmin(distances_to_mean(rows)))]
    distance = np.full(len(rows), np.inf)
    while len(picks) < count:
        last = picks[-1]
        np.minimum(distance, squares + squares[last] - 2.0 * (rows @ rows[last]), out=distance)
        distance[last] = -np.inf
        picks.append(int(np.argmax(distance)))
    return np.array(picks)


def distances_to_mean(rows: np.ndarray) -> np.ndarray:
    """Euclidean distance of each row to the mean of all: float64 [n]."""
    offsets = rows - rows.mean(axis=0, dtype=np.float64)
    return np.sqrt((offsets * offsets).sum(axis=1))


def moderate(pool: Pool, total: int, seed: int) -> np.ndarray:
    """Moderate coreset (Xia et al., "Moderate Coreset: A Universal Method of Data Selection for Real-world Data-efficient Deep
    Learning", ICLR 2023): the images whose distance to their class mean is nearest to the median.

    Euclidean distance of the embeddings as they are.

    Returns:
        int64 [total], class after class, nearest to the median first. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total, "embeddings")

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        distance = distances_to_mean(pool.embeddings[mine])
        return np.argsort(np.abs(distance - np.median(distance)), kind="stable")[:count]

    return by_class(pool, total, seed, pick)


def facility_location(pool: Pool, total: int, seed: int) -> np.ndarray:
    """Facility location (Wei, Iyer, Bilmes, ICML 2015): greedy on the sum over the class of each image's similarity to its
    nearest pick, (1 + cos) / 2.

    Lazy (Minoux, 1978): a gain never rises, so a gain just computed that beats all old ones is the largest. Similarities are
    multiples of 2^-24 and gains their exact sums: the picks are those of the plain greedy. At most `KEPT_BYTES` of similarities are
    kept: all of a class of up to 23,170 images. Time per class of n images: n^2 d, and n d more for each gain for which they are
    made anew.

    Returns:
        int64 [total], class after class in pick order. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total, "embeddings", direction=True)

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        similarity = Similarities(exact_rows(pool.embeddings[mine], unit=True), KEPT_BYTES)
        return _lazy_greedy(similarity.sums(), similarity.row, count)

    return by_class(pool, total, seed, pick)


def lazy_greedy(similarity: np.ndarray, count: int) -> np.ndarray:
    """Facility location's picks, int64 [count], from similarities float32 [n, n] of at least 0."""
    return _lazy_greedy(similarity.sum(axis=1, dtype=np.float64), lambda row, _: similarity[row], count)


def _lazy_greedy(sums: np.ndarray, row_of: Callable[[int, Iterable[int]], np.ndarray], count: int) -> np.ndarray:
    """The picks from each row's sum, float64 [n], and a function of a row's number and of those that may be next, to the row."""
    covered, picks = np.zeros(len(sums), dtype=np.float32), []
    heap = [(-gain, row) for row, gain in enumerate(sums.tolist())]
    heapq.heapify(heap)
    while len(picks) < count:
        row = heap[0][1]
        similarity = row_of(row, (other for _, other in heap[:AHEAD]))
        gain = np.maximum(similarity - covered, 0).sum(dtype=np.float64)
        if (-gain, row) > min(heap[1:3], default=(0.0, len(sums))):
            heapq.heapreplace(heap, (-gain, row))
            continue
        heapq.heappop(heap)
        np.maximum(covered, similarity, out=covered)
        picks.append(row)
    return np.array(picks)
