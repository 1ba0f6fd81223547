"""What a comparison asks for, without training anything."""

from contextlib import nullcontext
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from ray_jobs import rank, sample
from ray_jobs.compare import _cell_runs
from ray_jobs.evaluate import Evaluation
from ray_jobs.grid import Comparison, Grid, Variant
from ray_jobs.options import Backbone, Data, Selection
from ray_jobs.trainings import Plan

GRID = Grid(Comparison("random,dq"), Evaluation("net"), Data(), Selection(), Backbone(), (), "out")


def digests(open_runs, trainings: dict[str, str]) -> dict[str, str]:
    """By their names, the digests of the runs that are opened for trainings, given by set and digest."""
    found = {}
    job = SimpleNamespace(child=lambda name, digest, _: nullcontext(found.update({name: digest})))
    every = [
        SimpleNamespace(set=name, classifier=SimpleNamespace(arch="net", seed=0), stage=SimpleNamespace(digest=digest))
        for name, digest in trainings.items()
    ]
    with open_runs(job, Plan(tuple(every), None, {})):
        return found


@pytest.mark.parametrize("changed", ["random keep 0.1", "dq keep 0.1"])
def test_a_cell_is_another_run_where_files_of_the_same_names_hold_something_else(changed):
    before = {"random keep 0.1": "a", "dq keep 0.1": "b"}
    outcomes = {(name, 0): SimpleNamespace(method=name.split()[0], keep=0.1) for name in before}
    one, again, other = (
        digests(lambda job, plan: _cell_runs(job, GRID, plan, outcomes), trainings)
        for trainings in (before, before, before | {changed: "c"})
    )
    assert set(one) == {"random keep 0.1 net", "dq keep 0.1 net"} and one == again
    # A cell holds its differences to the others, too.
    assert not set(one.values()) & set(other.values())


def test_scores_of_a_rank_belong_to_their_trainings():
    one, again, other = (digests(rank._runs, {rank.REAL: "a", rank.DISTILLED: last}) for last in ("b", "b", "c"))
    assert one == again != other and list(one) == ["scores net"]


def test_every_adq_brings_its_controls_with_its_own_settings():
    base = Selection(bins=7)
    named = [variant.name for variant in Comparison("random,adq").variants(base)]
    assert named == ["dq", "random", "adq", "adq-permuted", "adq-reversed", "adq-random-bins"]
    assert [one.name for one in Comparison("herding").variants(base)] == ["random", "herding"]
    assert [one.name for one in Comparison("herding,adq").variants(base)][:4] == ["random", "dq", "herding", "adq"]
    assert [one.name for one in Comparison("herding", without_controls=True).variants(base)] == ["herding"]
    found = {one.name: one.selection for one in Comparison("dq,adq:alpha=0.3,adq:alpha=1:bins=5").variants(base)}
    assert list(found) == [
        "random", "dq", "adq:alpha=0.3", "adq:alpha=1:bins=5",
        "adq-permuted:alpha=0.3", "adq-reversed:alpha=0.3", "adq-random-bins:alpha=0.3",
        "adq-permuted:alpha=1:bins=5", "adq-reversed:alpha=1:bins=5", "adq-random-bins:alpha=1:bins=5",
    ]  # fmt: skip
    assert found["adq-reversed:alpha=0.3"] == replace(base, method="adq-reversed", alpha=0.3)
    assert found["adq-random-bins:alpha=1:bins=5"] == replace(base, method="adq-random-bins", alpha=1.0, bins=5)
    assert len(Comparison("adq,adq-permuted").variants(base)) == 6, "one that is listed comes once"
    assert len(Comparison("adq,adq:alpha=1", without_controls=True).variants(base)) == 2


def test_few_seeds_bring_several_permutations_each_as_one_row():
    def permuted(methods: str, seeds: int) -> list[tuple[str, str, int]]:
        found = Comparison(methods, without_controls=True).variants(Selection(), seeds)
        return [(one.name, one.title, one.selection.permutation) for one in found]

    assert permuted("adq-permuted,adq-reversed", 5) == [
        ("adq-permuted", "adq-permuted", 0), ("adq-reversed", "adq-reversed", 0),
    ]  # fmt: skip
    assert permuted("adq-permuted:alpha=1", 3) == [
        ("adq-permuted:alpha=1", "adq-permuted:alpha=1", 0),
        ("adq-permuted:alpha=1:permutation=1", "adq-permuted:alpha=1", 1),
    ]
    assert [number for _, _, number in permuted("adq-permuted", 1)] == [0, 1, 2, 3, 4]
    named = permuted("adq-permuted,adq-permuted:permutation=2", 1)
    assert len({name for name, _, _ in named}) == len(named) == 6, "one that is named stays a row of its own"
    assert ("adq-permuted:permutation=2", "adq-permuted:permutation=2", 2) in named
    assert [number for _, title, number in named if title == "adq-permuted"] == [0, 1, 3, 4, 5]
    assert permuted("adq-permuted:permutation=3", 1) == [("adq-permuted:permutation=3",) * 2 + (3,)]
    with pytest.raises(ValueError, match="adq has no setting 'permutation'"):
        permuted("adq:permutation=1", 1)
    with pytest.raises(ValueError, match="--permutation -1: expected 0 or more"):
        permuted("adq-permuted:permutation=-1", 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("herding:bins=5", "herding has no setting 'bins'; known: none"),
        ("el2n:alpha=1", "el2n has no setting 'alpha'; known: none"),
        ("dq:alpha=0.3", "dq has no setting 'alpha'; known: bins, scope, normalize, centre, balance"),
        ("dq:diversity=log", "dq has no setting 'diversity'"),
        ("random:scope=global", "random has no setting 'scope'; known: balance"),
        ("support-points:balance=none", "has no setting 'balance'; known: bins, scope, normalize, centre, depth"),
        ("adq:depth=0.5", "adq has no setting 'depth'; known: bins, .*alpha, allocation, balance"),
        ("dq:keep=0.5", "dq has no setting 'keep'"),
    ],
)
def test_a_setting_that_a_method_does_not_read_is_refused(name, message):
    with pytest.raises(ValueError, match=f"--methods {name}: .*{message}"):
        Variant.of(name, Selection())


def test_settings_that_methods_read_are_taken():
    assert Variant.of("dq:scope=global", Selection()).selection.scope == "global"
    assert Variant.of("adq-permuted:score-norm=zscore", Selection()).selection.score_norm == "zscore"
    assert Variant.of("prefix:depth=0.5", Selection()).selection.depth == 0.5
    assert Variant.of("support-points:scope=class", Selection(scope="global")).selection.scope == "class"
    with pytest.raises(ValueError, match="use --scope class"):
        Variant.of("support-points", Selection(scope="global"))
    every = {field.name for field in fields(Selection)} - {"method", "keep", "seed"}
    assert Variant.of("ccs:beta=0", Selection()).selection.beta == 0.0
    assert Variant.of("d2:neighbours=5:gamma-reverse=2", Selection()).selection.neighbours == 5
    others = {"depth", "permutation", "beta", "neighbours", "gamma_reverse"}
    assert set(sample.reads("adq")) == every - others, "a setting that is new belongs to the methods that read it"
