"""The pool of actors: one that is killed is replaced, however much it was made of."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ray_jobs import actors
from ray_jobs.actors import map_actors
from ray_jobs.options import Compute

LARGE = 1 << 20  # bytes; Ray keeps arguments above 100 kB apart from the call


class Mortal:
    """Kills itself once, in the middle of a task."""

    def __init__(self, values: np.ndarray, mark: str):
        self.values, self.mark = values, Path(mark)

    def ready(self, _shared: list) -> None:
        """Nothing to load."""

    def work(self, _shared: list, number: int) -> tuple[int, float]:
        if number == 2 and not self.mark.exists():
            self.mark.touch()
            time.sleep(1)  # until Ray has let go of what nobody holds
            os.kill(os.getpid(), signal.SIGKILL)
        return number, float(self.values[number])


class Unlucky:
    """Storage that fails as often as its file says."""

    def __init__(self, error: type, mark: str):
        self.error, self.mark = error, Path(mark)

    def ready(self, _shared: list) -> None:
        """Nothing to load."""

    def work(self, _shared: list, number: int) -> int:
        left = int(self.mark.read_text())
        if number == 1 and left:
            self.mark.write_text(str(left - 1))
            raise self.error("storage")
        return number


@pytest.mark.parametrize("error, fails, tries", [(OSError, 2, 3), (ConnectionError, 9, 6), (FileNotFoundError, 2, 1)])
def test_storage_that_may_answer_later_is_asked_again(cluster, tmp_path, monkeypatch, error, fails, tries):
    monkeypatch.setattr(actors, "STORAGE_SECONDS", 0.01)
    mark, done = tmp_path / "left", []
    mark.write_text(str(fails))
    arguments = (Unlucky, (error, str(mark)), [(n,) for n in range(3)], 1, Compute(device="cpu"), "cpu", done.append)
    if tries > fails:
        map_actors(*arguments)
        assert sorted(done) == [0, 1, 2]
    else:
        with pytest.raises(error):
            map_actors(*arguments)
    assert fails - int(mark.read_text()) == min(tries, fails)


def test_an_actor_that_is_killed_gets_its_large_arguments_again(cluster, tmp_path):
    values, done = np.arange(LARGE // 8, dtype=np.float64), []
    mark = str(tmp_path / "killed")
    map_actors(Mortal, (values, mark), [(n,) for n in range(5)], 1, Compute(device="cpu"), "cpu", done.append)
    assert Path(mark).exists() and sorted(done) == [(n, float(n)) for n in range(5)]


def test_ray_has_nothing_to_warn_of(cluster, tmp_path, capfd):
    """Its warning of constructor arguments would be the second line that a newcomer sees."""
    mark = tmp_path / "left"
    mark.write_text("0")
    map_actors(Unlucky, (OSError, str(mark)), [(1,)], 1, Compute(device="cpu"), "cpu", lambda _: None)
    assert "constructor arguments" not in "".join(capfd.readouterr())
