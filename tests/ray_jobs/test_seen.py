"""What methods look at, and what that costs, without running a stage."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from adq.selection import looks_at
from ray_jobs import sample, seen
from ray_jobs.cluster import Cluster
from ray_jobs.evaluate import Evaluation
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.options import Backbone, Compute, Data, Selection
from ray_jobs.sample import Seen
from ray_jobs.seen import Sources, extracts, trained_epochs
from tests.ray_jobs.images import drawn, index_of


@pytest.mark.parametrize(
    ("method", "embeddings", "expected"),
    [
        ("random", None, False),
        ("el2n", None, False),
        ("dq", None, True),
        ("dq", "own.npy", False),
        ("adq", "own.npy", True),
    ],
)
def test_features_are_extracted_where_a_method_asks_for_them(method, embeddings, expected):
    assert extracts(method, Backbone(embeddings=embeddings)) == expected


@pytest.mark.parametrize(
    ("method", "expected"), [("random", ["decode"]), ("el2n", ["dynamics", "decode"]), ("dq", ["extract"])]
)
def test_images_are_decoded_for_their_own_sake_only_where_no_features_are_taken(index, monkeypatch, method, expected):
    ran = []

    def stage(name: str) -> Callable:
        return lambda *_: ran.append(name) or SimpleNamespace(summary={"undecodable": 0})

    for name in ("decode", "extract", "dynamics", "bins"):
        monkeypatch.setattr(getattr(seen, name), "run", stage(name))
    monkeypatch.setattr(Sources, "_weights", lambda _: None)
    found = Sources(job("cpu"), index, Backbone(), skip_corrupt=True).seen(Selection(method=method), 0)
    assert found.undecoded == () and [name for name in ran if name != "bins"] == expected


def test_nothing_chooses_an_image_that_could_not_be_decoded(tmp_path):
    index = index_of({"a.tar": drawn(0, 9)}, tmp_path / "data")
    broken = ("image0002", "image0007")
    table, pool = sample._pool(index, Seen(undecoded=broken), "random")
    assert pool.keys == table["key"].to_pylist() == [f"image{i:04d}" for i in range(9) if i not in (2, 7)]
    assert pool.labels.tolist() == [0, 1, 0, 1, 2, 0, 2]
    known = [Seen(undecoded=keys).contents("random") for keys in ((), broken, broken[:1])]
    assert known[0] == {} and known[1] != known[2], "another choice has another address"


@pytest.mark.parametrize("method", ["dq", "adq", "adq-random-bins", "prefix"])
def test_embeddings_stay_where_they_are_where_bins_are_enough(tmp_path, monkeypatch, method):
    index = index_of({"a.tar": drawn(0, 9)}, tmp_path / "data")
    cut = pa.table({"key": index.table()["key"], "bin": np.arange(9) % 3, "rank": np.arange(9)})
    monkeypatch.setattr(Seen, "embeddings", lambda _: pytest.fail("read"))
    _, pool = sample._pool(index, Seen(bins=SimpleNamespace(table=lambda *_: cut)), method)
    assert pool.embeddings is None and pool.bins.tolist() == [0, 1, 2] * 3
    assert {"embeddings", "bins"} <= looks_at("support-points")


def test_a_choice_hangs_on_the_embeddings_that_it_looks_at_though_they_have_the_same_bins():
    def contents(method: str, extract: str) -> dict:
        bins, features = SimpleNamespace(content="the same"), SimpleNamespace(content=extract)
        return Seen(bins=bins, scores=bins, extract=features).contents(method)

    assert contents("support-points", "one") != contents("support-points", "other")
    assert contents("herding", "one") != contents("herding", "other")
    for method in ("prefix", "dq", "adq"):
        assert contents(method, "one") == contents(method, "other"), "bins and scores are all that it reads"


@pytest.fixture
def index(tmp_path):
    return index_of({"a.tar": drawn(0, 5), "b.tar": drawn(5, 9), "c.tar": drawn(9, 12)}, tmp_path / "data")


def job(device: str, **compute) -> SimpleNamespace:
    """Eight GPUs, of which a stage need not use all."""
    return SimpleNamespace(device=device, compute=Compute(**compute), cluster=Cluster(64, 8, 1, ((64, 8),)), ledger=[])


SPENT = {
    "weights": 100.0,
    "extract": 10.0,
    "discriminator": 1000.0,
    "ratios": 1000.0,
    "dynamics": 1.0,
    "sample": 1000.0,
}


def test_gpu_seconds_count_the_gpus_that_a_stage_uses(index):
    def found(device: str, backbone: Backbone, **compute) -> float:
        return Sources(job(device, **compute), index, backbone).gpu_seconds(SPENT)

    # One actor a shard, as there are fewer shards than GPUs; one worker trains the extractor, one is watched.
    assert found("cuda", Backbone()) == 100 + 3 * 10 + 1
    assert found("cuda", Backbone(train_workers=4), actors=2, gpus_per_actor=0.5) == 400 + 10 + 4
    assert found("cuda", Backbone(weights="DEFAULT")) == 3 * 10 + 1, "weights that are loaded need none"
    assert found("cpu", Backbone()) == 0


def test_gpu_seconds_of_bins_are_those_of_the_actors_that_hold_the_embeddings(index, monkeypatch):
    monkeypatch.setattr(Sources, "_extract", lambda _: None)
    for holders in (0, 6):
        monkeypatch.setattr(seen.bins, "actors", lambda *_, holders=holders: holders)
        assert Sources(job("cuda"), index, Backbone()).gpu_seconds({"bins": 7.0}) == 7.0 * holders
    assert Sources(job("cuda"), index, Backbone(embeddings="own.npy")).gpu_seconds({"bins": 7.0}) == 0


def test_an_extractor_is_trained_where_its_images_are_small_or_weights_say_so(index):
    assert trained_epochs(Backbone(), index) == 10 and trained_epochs(Backbone(weights="train:3"), index) == 3
    assert trained_epochs(Backbone(weights="DEFAULT"), index) is None
    assert trained_epochs(Backbone(feature_size=224), index) is None


@pytest.mark.parametrize(
    ("weights", "extractors", "first", "expected"),
    [
        ("weights.pt", 0, 0, [7, 8, 9]),
        ("weights.pt", 2, 0, [7, 8, 7]),
        ("train:1", 0, 0, [7, 8, 9]),
        ("train:1", 1, 0, [7, 7, 7]),
        ("train:1", 0, 40, [47, 48, 49]),
        ("train:1", 2, 41, [8, 7, 8]),
    ],
)
def test_a_seed_varies_the_short_training_whatever_the_extractor_is(
    index, monkeypatch, weights, extractors, first, expected
):
    watched = []

    def run(_job, _index, backbone, _skip) -> None:
        watched.append(backbone.feature_seed)
        raise InterruptedError

    monkeypatch.setattr(seen.dynamics, "run", run)
    backbone = Backbone(weights=weights, feature_seed=7)
    grid = Grid(
        Comparison(extractors=extractors, first_seed=first), Evaluation(seeds=3), Data(), Selection(), backbone, (), ""
    )
    selected = Selected(job("cpu"), index, grid)
    for seed in grid.seeds:
        with pytest.raises(InterruptedError):
            selected.of(Variant.of("el2n", Selection()), 0.5, seed)
    assert watched == expected
    numbers = [grid.extractor(seed, index) for seed in grid.seeds]
    assert (
        numbers == [0] * 3 if weights == "weights.pt" and not extractors else numbers == [one - 7 for one in expected]
    )
