"""The allocation of bytes to images against brute force, by hand, and at its borders."""

from itertools import pairwise, product

import numpy as np
import pytest

from palette.allocation import allocate


def tables(seed: int, images: int = 5, choices: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Rates and distortions in any order: larger, yet worse, choices among them, and equal rates."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 30, (images, choices)).astype(float), rng.random((images, choices)) * 100 - 20


def total(table: np.ndarray, choice: np.ndarray) -> float:
    return table[np.arange(len(table)), choice].sum()


def every_choice(rates: np.ndarray, distortions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The total rate and distortion of all M^N choices."""
    choices = np.array(list(product(range(rates.shape[1]), repeat=len(rates))))
    rows = np.arange(len(rates))
    return rates[rows, choices].sum(axis=1), distortions[rows, choices].sum(axis=1)


# --- allocation


@pytest.mark.parametrize("seed", range(8))
def test_where_the_budget_ends_a_step_no_choice_of_brute_force_is_better(seed):
    rates, distortions = tables(seed)
    all_rates, all_distortions = every_choice(rates, distortions)
    for price in (0.01, 0.3, 1.0, 3.0, 9.0, 30.0):
        choice = (distortions + price * rates).argmin(axis=1)  # the best of its rate (Everett, 1963)
        budget = total(rates, choice)
        best = all_distortions[all_rates <= budget].min()
        assert total(distortions, choice) == pytest.approx(best)
        assert total(distortions, allocate(rates, distortions, budget)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_any_budget_is_kept_and_the_loss_is_below_one_step_of_a_hull(seed):
    rates, distortions = tables(seed)
    all_rates, all_distortions = every_choice(rates, distortions)
    largest_step = (distortions.max(axis=1) - distortions.min(axis=1)).max()
    found = []
    for budget in np.arange(rates.min(axis=1).sum(), rates.max(axis=1).sum() + 2, 0.5):
        choice = allocate(rates, distortions, budget)
        assert total(rates, choice) <= budget
        found.append(total(distortions, choice))
        assert 0 <= found[-1] - all_distortions[all_rates <= budget].min() + 1e-9 < largest_step
    assert all(after <= before + 1e-9 for before, after in pairwise(found))  # more budget, never more distortion
    assert found[-1] == pytest.approx(distortions.min(axis=1).sum())


def test_by_hand():
    # Slopes: image 0 gains 6 then 1 a byte; image 1 gains 4; its last choice costs more and is worse.
    rates, distortions = np.array([[10.0, 12, 14], [10, 15, 30]]), np.array([[20.0, 8, 6], [30, 10, 11]])
    expected = {20: [0, 0], 21.5: [0, 0], 22: [1, 0], 26: [2, 0], 27: [1, 1], 29: [2, 1], 99: [2, 1]}
    for budget, choice in expected.items():
        assert allocate(rates, distortions, budget).tolist() == choice, budget


def test_what_is_left_of_the_budget_is_filled_though_the_steepest_step_does_not_fit():
    rates, distortions = np.array([[1.0, 11], [1, 2]]), np.array([[100.0, 0], [5, 4]])
    assert allocate(rates, distortions, 11.5).tolist() == [0, 1]
    assert allocate(rates, distortions, 12).tolist() == [1, 0]
    # A choice above the hull: no step of the hull goes there.
    rates, distortions = np.array([[1.0, 3, 5]]), np.array([[100.0, 90, 0]])
    assert [allocate(rates, distortions, b).tolist() for b in (2, 3, 4.9, 5)] == [[0], [1], [1], [2]]


@pytest.mark.parametrize("falls", [[80.0, 40, 20, 10], [80.0, 60, 30, -10]])
def test_equal_images_get_equal_choices_up_to_the_last_step_and_the_first_ones_get_more(falls):
    # The second: all steps have the same slope, so that ties alone decide.
    rates, distortions = np.tile([4.0, 6, 9, 13], (7, 1)), np.tile(falls, (7, 1))
    for budget in range(28, 95):
        choice = allocate(rates, distortions, budget)
        assert choice.max() - choice.min() <= 1 and (np.diff(choice) <= 0).all()


def test_of_equally_cheap_choices_the_better_and_of_equal_ones_the_lowest():
    assert allocate(np.array([[5.0, 5, 5]]), np.array([[3.0, 2, 2]]), 5).tolist() == [1]
    assert allocate(np.array([[1.0, 5, 5]]), np.array([[3.0, 2, 2]]), 9).tolist() == [1]


@pytest.mark.parametrize("seed", range(4))
def test_a_group_is_one_unit_of_the_sums_of_its_images(seed):
    rates, distortions = tables(seed, 9)
    groups = np.array([7, -2, 7, 30, -2, 7, 30, 30, -2])
    for budget in np.linspace(rates.sum(axis=0).min(), rates.max(axis=1).sum(), 20):
        summed = [np.stack([table[groups == g].sum(axis=0) for g in (-2, 7, 30)]) for table in (rates, distortions)]
        expected = allocate(*summed, budget)
        found = allocate(rates, distortions, budget, groups)
        assert found.tolist() == [expected[[-2, 7, 30].index(g)] for g in groups]


def test_a_budget_below_the_smallest_choice_is_an_error():
    rates, distortions = tables(0)
    least = rates.min(axis=1).sum()
    assert total(rates, allocate(rates, distortions, least)) == least
    for budget in (least - 1e-3, np.nan):
        with pytest.raises(ValueError, match="smallest choices take"):
            allocate(rates, distortions, budget)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rates": np.ones((5, 3))}, r"expected both \[N, M\]"),
        ({"rates": np.ones(4), "distortions": np.ones(4)}, r"expected both \[N, M\]"),
        ({"rates": np.ones((0, 4)), "distortions": np.ones((0, 4))}, "not empty"),
        ({"distortions": np.full((5, 4), np.nan)}, "not finite"),
        ({"groups": np.zeros(4, int)}, r"expected whole numbers \[5\]"),
        ({"groups": np.zeros(5)}, r"expected whole numbers \[5\]"),
    ],
)
def test_bad_tables_are_named(change, reason):
    rates, distortions = tables(0)
    with pytest.raises(ValueError, match=reason):
        allocate(**({"rates": rates, "distortions": distortions, "budget": 1e3} | change))
