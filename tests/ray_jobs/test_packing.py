"""Trainings of which each has a worker to itself."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adq.extractor import input_transform
from adq.training import Recipe
from ray_jobs import classifier, packing
from ray_jobs.classifier import Classifier, fit
from ray_jobs.cluster import Cluster
from ray_jobs.loading import how_to_hold
from ray_jobs.options import Compute
from ray_jobs.packing import Alone, Trainer, pack
from ray_jobs.stages import Stage
from ray_jobs.store import Store
from ray_jobs.trainings import PART, Plan, Training, correct_of, facts_of
from tests.ray_jobs.images import drawn, index_of

EPOCHS = 4


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A training set of 24 images and a test set of 12."""
    folder = tmp_path_factory.mktemp("sets")
    return [index_of({"a.tar": drawn(*at)}, folder / name) for name, at in (("a", (0, 24)), ("b", (24, 36)))]


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The steps that were taken, as they come."""
    taken: list[int] = []
    train = classifier.train

    def counted(*args, on_step, **named):
        train(*args, on_step=lambda step, loss: (taken.append(step), on_step(step, loss)), **named)

    monkeypatch.setattr(classifier, "train", counted)
    return taken


def training_at(store: Path, sets, seed: int = 0) -> Training:
    recipe = Recipe(EPOCHS, batch_size=8, lr=0.02, momentum=0.9, ema=0.9)
    network = Classifier("convnet-d3", 3, 8, input_transform("convnet-d3", 32), recipe, seed)
    return Training("s", sets[0], network, "decoded", Stage(Store(str(store)), "training", 1, {}, {"seed": seed}))


def trainer_of(sets) -> Trainer:
    return Trainer(Plan((), sets[1], {32: "decoded"}), 1, 1, "cpu")


def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(tmp_path, sets, steps, monkeypatch, one_thread):
    states = []
    keep = Alone.keep

    def cut(self, state: dict) -> None:
        keep(self, state)
        states.append(state)
        if state["training"]["epoch"] == 2 and self.training.stage.store.root.endswith("cut"):
            raise ConnectionError("the node is gone")

    monkeypatch.setattr(packing, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(Alone, "keep", cut)
    whole, halves = (training_at(tmp_path / name, sets) for name in ("whole", "cut"))
    trainer = trainer_of(sets)
    trainer.work([], whole)
    assert steps == [*range(1, 13)] and len(states) == EPOCHS
    undisturbed = states.pop()

    steps.clear()
    with pytest.raises(ConnectionError):
        trainer.work([], halves)
    assert (tmp_path / "cut" / halves.state).exists() and PART not in halves.stage.committed()
    # Another actor: it knows nothing but what is in the store.
    trainer_of(sets).work([], halves)
    assert steps == [*range(1, 13)], "no epoch is trained twice"
    for name in ("model", "average"):
        for key, tensor in undisturbed["training"][name].items():
            assert torch.equal(tensor, states[-1]["training"][name][key])
    assert halves.stage.committed()[PART].sha256 == whole.stage.committed()[PART].sha256
    assert len(correct_of(halves)) == sets[1].images
    assert not list(tmp_path.rglob("*state*")), "nothing is left behind"


def test_what_a_worker_trained_before_changes_no_result(tmp_path, sets, one_thread):
    """The same images at the same size, held decoded for one network and as files for one that crops them itself."""

    def training(store: str, arch: str, augment: str) -> Training:
        recipe, transform = Recipe(steps=4, batch_size=8, lr=0.05, augment=augment), input_transform(arch, 32)
        how = how_to_hold(sets[0], transform, 4.0, 0, augment)
        network = Classifier(arch, 3, 8, transform, recipe, 0)
        return Training("s", sets[0], network, how, Stage(Store(str(tmp_path / store)), "training", 1, {}, {}))

    alone, first, after = (
        training("alone", "convnet-d3-w8", "resized-crop-flip"), training("first", "convnet-d2-w8", "crop-flip"),
        training("after", "convnet-d3-w8", "resized-crop-flip"),
    )  # fmt: skip
    assert first.how != alone.how and first.classifier.transform == alone.classifier.transform
    trainer_of(sets).work([], alone)
    trainer = trainer_of(sets)
    trainer.work([], first)
    trainer.work([], after)
    assert facts_of(after) == facts_of(alone)


def test_a_state_of_another_training_is_ignored(tmp_path, sets, steps, monkeypatch, one_thread):
    monkeypatch.setattr(packing, "STATE_SECONDS", 0.0)
    one, other = (training_at(tmp_path, sets, seed) for seed in (0, 1))
    monkeypatch.setattr(Training, "forget", lambda self: None)
    trainer_of(sets).work([], other)
    Path(tmp_path, one.stage.folder).mkdir(parents=True)
    Path(tmp_path, other.state).rename(tmp_path / one.state)
    trainer_of(sets).work([], one)
    assert steps == [*range(1, 13)] * 2


def test_a_short_training_keeps_no_state(tmp_path, sets, monkeypatch, one_thread):
    monkeypatch.setattr(packing, "STATE_SECONDS", 1e9)
    monkeypatch.setattr(Alone, "keep", lambda *_: pytest.fail("a state that nobody needs"))
    trainer_of(sets).work([], training_at(tmp_path, sets))


def test_a_training_that_diverges_stops_no_other(cluster, tmp_path, sets, capsys):
    """The first and the third of four, on two actors."""
    trainings = []
    for seed, lr in enumerate((1e30, 0.02, 1e30, 0.02)):
        training = training_at(tmp_path, sets, seed)
        network = replace(training.classifier, recipe=replace(training.classifier.recipe, lr=lr))
        trainings.append(replace(training, classifier=network))
    plan = Plan(tuple(trainings), sets[1], {32: "decoded"})
    job = SimpleNamespace(compute=Compute(device="cpu", actors=2), device="cpu", cluster=Cluster(3, 0, 1))
    notes = []
    with pytest.raises(FloatingPointError) as error:
        pack(job, plan, plan.pending(), 1.0, notes.append)
    first, *diverged = str(error.value).splitlines()
    assert first.startswith("2 of 4 trainings diverged; the others are done")
    assert [line.partition(": the loss is ")[0].strip() for line in diverged] == [trainings[n].name for n in (0, 2)]
    assert all("use a lower lr" in line for line in diverged)
    assert {note.identity for note in notes} == {trainings[n].stage.digest for n in (1, 3)}
    assert plan.pending() == [trainings[0], trainings[2]]
    assert capsys.readouterr().out.count(" diverged: the loss is ") == 2


def test_progress_ends_where_it_was_said_to(tmp_path, sets, monkeypatch, one_thread):
    """24 images in batches of 16: two steps an epoch, of which the second is smaller."""
    training = training_at(tmp_path, sets)
    network = replace(training.classifier, recipe=replace(training.classifier.recipe, batch_size=16))
    training, told = replace(training, classifier=network), []
    assert training.images == 24 * EPOCHS
    trainer = trainer_of(sets)
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(classifier, "SPEAK_SECONDS", seconds)
        monkeypatch.setattr(Alone, "tell", lambda self, note: told.append(note.images))
        member = replace(trainer.member, training=training)
        fit(member, network, trainer.opened.train(training), "identity")
        assert sum(told) == training.images
        told.clear()
    assert trainer.work([], training).images == training.images


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """Batch sizes that networks were trained with, on a clock of which a step takes a second and a tested image a hundredth."""
    sizes, now = [], [0.0]

    def train(_model, batches, _steps, recipe, *_):
        sizes.append(recipe.batch_size)
        assert len(next(batches(0))[0]) == recipe.batch_size
        now[0] += recipe.steps

    def correct(_model, _images, indices, *_):
        now[0] += len(indices) / 100

    monkeypatch.setattr(packing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(packing, "train", train)
    monkeypatch.setattr(packing, "correct", correct)
    return sizes


@pytest.mark.parametrize(("workers", "share"), [(1, 32), (3, 11)])
def test_a_rate_is_of_all_workers_each_with_its_share_of_a_batch(tmp_path, sets, trained, workers, share):
    network = training_at(tmp_path, sets).classifier
    network = replace(network, recipe=replace(network.recipe, batch_size=32))
    found = packing.rate(packing.Asked(network, workers), "cpu")
    assert set(trained) == {share}
    assert found.trained == pytest.approx(32) and found.tested == pytest.approx(100 * workers)


def test_a_network_that_only_tests_is_not_trained_to_know_its_rate(tmp_path, sets, trained):
    network = training_at(tmp_path, sets).classifier
    network = replace(network, recipe=replace(network.recipe, batch_size=1000))
    found = packing.rate(packing.Asked(network, trains=False), "cpu")
    assert not trained and found.trained is None and found.tested == pytest.approx(100)
