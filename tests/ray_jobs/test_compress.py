"""What `compress` knows to be wrong before it works, without a cluster."""

from types import SimpleNamespace

import pytest

from ray_jobs import compress, extract, ingest, sample, weights, write
from ray_jobs.compress import Compression
from ray_jobs.encode import Storage
from ray_jobs.options import Backbone, Data, Selection
from tests.ray_jobs.images import drawn, index_of


class Went(Exception):
    """The pipeline got as far as the stage after the weights."""


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """The pipeline up to the stage after the weights, with weights that know some classes."""
    index = index_of({"a.tar": drawn(0, 12)}, tmp_path / "data")

    def went(*_):
        raise Went

    def run(classes: int, method: str, storage: Storage, last: str = "write") -> None:
        extractor = SimpleNamespace(arch="resnet18", manifest=SimpleNamespace(summary={"classes": classes}))
        monkeypatch.setattr(weights, "run", lambda *_: extractor)
        data, selection = Data(data=("x.tar",)), Selection(method=method, keep=0.5, bins=2)
        job = SimpleNamespace(cluster=None, run=SimpleNamespace(dataset=lambda *_: None))
        compress.stages(job, Compression(data, Backbone(), selection, str(tmp_path / "out"), storage), last)

    monkeypatch.setattr(write, "check", lambda *_: None)
    monkeypatch.setattr(compress, "probe", lambda *_: None)
    monkeypatch.setattr(ingest, "run", lambda *_: index)
    for stage in (extract, sample):
        monkeypatch.setattr(stage, "run", went)
    return run


@pytest.mark.parametrize("method", ["adq", "random"])
def test_a_backbone_of_other_classes_is_refused_before_anything_is_extracted(pipeline, method):
    with pytest.raises(ValueError, match=r"know 1,000 classes and the data have 3: .*--weights train:10.*fill-error"):
        pipeline(1000, method, Storage("patches:25+webp:50"))


@pytest.mark.parametrize(
    ("classes", "storage", "last"),
    [
        (3, Storage("patches:25"), "write"),
        (1000, Storage("patches:25", "fill-error"), "write"),
        (1000, Storage("webp:50"), "write"),
        (1000, Storage("patches:25"), "extract"),
    ],
)
def test_other_backbones_go_on(pipeline, classes, storage, last):
    with pytest.raises(Went):
        pipeline(classes, "adq", storage, last)
