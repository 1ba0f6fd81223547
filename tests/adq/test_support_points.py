"""Support points of the head of the GraphCut order, against a plain reading of the energy distance."""

import numpy as np
import pytest

from adq.coresets import METHODS, Pool
from adq.graphcut import graphcut_bins
from adq.support_points import depth_at, support_points
from tests.adq.test_prefix import place_in_class


def pool_of(embeddings: np.ndarray, classes: int = 3) -> Pool:
    labels = np.arange(len(embeddings)) % classes
    bins, ranks = graphcut_bins(embeddings, labels, 10)
    return Pool([f"{i:04d}" for i in range(len(embeddings))], labels, embeddings, bins, ranks)


@pytest.fixture(scope="module")
def pool():
    return pool_of(np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32))


def energy_distance(picks: np.ndarray, rows: np.ndarray) -> float:
    """2 E |x - y| - E |x - x'|, the part that picks decide."""

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2).mean()

    return 2 * mean(picks, rows) - mean(picks, picks)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


@pytest.mark.parametrize("depth", [0.3, 0.6, 1.0])
def test_each_pick_is_the_one_of_least_energy_distance_given_those_before_it(pool, depth):
    chosen = support_points(pool, 45, 0, depth)
    place = place_in_class(pool)
    for label in range(3):
        head = np.flatnonzero((pool.labels == label) & (place < depth - 1e-9))
        rows, picks = unit(pool.embeddings[head]), []
        for pick in chosen[pool.labels[chosen] == label]:
            left = [i for i in range(len(head)) if i not in picks]
            values = [energy_distance(rows[[*picks, i]], rows) for i in left]
            best = left[int(np.argmin(values))]
            mine = int(np.flatnonzero(head == pick)[0])
            assert values[left.index(mine)] == pytest.approx(min(values), abs=1e-7) and (mine == best or len(picks) > 1)
            picks.append(mine)
        assert len(picks) == 15


def test_picks_are_spread_like_the_head_and_not_like_the_tail(pool):
    chosen, place = support_points(pool, 60, 0), place_in_class(pool)
    assert place[chosen].max() < depth_at(0.1) and len(set(chosen.tolist())) == 60
    for label in range(3):
        head = unit(pool.embeddings[(pool.labels == label) & (place < depth_at(0.1))])
        mine = energy_distance(unit(pool.embeddings[chosen[pool.labels[chosen] == label]]), head)
        generator = np.random.default_rng(label)
        random = [energy_distance(head[generator.choice(len(head), 20, replace=False)], head) for _ in range(20)]
        assert mine < min(random)


def test_smaller_sets_are_the_first_picks_of_larger_ones_at_one_depth(pool):
    small, large = (support_points(pool, total, 0, 0.5) for total in (30, 90))
    for label in range(3):
        few, many = small[pool.labels[small] == label], large[pool.labels[large] == label]
        assert (many[: len(few)] == few).all()


def test_nothing_depends_on_blocks_scale_or_seed_and_ties_go_to_the_lowest_index(pool, monkeypatch):
    chosen = support_points(pool, 90, 0)
    assert (support_points(pool, 90, 5) == chosen).all()
    monkeypatch.setattr("adq.support_points.BLOCK", 7)
    assert (support_points(pool, 90, 0) == chosen).all()
    monkeypatch.setattr("adq.support_points.KEPT_ROWS", 3)
    assert (support_points(pool, 90, 0) == chosen).all(), "distances that are made anew for each pick"
    twins = np.repeat(np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32), 4, axis=0)
    found = support_points(pool_of(twins, 1), 120, 0, 1.0)
    assert sorted(found.tolist()) == list(range(120))
    first = {row // 4: row % 4 for row in reversed(found.tolist())}
    assert set(first.values()) == {0}, "of equal rows the first one is picked first"


def test_everything_can_be_kept_and_bad_input_is_an_error(pool):
    assert set(support_points(pool, 600, 0)) == set(range(600))
    assert len(support_points(pool, 300, 0, depth=0.01)) == 300
    assert METHODS["support-points"].function is support_points
    for depth in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected a share of the order"):
            support_points(pool, 10, 0, depth)
    with pytest.raises(ValueError, match="needs bins"):
        support_points(Pool(pool.keys, pool.labels, pool.embeddings), 10, 0)
    with pytest.raises(ValueError, match="needs embeddings"):
        support_points(Pool(pool.keys, pool.labels, None, pool.bins, pool.ranks), 10, 0)
    dead = pool.embeddings.copy()
    dead[3] = 0
    with pytest.raises(ValueError, match="0003 is all zeros"):
        support_points(Pool(pool.keys, pool.labels, dead, pool.bins, pool.ranks), 10, 0)
