"""What a comparison asks for, without training anything."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from ray_jobs import rank
from ray_jobs.compare import _cell_runs
from ray_jobs.evaluate import Evaluation
from ray_jobs.grid import Comparison, Grid
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
