"""What `fill` does, without Ray."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adq import patches
from adq.mae import MAEConfig, fresh
from adq.mae_weights import to_bytes
from adq.shards import DataSet
from ray_jobs import fill
from ray_jobs.cluster import Cluster
from ray_jobs.fill import Filler, Plan
from ray_jobs.job import Job
from ray_jobs.stages import Stage
from ray_jobs.store import Store
from tests.ray_jobs.conftest import CPU, members
from tests.ray_jobs.images import drawn, index_of

pytestmark = pytest.mark.usefixtures("settled_arithmetic")


def with_gaps(start: int, stop: int) -> list[tuple[str, bytes, int]]:
    """Drawn images without their first patch."""
    mask = np.arange(16).reshape(4, 4) > 0
    return [(key, patches.encode(image, mask), label) for key, image, label in drawn(start, stop)]


def filler(data: DataSet, out: Path, key_prefix: str = "none") -> Filler:
    return Filler(Plan(Stage(Store.at(str(out)), "fill", 1), data, key_prefix, "mean", "cpu", 4, 1, 2))


def test_damaged_containers_are_named_with_shard_and_key(tmp_path):
    samples = with_gaps(0, 10)
    for at, damaged in ((2, samples[2][1][:-20]), (9, samples[9][1] + b"x")):
        samples[at] = (samples[at][0], damaged, samples[at][2])
    data = index_of({"a.tar": with_gaps(10, 12), "b.tar": samples}, tmp_path / "data").data
    with pytest.raises(ValueError) as told:
        filler(data, tmp_path, "shard").work([], "b.tar", 10)
    first, second, *_ = str(told.value).splitlines()[1:]
    assert first.startswith("  b.tar: key 'b/image0002': the container") and "key 'b/image0009'" in second
    assert "or make shards without them: encode --encode original --skip-corrupt" in str(told.value)
    assert filler(data, tmp_path).work([], "a.tar", 2).rows == 2


def test_a_shard_that_changed_since_ingest_is_not_filled(tmp_path):
    data = index_of({"a.tar": [*with_gaps(0, 5), *drawn(5, 6)]}, tmp_path / "data").data
    with pytest.raises(ValueError, match=r"/a\.tar: changed since ingest"):
        filler(data, tmp_path / "out").work([], "a.tar", 7)
    part = filler(data, tmp_path / "out").work([], "a.tar", 6)
    (tmp_path / "a.tar").write_bytes((tmp_path / "out" / part.path).read_bytes())
    found = members(tmp_path)
    assert [name for name in found if name.endswith("png")] == [f"image{i:04d}.png" for i in range(6)]
    assert found["image0005.png"] == drawn(5, 6)[0][1] and "image0000.patches" not in found
    assert Image.open(io.BytesIO(found["image0000.png"])).size == (32, 32)


class Here(Job):
    """A job whose stages run at once, and are not recorded."""

    def stage(self, stage: Stage, work: Callable) -> tuple[dict, list]:
        return stage.config, work(stage)[0]


@pytest.mark.parametrize("filler", ["mean", "mae"])
def test_a_gpu_is_reserved_for_a_network_alone(filler, tmp_path, monkeypatch):
    index = index_of({"a.tar": with_gaps(0, 3), "b.tar": with_gaps(3, 5)}, tmp_path / "data")
    weights = tmp_path / "mae.pth"
    weights.write_bytes(to_bytes(fresh(MAEConfig(32, 8, 8, 1, 1, 8, 1, 1), 0)))
    asked = []

    def pool(_actor, arguments, tasks, _size, _compute, device, on_done, shared) -> None:
        asked.append((arguments[0].device, device, shared is not None))
        for shard, images in tasks:
            on_done(arguments[0].stage.commit(shard.removesuffix(".tar"), b"", images, "tar"))

    monkeypatch.setattr(fill, "map_actors", pool)
    job = Here(None, Cluster(2, 1.0, 1), CPU, "cuda", None, None)
    filling = fill.Filling(filler, str(weights) if filler == "mae" else None)
    config, parts = fill.make(job, index, filling, str(tmp_path / "out"))
    device = "cuda" if filler == "mae" else "cpu"
    assert asked == [(device, device, filler == "mae")] and config["device"] == device
    assert [part.rows for part in parts] == [3, 2, 3]
