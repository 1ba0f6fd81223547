"""The table of a comparison and its figure, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ray_jobs.comparison import (
    Outcome,
    as_table,
    cells,
    compared_at,
    differences_elsewhere,
    dq_of,
    few_permutations,
    of_other_bins,
    of_other_sizes,
    runs_table,
    trained_again,
)
from ray_jobs.comparison_figures import accuracy_over_keep


def outcome(method: str, seed: int, top1: float, keep: float = 0.1, **changes) -> Outcome:
    correct = np.zeros(10, dtype=bool)
    return Outcome(
        method,
        keep,
        seed,
        0,
        100,
        1000 + seed,
        9000 + seed,
        0.0,
        2.0,
        0.0,
        f"{method}{keep}{seed}",
        "net",
        top1,
        correct,
        f"{method}{seed}",
        **changes,
    )


def test_differences_are_taken_seed_by_seed():
    done = [outcome("random", s, t) for s, t in enumerate((0.2, 0.3, 0.4))]
    done += [outcome("dq", s, t) for s, t in enumerate((0.25, 0.35, 0.45))]
    random, dq = cells(done)
    assert (random.mean, dq.mean) == (pytest.approx(0.3), pytest.approx(0.35))
    # Each seed gains the same, so the difference has no spread, while the means' intervals overlap.
    assert dq.over_random == (pytest.approx(0.05), pytest.approx(0, abs=1e-12))
    assert dq.half_interval == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert math.isnan(random.over_random[0]) and random.over_dq[0] == pytest.approx(-0.05)
    text = as_table([random, dq], {(c.method, c.keep, c.arch): f"http://x/{c.method}" for c in (random, dq)})
    assert (
        "[35.0 ± 24.8][2] |" in text
        and "\n[2]: http://x/dq" in text
        and "+5.0 ± 0.0" in text
        and " 1.0 kB |  9.0 kB |" in text
    )
    assert "moved" not in text and "GPU" not in text  # columns with nothing in them


def test_what_could_have_moved_and_did_not_is_said():
    done = [outcome(method, seed, 0.5) for method in ("random", "dq", "adq") for seed in range(2)]
    done += [replace(outcome("adq:alpha=1", seed, 0.5), moved=0.1) for seed in range(2)]
    told = [
        line.split("|")[-4].strip()
        for line in as_table(cells(done)).splitlines()
        if "net " in line and "method" not in line
    ]
    assert told == ["", "", "0.0 %", "10.0 %"]


def test_a_method_is_held_against_the_dq_of_its_bins():
    top1 = {
        "random": 0.1,
        "dq": 0.2,
        "dq:bins=5": 0.3,
        "adq": 0.5,
        "adq:bins=5:alpha=1": 0.5,
        "adq:bins=20": 0.5,
        "ccs:beta=0.1": 0.5,
    }
    found = cells([outcome(method, seed, value) for method, value in top1.items() for seed in range(2)])
    over = {cell.method: round(cell.over_dq[0], 3) for cell in found if not math.isnan(cell.over_dq[0])}
    assert over == {
        "random": -0.1, "dq:bins=5": 0.1, "adq": 0.3, "adq:bins=5:alpha=1": 0.2, "adq:bins=20": 0.3, "ccs:beta=0.1": 0.3,
    }  # fmt: skip
    assert of_other_bins(found) == "adq:bins=20: over DQ is over a dq of other bins; name the dq of the same, too."
    assert of_other_bins([cell for cell in found if cell.method != "adq:bins=20"]) == ""


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("adq:bins=5:scope=global", "dq:scope=global:bins=5"),
        ("adq:alpha=1: bins = 5", "dq:bins=5"),
        ("herding", "dq"),
        ("adq:balance=none", "dq"),
        ("adq:bins=5", "dq"),
    ],
)
def test_the_dq_of_the_same_bins_is_known_however_it_was_written(method, named):
    assert dq_of(method, ["dq:bins=5:balance=none", "dq:balance=none", "dq", named]) == named


def test_trainings_that_share_a_selection_are_told():
    done = [outcome("random", seed, 0.2 + seed / 100) for seed in range(3)]
    done += [replace(outcome("herding", seed, 0.3 + seed / 100), selection=f"of {seed % 2}") for seed in range(3)]
    done += [replace(outcome("own", seed, 0.4), selection="one") for seed in range(3)]
    found = cells(done)
    assert [(cell.seeds, cell.selections) for cell in found] == [(3, 3), (3, 2), (3, 1)]
    lasts = [line.split("|")[-2].strip() for line in as_table(found).splitlines() if "net" in line][1:]
    assert lasts == ["3", "3 of 2 sets", "3 of 1 set"]
    assert trained_again(found).startswith("n of k sets") and not trained_again(found[:1])


def test_a_set_of_nearly_a_ratio_of_the_grid_is_compared_with_it():
    done = [outcome(m, s, t, keep) for m, t in (("random", 0.2), ("dq", 0.3)) for s in (0, 1) for keep in (0.1, 0.104)]
    own = {"near": 0.09998, "nearer": 0.1033, "far": 0.0985}
    done += [outcome(name, s, 0.5, keep) for name, keep in own.items() for s in (0, 1)]
    found = cells(done)
    named = {cell.method: cell for cell in found}
    for name in ("near", "nearer"):
        assert named[name].over_random[0] == pytest.approx(0.3) and named[name].over_dq[0] == pytest.approx(0.2)
    assert math.isnan(named["far"].over_random[0]) and math.isnan(named["far"].over_dq[0])
    assert [compared_at(keep, (0.1, 0.104)) for keep in own.values()] == [0.1, 0.104, None]
    assert compared_at(0.1, ()) is None
    assert differences_elsewhere(found).splitlines() == [
        "near has 100 images; its differences are to what is chosen at keep 0.1.",
        "nearer has 100 images; its differences are to what is chosen at keep 0.104.",
    ]
    assert not differences_elsewhere(cells(done[:8]))
    ticks = accuracy_over_keep(found, "net").axes[0].get_xticklabels()
    assert [text.get_text() for text in ticks] == ["9.85 %", "10 %", "10.4 %"]


def test_sets_of_other_sizes_are_not_compared():
    """Eq. 10 as printed keeps 58 to 78 % at any ratio."""
    done = [outcome("random", seed, 0.2) for seed in (0, 1)] + [outcome("dq", seed, 0.3) for seed in (0, 1)]
    done += [replace(outcome("adq", seed, 0.6), images=600) for seed in (0, 1)]
    done += [replace(outcome("herding", seed, 0.4), images=101) for seed in (0, 1)]
    found = {cell.method: cell for cell in cells(done)}
    assert math.isnan(found["adq"].over_random[0]) and math.isnan(found["adq"].over_dq[0])
    assert found["herding"].over_random[0] == pytest.approx(0.2), "one image more, by rounding"
    assert of_other_sizes([*found.values()]) == ("adq keeps 600 images at keep 0.1, random 100: they are not compared.")
    assert of_other_sizes(cells(done[:4])) == ""


def test_few_permutations_are_told():
    done = [outcome("adq-permuted", seed, 0.2) for seed in range(5)]
    assert few_permutations(cells(done)) == "" == few_permutations(cells([outcome("adq", 0, 0.1)]))
    assert few_permutations(cells(done[:3])) == "adq-permuted stands on 3 permutations of the importance: 5 tell more."
    assert "on one permutation of" in few_permutations(cells(done[:1]))


def test_several_permutations_of_a_seed_count_once():
    done = [outcome("random", seed, 0.2) for seed in (0, 1)]
    done += [
        replace(outcome("adq-permuted", seed, top1), selection=f"{seed} {number}")
        for seed, values in enumerate(((0.1, 0.2, 0.3), (0.4, 0.6, 0.5)))
        for number, top1 in enumerate(values)
    ]
    random, permuted = cells(done)
    assert (permuted.seeds, permuted.selections) == (2, 6) and permuted.mean == pytest.approx(0.35)
    assert permuted.half_interval == pytest.approx(12.706 * math.sqrt(0.045) / math.sqrt(2), rel=1e-3)
    assert permuted.over_random == (pytest.approx(0.15), pytest.approx(permuted.half_interval))
    assert as_table([random, permuted]).splitlines()[-1].endswith(" 2, 6 sets |")
    assert trained_again([random, permuted]) == "" == few_permutations([random, permuted])


def test_the_figure_shows_every_method(tmp_path):
    done = [outcome(m, s, 0.2 + 0.1 * s, keep) for m in ("random", "dq", "adq") for s in (0, 1) for keep in (0.1, 0.5)]
    figure = accuracy_over_keep(cells(done), "net")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "dq", "adq"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["10 %", "50 %"]
    figure.savefig(tmp_path / "figure.png")
    many = [outcome(m, s, 0.5) for m in ("random", *(f"method {n}" for n in range(20))) for s in (0, 1)]
    looks = [
        (lines[0].get_color(), lines[0].get_marker(), lines[0].get_linestyle())
        for lines in accuracy_over_keep(cells(many), "net").axes[0].containers
    ]
    assert len(looks) == len(set(looks)) == 21, "each method has a look of its own"
    assert runs_table(done, ["a"] * 10).num_rows == len(done)
