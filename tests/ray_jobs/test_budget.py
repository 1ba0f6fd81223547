"""Budgets are read as people write them, and are filled: within half a per cent, or to the image."""

import itertools

import numpy as np
import pytest

from ray_jobs.budget import CLOSE, as_budget, images_that_fit, parse_budgets, parse_bytes


def test_budgets_are_read_as_people_write_them():
    assert [parse_bytes(text) for text in ("300000", "300kB", "0.3 MB", "2GB", "17 B")] == [300_000] * 3 + [
        2 * 10**9,
        17,
    ]
    assert parse_budgets("3MB,300kB, 1MB,0.3MB") == [300_000, 10**6, 3 * 10**6]


def test_budgets_are_written_so_that_no_two_look_alike():
    written = {100_000: "100 kB", 104_000: "104 kB", 9_000: "9 kB", 1_600_000: "1.6 MB", 10**9: "1 GB", 999: "999 B"}
    written |= {1_000_001: "1.000001 MB", 1_050_000: "1.05 MB", 1: "1 B"}
    assert {budget: as_budget(budget) for budget in written} == written
    drawn = 10 ** np.random.default_rng(0).uniform(0, 13, 2000)
    assert all(parse_bytes(as_budget(int(budget))) == int(budget) for budget in drawn)


@pytest.mark.parametrize("wrong", ["", "MB", "3 mb", "-3MB", "0", "3MiB", "1e6"])
def test_other_budgets_are_refused(wrong):
    with pytest.raises(ValueError, match="budget"):
        parse_budgets(wrong)


@pytest.mark.parametrize("seed", range(40))
def test_a_budget_is_filled_and_never_exceeded(seed):
    generator = np.random.default_rng(seed)
    most = int(generator.integers(1, 30_000))
    sizes = itertools.accumulate(generator.integers(50, 900, most).tolist(), initial=200)
    total = list(sizes)
    budget = int(generator.integers(total[1], total[-1] + 1000))
    asked = []

    def bytes_of(count: int) -> int:
        asked.append(count)
        return total[count]

    found = images_that_fit(budget, most, bytes_of)
    assert total[found] <= budget
    assert found == most or budget - total[found] <= CLOSE * budget or total[found + 1] > budget
    assert len(asked) == len(set(asked)) <= 12
    asked.clear()
    guessed = images_that_fit(budget, most, bytes_of, first=round(budget * most / total[-1]))
    assert total[guessed] <= budget
    assert guessed == most or budget - total[guessed] <= CLOSE * budget or total[guessed + 1] > budget
    assert len(asked) <= 8
    exact = images_that_fit(budget, most, bytes_of, close=0.0)
    assert total[exact] <= budget and (exact == most or total[exact + 1] > budget)
    assert len(asked) <= 40


def test_a_budget_below_the_smallest_set_is_refused():
    with pytest.raises(ValueError, match="10 images take 1,000 bytes: more than the budget of 999"):
        images_that_fit(999, 50, lambda count: 100 * count, least=10)
    assert images_that_fit(1000, 50, lambda count: 100 * count, least=10) == 10
    assert images_that_fit(10**9, 50, lambda count: 100 * count, least=10) == 50
    assert images_that_fit(10**9, 5, lambda count: 100 * count, least=10) == 5
