"""Self-supervised prototypes: how far an image is from the nearest of the clusters that the embeddings form without labels."""

import numpy as np

from adq.exact_products import exact_rows
from adq.pool import BLOCK, Pool, by_class, check, highest
from adq.randomness import key_order, numpy_generator

ROUNDS = 20  # of k-means at most; it ends sooner when no image changes its cluster
ROWS = 1 << 17  # drawn rows that k-means sees at most
STARTS = 16  # drawn rows for every prototype among which k-means++ looks for its start


def prototypes(pool: Pool, total: int, seed: int) -> np.ndarray:
    """Self-supervised prototypes (Sorscher et al., NeurIPS 2022, arXiv 2206.14486): the images farthest from their prototype.

    k-means over all embeddings, without labels, into as many clusters as there are classes with images; the distance is 1 - cos
    to the nearest centre. Class totals are kept.

    Returns:
        int64 [total], class after class, hardest first. Raises ValueError as `adq.pool.check`.
    """
    distance = prototype_distances(pool, total, seed)
    return by_class(pool, total, seed, lambda mine, count: highest(distance[mine], count))


def prototypes_easy(pool: Pool, total: int, seed: int) -> np.ndarray:
    """The easiest images of `prototypes`: those nearest to their prototype, which the paper keeps where data are scarce."""
    distance = prototype_distances(pool, total, seed)
    return by_class(pool, total, seed, lambda mine, count: highest(-distance[mine], count))


def prototype_distances(pool: Pool, total: int, seed: int) -> np.ndarray:
    """1 - cos of every image to its nearest prototype: float64 [N]."""
    check(pool, total, "embeddings", direction=True)
    drawn = key_order(pool.keys, seed, "prototypes")
    clusters = int((pool.counts() > 0).sum())
    start = plus_plus(exact_rows(pool.embeddings[drawn[: max(STARTS * clusters, 1024)]], unit=True), clusters, seed)
    centres = k_means(pool.embeddings, np.sort(drawn[:ROWS]), start)
    return 1.0 - _assign(pool.embeddings, np.arange(len(pool.keys)), centres)[1]


def plus_plus(rows: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The start of k-means++ (Arthur and Vassilvitskii, 2007): each centre a row drawn in proportion to its squared distance.

    Args:
        rows: exact unit rows, float64 [n, d].

    Returns:
        float64 [clusters, d]; rows may repeat where fewer are distinct.
    """
    generator = numpy_generator(seed, "k-means++")
    chosen = [int(generator.integers(len(rows)))]
    distance = np.full(len(rows), np.inf)
    while len(chosen) < clusters:
        np.minimum(distance, np.maximum(1.0 - rows @ rows[chosen[-1]], 0.0), out=distance)
        reach = np.cumsum(distance)
        drawn = generator.random() * reach[-1]
        chosen.append(min(int(np.searchsorted(reach, drawn, side="right")), len(rows) - 1))
    return rows[chosen]


def k_means(embeddings: np.ndarray, members: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """k-means by cosine: unit vectors, centres the directions of their means (Dhillon and Modha, 2001).

    Args:
        embeddings: float [N, d]. members: int64 [n], the rows to cluster.
        centres: float64 [k, d], exact unit rows, the start. A cluster without rows keeps its centre.

    Returns:
        float64 [k, d], exact unit rows.
    """
    before = None
    for _ in range(ROUNDS):
        cluster, _, sums = _assign(embeddings, members, centres)
        if before is not None and (cluster == before).all():
            break
        before, moved = cluster, sums.any(axis=1)
        centres = centres.copy()
        centres[moved] = exact_rows(sums[moved], unit=True)
    return centres


def _assign(
    embeddings: np.ndarray, members: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest centre of each member (int64 [n]), its cosine (float64 [n]), and the exact sums of the clusters [k, d]."""
    cluster, cosine = np.empty(len(members), dtype=np.int64), np.empty(len(members))
    sums = np.zeros(centres.shape)
    for start in range(0, len(members), BLOCK):
        here = slice(start, start + BLOCK)
        rows = exact_rows(embeddings[members[here]], unit=True)
        product = rows @ centres.T
        cluster[here] = product.argmax(axis=1)
        cosine[here] = product.max(axis=1)
        order = np.argsort(cluster[here], kind="stable")
        present, first = np.unique(cluster[here][order], return_index=True)
        sums[present] += np.add.reduceat(rows[order], first, axis=0)
    return cluster, cosine, sums
