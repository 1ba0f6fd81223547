"""Prototypes: k-means at its fixed point, distances by definition, and the same whatever the labels are."""

import numpy as np
import pytest

from adq import prototypes as module
from adq.coresets import METHODS, Pool
from adq.exact_products import exact_rows
from adq.prototypes import k_means, plus_plus, prototype_distances


def clustered(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four tight clusters of 40 directions, and the cluster of each row."""
    rng = np.random.default_rng(seed)
    cluster = rng.permutation(np.repeat(np.arange(4), 40))
    x = np.eye(4, 6)[cluster] + 0.05 * rng.normal(size=(160, 6))
    return (x * rng.uniform(0.5, 2, (160, 1))).astype(np.float32), cluster


def pool_of(x: np.ndarray, labels: np.ndarray) -> Pool:
    return Pool([f"{i:04d}" for i in range(len(x))], labels, x)


def test_k_means_finds_the_clusters_and_ends_at_a_fixed_point():
    x, cluster = clustered()
    rows = exact_rows(x, unit=True)
    centres = k_means(x, np.arange(160), plus_plus(rows, 4, seed=0))
    nearest = (rows @ centres.T).argmax(axis=1)
    for c in range(4):
        assert len(set(nearest[cluster == c])) == 1
        mean = rows[cluster == c].sum(axis=0)
        np.testing.assert_allclose(centres[nearest[cluster == c][0]], mean / np.linalg.norm(mean), atol=1e-7)


def test_a_cluster_without_rows_keeps_its_centre():
    x, _ = clustered()
    start = exact_rows(np.concatenate([np.eye(4, 6), -np.ones((1, 6))]), unit=True)
    np.testing.assert_array_equal(k_means(x, np.arange(160), start)[4], start[4])


def test_the_start_is_spread_and_repeats_only_where_all_rows_are_alike():
    x, cluster = clustered()
    rows = exact_rows(x, unit=True)
    for seed in range(5):
        start = plus_plus(rows, 4, seed)
        assert len({int(cluster[(rows == row).all(axis=1)][0]) for row in start}) == 4
    assert (plus_plus(rows[[0, 0, 0]], 3, 0) == rows[0]).all()


def test_the_farthest_of_each_class_are_hard_and_the_nearest_easy():
    x, cluster = clustered()
    x[7] = 0.6 * np.eye(6)[cluster[7]] + 0.4 * np.eye(6)[(cluster[7] + 1) % 4]
    x[30] = 3 * x[cluster == cluster[30]].mean(axis=0)
    pool = pool_of(x, cluster)
    distance = prototype_distances(pool, 8, seed=0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[cluster == c].mean(axis=0) for c in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(distance, 1 - (unit @ means.T).max(axis=1), atol=1e-6)
    hard, easy = (METHODS[name].function(pool, 8, 0) for name in ("prototypes", "prototypes-easy"))
    assert 7 in hard and 30 in easy
    for c in range(4):
        order = sorted(np.flatnonzero(cluster == c), key=lambda i: distance[i])
        assert hard[cluster[hard] == c].tolist() == order[:-3:-1]
        assert easy[cluster[easy] == c].tolist() == order[:2]


def test_labels_tell_only_the_number_of_clusters():
    x, cluster = clustered()
    want = prototype_distances(pool_of(x, cluster), 8, seed=0)
    np.testing.assert_array_equal(prototype_distances(pool_of(x, np.arange(160) % 4), 8, seed=0), want)
    # A class without images adds no cluster.
    np.testing.assert_array_equal(prototype_distances(pool_of(x, cluster + (cluster == 3)), 8, seed=0), want)


@pytest.mark.parametrize("block", [7, 64])
def test_blocks_do_not_change_a_bit(block, monkeypatch):
    x, cluster = clustered()
    want = prototype_distances(pool_of(x, cluster), 8, seed=0)
    monkeypatch.setattr(module, "BLOCK", block)
    np.testing.assert_array_equal(prototype_distances(pool_of(x, cluster), 8, seed=0), want)


def test_k_means_sees_a_drawn_part_of_many_rows(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 80)
    x, cluster = clustered()
    assert (prototype_distances(pool_of(x, cluster), 8, seed=0) < 0.2).all()
