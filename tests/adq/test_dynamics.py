"""Dynamics: numbers by hand, a state to go on from, and a run that finds mislabelled images."""

import numpy as np
import pytest
import torch

from adq import dynamics as module
from adq.dynamics import Dynamics, Recorder, short_recipe, short_run
from adq.training import Recipe, TensorImages, predict
from tests.adq.training_cases import CLASSES, TRANSFORM, network, striped_images

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05, augment="crop-flip")


pytestmark = pytest.mark.usefixtures("one_thread")


def logits_of(right: list[bool], labels: np.ndarray) -> torch.Tensor:
    """Logits of two classes whose largest is the label where `right` says so; its probability is 3/4."""
    predicted = np.where(right, labels, 1 - labels)
    return torch.from_numpy(np.eye(2)[predicted]).float() * np.log(3)


def recorded(epochs: list[list[bool]], labels: np.ndarray) -> Dynamics:
    recorder = Recorder(labels)
    for right in epochs:
        recorder.record([logits_of(right, labels)])
    return recorder.dynamics()


def test_the_numbers_of_one_epoch():
    recorder = Recorder(np.array([1, 0, 2]))
    recorder.record([torch.tensor([[0, np.log(2), 0], [0, np.log(2), 0]]), torch.tensor([[100.0, 0, 0]])])
    got = recorder.dynamics()
    # Probabilities 1/4, 1/2, 1/4 with labels 1 and 0; then all on class 0, with label 2.
    np.testing.assert_allclose(got.el2n, [np.sqrt(3 / 8), np.sqrt(7 / 8), np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(got.confidence, [0.5, 0.5, 1.0])
    assert got.correct.tolist() == [[True, False, False]] and got.forgetting.tolist() == [0, 1, 1]
    assert all(getattr(got, name).dtype == np.float32 for name in ("el2n", "forgetting", "confidence"))


def test_forgetting_counts_right_to_wrong_and_never_right_is_the_most():
    histories = ["1111", "0111", "1010", "1000", "0110", "0101", "0000"]
    epochs = [[history[e] == "1" for history in histories] for e in range(4)]
    got = recorded(epochs, np.array([0, 1, 0, 1, 0, 1, 0]))
    assert got.forgetting.tolist() == [0, 0, 2, 1, 1, 1, 4]
    np.testing.assert_array_equal(got.correct, epochs)


def test_el2n_is_of_the_last_epoch():
    labels = np.array([0, 1])
    right, wrong = np.sqrt(2) / 4, np.sqrt(2) * 3 / 4
    np.testing.assert_allclose(recorded([[True, False], [False, True]], labels).el2n, [wrong, right], rtol=1e-6)
    with pytest.raises(ValueError, match="no epoch is recorded yet"):
        recorded([], labels)


def test_a_recorder_goes_on_from_its_state():
    labels = np.array([0, 1, 1])
    epochs = np.random.default_rng(0).random((5, 3)) < 0.5
    want = recorded(epochs.tolist(), labels)
    recorder = Recorder(labels)
    for right in epochs:
        state = {name: array.copy() for name, array in recorder.state().items()}
        recorder = Recorder(labels, state)
        recorder.record([logits_of(right.tolist(), labels)])
    for name in ("el2n", "forgetting", "confidence", "correct"):
        np.testing.assert_array_equal(getattr(recorder.dynamics(), name), getattr(want, name))
    with pytest.raises(ValueError, match="not of 2 images"):
        Recorder(labels[:2], state)


def test_an_epoch_has_a_row_for_every_image_and_finite_numbers():
    recorder = Recorder(np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="2 rows of logits, expected 3"):
        recorder.record([torch.zeros(2, 2)])
    with pytest.raises(ValueError, match="more than 3 rows"):
        recorder.record([torch.zeros(2, 2), torch.zeros(2, 2)])
    with pytest.raises(FloatingPointError, match="image 2 are not finite"):
        recorder.record([torch.zeros(1, 2), torch.tensor([[0.0, 0], [torch.nan, 0]])])
    assert recorder.state()["correct"].shape == (0, 3), "nothing is recorded of an epoch that fails"


def test_a_short_run_records_its_predictions(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 32)
    images, model = striped_images(80), network()
    got = short_run(images, model, RECIPE, TRANSFORM, 0, "cpu")
    assert got.correct.shape == (3, 80)
    logits = torch.cat([predict(model, images, np.arange(s, min(s + 32, 80)), TRANSFORM, "cpu") for s in (0, 32, 64)])
    want = Recorder(images.labels)
    want.record([logits])
    np.testing.assert_array_equal(got.el2n, want.dynamics().el2n)
    np.testing.assert_array_equal(got.confidence, want.dynamics().confidence)
    np.testing.assert_array_equal(got.correct[-1], want.correct[0])


def test_soft_labels_are_refused():
    soft = TensorImages(striped_images(8).images, np.full((8, 4), 0.25))
    with pytest.raises(ValueError, match="one class an image"):
        short_run(soft, network(), RECIPE, TRANSFORM, 0, "cpu")


def test_the_learning_rate_does_not_decay():
    recipe = short_recipe("resnet18", 32)
    assert recipe.epochs == module.EPOCHS and {recipe.lr_at(step, 1000) for step in (0, 500, 999)} == {0.1}


def test_mislabelled_images_are_hard():
    images = striped_images(300)
    labels = images.labels.copy()
    wrong = np.random.default_rng(0).choice(300, 20, replace=False)
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    recipe = Recipe(epochs=8, batch_size=32, lr=0.05, augment="none")
    got = short_run(TensorImages(images.images, labels), network(), recipe, TRANSFORM, 0, "cpu")
    right = np.setdiff1d(np.arange(300), wrong)
    assert got.el2n[wrong].mean() > 2 * got.el2n[right].mean()
    assert got.forgetting[wrong].mean() > got.forgetting[right].mean()
