"""Experts on real images: one task each, resumable inside, found again; and trajectory matching that uses them."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from adq.extractor import input_transform
from adq.training import TensorImages, correct, epoch_batches
from adq.training import train as fit
from palette.codec import decode
from palette.experts import train_expert
from palette.quantize import paint
from ray_jobs import distilling, experts, ingest
from ray_jobs import evaluate as evaluation
from ray_jobs.classifier import Classifier
from ray_jobs.distill import stages
from ray_jobs.evaluate import Evaluation, evaluate
from ray_jobs.experts import Experts, Network, Trainer, run, train, trajectory
from ray_jobs.job import opened
from ray_jobs.loading import open_set
from ray_jobs.options import Data, Place
from tests.ray_jobs.conftest import CPU, members
from tests.ray_jobs.distilling import EXPERTS, NETWORK, one_by_one, one_thread, wanted
from tests.ray_jobs.test_distill import series


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(store=str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def job(cluster, place):
    with opened(place, CPU, "test", ["test experts"]) as job:
        yield job


class Fragile(Trainer):
    """An actor that notes each checkpoint, and is killed once, after the second epoch of the second expert."""

    def __init__(self, plan: experts.Plan):
        super().__init__(plan)
        save = experts.Checkpoint.save

        def fragile(checkpoint: experts.Checkpoint, state: Callable[[], dict]) -> None:
            save(checkpoint, state)
            made, root = state(), Path(checkpoint.store.root)
            number, epoch = made["expert"]["expert"], len(made["losses"])
            with (root / "trace").open("a") as file:
                file.write(f"{number} {epoch}\n")
            if (number, epoch) == (1, 2) and not (root / "dead").exists():
                (root / "dead").touch()
                assert (root / checkpoint.name).exists()
                os.kill(os.getpid(), signal.SIGKILL)

        experts.Checkpoint.save = fragile


def in_this_process(actor, arguments, tasks, _size, _compute, _device, on_done) -> None:
    """As `actors.map_actors`."""
    with one_thread():
        for task in tasks:
            on_done(actor(*arguments).work([], *task))


def test_an_expert_that_is_killed_goes_on_and_more_experts_find_those_that_are_done(job, shards, monkeypatch):
    index = ingest.run(job, Data(data=(str(shards),)))
    monkeypatch.setattr(experts, "Trainer", Fragile)
    two = train(job, index, NETWORK, EXPERTS, checkpoint_seconds=0)
    epochs = Path(job.store.root, "trace").read_text().split("\n")
    assert sorted(filter(None, epochs)) == ["0 1", "0 2", "0 3", "1 1", "1 2", "1 3"]
    assert not list(Path(job.store.root).glob("expert/*/unfinished.pt"))

    data = open_set(index, NETWORK.transform(32), "decoded", 1).images
    images, labels = data.images.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(data.labels)
    for number, expert in enumerate(two.each):
        with one_thread():
            straight = train_expert(images, labels, 10, EXPERTS.recipe(3, 8), 0, number)
        assert torch.equal(trajectory(expert), straight)
    logged = series(job, "experts")
    assert logged["loss/expert_000"] == logged["loss/expert_001"] == [1, 2, 3] and logged["expert_top1"] == [0, 1]
    assert 0 <= two.manifest.summary["top1"] <= 1

    monkeypatch.setattr(experts, "Trainer", Trainer)
    monkeypatch.setattr(experts, "map_actors", in_this_process)
    times = {path: path.stat().st_mtime_ns for path in Path(job.store.root).glob("expert/*/parts/*")}
    three = train(job, index, NETWORK, replace(EXPERTS, experts=3))
    assert [e.content for e in three.each[:2]] == [e.content for e in two.each]
    assert len(set(e.content for e in three.each)) == 3
    assert (
        times.items()
        <= {path: path.stat().st_mtime_ns for path in Path(job.store.root).glob("expert/*/parts/*")}.items()
    )
    shutil.rmtree(job.store.path(three.each[1].stage.folder))  # what is deleted of a store is made again
    again = train(job, index, NETWORK, replace(EXPERTS, experts=3))
    assert [e.content for e in again.each] == [e.content for e in three.each]


@pytest.mark.parametrize("soft", [False, True])
def test_trajectories_are_matched_with_the_experts_of_the_command(
    job, place, shards, tmp_path, monkeypatch, capsys, soft
):
    run(NETWORK, EXPERTS, Data(data=(str(shards),)), CPU, place)
    assert "2 experts of 3 epochs" in capsys.readouterr().out
    monkeypatch.setattr(experts, "map_actors", lambda *_: pytest.fail("trains again"))
    monkeypatch.setattr(distilling, "run_group", one_by_one)
    command = wanted(
        shards, tmp_path / "out", matching="tm", last_start=1, student_steps=3, steps=4, soft_labels=soft, threshold=9.0
    )
    done = stages(job, command)
    summary = done["distilled"].summary
    palettes, _, labels, _ = decode((tmp_path / "out" / "distilled.tessera").read_bytes())
    assert palettes.shape == (20, 4, 3) and labels.shape == ((20, 10) if soft else (20,))
    assert summary["payload_bytes"] == (tmp_path / "out" / "distilled.tessera").stat().st_size
    found = members(tmp_path / "out")
    assert len(found) == (60 if soft else 40)
    history = done["distill"].table("history")
    assert {"loss", "step_size", "skipped", "colors_used"} <= set(history.column_names)
    assert history["step"].to_pylist() == [1, 2, 3, 4]


def test_learned_soft_labels_are_trained_on(job, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(distilling, "run_group", one_by_one)
    monkeypatch.setattr(evaluation, "run_group", one_by_one)
    out = tmp_path / "out"
    learned = {"matching": "tm", "last_start": 1, "student_steps": 3, "steps": 4, "soft_labels": True, "threshold": 9.0}
    stages(job, wanted(shards, out, **learned))
    train_set, test_set = (ingest.run(job, Data(data=(str(place),)), False) for place in (out, shards))
    options = Evaluation("convnet-d3", seeds=1, steps=6, train_batch=8, width=8, labels="both")
    hard, soft = evaluate(job, {"set": train_set}, test_set, options).to_pylist()
    assert (hard["set"], soft["set"]) == ("set, hard labels", "set, soft labels")
    size = (out / "distilled.tessera").stat().st_size
    assert (hard["bytes"], soft["bytes"]) == (size - 20 * 2 * 10 + 20, size), "a byte in place of ten soft labels"

    palettes, indices, logits, _ = decode((out / "distilled.tessera").read_bytes())
    images = paint(torch.from_numpy(palettes), torch.from_numpy(indices)).permute(0, 3, 1, 2).contiguous()
    probabilities = torch.from_numpy(logits.astype(float)).softmax(dim=1).float().numpy()
    transform = input_transform("convnet-d3", 32)
    tests = open_set(test_set, transform, "decoded", 1)
    for row, labels in ((hard, logits.argmax(axis=1)), (soft, probabilities)):
        recipe, losses = options.recipe_for("convnet-d3", 32), []
        model, given = Classifier("convnet-d3", 10, 8, transform, recipe, 0).build(), TensorImages(images, labels)
        with one_thread():
            batches = partial(epoch_batches, given, recipe, 0)
            fit(model, batches, 3, recipe, transform, 0, "cpu", on_step=lambda _, loss, own=losses: own.append(loss))
            right = correct(model, tests.images, np.arange(test_set.images), transform, "cpu")
        assert (row["train_loss"], row["top1"]) == (np.mean(losses[3:]), right.mean())
    assert hard["train_loss"] != soft["train_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"experts": 0}, "--experts 0"), ({"expert_epochs": 0}, "epochs, batch_size"), ({"expert_lr": 0.0}, "lr > 0")],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        Experts(**options)


def test_a_wrong_network_is_an_error():
    for options in ({"width": 0}, {"depth": -1}, {"image_size": -8}):
        with pytest.raises(ValueError, match=r"--depth|--width"):
            Network(**options)
