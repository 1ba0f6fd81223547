"""Several sets of --sets under one name: sizes make a line of the figure, and sets of one size share the seeds."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ray_jobs import compare, frontier, named_sets
from ray_jobs.comparison import Outcome
from ray_jobs.evaluate import Evaluation
from ray_jobs.grid import Comparison, Grid
from ray_jobs.options import Backbone, Data, Place, Selection
from ray_jobs.store import parquet_table
from tests.ray_jobs.conftest import CLASSES, CPU, real_samples, write_shard

NETWORK = "convnet-d3-w8"


def grid(seeds: int, first: int = 0, **changes) -> Grid:
    comparison = Comparison("random", first_seed=first, without_controls=True, **changes)
    evaluation = Evaluation(NETWORK, seeds=seeds, steps=4, train_batch=32)
    return Grid(comparison, evaluation, Data(), Selection(), Backbone(), (), "out")


@pytest.fixture
def sizes(monkeypatch):
    """Sets that are named by the number of their images, out of 1,000; a name may have a letter more. A byte an image."""

    def further_set(job, name, place, wanted, source, test):
        images = int(place.rstrip("ab"))
        each = [Outcome(name, images / 1000, seed, 0, images, images, 0, 0.0, 0.0, 0.0, place) for seed in wanted.seeds]
        return SimpleNamespace(images=images, data=SimpleNamespace(root=place)), each

    monkeypatch.setattr(named_sets, "further_set", further_set)
    monkeypatch.setattr(frontier, "warn_of_soft_labels", lambda *_: None)


def test_sets_of_one_size_share_the_seeds_and_sizes_stand_apart(sizes):
    found = named_sets.sets_named(None, "dm", ["500", "100a", "101", "100b"], grid(4, first=5), None, None)
    told = [[(index.data.root, [(one.seed, one.keep) for one in each]) for index, each in group] for group in found]
    assert told == [
        [("100a", [(6, 0.1)]), ("100b", [(7, 0.1)]), ("101", [(5, 0.1), (8, 0.1)])],
        [("500", [(5, 0.5), (6, 0.5), (7, 0.5), (8, 0.5)])],
    ]  # an image more, by rounding, is no other size
    with pytest.raises(
        ValueError, match=r"--sets dm=\.\.\.: 3 sets of 100 images, each for seeds of its own, and --seeds 2"
    ):
        named_sets.sets_named(None, "dm", ["500", "100a", "101", "100b"], grid(2), None, None)


def test_a_frontier_has_one_size_of_a_name_in_a_budget(sizes, capsys):
    def spent(budgets, *places):
        rows = frontier._further(None, "dm", places, grid(2), None, None, budgets)
        return [(one.budget, one.seed, one.images) for _, one in rows]

    assert spent([100, 101, 600], "100", "101", "500") == [(101, 0, 100), (101, 1, 101), (600, 0, 500), (600, 1, 500)]
    assert spent([200], "100", "500") == [(200, 0, 100), (200, 1, 100)]
    assert "dm takes 500 bytes, more than any budget" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--sets dm=\.\.\.: has sets of several sizes in 1 kB; name them apart"):
        spent([1000], "100", "500")


def test_a_comparison_trains_each_set_with_its_seeds(cluster, tmp_path, capsys):
    samples = real_samples(240)
    for number, name in enumerate("abct"):
        write_shard(tmp_path / f"{name}.tar", samples[60 * number : 60 * (number + 1)])
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    sets = tuple(f"own={tmp_path}/{name}.tar" for name in ("a", "[ac]", "b"))
    wanted = grid(3, sets=sets, keep=f"{1 / 3},{2 / 3}")
    data, test, out = Data(data=(f"{tmp_path}/[abc].tar",)), (f"{tmp_path}/t.tar",), tmp_path / "out"
    wanted = replace(wanted, data=data, test=test, out=str(out))
    compare.run(wanted, CPU, Place(store=str(tmp_path / "runs")))
    said = capsys.readouterr().out
    assert "(1 set x 2 keep ratios + 2 of --sets) x 3 seeds x 1 network: 12 trainings" in said
    rows = parquet_table((out / "runs.parquet").read_bytes()).to_pylist()
    own = {(row["images"], row["seed"]): row for row in rows if row["method"] == "own"}
    assert len(rows) == 12 and sorted(own) == [(60, 0), (60, 1), (60, 2), (120, 0), (120, 1), (120, 2)]
    a, b, again = (own[60, seed]["selection"] for seed in range(3))
    assert a == again != b and len({own[120, seed]["selection"] for seed in range(3)}) == 1
    small, standing = (
        line for line in (out / "table.md").read_text().splitlines() if "| own " in line and "of 2 sets" in line
    )
    assert " 60 |" in small and "3 of 2 sets" in standing, (
        "a name that has all ratios is held against the methods over them"
    )
