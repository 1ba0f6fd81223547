"""What a frontier asks for, and what it leaves out, without a cluster."""

from pathlib import Path

import numpy as np
import pytest

from ray_jobs.copies import Copies
from ray_jobs.encode import Storage
from ray_jobs.evaluate import Evaluation
from ray_jobs.frontier import _spendings
from ray_jobs.frontier_report import Spent
from ray_jobs.grid import Comparison, Grid, Selected
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.options import Backbone, Compute, Data, Selection
from ray_jobs.store import Store
from tests.ray_jobs.images import drawn, index_of


@pytest.fixture
def index(tmp_path) -> Index:
    return index_of({"a.tar": drawn(0, 30)}, tmp_path / "data")


def spent(folder: Path, index: Index, methods: str, budget: int, embeddings: np.ndarray | None = None) -> list[Spent]:
    """The spendings of the data as they are."""
    if embeddings is not None:
        np.save(folder / "own.npy", embeddings)
    backbone = Backbone(embeddings=None if embeddings is None else str(folder / "own.npy"))
    grid = Grid(Comparison(methods, without_controls=True), Evaluation(), Data(), Selection(), backbone, (), "")
    job = Job(Store(str(folder / "runs")), None, Compute(), "cpu", None, None)
    return [
        one for _, one in _spendings(grid, Selected(job, index, grid), Copies(job, index, backbone), Storage(), budget)
    ]


def test_what_does_not_fit_is_left_out_with_a_warning(index, tmp_path, capsys):
    assert not spent(tmp_path, index, "random", 100)
    assert "warning: random as original is left out: 3 images take " in capsys.readouterr().out
    assert [one.seed for one in spent(tmp_path, index, "random", 10_000)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("methods", "rows", "message"),
    [
        ("random,dq:bins=5000", 30, "30 images cannot fill 5000 bins; lower --bins"),
        ("random,herding", 29, "--embeddings"),
    ],
)
def test_what_is_wrong_is_not_what_does_not_fit(index, tmp_path, methods, rows, message):
    with pytest.raises(ValueError, match=message):
        spent(tmp_path, index, methods, 10_000, np.ones((rows, 4), np.float32))
