"""What a recipe can add: scaled learning rates, decay, clipping, averaged weights, soft labels; all of it off by default."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adq import training
from adq.batches import TensorImages, epoch_batches
from adq.recipe import Recipe, default_recipe
from adq.training import correct
from tests.adq.training_cases import CLASSES, TRANSFORM, network, run, same_weights, stateful_network, striped_images

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_learning_rate_scales_with_the_batch_where_that_is_asked_for():
    assert Recipe(epochs=1, batch_size=512).lr_at(0, 100) == 0.1
    scaled = Recipe(epochs=1, batch_size=512, lr_batch=128, warmup_steps=3, schedule="constant")
    assert [scaled.lr_at(step, 100) for step in (0, 3)] == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_can_spare_biases_and_norms(optimizer):
    recipe = Recipe(steps=1, optimizer=optimizer, weight_decay=0.3, decay_vectors=False)
    model = network()
    matrices, vectors = training._optimizer(model, recipe).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in matrices["params"]} == {"blocks.0.0.weight", "blocks.1.0.weight", "head.weight"}
    assert len(matrices["params"]) + len(vectors["params"]) == len(names)
    assert len(training._optimizer(model, replace(recipe, decay_vectors=True)).param_groups) == 1


def test_clipping_bounds_the_step_and_leaves_small_gradients_alone():
    images, before = striped_images(8), network()
    recipe = Recipe(steps=1, batch_size=8, lr=1.0, momentum=0, weight_decay=0, augment="none", schedule="constant")

    def moved(recipe: Recipe) -> torch.Tensor:
        after = run(network(), images, recipe)
        return torch.cat(
            [(a - b).flatten() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
        ).detach()

    free = moved(recipe)
    assert float(moved(replace(recipe, clip_norm=0.01)).norm()) == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(moved(replace(recipe, clip_norm=10 * float(free.norm()))), free)


def test_averaged_weights_are_what_training_returns():
    images, steps = striped_images(24), []
    recipe = Recipe(steps=4, batch_size=8, ema=0.2)
    start, plain = network(), network()

    def note(_step, _loss):
        steps.append({name: tensor.clone() for name, tensor in plain.state_dict().items()})

    run(plain, images, replace(recipe, ema=0.0), on_step=note)
    average = start.state_dict()
    # A decay that begins at 1 / 10, 2 / 11, so that the first weights are soon forgotten.
    for decay, weights in zip((1 / 10, 2 / 11, 0.2, 0.2), steps, strict=True):
        average = {name: decay * average[name] + (1 - decay) * tensor for name, tensor in weights.items()}
    averaged = run(network(), images, recipe)
    for name, tensor in averaged.state_dict().items():
        torch.testing.assert_close(tensor, average[name])
    assert not same_weights(averaged, plain)


def test_statistics_are_averaged_and_counters_are_not():
    images = striped_images(24)
    model = run(stateful_network(), images, Recipe(epochs=2, batch_size=8, ema=0.9))
    plain = run(stateful_network(), images, Recipe(epochs=2, batch_size=8))
    assert int(model[1].num_batches_tracked) == 6
    assert not torch.equal(model[1].running_mean, plain[1].running_mean)


def test_soft_labels_that_are_hard_train_the_same_network():
    images, recipe = striped_images(20), Recipe(epochs=2, batch_size=8, label_smoothing=0.1)
    soft = TensorImages(images.images, np.eye(CLASSES)[images.labels])
    hard_run, soft_run = run(network(), images, recipe), run(network(), soft, recipe)
    for a, b in zip(hard_run.parameters(), soft_run.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    everything = np.arange(20)
    assert np.array_equal(
        correct(hard_run, images, everything, TRANSFORM, "cpu"), correct(hard_run, soft, everything, TRANSFORM, "cpu")
    )


def test_soft_labels_give_the_soft_cross_entropy():
    images = striped_images(6)
    probabilities = torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(0))
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    soft = TensorImages(images.images, probabilities.numpy())
    recipe, model = Recipe(steps=1, batch_size=6, augment="none"), network()
    batch = next(epoch_batches(soft, recipe, 0, 0))
    assert batch[1].dtype == torch.float32 and batch[1].shape == (6, CLASSES)
    loss = training._gradients(model, batch, recipe, TRANSFORM, (0, 0, 1), "cpu", 0, 1)
    with torch.no_grad():
        expected = -(probabilities * F.log_softmax(model(TRANSFORM.normalise(images.images)), dim=1)).sum() / 6
    assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.zeros((4, 2), int), r"4 images, but labels of shape \(4, 2\), int64"),
        (np.full((3, 2), 0.5), r"4 images, but labels of shape \(3, 2\)"),
        (np.full((4, 2), 0.7), "probabilities"),
        (np.tile([1.5, -0.5], (4, 1)), "probabilities"),
    ],
)
def test_labels_that_are_neither_classes_nor_probabilities_are_refused(labels, told):
    with pytest.raises(ValueError, match=told):
        TensorImages(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mixup": -0.1}, {"cutmix": float("nan")}, {"erasing": 1.1}, {"ema": 1.0}, {"clip_norm": -1.0}, {"lr_batch": -1},
        {"nesterov": True, "momentum": 0.0},
    ],
)  # fmt: skip
def test_what_a_recipe_adds_is_validated(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(epochs=1, **wrong)


def test_networks_without_norms_get_a_low_learning_rate():
    for arch in ("vgg11", "alexnet"):
        assert [default_recipe(arch, side).lr for side in (32, 224)] == [0.01, 0.01]
