import numpy as np
import pytest

from adq.coresets import METHODS, Pool
from adq.graphcut import graphcut_bins
from adq.prefix import depth_at, prefix


@pytest.fixture(scope="module")
def pool():
    generator = np.random.default_rng(0)
    embeddings, labels = generator.random((600, 8), dtype=np.float32), np.arange(600) % 3
    bins, ranks = graphcut_bins(embeddings, labels, 10)
    return Pool([f"{i:04d}" for i in range(600)], labels, embeddings, bins, ranks)


def place_in_class(pool):
    """Of every image, its place in its class's GraphCut order, from 0 to 1."""
    place = np.empty(len(pool.keys))
    for label in range(3):
        mine = np.flatnonzero(pool.labels == label)
        place[mine[np.lexsort((pool.ranks[mine], pool.bins[mine]))]] = np.arange(len(mine)) / len(mine)
    return place


@pytest.mark.parametrize("depth", [0.1, 0.3, 1.0])
def test_the_draw_stays_in_the_head_and_is_spread_over_it(pool, depth):
    place = place_in_class(pool)
    chosen = np.concatenate([prefix(pool, 30, seed, depth) for seed in range(20)])
    assert place[chosen].max() < depth
    # Uniform over the head: the mean place of 600 draws is its middle.
    assert place[chosen].mean() == pytest.approx(depth / 2, rel=0.15)


def test_class_totals_and_seeds(pool):
    chosen = prefix(pool, 31, 0)
    assert len(set(chosen.tolist())) == 31 and sorted(np.bincount(pool.labels[chosen])) == [10, 10, 11]
    assert (prefix(pool, 31, 0) == chosen).all() and set(prefix(pool, 31, 1)) != set(chosen)


def test_the_whole_order_is_the_stratified_draw(pool):
    assert set(prefix(pool, 60, 3, depth=1.0)) == set(METHODS["random"].function(pool, 60, 3))


def test_the_head_widens_and_never_lacks_images(pool):
    assert depth_at(0.01) < depth_at(0.05) < depth_at(0.1) < depth_at(0.5) == depth_at(1.0) == 1.0
    assert len(prefix(pool, 300, 0, depth=0.01)) == 300
    assert set(prefix(pool, 600, 0)) == set(range(600))
    for depth in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected a share of the order"):
            prefix(pool, 10, 0, depth)
    with pytest.raises(ValueError, match="needs bins"):
        prefix(Pool(pool.keys, pool.labels, pool.embeddings), 10, 0)


@pytest.mark.parametrize("method", ["prefix", "support-points"])
def test_an_order_that_few_bins_do_not_tell_is_refused(pool, method):
    function = METHODS[method].function

    def cut(bins, scope="class"):
        return Pool(pool.keys, pool.labels, pool.embeddings, *graphcut_bins(pool.embeddings, pool.labels, bins, scope))

    # Of 200 images a class, the head of 0.6 is 120: two bins order 100 of them, three order 134.
    for bins, last in ((1, 200), (2, 100)):
        with pytest.raises(
            ValueError, match=rf"--bins {bins}: the first 120 of the 200 .* the last bin holds {last}, .*--bins 10"
        ):
            function(cut(bins), 60, 0, 0.6)
    for bins in (3, 5, 20):
        known = cut(bins)
        assert place_in_class(known)[function(known, 60, 0, 0.6)].max() < 0.6, (
            "the order is known as far as it is needed"
        )
    # The whole class needs no order, whatever the bins.
    assert (function(cut(1), 60, 0, 1.0) == function(pool, 60, 0, 1.0)).all()
    # Nine bins leave more than a tenth without an order, ten do not.
    with pytest.raises(ValueError, match="--bins 9: the first 190 of the 200"):
        function(cut(9), 60, 0, 0.95)
    assert len(function(pool, 60, 0, 0.95)) == 60
    with pytest.raises(ValueError, match=r"class 0 has 200 images, but GraphCut ranks up to \d+.*--scope class"):
        function(cut(10, "global"), 60, 0, 0.6)


def test_classes_smaller_than_the_bins_have_an_order():
    embeddings, labels = np.random.default_rng(1).random((12, 4), dtype=np.float32), np.arange(12) % 3
    small = Pool([f"{i:02d}" for i in range(12)], labels, embeddings, *graphcut_bins(embeddings, labels, 10))
    assert len(prefix(small, 6, 0, 0.6)) == 6
