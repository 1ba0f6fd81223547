"""Quotas, joint rounding and draws: sums, nestedness, balance, and the cases worked by hand."""

import numpy as np
import pytest

from adq.sampling import NESTED_FROM, class_table, draw, kept, moved, quotas, shares

KEEPS = (0.001, 0.003, 0.01, 0.05, 0.1, 0.125, 0.2, 0.3, 0.5, 0.6, 0.9, 0.999, 1.0)


def test_shares_by_hand():
    # Ibar = (100 * 1 + 100 * 3) / 200 = 2; weights 100 * (0.5 * 0.5 + 0.5) = 75 and 100 * (0.5 * 1.5 + 0.5) = 125.
    np.testing.assert_allclose(shares(np.array([1.0, 3.0]), np.array([100, 100]), 20, 0.5), [7.5, 12.5])
    assert quotas(np.array([1.0, 3.0]), np.array([100, 100]), 0.16, 0.5).tolist() == [12, 20]


def test_the_cap_gives_what_it_cuts_to_the_others():
    # Without a cap the second bin would get 150 of its 100; the 50 go to the first.
    np.testing.assert_allclose(shares(np.array([1.0, 3.0]), np.array([100, 100]), 200 * 0.9, 1.0), [80, 100])
    np.testing.assert_allclose(shares(np.array([0.0, 1.0, 1.0]), np.array([60, 20, 20]), 70, 1.0), [30, 20, 20])


@pytest.mark.parametrize("alpha", [0, 0.3, 0.65, 1])
@pytest.mark.parametrize("balance", ["class", "none"])
def test_quotas_and_tables_sum_exactly_for_every_keep_ratio(alpha, balance):
    rng = np.random.default_rng(0)
    for bins, classes, largest in ((1, 1, 30), (3, 7, 12), (10, 10, 60), (10, 40, 5)):
        counts = rng.integers(0, largest + 1, size=(bins, classes))
        counts[0, 0] += 1
        importance = rng.random(bins) * 2
        whole = counts.sum()
        before = None
        for keep in KEEPS:
            if round(keep * whole) < 1:
                continue
            rows = quotas(importance, counts.sum(axis=1), keep, alpha)
            assert rows.sum() == round(keep * whole)
            assert (rows <= counts.sum(axis=1)).all()
            table = class_table(importance, counts, keep, alpha, balance=balance)
            np.testing.assert_array_equal(table.sum(axis=1), rows)
            assert (table >= 0).all() and (table <= counts).all()
            if before is not None and rows.sum() - before.sum() > NESTED_FROM * classes:
                assert (table >= before).all(), f"keep ratios are nested (at {keep})"
            before = table


def test_bin_quotas_never_fall_when_the_total_grows():
    # Plain largest remainder fails this: three bins with shares 6 : 6 : 2 lose one going from 10 to 11 (the Alabama paradox).
    sizes, importance = np.array([60, 60, 20]), np.zeros(3)
    before = np.zeros(3, dtype=int)
    for total in range(1, sizes.sum() + 1):
        now = quotas(importance, sizes, total / sizes.sum())
        assert now.sum() == total
        assert (now >= before).all()
        before = now


def test_totals_apart_by_the_promise_are_nested():
    rng = np.random.default_rng(1)
    counts = rng.integers(10, 30, size=(6, 5))
    importance = np.array([0.1, 1.7, 0.9, 0.4, 2.0, 0.0])
    tables = [class_table(importance, counts, total / counts.sum()) for total in range(1, counts.sum() + 1, 3)]
    for i, small in enumerate(tables):
        for large in tables[i + 1 :]:
            if large.sum() - small.sum() > NESTED_FROM * 5:
                assert (large >= small).all()


def test_each_class_stays_within_one_of_its_share():
    rng = np.random.default_rng(2)
    importance = rng.random(10) * 2
    counts = np.full((10, 10), 500)
    for keep in KEEPS[:-2]:
        totals = class_table(importance, counts, keep).sum(axis=0)
        assert totals.max() - totals.min() <= 1, keep
    lopsided = rng.integers(20, 80, size=(10, 25))
    for keep in (0.005, 0.01, 0.05, 0.1, 0.123, 0.3):
        totals = class_table(importance, lopsided, keep).sum(axis=0)
        assert np.abs(totals - keep * lopsided.sum(axis=0)).max() < 1 + 1e-9, keep


def test_one_percent_of_a_small_set_reaches_every_class():
    counts = np.full((10, 10), 40)
    assert (class_table(np.zeros(10), counts, 0.0025).sum(axis=0) == 1).all()


def test_alpha_zero_is_dq_whatever_the_importance():
    counts = np.random.default_rng(3).integers(10, 30, size=(8, 6))
    for keep in KEEPS[2:]:
        one = class_table(np.random.default_rng(4).random(8), counts, keep, alpha=0)
        two = class_table(np.zeros(8), counts, keep, alpha=0.65)
        np.testing.assert_array_equal(one, two)


def test_code_and_literal_allocations():
    importance, sizes = np.array([0.0, 1.0, 2.0]), np.array([100, 100, 100])
    assert (
        quotas(importance, sizes, 0.1, allocation="code").tolist() == quotas(importance, sizes, 0.1, alpha=1).tolist()
    )
    # Eq. 10 as printed: floor(100 * (0.65 I + 0.35 / 3)) = 11, 76, 141 cut to 100, whatever the keep ratio.
    assert quotas(importance, sizes, 0.1, allocation="literal").tolist() == [11, 76, 100]
    table = class_table(importance, np.full((3, 4), 25), 0.1, allocation="literal")
    assert table.sum(axis=1).tolist() == [11, 76, 100]


def test_draws_are_heads_of_one_permutation():
    rng = np.random.default_rng(5)
    keys = [f"k{i}" for i in range(600)]
    bins, labels = rng.integers(0, 4, 600), rng.integers(0, 3, 600)
    counts = np.zeros((4, 3), dtype=int)
    np.add.at(counts, (bins, labels), 1)
    small = draw(keys, bins, labels, class_table(rng.random(4), counts, 0.1), seed=1)
    table = class_table(np.zeros(4), counts, 0.3)
    large = draw(keys, bins, labels, table, seed=1)
    assert large.sum() == table.sum()
    drawn = np.zeros_like(counts)
    np.add.at(drawn, (bins[large], labels[large]), 1)
    np.testing.assert_array_equal(drawn, table)
    nested = draw(keys, bins, labels, class_table(np.zeros(4), counts, 0.1), seed=1)
    assert (large | ~nested).all()
    shuffled = rng.permutation(600)
    again = draw([keys[i] for i in shuffled], bins[shuffled], labels[shuffled], table, seed=1)
    np.testing.assert_array_equal(again, large[shuffled])
    assert (draw(keys, bins, labels, table, seed=2) != large).any()
    assert small.sum() == 60


def test_moved_is_a_total_variation():
    assert moved(np.array([10, 0]), np.array([5, 5])) == 0.5
    assert moved(np.array([4, 4]), np.array([2, 2])) == 0


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_keep_outside_its_range(keep):
    with pytest.raises(ValueError, match="--keep"):
        kept(keep, 100)
