"""Soft labels from shards to trainings, without a cluster: which label goes with which image, and what is no label."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adq.container import pack
from adq.images import decode
from adq.training import TensorImages, epoch_batches, steps_per_epoch, train
from ray_jobs import compare, frontier, relabel, streaming
from ray_jobs.comparison import Outcome
from ray_jobs.evaluate import Evaluation, Wanted, labelled, planned
from ray_jobs.grid import Comparison, Grid
from ray_jobs.ingest import Index
from ray_jobs.loading import Rows, how_to_hold, open_set
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.payload import payload_bytes
from ray_jobs.shard_reader import has_soft_labels
from ray_jobs.store import Store
from ray_jobs.trainings import Opened, facts_of, train_and_test
from tests.ray_jobs.distilling import Alone, one_thread
from tests.ray_jobs.images import CLASSES, drawn, index_of
from tests.ray_jobs.test_loading import RECIPE, TRANSFORM, WAYS, WORLDS, positions

LOGITS = np.random.default_rng(0).normal(size=(45, 3)).astype(np.float16)
PROBABILITIES = torch.from_numpy(LOGITS.astype(np.float64)).softmax(dim=1).float()


def npy(values) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def soft_samples(count: int = 45, changed: dict[int, tuple] | None = None) -> list[tuple]:
    """Drawn images with LOGITS, each in its order; `changed` are the members of some that have others."""
    return [(*one, *(changed or {}).get(i, (npy(LOGITS[i]),))) for i, one in enumerate(drawn(0, count))]


@pytest.fixture(scope="module")
def soft(tmp_path_factory) -> Index:
    """45 images with soft labels in shards whose keys are not in the order of the shards."""
    samples = soft_samples()
    mixed = [samples[i] for i in np.random.default_rng(1).permutation(45)]
    return index_of(
        {"b.tar": mixed[:20], "a.tar": mixed[20:44], "c.tar": mixed[44:]}, tmp_path_factory.mktemp("a") / "d"
    )


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Index:
    return index_of({"a.tar": drawn(0, 12, "test")}, tmp_path_factory.mktemp("b") / "data")


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE", 6)


@WAYS
@WORLDS
def test_every_image_comes_with_its_own_soft_label_in_the_order_of_hard_ones(soft, how, world):
    data, hard = (open_set(soft, TRANSFORM, how, threads=2, soft=kind) for kind in (True, False))
    for rank in range(world):
        given = [list(kind.epoch(RECIPE, 3, 1, rank, world)) for kind in (data, hard)]
        for (images, labels, count), (same, _, same_count) in zip(*given, strict=True):
            assert torch.equal(images, same) and count == same_count
            assert labels.dtype == torch.float32 and torch.equal(labels, PROBABILITIES[positions(hard, images)])


@pytest.mark.parametrize("how", ["decoded", "encoded"])
def test_a_part_of_a_set_keeps_its_soft_labels(soft, how):
    rows = np.array([0, 7, 30, 44])
    some, taken = (
        open_set(soft, TRANSFORM, how, 1, rows=rows, soft=True),
        open_set(soft, TRANSFORM, how, 1, soft=True).take(rows),
    )
    for held in (some, taken):
        np.testing.assert_array_equal(held.labels, PROBABILITIES[rows])


def test_a_worker_without_images_in_a_step_has_a_soft_label_of_no_rows(tmp_path):
    data = open_set(index_of({"a.tar": soft_samples(8)}, tmp_path / "data"), TRANSFORM, "streamed", 1, soft=True)
    assert [tuple(labels.shape) for _, labels, _ in data.epoch(RECIPE, 0, 0, rank=2, world=3)] == [(2, 3), (0, 3)]


def test_soft_labels_count_among_what_is_held(soft):
    image = 3 * 32 * 32
    assert how_to_hold(soft, TRANSFORM, 45 * image / 1e9, soft_classes=0) == "decoded"
    assert how_to_hold(soft, TRANSFORM, 45 * image / 1e9, soft_classes=3) == "encoded"
    assert how_to_hold(soft, TRANSFORM, 45 * (image + 12) / 1e9, soft_classes=3) == "decoded"


@WAYS
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((), r" has no soft label \(\.npy member\)"),
        ((npy(LOGITS[0, :2]),), r": the soft label is <f2 \[2\]; expected little endian floats \[3\]"),
        ((npy([0, np.nan, 1]),), ": the soft label is not finite"),
        ((npy(np.array([{}] * 3)),), r": the soft label is \|O \[3\]"),
    ],
)
def test_what_is_no_soft_label_is_named(tmp_path, how, members, message):
    samples = soft_samples(20, changed={18: members})
    index = index_of({"a.tar": samples[:3], "b.tar": samples[3:]}, tmp_path / "data")
    with pytest.raises(ValueError, match=rf"b\.tar: key 'image0018'{message}"):
        list(open_set(index, TRANSFORM, how, 1, soft=True).epoch(RECIPE, 0, 0, 0, 1))
    assert len(list(open_set(index, TRANSFORM, how, 1).epoch(RECIPE, 0, 0, 0, 1))) == 3  # hard labels need none of it


def test_what_a_set_has_is_known_before_anything_is_trained(soft, held_out, tmp_path):
    assert has_soft_labels(soft) and not has_soft_labels(held_out)
    broken = {
        "missing": ({3: ()}, r"a\.tar: key 'image0003' has no soft label \(\.npy member\), as 1 of 20 images"),
        "long": ({3: (npy(np.zeros(4, np.float32)),)}, r"key 'image0003': the soft label is <f4 \[4\]"),
        "nan": ({0: (npy([np.nan, 0, 0]),)}, "key 'image0000': the soft label is not finite"),
        "shares": (
            {i: (npy(PROBABILITIES[i]),) for i in range(20)},
            "key 'image0000' and the next ones hold probabilities",
        ),
    }
    for name, (changed, message) in broken.items():
        index = index_of({"a.tar": soft_samples(20, changed)}, tmp_path / name)
        for labels in ("soft", "both"):
            with pytest.raises(ValueError, match=message):
                labelled(Wanted(name, index, [0]), labels)
        assert labelled(Wanted(name, index, [0]), "hard") == [Wanted(name, index, [0])]


def test_a_row_for_each_kind_of_labels_that_a_set_has(soft, held_out):
    one, other = Wanted("one", soft, [0]), Wanted("other", held_out, [0])
    assert labelled(one, "both") == [
        replace(one, name="one, hard labels"),
        replace(one, name="one, soft labels", soft=True),
    ]
    assert labelled(one, "soft") == [replace(one, soft=True)]
    assert labelled(other, "both") == [other]
    with pytest.raises(ValueError, match=r"--labels soft: .*data has none: no sample has a \.npy member"):
        labelled(other, "soft")
    with pytest.raises(ValueError, match="--labels learned: expected one of hard, soft, both"):
        Evaluation(labels="learned")


@pytest.fixture
def job(tmp_path):
    """What a plan asks of a job."""
    return SimpleNamespace(store=Store(str(tmp_path / "store")), device="cpu", compute=SimpleNamespace(threads=1))


def test_the_kind_of_labels_is_part_of_a_result_and_hard_ones_keep_theirs(job, soft, held_out):
    options = Evaluation("convnet-d3", seeds=1, steps=3, width=8)
    plan = planned(job, labelled(Wanted("set", soft, [0]), "both"), held_out, options)
    hard, learned = plan.trainings
    assert "labels" not in hard.stage.config
    assert learned.stage.config == hard.stage.config | {"labels": "soft"}
    files, kinds = [image for _, image, _ in drawn(0, 45)], ["png"] * 45
    assert hard.payload == len(pack(files, kinds, np.arange(45) % 3, CLASSES))
    assert learned.payload == len(pack(files, kinds, LOGITS, CLASSES))
    rows = Rows(np.arange(5), "digest", 1000)
    few = planned(job, [Wanted("few", soft, [0], rows)], held_out, options).trainings[0]
    assert few.payload == len(pack(files[:5], kinds[:5], np.arange(5) % 3, CLASSES))


def test_soft_labels_train_as_the_tensors_themselves_do(job, soft, held_out):
    options = Evaluation("convnet-d3", seeds=1, steps=12, train_batch=10, width=8)
    plan = planned(job, labelled(Wanted("set", soft, [0]), "both"), held_out, options)
    images = torch.stack([torch.from_numpy(np.array(decode(image))).permute(2, 0, 1) for _, image, _ in drawn(0, 45)])
    with one_thread():
        train_and_test(Alone(0, 1, "cpu", 1, 60, lambda note: None), plan)
        direct = []
        for labels in (np.arange(45) % 3, PROBABILITIES.numpy()):
            data, classifier, losses = TensorImages(images, labels), plan.trainings[0].classifier, []
            train(
                classifier.build(), lambda epoch, data=data: epoch_batches(data, plan.trainings[0].classifier.recipe, 0, epoch),
                steps_per_epoch(45, 10), classifier.recipe, classifier.transform, 0, "cpu",
                on_step=lambda _, loss, losses=losses: losses.append(loss),
            )  # fmt: skip
            direct.append([float(np.mean(losses[start : start + 5])) for start in range(0, 12, 5)])
    assert [facts_of(training)["losses"] for training in plan.trainings] == direct
    assert direct[0] != direct[1]
    opened = Opened(plan, 1)
    assert opened.train(plan.trainings[1]).labels.shape == (45, 3)
    assert opened.test(plan.trainings[1]).labels.shape == (12,)  # hard, always


def test_soft_labels_of_another_teacher_or_at_another_size_have_a_folder_of_their_own(job, soft, monkeypatch):
    made = []
    monkeypatch.setattr(relabel, "make", lambda *given: made.append(given[3]) or SimpleNamespace(parts=()))
    monkeypatch.setattr(relabel.encode, "read_back", lambda *_: None)
    teacher = SimpleNamespace(arch="net", transform=TRANSFORM, manifest=SimpleNamespace(content="weights"))
    asked = [teacher, SimpleNamespace(**vars(teacher) | {"transform": replace(TRANSFORM, crop=16)})]
    threads = SimpleNamespace(**vars(job) | {"compute": SimpleNamespace(threads=2)})
    for one, of in ((job, asked[0]), (job, asked[1]), (threads, asked[0]), (job, asked[0])):
        relabel.relabelled(one, soft, of, Rows(np.arange(3), "rows", 0))
    assert len(set(made)) == 3 and made[0] == made[3] and "/relabelled/" in made[0]


def test_a_set_of_a_comparison_is_trained_on_the_labels_that_are_asked_for(soft, capsys):
    outcomes = [Outcome("own", 0.5, seed, 0, 45, 0, 0, 0.0, 0.0, 0.0) for seed in (0, 1)]
    found = {}
    for labels in ("hard", "soft", "both"):
        rows = compare._further(soft, outcomes, labels)
        found[labels] = [(one.name, one.soft, each[1].method, each[1].seed) for one, each in rows]
        assert all(each[0].payload == payload_bytes(soft, soft=one.soft) for one, each in rows)
        assert ("own has soft labels, which are left unused" in capsys.readouterr().out) == (labels == "hard")
    assert found == {
        "hard": [("own keep 0.5", False, "own", 1)],
        "soft": [("own keep 0.5", True, "own", 1)],
        "both": [
            ("own, hard labels keep 0.5", False, "own, hard labels", 1),
            ("own, soft labels keep 0.5", True, "own, soft labels", 1),
        ],
    }
    alone = Grid(Comparison(), Evaluation(labels="soft"), Data(), Selection(), Backbone(), (), "")
    with pytest.raises(ValueError, match="--labels soft: is for --sets alone"):
        compare.run(alone, Compute(), Place())


def test_a_frontier_says_where_it_leaves_soft_labels_unused(soft, held_out, monkeypatch, capsys):
    grid = Grid(Comparison(), Evaluation(seeds=2), Data(), Selection(), Backbone(), (), "")
    outcomes = [Outcome("own", 0.5, seed, 0, 45, 100, 0, 0.0, 0.0, 0.0) for seed in (0, 1)]
    for index in (soft, held_out):
        monkeypatch.setattr(frontier, "sets_named", lambda *_, index=index: [[(index, outcomes)]])
        rows = frontier._further(None, "own", ["shards"], grid, soft, held_out, [99, 100, 101])
        assert [(one.soft, spent.budget, spent.seed) for one, spent in rows] == [(False, 100, 0), (False, 100, 1)]
        assert ("own has soft labels, which are left unused" in capsys.readouterr().out) == (index is soft)
