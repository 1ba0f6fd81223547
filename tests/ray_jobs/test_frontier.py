"""What a frontier asks for, what it leaves out, and how `compress` spends what it says."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from adq.container import pack
from palette.encodings import Encoding, encode
from ray_jobs import __main__ as cli
from ray_jobs.copies import Copies
from ray_jobs.encode import Storage
from ray_jobs.evaluate import Evaluation
from ray_jobs.frontier import _spendings
from ray_jobs.frontier_report import Spent
from ray_jobs.frontier_rule import RULE, settings
from ray_jobs.grid import Comparison, Grid, Selected
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.options import Backbone, Compute, Data, Selection
from ray_jobs.store import Store
from tests.ray_jobs.images import CLASSES, drawn, index_of

NETWORK = "convnet-d3-w8"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A store, and drawn images, the fifth of which is damaged."""
    folder = tmp_path_factory.mktemp("frontier")
    samples = drawn(0, 30)
    samples[4] = (samples[4][0], samples[4][1][:100], samples[4][2])
    for name, part in (("data", samples), ("test", drawn(0, 12, "test"))):
        index_of({"a.tar": part}, folder / name)
        (folder / name / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def run(place: Path, *more: object) -> str:
    command = [
        "frontier", "--data", place / "data/a.tar", "--test", place / "test/a.tar", "--out", place / "out",
        "--store", place / "runs", "--actors", "1", "--arch", NETWORK, "--steps", "2", "--seeds", "1",
        "--encodings", "original,webp:50", "--methods", "random", *more,
    ]  # fmt: skip
    done = CliRunner().invoke(cli.main, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--methods", "random,hearding"), "--method hearding: expected one of adq"),
        (("--methods", "dq:bins=31"), "30 images cannot fill 31 bins"),
        (("--arch", f"{NETWORK},resnet19"), "unknown architecture 'resnet19'"),
        (("--workers", "4"), "4 training workers of 1 threads need 4 CPUs"),
        (("--memory", "0.000004"), r"5 kB of original: .* do not fit into --memory 4e-06"),
        (("--sets", "own=/nowhere/*.tar"), "/nowhere"),
        (("--sets", "random=/nowhere"), "names that no method has"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_encoded(cluster, place, wrong, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(place, "--store", place / "nothing", "--budgets", "5kB", *wrong)
    assert not (place / "nothing" / "encoded").exists()


def test_no_more_is_spent_than_pays(cluster, place, tmp_path):
    point = {"arch": "a", "method": "random", "encoding": "original", "images": 1, "seeds": 1}
    points = [
        point | {"budget": budget, "payload": budget, "mean": mean} for budget, mean in ((12_000, 0.5), (24_000, 0.4))
    ]
    points += [points[0] | {"method": "own", "encoding": "", "mean": 0.6}]
    told = {"settings": settings("random", Selection(), Backbone()), "points": points}
    (tmp_path / RULE).write_text(json.dumps(told))
    command = [
        "compress", "--data", place / "test/a.tar", "--store", place / "runs", "--actors", "1", "--budget", "24kB",
        "--frontier", tmp_path, "--out", tmp_path / "out",
    ]  # fmt: skip
    done = CliRunner().invoke(cli.main, [str(part) for part in command], catch_exceptions=False)
    assert "in 12 kB, which is all that is spent" in done.output and "own of --sets reached 60.0 %" in done.output
    summary = Store.at(str(tmp_path / "out")).read_json(".tessera/manifest.json")["summary"]
    assert 9000 < summary["payload_bytes"] <= 12_000


def test_images_that_cannot_be_decoded_are_left_out_of_every_set(cluster, place):
    run(place, "--budgets", "5kB,1GB", "--skip-corrupt")
    found = pq.read_table(place / "out" / "runs.parquet").to_pylist()
    assert all(4500 < row["payload"] <= 5000 for row in found if row["budget"] == 5000)
    good = [(data, label) for n, (_, data, label) in enumerate(drawn(0, 30)) if n != 4]
    for encoding in ("original", "webp:50"):
        (whole,) = (row for row in found if row["encoding"] == encoding and row["budget"] == 10**9)
        assert (whole["method"], whole["images"]) == ("all images", 29)
        made = encode([("png", data) for data, _ in good], Encoding.parse(encoding))
        labels = np.array([label for _, label in good])
        assert whole["payload"] == len(
            pack([one.data for one in made], [one.extension for one in made], labels, CLASSES)
        )
