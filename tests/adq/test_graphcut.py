"""GraphCut against a brute-force reading of eq. 2."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from adq.graphcut import bin_sizes, graphcut_bins, graphcut_select
from tests.conftest import cifar10_shard


def brute_force(x: np.ndarray, sizes: list[int], choices: np.ndarray, lam: float = 1.0) -> None:
    """Walk the picks of one scope, and check each against eq. 2 written out with its two sums of squared distances."""
    x = x.astype(np.float64)
    distance = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)
    left = list(range(len(x)))
    for size in sizes[:-1]:
        inside: list[int] = []
        universe = list(left)
        for _ in range(size):
            rest = [p for p in left if p not in inside]
            gain = {
                i: distance[i, inside].sum() - lam * distance[i, universe].sum() + lam * distance[i, inside].sum()
                for i in rest
            }
            pick = choices[len(x) - len(left) + len(inside)]
            best = max(gain.values())
            assert pick in gain, "picked twice"
            assert gain[pick] >= best - 1e-9 * max(1.0, abs(best))
            exact_ties = [i for i in rest if (x[i] == x[pick]).all()]
            assert pick == min(exact_ties), "a tie goes to the lowest index"
            inside.append(pick)
        left = [p for p in left if p not in inside]


def order_of(bins: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    return np.lexsort((ranks, bins))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)


def real_embeddings(count: int) -> np.ndarray:
    """Downscaled pixels of real images, centred: real correlations, no network needed."""
    rows = []
    with tarfile.open(cifar10_shard(0)) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                image = Image.open(io.BytesIO(tar.extractfile(member).read())).resize((6, 6))
                rows.append(np.asarray(image, dtype=np.float32).ravel() / 255 - 0.45)
            if len(rows) == count:
                break
    return np.stack(rows)


def cases():
    rng = np.random.default_rng(0)
    clustered = rng.normal(size=(4, 8))[rng.integers(0, 4, 120)] + 0.05 * rng.normal(size=(120, 8))
    yield "random", rng.normal(size=(150, 12)).astype(np.float32)
    yield "relu", np.maximum(rng.normal(size=(150, 12)), 0).astype(np.float32) + 1e-3
    yield "clustered", clustered.astype(np.float32)
    yield "duplicated", np.repeat(rng.normal(size=(30, 5)), 4, axis=0).astype(np.float32)
    yield "near copies", (np.ones((60, 4)) + 1e-7 * rng.normal(size=(60, 4))).astype(np.float32)
    yield "all equal", np.ones((40, 3), dtype=np.float32)
    yield "one dimension", rng.normal(size=(50, 1)).astype(np.float32)


@pytest.mark.parametrize("kernel", ["cosine", "l2"])
@pytest.mark.parametrize("candidates", [8, 2048])
@pytest.mark.parametrize("name, x", list(cases()), ids=[name for name, _ in cases()])
def test_global_picks_follow_equation_2(name, x, kernel, candidates):
    bins, ranks = graphcut_bins(x, num_bins=4, scope="global", kernel=kernel, candidates=candidates)
    sizes = bin_sizes(len(x), 4).tolist()
    assert np.bincount(bins).tolist() == sizes
    brute_force(unit(x) if kernel == "cosine" else x, sizes, order_of(bins, ranks))


def test_class_scope_is_global_inside_each_class():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(200, 6)).astype(np.float32), rng.integers(0, 3, 200)
    bins, ranks = graphcut_bins(x, labels, num_bins=5, scope="class")
    for c in range(3):
        mine = labels == c
        alone = graphcut_bins(x[mine], num_bins=5, scope="global")
        np.testing.assert_array_equal(bins[mine], alone[0])
        np.testing.assert_array_equal(ranks[mine], alone[1])
        brute_force(unit(x[mine]), bin_sizes(mine.sum(), 5).tolist(), order_of(*alone))


@pytest.mark.data
def test_real_embeddings_both_scopes():
    x = real_embeddings(400)
    labels = np.arange(400) % 4
    bins, ranks = graphcut_bins(x, num_bins=5, scope="global", candidates=64)
    brute_force(unit(x), bin_sizes(400, 5).tolist(), order_of(bins, ranks))
    in_class = graphcut_bins(x, labels, num_bins=5, scope="class", candidates=16)
    for c in range(4):
        mine = labels == c
        brute_force(unit(x[mine]), bin_sizes(100, 5).tolist(), order_of(in_class[0][mine], in_class[1][mine]))


def test_the_number_of_candidates_never_changes_the_result():
    x = np.maximum(np.random.default_rng(2).normal(0.3, 1, size=(3000, 24)), 0).astype(np.float32) + 1e-4
    want = graphcut_bins(x, num_bins=10, scope="global", candidates=3000)
    for candidates in (16, 200, 1024):
        got = graphcut_bins(x, num_bins=10, scope="global", candidates=candidates)
        np.testing.assert_array_equal(want[0], got[0])
        np.testing.assert_array_equal(want[1], got[1])


@pytest.mark.parametrize("lam", [0.05, 0.5, 1.0, 2.0])
def test_selection_follows_its_objective(lam):
    x = np.random.default_rng(3).normal(0.2, 1, size=(90, 7)).astype(np.float32)
    similarity = (1 + unit(x) @ unit(x).T) / 2
    chosen = graphcut_select(x, 25, lam=lam, candidates=16)
    picked: list[int] = []
    for pick in chosen:
        gains = lam * similarity.sum(axis=1) - 2 * similarity[:, picked].sum(axis=1)
        gains[picked] = -np.inf
        assert gains[pick] >= gains.max() - 1e-9
        picked.append(int(pick))


def test_small_classes_leave_late_bins_empty():
    bins, _ = graphcut_bins(np.eye(13, dtype=np.float32), np.array([0] * 10 + [1] * 3), num_bins=5)
    assert np.bincount(bins[10:], minlength=5).tolist() == [1, 1, 1, 0, 0]
    assert np.bincount(bins[:10]).tolist() == [2, 2, 2, 2, 2]


@pytest.mark.parametrize("num_bins", [1, 37])
def test_every_sample_is_in_exactly_one_bin(num_bins):
    x = np.random.default_rng(4).normal(size=(37, 3))
    bins, ranks = graphcut_bins(x, num_bins=num_bins, scope="global")
    assert sorted(ranks) == list(range(37))
    assert len(set(bins)) == num_bins


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinite"), (0.0, "zeros")])
def test_a_bad_row_is_named(value, word):
    x = np.ones((5, 3), dtype=np.float32)
    x[3] = value
    with pytest.raises(ValueError, match=rf"row 3 .*{word}"):
        graphcut_bins(x, num_bins=2, scope="global")


def test_clear_errors():
    with pytest.raises(ValueError, match="cannot fill 4 bins"):
        graphcut_bins(np.ones((3, 2)), num_bins=4, scope="global")
    with pytest.raises(ValueError, match="one label"):
        graphcut_bins(np.ones((3, 2)), num_bins=2, scope="class")
    with pytest.raises(ValueError, match="budget 4"):
        graphcut_select(np.ones((3, 2)), 4)
