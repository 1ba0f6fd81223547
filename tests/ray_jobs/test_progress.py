"""What is told while a stage works, on a terminal and in a log."""

import sys

import pytest

from ray_jobs import progress
from ray_jobs.progress import Progress, clock


@pytest.fixture
def now(monkeypatch):
    """A clock that the test turns."""
    at = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: at[0])
    return at


def test_times_as_a_person_says_them():
    assert [clock(s) for s in (8.4, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 05 min"]


def test_a_log_has_a_line_a_minute_and_later_fewer(now, capsys):
    stage = Progress("extract", 1000)
    times = []
    for second in range(1, 3600):
        now[0] = 100.0 + second
        stage.add(1 if second <= 1000 else 0, "loss 0.5")
        if told := capsys.readouterr().err:
            times.append(second)
            assert told.count("\n") == 1 and told.startswith("extract    ") and told.endswith("  loss 0.5\n")
            if second == 60:
                assert told == "extract    60 of 1,000 images  1/s  15 min 40 s left  loss 0.5\n"
    gaps = [later - earlier for earlier, later in zip([0, *times], times, strict=False)]
    assert gaps[:3] == [60, 90, 135] and max(gaps) == 600 and len(times) < 15
    stage.close("done")
    assert capsys.readouterr() == ("extract    done\n", "")


def test_a_quick_stage_leaves_a_log_alone(now, capsys):
    stage = Progress("ingest", 10)
    for _ in range(10):
        now[0] += 5
        stage.add()
    assert capsys.readouterr().err == ""


def test_a_terminal_has_one_line_that_is_rewritten(now, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    stage = Progress("distill", None, "steps")
    now[0] += 1
    stage.add(250)
    stage.add(1)
    assert capsys.readouterr().err == "\r\033[Kdistill    250 steps  250/s  "
    stage.close("done")
    assert capsys.readouterr() == ("distill    done\n", "\r\033[K")


def test_a_slow_stage_has_a_rate(now, capsys):
    stage = Progress("experts", 4, "experts")
    now[0] += 120
    stage.add()
    assert capsys.readouterr().err == "experts    1 of 4 experts  0.0083/s  6 min 00 s left\n"
