"""The tables without Ray: a line a training, none twice, none that there is no time for."""

import json
import subprocess
import sys
from argparse import Namespace
from hashlib import sha256

import numpy as np
import pytest

from adq.dynamics import EPOCHS, Dynamics
from adq.pool import Pool
from adq.recipe import Recipe
from adq.selection import choose
from tests.bench import tables
from tests.bench.without_ray import OutOfTime, read_split
from tests.ray_jobs.conftest import real_samples, write_shard

NETWORK = "convnet-d2-w8"


@pytest.fixture
def call(tmp_path, monkeypatch, settled_arithmetic):
    samples = real_samples(360)
    for name, part in (("c-train-0", samples[:150]), ("c-train-1", samples[150:300]), ("c-val-0", samples[300:])):
        write_shard(tmp_path / f"{name}.tar", part)
    out = tmp_path / "lines.jsonl"

    def run(*more: str, status: int = 0) -> list[dict]:
        small = [
            "--device",
            "cpu",
            "--steps",
            "4",
            "--recipe",
            "cifar10-cpu",
            "--extractor-epochs",
            "1",
            "--bins",
            "10",
        ]
        where = ["--out", str(out), "--work", str(tmp_path / "work"), "--data", str(tmp_path)]
        networks = ["--arch", NETWORK, "--backbone", NETWORK]
        monkeypatch.setattr(sys, "argv", ["tables", *where, *small, *networks, "--keep", "0.1", *more])
        assert tables.main() == status
        return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return run


def test_lines_are_made_once_and_told(call, tmp_path, capsys):
    first = call("--methods", "random", "adq:alpha=1", "--seeds", "1", "--extractors", "1")
    assert [(line["method"], line["seed"], line["images"]) for line in first] == [
        ("random", 0, 30),
        ("adq:alpha=1", 0, 30),
    ]
    assert all(0 <= line["top1"] <= 1 and line["steps"] == 4 for line in first) and first[1]["moved"] > 0
    assert len({line["selection"] for line in first}) == 2
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert len(made) == 3
    again = call("--methods", "random", "adq:alpha=1", "--seeds", "2", "--extractors", "1")
    assert again[:2] == first and [line["seed"] for line in again] == [0, 0, 1, 1]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == made
    capsys.readouterr()
    call("--table")
    told = capsys.readouterr().out
    assert "| 10 % | adq:alpha=1 | 30 |" in told and NETWORK in told and "| 2 |" in told


def test_methods_by_difficulty_read_one_short_training(call, tmp_path):
    methods = ("el2n", "ccs:beta=0.2", "d2:neighbours=3")
    found = call("--methods", *methods, "--seeds", "2", "--extractors", "1")
    assert [line["method"] for line in found] == [*methods, *methods] and {line["images"] for line in found} == {30}
    (watched,) = (tmp_path / "work").glob("watched-*")
    split, learnt = read_split(sorted(tmp_path.glob("c-train-*")), 32), Dynamics(**np.load(watched))
    assert learnt.correct.shape == (EPOCHS, 300)
    hardest = choose(Pool(split.keys, split.images.labels, dynamics=learnt), "el2n", 0.1, 0).chosen
    keys = "\n".join(key for key, kept in zip(split.keys, hardest, strict=True) if kept)
    assert {line["selection"] for line in found if line["method"] == "el2n"} == {sha256(keys.encode()).hexdigest()}


def test_few_seeds_bring_several_permutations():
    named = ["adq", "adq-permuted", "adq-permuted:alpha=1"]
    assert tables.with_permutations(named, 5) == named
    more = tables.with_permutations(named, 2)
    assert more[:3] == named and more[3:] == [f"{name}:permutation={n}" for name in named[1:] for n in (1, 2)]
    line = {"arch": "net", "settings": {}, "keep": 0.1, "extractor": 0, "images": 9, "moved": 0.1, "seconds": 1.0}
    reached = {("", 0): 0.1, (":permutation=1", 0): 0.3, ("", 1): 0.4, (":permutation=1", 1): 0.6}
    found = [line | {"method": f"adq-permuted{suffix}", "seed": seed, "selection": f"{suffix}{seed}", "top1": top1}
             for (suffix, seed), top1 in reached.items()]  # fmt: skip
    assert "| adq-permuted | 9 | 35.0 ± 190.6 |" in tables.table(found) and ":permutation" not in tables.table(found)


