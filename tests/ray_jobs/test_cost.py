"""What a comparison is said to cost, from rates that are given."""

from dataclasses import is_dataclass, replace
from types import SimpleNamespace

import pytest

from adq.training import Recipe
from ray_jobs import cost
from ray_jobs.cluster import Cluster
from ray_jobs.evaluate import Evaluation, Wanted
from ray_jobs.feature_cost import Looked, estimate, told
from ray_jobs.grid import Comparison, Grid
from ray_jobs.options import Backbone, Compute, Data, Selection
from ray_jobs.packing import Rate
from ray_jobs.trainings import Plan, images_of

CLUSTER = Cluster(2, 0, 1, ((2, 0),), local=True)
JOB = SimpleNamespace(device="cpu", compute=Compute(cpus_per_actor=1), cluster=CLUSTER, decoders=1)
INDEX = SimpleNamespace(
    images=1000, side=32, classes=("a", "b"), data=SimpleNamespace(shards=("a", "b", "c")), image_bytes=1_000_000,
    manifest=SimpleNamespace(content="index"),
)  # fmt: skip
TEST = SimpleNamespace(images=200, side=32, classes=("a", "b"), image_bytes=200_000)
RATE = Rate(trained=100.0, tested=200.0)


@pytest.fixture(autouse=True)
def measured(monkeypatch) -> list:
    """What was asked for, the last time."""
    last: list = []

    def rates(_job, _plan, asked, _gpus):
        last[:] = asked
        return [RATE if one.trains else Rate(None, RATE.tested) for one in asked]

    monkeypatch.setattr(cost, "rates", rates)
    monkeypatch.setattr(cost, "seconds_to_decode", lambda *_: 0.0)
    monkeypatch.setattr(cost, "replace", lambda one, **new: replace(one, **new) if is_dataclass(one) else one)
    return last


def said(methods: str, further=(), backbone=None, data=None, job=JOB, **evaluation) -> str:
    options = Evaluation("convnet-d3-w8", seeds=2, steps=10, train_batch=50, **evaluation)
    comparison = Comparison(methods, keep="0.1,0.5", without_controls=True)
    grid = Grid(comparison, options, data or Data(), Selection(), backbone or Backbone(), (), "out")
    return cost.estimate(job, INDEX, TEST, grid, cost.Expected.of_shares(grid, INDEX, further))


def test_trainings_of_further_sets_are_counted():
    # 500 images at 100 a second and 200 tested at 200: 6 s each, on 2 workers.
    text = said("random,dq")
    assert "2 sets x 2 keep ratios x 2 seeds x 1 network: 8 trainings, 0.0 M images" in text
    assert "about 24 s on 2 workers" in text
    further = [Wanted(name, SimpleNamespace(**vars(INDEX) | {"images": 70}), range(2)) for name in ("own", "other")]
    text = said("random,dq", further)
    assert "(2 sets x 2 keep ratios + 2 of --sets) x 2 seeds x 1 network: 12 trainings" in text
    assert "about 33 s on 2 workers" in text  # 50 and 20 of the 70 in turn
    assert "bins, scores and the choices are not counted" in text


def test_what_eq_10_as_printed_keeps_is_counted_as_the_most_that_it_can_be():
    comparison = Comparison("random,adq", keep="0.1,0.5", without_controls=True)
    grid = Grid(comparison, Evaluation(), Data(), Selection(allocation="literal"), Backbone(), (), "out")
    expected = cost.Expected.of_shares(grid, INDEX, ())
    assert expected.sizes == [100, 1000, 500, 1000]
    assert expected.said.endswith("(literal ones counted as all images, the most that they can keep)")
    assert "literal" not in cost.Expected.of_shares(replace(grid, selection=Selection()), INDEX, ()).said


def test_short_trainings_and_features_are_counted_where_methods_need_them():
    plain = said("random")
    assert "features" not in plain and "short trainings" not in plain
    # Ten epochs of 1,000 images for each of two seeds, each trained on and predicted.
    watching = said("random,el2n")
    assert "about 5 min 00 s for 2 short trainings that methods watch" in watching and "features" not in watching
    own = said("el2n,herding", backbone=Backbone(embeddings="own.npy"))
    assert "for 2 short trainings" in own and "features" not in own
    assert "for features, from 2 extractors" in said("random,d2")
    assert "for features, from 1 extractor" in said("adq", backbone=Backbone(embeddings="own.npy"))
    assert "features" not in said("random", data=Data(skip_corrupt=True))


def test_only_what_is_pending_is_left():
    def training(digest: str, done: bool) -> SimpleNamespace:
        committed = {"correct": None} if done else {}
        recipe = SimpleNamespace(batch_size=50, total_steps=lambda _: 10)
        classifier = SimpleNamespace(arch="net", recipe=recipe, transform=SimpleNamespace(crop=32))
        stage = SimpleNamespace(digest=digest, committed=lambda: committed)
        rows = SimpleNamespace(images=100, alone=False)
        return SimpleNamespace(stage=stage, classifier=classifier, rows=rows, index=INDEX, count=100, how="decoded")

    plan = Plan((training("a", True), training("b", False), training("b", False), training("c", False)), TEST, {})
    assert [one.stage.digest for one in plan.pending()] == ["b", "c"]
    grid = SimpleNamespace(comparison=Comparison(), evaluation=Evaluation())
    assert cost.of_trainings(JOB, plan, grid, "left").startswith("left          about 6 s on 2 workers")


