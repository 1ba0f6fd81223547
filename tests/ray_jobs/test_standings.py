"""The methods over all keep ratios, by hand."""

from dataclasses import replace

import pytest

from ray_jobs.standings import over_all, ratios_of, standings
from tests.ray_jobs.test_comparison import outcome

RATIOS = (0.01, 0.1)


def grid(method: str, top1: dict[float, tuple[float, ...]], **changes) -> list:
    return [
        replace(outcome(method, seed, value, keep), **changes)
        for keep, each in top1.items()
        for seed, value in enumerate(each)
    ]


RANDOM = grid("random", {0.01: (0.2, 0.4), 0.1: (0.4, 0.6), 1.0: (0.9, 0.9)})  # means of the ratios: 0.3, 0.5


def test_the_best_in_the_mean_of_all_ratios_comes_first():
    dq = grid("dq", {0.01: (0.1, 0.3), 0.1: (0.6, 0.8), 1.0: (0.9, 0.9)})  # 0.35, 0.55
    own = grid("own", {0.01: (0.5, 0.5), 0.1: (0.3, 0.9), 1.0: (0.9, 0.9)}, selection="one")  # 0.4, 0.7
    first, second, third = standings([*RANDOM, *dq, *own])
    assert [one.method for one in (first, second, third)] == ["own", "dq", "random"]
    assert ratios_of([*RANDOM, *own]) == [0.01, 0.1], "without the whole set, which all share"
    assert first.mean == pytest.approx(0.55) and (first.seeds, first.selections) == (2, 1)
    assert first.over_random == (pytest.approx(0.15), pytest.approx(12.706 * 0.05, rel=1e-3))
    assert second.over_random == (pytest.approx(0.05), pytest.approx(0, abs=1e-12))
    assert third.over_dq[0] == pytest.approx(-0.05) and third.over_random[0] != third.over_random[0]
    text = over_all([*RANDOM, *dq, *own])
    assert text.startswith("In the mean of keep 0.01 and 0.1, best first;")
    told = [cell.strip() for cell in text.splitlines()[-3].split("|")[2:-1]]
    assert told == ["own", "50.0 ± 0.0", "60.0 ± 381.2", "55.0 ± 190.6", "+15.0 ± 63.5", "+10.0 ± 63.5", "2 of 1 set"]


def test_seeds_that_lack_a_ratio_do_not_count():
    half = grid("half", {0.01: (0.9, 0.9), 0.1: (0.9,)})
    [standing] = [one for one in standings([*RANDOM, *half]) if one.method == "half"]
    assert standing.seeds == 1 and standing.mean == pytest.approx(0.9) and standing.over_random[0] == pytest.approx(0.6)
    of_sets = grid("own", {0.01: (0.9, 0.9)})
    assert [one.method for one in standings([*RANDOM, *of_sets])] == ["random"]
    assert "corrected for nothing; without own, not of all these ratios:\n" in over_all([*RANDOM, *of_sets])
    assert "corrected for nothing:\n" in over_all(RANDOM)


def test_methods_without_a_baseline_stand_by_the_ratios_that_they_share():
    own, other = (grid(name, {0.01: (0.2, 0.4), 0.1: (0.4, value)}) for name, value in (("own", 0.6), ("other", 0.8)))
    of_sets = grid("mine", {0.02: (0.9, 0.9)})
    assert [one.method for one in standings([*own, *other, *of_sets])] == ["other", "own"]
    assert ratios_of([*own, *of_sets]) == [0.01, 0.1]


def test_several_permutations_of_a_seed_count_once():
    twice = [
        replace(one, selection=number, top1=top1)
        for one in grid("p", {k: (0.0, 0.0) for k in RATIOS})
        for number, top1 in (("a", 0.1 + 0.2 * one.seed), ("b", 0.3 + 0.2 * one.seed))
    ]  # seeds of 0.2 and 0.4
    [standing] = [one for one in standings([*RANDOM, *twice]) if one.method == "p"]
    assert (standing.seeds, standing.selections) == (2, 2) and standing.mean == pytest.approx(0.3)
    assert standing.half_interval == pytest.approx(12.706 * 0.1, rel=1e-3), "of two seeds, not of four trainings"
    assert standing.over_random == (pytest.approx(-0.1), pytest.approx(0, abs=1e-12))


def test_sets_of_other_sizes_are_not_compared():
    large = grid("large", {k: (0.9, 0.9) for k in RATIOS}, images=600)
    [standing] = [one for one in standings([*RANDOM, *large]) if one.method == "large"]
    assert standing.over_random[0] != standing.over_random[0]


def test_networks_are_ranked_apart_and_one_ratio_not_at_all():
    both = [*RANDOM, *(replace(one, arch="a") for one in RANDOM)]
    assert [(one.arch, one.method) for one in standings(both)] == [("a", "random"), ("net", "random")]
    assert over_all([one for one in RANDOM if one.keep != 0.1]) == ""
