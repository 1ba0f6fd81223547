"""What all coreset methods share: shape, class totals, heads of longer selections, errors; random, DQ and GraphCut."""

import numpy as np
import pytest

from adq.coresets import METHODS, Pool, class_totals
from adq.dynamics import Dynamics
from adq.graphcut import graphcut_bins, graphcut_select
from adq.sampling import class_table, draw
from tests.adq.test_graphcut import brute_force, real_embeddings, unit

SIZES = (90, 61, 33, 0, 16)
INSIDE_CLASSES = sorted(METHODS.keys() - {"graphcut-global", "dq"})


def make_pool(dim: int = 12, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> Pool:
    """Clustered embeddings, a fifth of them copies of others, with bins and dynamics; labels in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = len(labels)
    embeddings = rng.normal(size=(len(sizes), dim))[labels] + 0.7 * rng.normal(size=(count, dim))
    embeddings[rng.integers(0, count, count // 5)] = embeddings[rng.integers(0, count, count // 5)]
    embeddings = embeddings.astype(np.float32)
    bins, ranks = graphcut_bins(embeddings, labels, num_bins=5)
    el2n, confidence = rng.random(count).astype(np.float32).round(1), rng.random(count).astype(np.float32).round(1)
    dynamics = Dynamics(el2n, rng.integers(0, 4, count).astype(np.float32), confidence, rng.random((3, count)) < 0.5)
    return Pool([f"image-{i:04d}" for i in range(count)], labels, embeddings, bins, ranks, dynamics)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("total", [1, 7, 40, 199, 200])
def test_every_method_gives_distinct_positions_and_the_same_ones_again(name, total):
    pool = make_pool()
    chosen = METHODS[name].function(pool, total, 3)
    assert chosen.dtype == np.int64 and chosen.shape == (total,)
    assert len(np.unique(chosen)) == total and chosen.min() >= 0 and chosen.max() < 200
    np.testing.assert_array_equal(chosen, METHODS[name].function(pool, total, 3))


@pytest.mark.parametrize("name", INSIDE_CLASSES)
@pytest.mark.parametrize("total", [1, 3, 20, 77, 200])
def test_class_totals_are_kept(name, total):
    pool = make_pool()
    want = class_totals(pool.labels, total, seed=1)
    np.testing.assert_array_equal(np.bincount(pool.labels[METHODS[name].function(pool, total, 1)], minlength=5), want)


@pytest.mark.parametrize("total", [1, 3, 20, 77, 200])
def test_class_totals_are_those_of_a_table_of_one_bin(total):
    labels = make_pool().labels
    want = class_table(np.zeros(1), np.array([SIZES]), total / 200, 0.0, "share", "class", 5)[0]
    np.testing.assert_array_equal(class_totals(labels, total, 5), want)
    assert np.abs(want - total * np.array(SIZES) / 200).max() < 1
    empty = class_table(np.zeros(1), np.array([(*SIZES, 0, 0)]), total / 200, 0.0, "share", "class", 5)[0]
    np.testing.assert_array_equal(class_totals(labels, total, 5, classes=7), empty)


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.33])
def test_random_and_dq_are_those_of_the_sample_job(keep):
    pool, total = make_pool(), round(keep * 200)
    for name, bins in (("random", np.zeros(200, dtype=int)), ("dq", pool.bins)):
        counts = np.zeros((bins.max() + 1, 5), dtype=int)
        np.add.at(counts, (bins, pool.labels), 1)
        table = class_table(np.zeros(len(counts)), counts, keep, 0.0, "share", "class", 9)
        want = np.flatnonzero(draw(pool.keys, bins, pool.labels, table, 9))
        np.testing.assert_array_equal(METHODS[name].function(pool, total, 9), want)
        assert set(want) <= set(METHODS[name].function(pool, 2 * total, 9)), "a larger total contains a smaller one"


def test_random_and_dq_by_hand():
    """Half of 12 images: of classes of 8 and 4, of which each has two bins."""
    labels, bins = np.repeat([0, 1], (8, 4)), np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1])
    pool = Pool([f"{i:02d}" for i in range(12)], labels, bins=bins, ranks=np.zeros(12, dtype=int))
    met = {name: np.zeros(12) for name in ("random", "dq")}
    for seed in range(400):
        for name, count in met.items():
            chosen = METHODS[name].function(pool, 6, seed)
            assert np.bincount(labels[chosen]).tolist() == [4, 2]
            count[chosen] += 1
            if name == "dq":
                assert np.bincount(2 * labels[chosen] + bins[chosen]).tolist() == [2, 2, 1, 1]
    for count in met.values():  # 200 each, with a standard deviation of 10
        assert count.min() > 150 and count.max() < 250


def test_graphcut_over_all_images_follows_equation_2_whatever_their_classes():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(12, 3)).astype(np.float32)
    for labels in (np.arange(12) % 3, np.zeros(12, dtype=int)):
        pool = Pool([f"{i:02d}" for i in range(12)], labels, embeddings)
        chosen = METHODS["graphcut-global"].function(pool, 5, 0)
        rest = [i for i in range(12) if i not in chosen]
        brute_force(unit(embeddings.astype(np.float64)), [5, 7], np.array([*chosen, *rest]))


def test_graphcut_is_the_first_bin_of_its_class():
    pool = make_pool(sizes=(50, 50, 50))
    chosen = METHODS["graphcut"].function(pool, 30, 0)
    assert set(chosen) == set(np.flatnonzero(pool.bins == 0))
    for c in range(3):
        mine = chosen[pool.labels[chosen] == c]
        np.testing.assert_array_equal(pool.ranks[mine], np.arange(10))
    np.testing.assert_array_equal(
        METHODS["graphcut-global"].function(pool, 30, 0), graphcut_select(pool.embeddings, 30)
    )


@pytest.mark.parametrize("name", ["graphcut", "herding", "k-centre", "facility-location", "moderate", "el2n", "d2"])
def test_inside_a_class_a_selection_is_the_head_of_a_longer_one(name):
    pool = make_pool()
    short, long = (METHODS[name].function(pool, total, 0) for total in (40, 110))
    for c in (0, 1, 2, 4):
        head = short[pool.labels[short] == c]
        np.testing.assert_array_equal(head, long[pool.labels[long] == c][: len(head)])


@pytest.mark.parametrize("name", METHODS)
def test_draws_says_whether_the_seed_matters(name):
    pool = make_pool(sizes=(50, 50, 50, 50))
    one, other = (set(METHODS[name].function(pool, 40, seed)) for seed in (1, 2))
    assert METHODS[name].draws or one == other
    if name in ("random", "dq", "ccs", "forgetting"):
        assert one != other


@pytest.mark.parametrize("name", METHODS)
def test_images_that_are_all_alike_go_by_the_lowest_index(name):
    keys, labels = [f"{i:03d}" for i in range(60)], np.arange(60) % 3
    dynamics = Dynamics(*np.ones((3, 60), dtype=np.float32), np.ones((1, 60), dtype=bool))
    order = np.arange(60) // 3
    pool = Pool(keys, labels, np.full((60, 4), 0.3, dtype=np.float32), order // 2, order, dynamics)
    chosen = METHODS[name].function(pool, 12, 0)
    if METHODS[name].draws and not name.startswith("prototypes"):
        assert len(np.unique(chosen)) == 12
    elif name == "d2":  # a pick lowers its neighbours, the lowest indices: the others are next
        assert {0, 1, 2} <= set(chosen)
    else:
        assert sorted(chosen) == list(range(12))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_missing_or_impossible_is_named(name):
    pool, function = make_pool(), METHODS[name].function
    for total in (0, -3, 201):
        with pytest.raises(ValueError, match=f"total {total}: expected 1 to 200"):
            function(pool, total, 0)
    bare = Pool(pool.keys, pool.labels)
    for need in METHODS[name].needs:
        have = {other: getattr(pool, other) for other in METHODS[name].needs - {need}}
        with pytest.raises(ValueError, match=f"needs {need}"):
            function(Pool(pool.keys, pool.labels, **have), 10, 0)
    if not METHODS[name].needs:
        assert len(function(bare, 10, 0)) == 10


@pytest.mark.parametrize("name", [name for name in METHODS if "embeddings" in METHODS[name].needs])
def test_an_embedding_that_is_no_number_is_named_by_its_key(name):
    pool = make_pool()
    for wrong in (np.nan, np.inf):
        embeddings = pool.embeddings.copy()
        embeddings[17, 3] = wrong
        broken = Pool(pool.keys, pool.labels, embeddings, pool.bins, pool.ranks, dynamics=pool.dynamics)
        with pytest.raises(ValueError, match=r"image-0017 has a NaN or infinite"):
            METHODS[name].function(broken, 10, 0)
    if name in ("k-centre", "moderate"):  # they take Euclidean distances
        return
    embeddings[17] = 0
    with pytest.raises(ValueError, match=r"image-0017 is all zeros"):
        METHODS[name].function(
            Pool(pool.keys, pool.labels, embeddings, pool.bins, pool.ranks, dynamics=pool.dynamics), 10, 0
        )


def test_a_pool_checks_what_it_is_given():
    labels = np.zeros(3, dtype=int)
    for keys in (["a", "c", "b"], ["a", "b", "b"]):
        with pytest.raises(ValueError, match="distinct and in bytewise order"):
            Pool(keys, labels)
    with pytest.raises(ValueError, match="3 keys need as many labels"):
        Pool(["a", "b", "c"], labels[:2])
    with pytest.raises(ValueError, match=r"embeddings \[3, d\], got shape \(2, 4\)"):
        Pool(["a", "b", "c"], labels, np.ones((2, 4)))
    with pytest.raises(ValueError, match="bins of shape"):
        Pool(["a", "b", "c"], labels, bins=np.zeros(4))
    with pytest.raises(ValueError, match="label 2 of 2 classes"):
        Pool(["a", "b", "c"], np.array([0, 1, 2]), classes=2)


@pytest.mark.data
def test_every_method_of_embeddings_on_real_images():
    x, labels = real_embeddings(600), np.arange(600) % 4
    pool = Pool([f"{i:03d}" for i in range(600)], labels, x)
    chosen = {name: set(m.function(pool, 60, 0)) for name, m in METHODS.items() if m.needs == frozenset({"embeddings"})}
    assert all(len(picks) == 60 for picks in chosen.values())
    assert chosen["prototypes"].isdisjoint(chosen["prototypes-easy"])
    spread = {name: np.linalg.norm(x[sorted(picks)] - x.mean(axis=0), axis=1).mean() for name, picks in chosen.items()}
    assert spread["k-centre"] > spread["moderate"] > spread["herding"] * 0.8
    # Facility location covers: nobody is on average nearer to a pick of the own class.
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)

    def coverage(picks: set[int]) -> float:
        order = np.array(sorted(picks))
        return float(np.where(labels[:, None] == labels[order], unit @ unit[order].T, -1).max(axis=1).sum())

    del chosen["graphcut-global"]
    assert max(chosen, key=lambda name: coverage(chosen[name])) == "facility-location"
