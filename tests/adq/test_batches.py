"""Batches of a training: the same for any number of workers, in an order of each epoch and seed, augmented image by image."""

import itertools

import numpy as np
import pytest
import torch

from adq.augmentation import AUGMENTATIONS, augment
from adq.randomness import torch_generator
from adq.training import (
    Recipe,
    TensorImages,
    epoch_batches,
    steps_per_epoch,
)
from tests.adq.training_cases import CLASSES


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 8, 20, 21])
def test_every_world_sees_each_image_once_in_the_same_global_batches(world, count):
    images = TensorImages(
        torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), np.arange(count) % CLASSES
    )
    recipe = Recipe(epochs=1, batch_size=4)
    alone = list(epoch_batches(images, recipe, seed=5, epoch=2))
    workers = [list(epoch_batches(images, recipe, 5, 2, rank, world)) for rank in range(world)]
    assert {len(worker) for worker in workers} == {steps_per_epoch(count, 4)} == {len(alone)}
    seen = []
    for step, (whole, labels, size) in enumerate(alone):
        assert len(whole) == size
        for rank in range(world):
            part, part_labels, part_size = workers[rank][step]
            assert part_size == size
            assert torch.equal(part, whole[rank::world]) and torch.equal(part_labels, labels[rank::world])
            seen += part[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(count))


def test_epochs_and_seeds_have_their_own_order():
    images = TensorImages(torch.arange(64, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), np.zeros(64, int))
    recipe = Recipe(epochs=1, batch_size=64)
    orders = [
        tuple(next(epoch_batches(images, recipe, seed, epoch))[0][:, 0, 0, 0].tolist())
        for seed, epoch in itertools.product((0, 1), (0, 1))
    ]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("world", [2, 3])
def test_augmentation_of_an_image_does_not_depend_on_the_world(kind, world):
    images = torch.randint(0, 256, (11, 3, 16, 16), dtype=torch.uint8, generator=torch_generator(0, "pixels"))
    whole = augment(images, kind, torch_generator(0, "augment", 1, 2), torch.arange(11), 11)
    for rank in range(world):
        positions = torch.arange(rank, 11, world)
        part = augment(images[rank::world], kind, torch_generator(0, "augment", 1, 2), positions, 11)
        assert torch.equal(part, whole[rank::world])


def test_crop_flip_gives_shifted_and_mirrored_windows_of_the_padded_image():
    count = 400
    image = torch.randint(1, 256, (3, 16, 16), dtype=torch.uint8, generator=torch_generator(0, "pixels"))
    augmented = augment(
        image.expand(count, -1, -1, -1), "crop-flip", torch_generator(0, "augment"), torch.arange(count), count
    )
    padded = torch.nn.functional.pad(image, [2] * 4)
    windows = {}
    for top, left, flip in itertools.product(range(5), range(5), (False, True)):
        window = padded[:, top : top + 16, left : left + 16]
        windows[(window.flip(-1) if flip else window).numpy().tobytes()] = (top, left, flip)
    drawn = [windows[sample.numpy().tobytes()] for sample in augmented]
    assert len(set(drawn)) == 50, "each of 5 x 5 windows and its mirror image comes up"


def test_resized_crop_keeps_flat_images_and_the_order_of_a_ramp():
    count = 200
    flat = torch.full((count, 3, 16, 16), 77, dtype=torch.uint8)
    positions = torch.arange(count)
    kind = "resized-crop-flip"
    assert torch.equal(augment(flat, kind, torch_generator(0, "a"), positions, count), flat)
    ramp = (torch.arange(16) * 15).to(torch.uint8).expand(count, 3, 16, 16)
    crops = augment(ramp, kind, torch_generator(0, "a"), positions, count).int()
    slopes = crops[..., 1:] - crops[..., :-1]
    rising, falling = (slopes >= 0).flatten(1).all(1), (slopes <= 0).flatten(1).all(1)
    assert bool((rising | falling).all())
    assert 60 < int(falling.sum()) < 140
    shares = (crops[:, 0, 0].amax(1) - crops[:, 0, 0].amin(1)) / 225
    assert shares.min() < 0.45 and shares.max() > 0.9