def test_workers_that_share_a_training_make_it_as_much_faster(measured):
    # The rate is of both together: 6 s for each of eight trainings, one after the other.
    assert "about 48 s on 2 workers" in said("random,dq", workers=2)
    assert [one.workers for one in measured] == [2, 1], "the network, and the extractor for dq"


def test_a_network_whose_weights_are_loaded_is_not_trained(measured):
    # 1,000 images and their views at 200 a second, on two actors.
    assert "about 5 s for features, from 1 extractor" in said("adq", backbone=Backbone(weights="DEFAULT"))
    assert [one.trains for one in measured] == [True, False]
    said("adq,el2n", backbone=Backbone(weights="DEFAULT"))
    assert [one.trains for one in measured] == [True, True], "short trainings are watched"
    # One epoch at 100 a second more, for each of two extractors.
    assert "about 30 s for features, from 2 extractors" in said("adq", backbone=Backbone(weights="train:1"))


def test_decoding_counts_once_where_images_are_held_decoded_and_each_time_elsewhere(monkeypatch):
    monkeypatch.setattr(cost, "seconds_to_decode", lambda *_: 0.04)
    # 24 s as above, and all 1,200 images once a worker.
    assert "about 1 min 12 s on 2 workers (convnet-d3-w8 100 images a second, decoding 25 a thread, me" in said(
        "random,dq"
    )
    # Held as files: 500 images for each of 8 trainings take 20 s instead of 5. The test images are decoded once.
    assert "about 1 min 32 s on 2 workers" in said("random,dq", memory=0.002)
    # Too many to hold: 100 images of a selection are opened alone for 4 s, 500 are held as files, and so are the test images.
    assert "about 1 min 30 s on 2 workers" in said("random,dq", memory=0.0005)


def test_features_wait_for_the_slower_of_decoding_and_a_gpu_and_for_both_on_a_cpu(monkeypatch):
    monkeypatch.setattr(cost, "seconds_to_decode", lambda *_: 0.04)
    loaded = Backbone(weights="DEFAULT")
    assert "about 25 s for features" in said("adq", backbone=loaded)
    there = {"device": "cuda", "compute": Compute(), "cluster": Cluster(8, 1, 1, ((8, 1),), local=True)}
    for decoders, expected in ((7, "about 10 s for features"), (2, "about 20 s for features")):
        assert expected in said("adq", backbone=loaded, job=SimpleNamespace(**there, decoders=decoders))


def test_what_needs_no_network_is_said_to_cost_reading_and_writing():
    for method, backbone in (("random", Backbone()), ("dq", Backbone(embeddings="own.npy"))):
        assert f" {method} needs no network: " in estimate(Looked(JOB, INDEX, backbone, [method]))


def test_patches_that_a_network_ranks_cost_a_training_step_an_image_and_the_network():
    def looked(method: str, weights: str, ranked: int = 1000) -> list[str]:
        made = Looked(JOB, INDEX, Backbone("convnet-d3-w8", weights), [method], ranked)
        assert [one.trains for one in made.asked()] == [True]
        return told(made, RATE, 0.0, int(made.extracts), 0)

    # 1,000 images at 100 a second on two actors, and an epoch of them where the network is not trained for features anyway.
    assert looked("random", "DEFAULT") == ["about 5 s for Grad-CAM of 1,000 images"]
    assert looked("random", "train:1") == ["about 15 s for Grad-CAM of 1,000 images"]
    assert looked("adq", "train:1") == [
        "about 15 s for features, from 1 extractor", "about 5 s for Grad-CAM of 1,000 images",
    ]  # fmt: skip
    assert looked("random", "DEFAULT", 100) == ["about 0 s for Grad-CAM of 100 images"]


def test_the_entry_point_holds_what_it_cuts_or_looks_at():
    def memory(method: str, images: int, **compute) -> int:
        index = SimpleNamespace(images=images, side=32, classes=("a", "b"))
        job = SimpleNamespace(device="cpu", compute=Compute(**compute))
        found = Looked(job, index, Backbone("convnet-d3-w8"), [method]).memory
        return (found - 700_000_000 - 1000 * images) / (images * 8 * 4 * 4)

    assert memory("adq", 1000) == memory("support-points", 1000) == 18
    assert memory("herding", 1000) == memory("support-points", 1000, graphcut_actors=2) == 8
    assert memory("adq", 1000, graphcut_actors=2) == 0 == memory("adq", 10**8)


def test_an_actor_that_cannot_be_placed_is_told_before_anything_is_spent(measured):
    job = SimpleNamespace(**vars(JOB) | {"compute": Compute(threads=16)})
    with pytest.raises(ValueError, match=r"needs 16 CPUs of one node, the nodes have 2 CPUs: .*--threads"):
        said("random", job=job)
    assert not measured


@pytest.mark.parametrize(
    ("epochs", "steps", "images", "seen"),
    [
        (3, None, 20, 60),  # 8 + 8 + 4, thrice
        (None, 7, 20, 48),  # two epochs, and 8
        (None, 10, 5, 50),  # smaller than a batch: 5 a step
        (2, None, 16, 32),
    ],
)
def test_the_last_batch_of_an_epoch_counts_the_images_that_it_has(epochs, steps, images, seen):
    assert images_of(Recipe(epochs, steps=steps, batch_size=8), images) == seen
