"""The tables without Ray: a line a training, none twice, none that there is no time for."""

import json
import sys

import pytest

from tests.bench import tables
from tests.ray_jobs.conftest import real_samples, write_shard

NETWORK = "convnet-d2-w8"


@pytest.fixture
def call(tmp_path, monkeypatch, settled_arithmetic):
    samples = real_samples(360)
    for name, part in (("c-train-0", samples[:150]), ("c-train-1", samples[150:300]), ("c-val-0", samples[300:])):
        write_shard(tmp_path / f"{name}.tar", part)
    out = tmp_path / "lines.jsonl"

    def run(*more: str) -> list[dict]:
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
        tables.main()
        return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return run


def test_lines_are_made_once_and_told(call, tmp_path, capsys):
    first = call("--methods", "random", "adq:alpha=1", "--seeds", "1")
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


def test_nothing_is_begun_that_would_not_be_done(call, capsys):
    # The first training tells how long one takes.
    done = call("--methods", "random", "dq", "--seeds", "1", "--seconds", "0.001")
    assert len(done) < 2 and f"no time for {NETWORK} " in capsys.readouterr().out
    assert len(call("--methods", "random", "dq", "--seeds", "1", "--seconds", "600")) == 2


def test_what_cannot_be_is_said(call, capsys):
    with pytest.raises(SystemExit):
        call("--side", "224")
    assert "--side 224: expected 8 to 95; compare takes larger images" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no val shards in"):
        call("--data", "/nonexistent")
