"""What a frontier says is true of its runs."""

from dataclasses import replace

import numpy as np
import pytest

from ray_jobs.frontier_figure import accuracy_over_bytes
from ray_jobs.frontier_report import Spent, as_table, best, points, sentences

BUDGETS = (100_000, 1_000_000)
TOP1 = {
    ("random", "original"): ([0.30, 0.32, 0.34], [0.70, 0.72, 0.71]),
    ("random", "webp:20"): ([0.40, 0.41, 0.45], [0.60, 0.61, 0.62]),
    ("dq", "webp:20"): ([0.41, 0.40, 0.44], [0.55, 0.56, 0.57]),
}


def runs() -> list[Spent]:
    return [
        Spent(
            method, encoding, budget, seed, 10 * (n + 1), budget - 5, 20_480, "convnet-d3", top1, np.ones(8, bool), "t"
        )
        for (method, encoding), by_budget in TOP1.items()
        for n, (budget, values) in enumerate(zip(BUDGETS, by_budget, strict=True))
        for seed, top1 in enumerate(values)
    ]


def test_points_are_means_with_the_best_first_and_differences_seed_by_seed():
    found = points(runs())
    assert [(p.budget, p.name) for p in found] == [
        (100_000, "random as webp:20"), (100_000, "dq as webp:20"), (100_000, "random as original"),
        (1_000_000, "random as original"), (1_000_000, "random as webp:20"), (1_000_000, "dq as webp:20"),
    ]  # fmt: skip
    leader, second, third = found[:3]
    assert leader.mean == pytest.approx(0.42) and leader.below == (0, 0)
    assert second.below[0] == pytest.approx(0.01 / 3) and third.below[0] == pytest.approx(0.10)
    # The differences are -0.01, 0.01 and 0.01: t of 2 degrees of freedom times their deviation by the root of 3.
    assert second.below[1] == pytest.approx(4.302653 * np.std([-0.01, 0.01, 0.01], ddof=1) / 3**0.5, rel=1e-5)


def test_the_table_and_the_sentences_name_the_best_and_what_cannot_be_told_from_it():
    found = points(runs())
    table = as_table(found).splitlines()
    assert [line.split("|")[8].strip() for line in table[2:]][0::3] == ["best", "best"]
    assert sentences(found)[0].startswith("convnet-d3, 100 kB: random as webp:20, 10 images, 42.0 ± ")
    assert sentences(found)[0].endswith("not to be told from it: dq as webp:20")
    assert "not to be told" not in sentences(found)[1]


def test_a_larger_budget_can_be_spent_as_a_smaller_one():
    worse = [one for one in runs() if one.budget == BUDGETS[0]]
    worse += [Spent("random", "original", 10**7, 0, 30, 10**7, 10**7, "convnet-d3", 0.2, np.ones(8, bool), "t")]
    assert [point.budget for point in best(points(worse))] == [BUDGETS[0]] * 2


def test_a_control_of_adq_never_leads():
    done = [one for one in runs() if one.budget == BUDGETS[0]]
    for number in range(2):
        done += [replace(one, method="adq-permuted", top1=one.top1 + 0.1 + number / 50, moved=0.08)
                 for one in done[:9] if one.name == "random as webp:20"]  # fmt: skip
    found = points(done)
    assert [point.name for point in found][:2] == ["adq-permuted as webp:20", "random as webp:20"]
    assert found[0].seeds == 3 and found[0].mean == pytest.approx(0.53), "two permutations of a seed count once"
    assert found[0].below == (pytest.approx(-0.11), pytest.approx(0, abs=1e-12)) and found[1].below == (0, 0)
    assert [point.name for point in best(found)] == ["random as webp:20"]
    rows = [[cell.strip() for cell in line.split("|")] for line in as_table(found).splitlines()[2:]]
    assert [row[8:10] for row in rows[:2]] == [["-11.0 ± 0.0", "8.0 %"], ["best", ""]]
    assert sentences(found)[0].startswith("convnet-d3, 100 kB: random as webp:20")
    assert "; above it, and only a control: adq-permuted as webp:20; not to be told from it: dq" in sentences(found)[0]
    noisy = [replace(one, top1=one.top1 + (0.2 if one.seed else -0.3)) if one.moved else one for one in done]
    assert "not to be told from it: adq-permuted as webp:20" in sentences(points(noisy))[0]
    controls = points([one for one in done if one.moved])
    assert controls[0].below == (0, 0) and [point.name for point in best(controls)] == ["adq-permuted as webp:20"]
    larger = [replace(one, budget=BUDGETS[1], moved=0.0, method="random", top1=0.1) for one in done if one.moved]
    assert [point.name for point in best(points([one for one in done if one.moved] + larger))][1] == "random as webp:20"


def test_one_seed_has_no_interval_and_is_drawn_all_the_same():
    found = points([one for one in runs() if one.seed == 0])
    assert "±" not in as_table(found)
    assert accuracy_over_bytes(found, "convnet-d3").axes


def test_two_budgets_that_round_to_the_same_megabytes_stay_two():
    near = [Spent("random", "original", budget, 0, 10, 99_000, 102_400) for budget in (100_000, 104_000)]
    assert len({one.title for one in near}) == 2
    found = points(
        [Spent("random", "original", budget, 0, 10, 99_000, 102_400, "a", 0.5) for budget in (100_000, 104_000)]
    )
    assert [line.split("|")[2].strip() for line in as_table(found).splitlines()[2:]] == ["100 kB", "104 kB"]
    assert [line.split("|")[6].strip() for line in as_table(found).splitlines()[2:]] == ["0.10 MB"] * 2
