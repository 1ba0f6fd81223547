"""Training does not depend on the number of workers, resumes to the same bits, and learns."""

import contextlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from adq import collectives, training
from adq.training import (
    Recipe,
    default_recipe,
    epoch_batches,
    train,
)
from tests.adq.training_cases import TRANSFORM, network, run, same_weights, stateful_network, striped_images
from tests.adq.two_workers import run_two_workers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("world", [2, 3])
def test_the_mean_gradient_is_the_same_for_any_world(world, monkeypatch):
    # The last batch has one image, so that the third of three workers has none.
    images, recipe = striped_images(9), Recipe(steps=3, batch_size=4, lr=0.1)
    alone = run(network(), images, recipe)

    # Workers in turn, one step each: their gradients are summed by hand where torch.distributed would do it.
    workers = [network() for _ in range(world)]
    optimizers = [torch.optim.SGD(w.parameters(), 0.1, 0.9, weight_decay=5e-4) for w in workers]
    monkeypatch.setattr(collectives, "exchange", lambda tensors, collective: None)
    streams = [epoch_batches(images, recipe, 0, 0, rank, world) for rank in range(world)]
    for step in range(3):
        for rank, worker in enumerate(workers):
            training._gradients(worker, next(streams[rank]), recipe, TRANSFORM, (0, 0, step + 1), "cpu", rank, world)
        for parameters in zip(*(worker.parameters() for worker in workers), strict=True):
            total = sum(parameter.grad for parameter in parameters)
            for parameter in parameters:
                parameter.grad = total.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = recipe.lr_at(step, 3)
            optimizer.step()
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(workers[0].state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def distributed_worker(rank: int, world: int, folder: Path) -> None:
    images, recipe = striped_images(9), Recipe(epochs=2, batch_size=4)
    losses: list[float] = []
    # Other initial weights than worker 0, whose weights count.
    model = run(network(rank), images, recipe, rank=rank, world=world, on_step=lambda step, loss: losses.append(loss))
    stateful = run(stateful_network(rank), images, recipe, rank=rank, world=world)
    torch.save((model.state_dict(), stateful.state_dict(), losses), folder / f"{rank}.pt")


def test_two_processes_train_the_network_of_one(tmp_path):
    """Nine images in batches of four: in the last batch of an epoch, the second worker has nothing."""
    losses = []
    recipe = Recipe(epochs=2, batch_size=4)
    alone = run(network(), striped_images(9), recipe, on_step=lambda step, loss: losses.append(loss)).state_dict()
    run_two_workers(distributed_worker, tmp_path)
    (first, stateful, reported), (second, other, reported_too) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    assert reported == reported_too, "both report the loss of the global batch"
    np.testing.assert_allclose(reported, losses, rtol=1e-4)
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)
    del stateful["1.num_batches_tracked"]
    assert all(torch.equal(tensor, other[name]) for name, tensor in stateful.items())


@pytest.mark.parametrize("build_one", [network, stateful_network])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_ends_with_the_same_bits(build_one, optimizer, tmp_path):
    images = striped_images(24)
    recipe = Recipe(epochs=3, batch_size=16, lr=0.01, optimizer=optimizer, warmup_steps=2, label_smoothing=0.1)
    saved = {}
    whole = run(build_one(), images, recipe, save=lambda epoch, checkpoint: saved.update({epoch: checkpoint()}))
    assert sorted(saved) == [1, 2, 3]
    torch.save(saved[1], tmp_path / "checkpoint.pt")
    start = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = run(build_one(seed=99), images, recipe, start=start)
    assert same_weights(whole, resumed)
    assert not same_weights(whole, run(build_one(), images, recipe, seed=1))


def test_a_checkpoint_that_is_not_kept_is_not_made(monkeypatch):
    copies = []
    monkeypatch.setattr(training, "on_cpu", lambda state: copies.append(state) or {})
    kept = []
    run(
        network(), striped_images(8), Recipe(epochs=4, batch_size=8),
        save=lambda epoch, checkpoint: kept.append(checkpoint()) if epoch == 3 else None,
    )  # fmt: skip
    assert len(copies) == len(kept) == 1 and (kept[0]["epoch"], kept[0]["step"]) == (3, 3)


