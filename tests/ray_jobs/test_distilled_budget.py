"""--bytes-per-class: the budget is kept for sure, and filled by what real images take."""

import numpy as np
import pytest

from adq.extractor import input_transform
from palette.codec import decode, encode, payload_bytes
from ray_jobs import distilled_budget, distilled_set, distilling, ingest
from ray_jobs.distill import stages
from ray_jobs.job import opened
from ray_jobs.options import Data, Place
from tests.ray_jobs.conftest import CLASSES, CPU
from tests.ray_jobs.distilling import one_by_one, wanted


@pytest.fixture(scope="module")
def job(cluster, tmp_path_factory):
    with opened(Place(store=str(tmp_path_factory.mktemp("store"))), CPU, "test", ["test budget"]) as job:
        yield job


@pytest.fixture(autouse=True)
def without_train(monkeypatch):
    monkeypatch.setattr(distilling, "run_group", one_by_one)


def test_a_budget_in_bytes_is_kept(job, shards, tmp_path):
    budget = 3 * (payload_bytes(32, 32, 4) + 8) + 20
    given = {"images_per_class": None, "bytes_per_class": budget, "start": "noise", "steps": 1}
    summary = stages(job, wanted(shards, tmp_path / "out", **given))["distilled"].summary
    assert summary["images_per_class"] == 3 and summary["payload_bytes"] <= 10 * budget
    with pytest.raises(
        ValueError, match=r"--bytes-per-class 200: .* in 4 colours takes up to 276 bytes .* at least 286"
    ):
        stages(job, wanted(shards, tmp_path / "other", **given | {"bytes_per_class": 200}))


def test_a_budget_is_filled_by_what_real_images_take(job, shards, tmp_path, monkeypatch):
    budget, worst = 2000, payload_bytes(32, 32, 4) + 8
    given = {"images_per_class": None, "bytes_per_class": budget, "start": "random", "steps": 1}
    full = stages(job, wanted(shards, tmp_path / "out", **given))["distilled"].summary
    assert 0.75 * 10 * budget < full["payload_bytes"] <= 10 * budget < full["images"] * worst
    assert full["images"] == full["distilled_images"]
    # Images that take more than was thought: the last ones of every class are left out.
    monkeypatch.setattr(distilled_budget, "NOISIER", 0.5)
    done = stages(job, wanted(shards, tmp_path / "fewer", **given))
    fewer, count = done["distilled"].summary, done["distilled"].summary["images_per_class"]
    assert fewer["images"] == 10 * count < fewer["distilled_images"]
    whole = distilled_set.read_set(done["distill"])
    one_more = len(
        encode(*(getattr(whole.first(count + 1), name) for name in ("palettes", "indices", "labels")), CLASSES)
    )
    assert fewer["payload_bytes"] <= 10 * budget < one_more
    palettes, indices, labels, _ = decode((tmp_path / "fewer" / "distilled.tessera").read_bytes())
    first = np.flatnonzero(np.tile(np.arange(len(whole.labels) // 10) < count, 10))
    assert np.array_equal(labels, whole.labels[first])
    assert np.array_equal(
        np.take_along_axis(palettes[:, :, None], indices.reshape(len(first), -1, 1, 1).astype(int), 1).reshape(
            -1, 32, 32, 3
        ),
        whole.images[first],
    )
    with pytest.raises(ValueError, match="one image a class takes"):
        distilled_budget.fitting(whole, CLASSES, 900)


def test_no_more_images_are_sampled_than_one_container_holds(job, shards, monkeypatch):
    index, taken, cut = ingest.run(job, Data(data=(str(shards),))), [], distilled_budget.median_cut
    monkeypatch.setattr(distilled_budget, "images_in_container", lambda *_: 7)
    monkeypatch.setattr(distilled_budget, "median_cut", lambda images, k: taken.append(len(images)) or cut(images, k))
    transform = input_transform("convnet-d3", 32)
    assert distilled_budget.probably(2000, index, transform, 4, False) > 3 and taken == [7]


@pytest.mark.parametrize(("side", "colors", "soft"), [(32, 32, False), (128, 64, False), (32, 2, True)])
def test_images_a_class_follow_from_bytes_that_header_and_names_share(side, colors, soft):
    classes = [f"class {n}" for n in range(100)]
    image = payload_bytes(side, side, colors) + 8 + (200 if soft else 0)
    for budget in (image + 40, 10 * image, 10 * image + 40, 1000 * image):
        count = distilled_budget.surely(budget, side, colors, classes, soft)
        containers = -(-100 * count // distilled_set.images_in_container(side, colors))
        frame = 24 + 4 + sum(2 + len(name) for name in classes)
        assert 100 * count * image + containers * frame <= 100 * budget < 100 * (count + 2) * image
