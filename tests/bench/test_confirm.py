"""The confirmatory analysis: the numbers of the stored runs, and extractors as the unit."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bench import claims, confirm

STORED = Path(__file__).parent / "results" / "confirmation"


def printed(monkeypatch, capsys, *arguments: str) -> tuple[str, list[dict]]:
    monkeypatch.setattr(sys, "argv", ["confirm", "--draws", "50", *arguments])
    confirm.main()
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])


def test_the_t_test_by_hand():
    # Mean 2, standard error 1 / sqrt(3). With two degrees of freedom the quantile is 4.303, and p is 1 - t / sqrt(2 + t^2).
    found, t = confirm.t_difference([1.0, 2.0, 3.0]), 2 * np.sqrt(3)
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.302653 / np.sqrt(3)) == 2 - found.low
    assert found.p == pytest.approx(1 - t / np.sqrt(2 + t * t))
    assert confirm.t_difference([-1.0, -2.0, -3.0]).p == found.p
    alone = confirm.t_difference([0.3])
    assert alone.mean == 0.3 and np.isnan([alone.low, alone.high, alone.p]).all()


def test_the_stored_runs_by_extractor(monkeypatch, capsys):
    text, (random, dq) = printed(monkeypatch, capsys, "--runs", str(STORED / "imagenette"))
    assert "12 selections were tried before, in development: energy, facility-location, facility:width=0.3" in text
    unit = dq["extractors_as_the_unit"]
    assert unit["by_extractor"] == {"100": 4.33, "101": 3.0, "102": 6.96}
    assert unit["points"] == 4.77 and (unit["low"], unit["high"]) == pytest.approx((-0.24, 9.77), abs=0.005)
    assert unit["p"] == pytest.approx(0.0547, abs=1e-4)
    assert random["extractors_as_the_unit"]["by_extractor"] == {"100": 4.28, "101": 3.81, "102": 5.9}
    assert text.count("with extractors as the unit") == 2 and text.count("2 degrees of freedom") == 2


def test_an_extractor_a_seed(tmp_path, monkeypatch, capsys):
    """Ten seeds, each with its own extractor: the unit is the seed; and one extractor alone has no interval."""
    right = {"random": range(40, 50), "dq": range(40, 50), "support-points": range(45, 65, 2)}

    def write(folder: Path, first: int, step: int) -> str:
        folder.mkdir()
        rows = [
            {"method": method, "keep": 0.1, "seed": seed, "extractor": first + step * seed, "arch": "net",
             "correct": np.packbits(np.arange(100) < count).tobytes()}
            for method, counts in right.items() for seed, count in enumerate(counts)
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows[::-1])
        names = "\n".join(f"{n:03d}" for n in range(100))
        pq.write_table(table.replace_schema_metadata({"test_keys": names}), folder / "runs.parquet")
        return str(folder)

    _, (line, _) = printed(monkeypatch, capsys, "--runs", write(tmp_path / "ten", 107, 1))
    unit = line["extractors_as_the_unit"]
    assert list(unit["by_extractor"]) == [str(107 + n) for n in range(10)]
    assert list(unit["by_extractor"].values()) == [5.0 + n for n in range(10)]
    half = 2.262157 * np.std(range(10), ddof=1) / np.sqrt(10)
    assert unit["points"] == line["points"] == 9.5 and unit["high"] == pytest.approx(9.5 + half, abs=0.006)

    text, (line, _) = printed(monkeypatch, capsys, "--runs", write(tmp_path / "one", 3, 0))
    assert (
        line["extractors_as_the_unit"]["by_extractor"] == {"3": 9.5} and "one extractor alone has no interval" in text
    )


def test_several_permutations_of_a_seed_are_their_mean(tmp_path):
    bits = {(0, "p0"): 30, (0, "p1"): 50, (1, "p0"): 60, (1, "p1"): 60}
    rows = [
        {"method": "adq-permuted", "keep": 0.1, "seed": seed, "extractor": 7 + seed, "arch": "net",
         "correct": np.packbits(np.arange(100) < count).tobytes()}
        for (seed, _), count in bits.items()
    ]  # fmt: skip
    names = "\n".join(f"{n:03d}" for n in range(100))
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"test_keys": names}), tmp_path / "runs.parquet")
    found, extractors, _ = confirm.results(tmp_path, None, ["adq-permuted"])
    assert found["adq-permuted", 0.1].shape == (2, 100) and extractors.tolist() == [7, 8]
    assert found["adq-permuted", 0.1].mean(axis=1).tolist() == pytest.approx([0.4, 0.6])


def test_sets_and_methods_that_are_not_asked_for_change_nothing_and_other_seeds_are_refused(tmp_path):
    def row(method: str, seed: int, extractor: int) -> dict:
        correct = np.packbits(np.arange(100) < 10 * seed).tobytes()
        return {"method": method, "keep": 0.1, "seed": seed, "extractor": extractor, "arch": "net", "correct": correct}

    def write(rows: list[dict]) -> None:
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"test_keys": "\n".join(map(str, range(100)))})
        pq.write_table(table, tmp_path / "runs.parquet")

    both = [row(method, seed, 100 + seed % 2) for seed in range(4) for method in ("random", "dq")]
    write([*both, *(row("a set of --sets", seed, 0) for seed in range(6))])
    found, extractors, _ = confirm.results(tmp_path, None, ["dq", "random"])
    assert set(found) == {("dq", 0.1), ("random", 0.1)} and extractors.tolist() == [100, 101, 100, 101]
    write([one for one in both if (one["method"], one["seed"]) != ("dq", 2)] + [row("dq", 7, 101)])
    with pytest.raises(ValueError, match="not all of dq, random have the same seeds at every keep ratio"):
        confirm.results(tmp_path, None, ["dq", "random"])


def test_lines_that_are_measured_again_take_the_place_of_the_old():
    line = {"data": "d", "arch": "net", "method": "adq-permuted", "keep": 0.1, "seed": 0, "top1": 0.1}
    other = line | {"seed": 1}
    again = [line | {"selection": name, "top1": 0.2} for name in ("a", "b")]
    assert claims.replaced([line, other], [*again, again[0]]) == [other, *again]
    assert claims.replaced([other, *again], []) == [other, *again]


def test_a_method_is_above_another_seed_by_seed():
    reached = {("a", 0.1): (0.5, 0.6), ("b", 0.1): (0.4, 0.4), ("a", 0.2): (0.7, 0.7), ("b", 0.2): (0.6, 0.8)}
    lines = [
        {"method": method, "keep": keep, "seed": seed, "top1": top1}
        for (method, keep), several in reached.items()
        for seed, top1 in enumerate(several)
    ]
    lines += [
        {"method": "b", "keep": 0.2, "seed": 1, "top1": 0.6},
        {"method": "a", "keep": 0.1, "seed": 2, "top1": 0.9},
    ]
    # Seed by seed 10 and 20 points at 10 %; 10 and 0 at 20 %, where b has two lines in a seed; their means 10 and 10.
    assert claims.above(lines, "a", "b") == (
        "a above b: 10 % +15.0 ± 63.5 (2 seeds); 20 % +5.0 ± 63.5 (2 seeds); mean +10.0 ± 0.0 (2 seeds)"
    )
    with pytest.raises(ValueError, match="no seed has both a and c"):
        claims.above(lines, "a", "c")
