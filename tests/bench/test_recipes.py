"""A few images by heart are of all classes: those of one class any network knows."""

import numpy as np
import pytest
import torch

from adq.recipe import Recipe
from adq.training import TensorImages
from tests.bench.recipes import across_classes, one


def test_a_few_images_are_of_all_classes():
    labels = np.repeat(np.arange(10), 50)
    images = torch.arange(500).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) % 256
    few = across_classes(TensorImages(images.to(torch.uint8), labels), 32)
    assert len(few) == 32 and np.bincount(few.labels).min() >= 3
    first = few.images[:, 0, 0, 0].tolist()
    assert first[:2] == [0, 16] and first[-1] == 499 % 256


def test_images_of_one_class_are_refused():
    data = TensorImages(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), np.zeros(8, dtype=np.int64))
    with pytest.raises(ValueError, match="8 images of one class: there is nothing to learn"):
        one("distilled", "convnet-d2-w8", Recipe(steps=2), data, data, 0, "cpu")
