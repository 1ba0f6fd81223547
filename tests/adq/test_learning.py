"""What a training learns, compiled or in bfloat16 too, and what stops it."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from adq.training import (
    Recipe,
    TensorImages,
    correct,
    predict,
)
from tests.adq.training_cases import CLASSES, TRANSFORM, network, run, stateful_network, striped_images


def test_a_small_network_overfits_a_tiny_set():
    images, losses = striped_images(32), []
    model = network()
    everything = np.arange(32)
    before = correct(model, images, everything, TRANSFORM, "cpu").mean()
    run(
        model,
        images,
        Recipe(epochs=60, batch_size=16, lr=0.05, augment="none"),
        on_step=lambda _, loss: losses.append(loss),
    )
    right = correct(model, images, everything, TRANSFORM, "cpu")
    assert right.shape == (32,) and right.dtype == bool
    assert before < 0.7 and right.mean() == 1.0
    assert losses[-1] < 0.1 * losses[0]
    backwards = correct(model, images, everything[::-1].copy(), TRANSFORM, "cpu")
    assert np.array_equal(backwards, right[::-1])


def test_what_is_learnt_holds_for_new_images():
    images = striped_images(300)
    train_set = TensorImages(images.images[:200], images.labels[:200])
    model = run(network(), train_set, Recipe(epochs=25, batch_size=32, lr=0.05, augment="none"))
    assert correct(model, images, np.arange(200, 300), TRANSFORM, "cpu").mean() > 0.8


def test_predictions_are_in_evaluation_mode_and_independent_of_the_batch_size():
    model, images = stateful_network(), striped_images(10)
    model.train()
    indices = np.array([7, 3, 3, 9, 0])
    logits = predict(model, images, indices, TRANSFORM, "cpu")
    assert logits.shape == (5, CLASSES) and model.training
    torch.testing.assert_close(predict(model, images, indices, TRANSFORM, "cpu", batch_size=2), logits)
    assert torch.equal(logits[1], logits[2])


def test_a_loss_that_is_not_finite_stops_the_run():
    model = network()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    untouched = copy.deepcopy(model)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 with lr 0\.1"):
        run(model, striped_images(8), Recipe(epochs=1, batch_size=4))
    assert torch.equal(model.head.weight, untouched.head.weight)


def test_a_compiled_network_learns_the_same_also_from_smaller_last_batches():
    images = striped_images(40)
    recipe = Recipe(epochs=3, batch_size=16, lr=0.05)
    losses = {}
    for compile in (False, True):
        found = losses[compile] = []
        run(
            network(), images, replace(recipe, compile=compile), on_step=lambda _, loss, found=found: found.append(loss)
        )
    assert len(losses[True]) == 9
    np.testing.assert_allclose(losses[True], losses[False], atol=1e-5)
    assert losses[True] != losses[False]  # it was compiled


def test_bfloat16_on_a_cpu_is_near_and_learns():
    images, losses = striped_images(32), {}
    for bfloat16 in (False, True):
        recipe, found = Recipe(steps=60, batch_size=16, lr=0.05, augment="none", bfloat16=bfloat16), []
        model = run(network(), images, recipe, on_step=lambda _, loss, found=found: found.append(loss))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert correct(model, images, np.arange(32), TRANSFORM, "cpu").mean() > 0.9
        losses[bfloat16] = found
    assert losses[True] != losses[False]
    np.testing.assert_allclose(losses[True][:5], losses[False][:5], rtol=0.02)
