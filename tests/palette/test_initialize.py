"""Starts: real images of their class, chosen as each rule says, independently of the other classes."""

import numpy as np
import pytest
import torch

from adq.graphcut import graphcut_select
from palette.initialize import initialize, quantise
from tests.palette.images import noise

IMAGES = torch.from_numpy(noise(60))
LABELS = torch.arange(60) % 3
EMBEDDINGS = np.random.default_rng(0).normal(size=(60, 5)) + 2.0 * np.eye(5)[np.arange(60) % 3]


def place(image):
    return int((image == IMAGES).flatten(1).all(dim=1).nonzero()[0, 0])


@pytest.mark.parametrize("start", ["graphcut", "random", "kmeans", "noise"])
def test_classes_are_independent_and_in_order(start):
    whole = initialize(IMAGES, LABELS, [0, 1, 2], 4, start, EMBEDDINGS, seed=3)
    assert whole.shape == (12, 8, 8, 3) and whole.dtype == torch.uint8
    alone = initialize(IMAGES, LABELS, [2], 4, start, EMBEDDINGS, seed=3)
    assert torch.equal(whole[8:], alone)
    if start != "noise":
        places = [place(image) for image in whole]
        assert [number % 3 for number in places] == [0] * 4 + [1] * 4 + [2] * 4
        assert len(set(places)) == 12
    other = initialize(IMAGES, LABELS, [0, 1, 2], 4, start, EMBEDDINGS, seed=4)
    assert torch.equal(whole, other) == (start == "graphcut"), "GraphCut draws nothing"


def test_graphcut_is_that_of_adq_with_a_balanced_weight():
    members = np.arange(1, 60, 3)
    for lam, weight in (("balanced", 2 * 4 / 20), (1, 1.0)):
        chosen = initialize(IMAGES, LABELS, [1], 4, "graphcut", EMBEDDINGS, lam=lam)
        expected = members[graphcut_select(EMBEDDINGS[members], 4, lam=weight)]
        assert [place(image) for image in chosen] == expected.tolist()


def test_kmeans_takes_an_image_of_each_cluster():
    centres = 20 * np.eye(5)[:4]
    rows = np.repeat(centres, 15, axis=0) + 0.1 * np.random.default_rng(1).normal(size=(60, 5))
    chosen = initialize(IMAGES, torch.zeros(60, dtype=torch.int64), [0], 4, "kmeans", rows)
    assert sorted(place(image) // 15 for image in chosen) == [0, 1, 2, 3]


def test_quantised_images_have_few_colors():
    seen = quantise(IMAGES, 5, chunk=7)
    for image in seen:
        assert len(image.reshape(-1, 3).unique(dim=0)) <= 5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        initialize(IMAGES, LABELS, [0], 1, "herding")
    with pytest.raises(ValueError, match="needs one row of embeddings for each of the 60"):
        initialize(IMAGES, LABELS, [0], 1, "graphcut")
    with pytest.raises(ValueError, match="class 2 has 20 images: 21 are needed"):
        initialize(IMAGES, LABELS, [2], 21, "random")