def test_steps_are_exact_and_cycle_the_epochs():
    images, steps, epochs = striped_images(10), [], []
    recipe = Recipe(steps=7, batch_size=4)
    run(
        network(),
        images,
        recipe,
        on_step=lambda step, loss: steps.append(step),
        save=lambda epoch, checkpoint: epochs.append((epoch, checkpoint()["step"])),
        save_every=2,
    )
    assert steps == list(range(1, 8))
    assert epochs == [(2, 6), (3, 7)]


def test_attention_is_trained_so_that_its_gradient_repeats_on_a_gpu(monkeypatch):
    asked, passes = [], []

    @contextlib.contextmanager
    def watched(device):
        asked.append(device)
        yield
        asked.append("out")

    monkeypatch.setattr(training, "repeatable_attention", watched)
    model = network()
    model.register_forward_pre_hook(lambda *_: passes.append(asked[-1]))
    run(model, striped_images(8), Recipe(steps=2, batch_size=8))
    assert passes == ["cpu"] * 2


def test_training_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = stateful_network()
    torch.manual_seed(3)
    run(model, striped_images(8), Recipe(steps=1, batch_size=8))
    assert torch.equal(torch.rand(2), expected)


def test_streams_and_checkpoints_that_do_not_belong_are_refused():
    images, recipe = striped_images(8), Recipe(epochs=1, batch_size=4)
    for announced in (1, 3):
        with pytest.raises(ValueError, match=f"epoch 0 does not have the {announced} batches"):
            train(network(), partial(epoch_batches, images, recipe, 0), announced, recipe, TRANSFORM, 0, "cpu")
    with pytest.raises(ValueError, match=r"worker 0 of 1 got 2 images .* expected 4"):
        train(network(), lambda epoch: epoch_batches(images, recipe, 0, epoch, 0, 2), 2, recipe, TRANSFORM, 0, "cpu")
    with pytest.raises(RuntimeError, match=r"2 workers needs torch\.distributed"):
        run(network(), images, recipe, world=2)
    saved = []
    run(network(), images, recipe, save=lambda epoch, checkpoint: saved.append(checkpoint()))
    with pytest.raises(ValueError, match="another run: it differs in recipe, seed"):
        run(network(), images, Recipe(epochs=2, batch_size=4), seed=1, start=saved[0])


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    recipe = Recipe(steps=101, lr=0.4, warmup_steps=3)
    rates = [recipe.lr_at(step, 101) for step in range(101)]
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    np.testing.assert_allclose(recipe.lr_at(52, 101), 0.2)
    assert 0 < rates[-1] < 1e-3
    short = Recipe(steps=10, warmup_steps=500)
    assert short.lr_at(1, 10) == short.lr, "warm-up is at most a tenth of the run"
    assert Recipe(epochs=2, schedule="constant").lr_at(9, 10) == 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"epochs": 1, "steps": 1},
        {"epochs": 0},
        {"steps": -1},
        {"epochs": 1, "batch_size": 0},
        {"epochs": 1, "lr": 0.0},
        {"epochs": 1, "momentum": 1.0},
        {"epochs": 1, "optimizer": "lion"},
        {"epochs": 1, "schedule": "linear"},
        {"epochs": 1, "augment": "cutout"},
        {"epochs": 1, "label_smoothing": 1.0},
    ],
)
def test_recipes_are_validated(wrong):
    with pytest.raises(ValueError):
        Recipe(**wrong)


def test_the_papers_recipe_is_the_default_of_small_resnets():
    assert default_recipe("resnet18", 32) == Recipe(
        epochs=200, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, optimizer="sgd", augment="crop-flip"
    )
    assert default_recipe("vit", 32, steps=10).optimizer == "adamw"
    assert default_recipe("resnet50", 224).augment == "resized-crop-flip"