def test_without_time_nothing_is_begun(call, tmp_path, capsys):
    assert call("--methods", "random", "--seeds", "1", "--seconds", "0.001", status=1) == []
    assert "out of time; the same command goes on" in capsys.readouterr().out
    assert not list((tmp_path / "work").glob("extractor-*"))
    assert len(call("--methods", "random", "--seeds", "1", "--seconds", "600")) == 1


def test_a_training_that_is_out_of_time_goes_on_to_the_same_accuracy(call, tmp_path, monkeypatch):
    (line,) = call("--methods", "random", "--seeds", "1")
    options = Namespace(data=tmp_path, shards=None, side=32, threads=1)
    monkeypatch.setattr(tables, "_held", {})
    tables._open(tmp_path / "work", options)
    recipe = Recipe(**line["settings"]["recipe"])
    rows = np.flatnonzero(draws(tables._held["train"], 30))
    told = {name: value for name, value in line.items() if name not in ("top1", "train_seconds")}
    out, state, stopped = tmp_path / "again.jsonl", tmp_path / "state.pt", 0
    while True:
        try:
            again = tables._train_and_test(told, recipe, rows, state, 0.0, out, "cpu")
            break
        except OutOfTime:
            stopped += 1
            assert state.exists() and not out.exists()
    assert stopped == 4, "one step an epoch"
    assert again["top1"] == line["top1"] and again["train_seconds"] > 0 and not state.exists()
    assert [json.loads(text) for text in out.read_text().splitlines()] == [again]


def draws(split, count: int) -> np.ndarray:
    """What `random` keeps with seed 0."""
    return choose(Pool(split.keys, split.images.labels), "random", count / len(split.keys), 0).chosen


def test_another_data_set_of_the_same_shape_is_not_taken_for_this_one(call, tmp_path):
    (line,) = call("--methods", "random", "--seeds", "1")
    other = tmp_path / "other" / tmp_path.name
    other.mkdir(parents=True)
    for name, part in (("c-train-0", slice(400, 700)), ("c-val-0", slice(700, 760))):
        write_shard(other / f"{name}.tar", real_samples(760)[part])
    _, second = call("--methods", "random", "--seeds", "1", "--data", str(other))
    assert second["settings"]["data"] == line["settings"]["data"] and second["selection"] != line["selection"]


def test_a_training_that_fails_is_told_and_the_others_go_on(call, tmp_path, capsys):
    recipe = tmp_path / "wild.toml"
    recipe.write_text('steps = 4\nlr = 1e30\naugment = "none"\n')
    assert call("--methods", "random", "--seeds", "1", "--recipe", str(recipe), status=1) == []
    assert f"{NETWORK} random keep 0.1 seed 0: the loss is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--side", "224"), "--side 224: expected 8 to 95; compare takes larger images"),
        (("--methods", "best"), "method 'best': expected one of adq, "),
        (("--methods", "random:alpha=0.5"), "method random has no setting 'alpha' here; known: balance"),
        (("--methods", "d2:beta=0.1"), "method d2 has no setting 'beta' here; known: neighbours, gamma_reverse"),
        (("--keep", "0"), "--keep 0.0: expected a share"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(call, capsys, given, told):
    with pytest.raises(SystemExit):
        call("--data", "/nonexistent", *given)
    assert told in capsys.readouterr().err


def test_a_folder_without_shards(call):
    with pytest.raises(FileNotFoundError, match=r"no (val|train) shards in"):
        call("--data", "/nonexistent")


def test_training_needs_pytorch_alone(tmp_path):
    """On a machine with a GPU and little else: no Ray, MLflow, webdataset, pyarrow, scipy or matplotlib."""
    blocked = ("ray", "mlflow", "webdataset", "pyarrow", "scipy", "matplotlib", "pandas")
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\nfrom tests.bench import devices, recipes, tables"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    code += f"\nsys.argv[1:] = ['--table', '--out', {str(tmp_path / 'none.jsonl')!r}]\nsys.exit(tables.main())"
    told = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True).stdout
    assert told.startswith("no table without ")
