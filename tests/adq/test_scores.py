"""Scores of the bins: each image by the discriminator that never saw it, over its whole bin; what is told of a bin."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adq.diversity import Discriminator, bootstrap_error, halves, info_nce
from adq.importance import importance
from adq.randomness import numpy_generator
from adq.scores import COLUMNS, Stored, bin_scores, discriminate, image_scores

CONFIG = Discriminator(steps=60, batch_size=64, hidden=32, dim=8)
KEYS = [f"image-{i:03d}" for i in range(150)]


@pytest.fixture(scope="module")
def features() -> tuple[Stored, Stored]:
    """Features in two columns, one of half precision: a third of the numbers is in an image's view too, the others are not."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, 12)).astype(np.float32)
    views = rng.normal(size=rows.shape).astype(np.float16)
    views[:, ::3] = rows[:, ::3] + 0.1 * rng.normal(size=(150, 4))
    return Stored((rows[:, :8], rows[:, 8:].astype(np.float16))), Stored((views[:, :8], views[:, 8:]))


@pytest.fixture(scope="module")
def made(features):
    return discriminate(KEYS, *features, CONFIG, seed=2)


def test_stored_features_are_rows_of_both_columns(features):
    images, _ = features
    whole = np.concatenate([column.astype(np.float32) for column in images.columns], axis=1)
    assert images.shape == (150, 12) and len(images) == 150
    np.testing.assert_array_equal(images[3:7].numpy(), whole[3:7])
    part = images.of(np.array([9, 4, 77]))
    assert part.shape == (3, 12)
    np.testing.assert_array_equal(part[torch.tensor([2, 0])].numpy(), whole[[77, 9]])


def test_both_halves_learn_to_find_the_views_of_the_other(made):
    np.testing.assert_array_equal(made.projected["half"], halves(KEYS, 2))
    assert made.retrieval["after"] > made.retrieval["before"] + 0.1
    assert made.losses.shape == (2, 60) and (made.losses[:, -10:].mean(axis=1) < made.losses[:, 0] - 0.5).all()
    for name in ("by_0", "by_1", "own_view"):
        norms = np.linalg.norm(made.projected[name], axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-5)
    assert {name.split(".")[0] for name in made.heads} == {"0", "1"}


def test_an_untrained_discriminator_is_no_better_than_before(features):
    made = discriminate(KEYS, *features, replace(CONFIG, steps=0), seed=2)
    assert made.retrieval["before"] == made.retrieval["after"] and made.losses.shape == (2, 0)


def test_image_scores_are_eq_5_by_the_discriminator_of_the_other_half(made):
    members = np.arange(0, 150, 3)
    half, own_view = made.projected["half"], made.projected["own_view"].astype(np.float64)
    ratio, cosine = image_scores(made.projected, members, slice(10, 40), 0.07)
    for place, i in enumerate(members[10:40]):
        by = made.projected[f"by_{1 - half[i]}"].astype(np.float64)
        others = [by[i] @ by[j] for j in members if j != i]
        want = np.mean(np.exp(np.array(others) / 0.07)) / np.exp(by[i] @ own_view[i] / 0.07)
        assert ratio[place] == pytest.approx(want, rel=1e-4)
        assert cosine[place] == pytest.approx(np.mean(others), rel=1e-4, abs=1e-5)
    whole = image_scores(made.projected, members, slice(0, 50), 0.07)
    np.testing.assert_allclose(whole[0][10:40], ratio, rtol=1e-6)


@pytest.mark.parametrize("how", ["mean", "log", "code"])
def test_scores_of_a_bin(how):
    rng = np.random.default_rng(1)
    bins = rng.integers(0, 3, 120)
    texture, ratio, cosine = rng.random(120), rng.random(120), rng.random(120)
    found = bin_scores(bins, 3, texture, ratio, cosine, seed=5, how=how)
    assert tuple(found) == COLUMNS and found["size"].tolist() == np.bincount(bins).tolist()
    for n in range(3):
        mine = bins == n
        want = {"mean": -ratio[mine].mean(), "log": -np.log(ratio[mine]).mean(), "code": 1 / cosine[mine].mean()}
        assert found["diversity"][n] == pytest.approx(want[how])
        assert found["representativeness"][n] == pytest.approx(texture[mine].mean())
        error = bootstrap_error(
            lambda rows, mine=mine: float(texture[mine][rows].mean()), mine.sum(), numpy_generator(5, "bootstrap", n)
        )
        assert found["representativeness_se"][n] == error
    np.testing.assert_array_equal(found["importance"], importance(found["representativeness"], found["diversity"]))


def test_an_empty_bin_is_an_error():
    with pytest.raises(ValueError, match="bin 2 is empty: every class has fewer images than bins; lower --bins"):
        bin_scores(np.array([0, 1, 3]), 4, np.ones(3), np.ones(3), np.ones(3), seed=0)


def test_info_nce_of_what_was_not_learnt():
    assert info_nce(torch.zeros(16, 4), torch.zeros(16, 4), 0.07).item() == pytest.approx(np.log(16))
