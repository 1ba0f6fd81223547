"""TrivialAugment is torchvision's, by batches; erasing turns boxes grey. Neither depends on the number of workers."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as V

from adq.augmentation import ERASED, erase
from adq.randomness import torch_generator
from adq.trivial_augment import OPERATIONS, trivial_augment

SIDE = 32


def pictures(count: int) -> torch.Tensor:
    """Smooth random images: uint8 [count, 3, 32, 32]."""
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=torch_generator(0, "pictures")).float()
    return torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear").to(torch.uint8)


def theirs(name: str, images: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    """What torchvision's functions make of images at a strength of the wide space."""
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    shear = math.degrees(math.atan(0.99 * strength * sign))
    pixels, factor = int(32 * strength * sign), 1 + 0.99 * strength * sign
    return {
        "ShearX": lambda: V.affine(images, **still | {"shear": [shear, 0.0]}, center=[0, 0]),
        "ShearY": lambda: V.affine(images, **still | {"shear": [0.0, shear]}, center=[0, 0]),
        "TranslateX": lambda: V.affine(images, **still | {"translate": [pixels, 0]}),
        "TranslateY": lambda: V.affine(images, **still | {"translate": [0, pixels]}),
        "Rotate": lambda: V.rotate(images, 135.0 * strength * sign),
        "Brightness": lambda: V.adjust_brightness(images, factor),
        "Color": lambda: V.adjust_saturation(images, factor),
        "Contrast": lambda: V.adjust_contrast(images, factor),
        "Sharpness": lambda: V.adjust_sharpness(images, factor),
        "Posterize": lambda: V.posterize(images, 8 - round(6 * strength)),
        "Solarize": lambda: V.solarize(images, 255 * (1 - strength)),
        "AutoContrast": lambda: V.autocontrast(images),
        "Equalize": lambda: V.equalize(images),
    }[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(name):
    images = pictures(4)
    for strength in (0.0, 0.5, 1.0):
        for sign in (-1, 1):
            ours = OPERATIONS[name](images, torch.full((4,), strength), torch.full((4,), sign))
            assert ours.dtype == torch.uint8
            difference = (ours.int() - theirs(name, images, strength, sign).int()).abs()
            assert int(difference.max()) <= 1, (strength, sign)


def test_flat_channels_stay_what_they_are():
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    for name in ("AutoContrast", "Equalize", "Contrast", "Color", "Sharpness"):
        assert torch.equal(OPERATIONS[name](flat, torch.ones(1), torch.ones(1)), flat), name


def test_every_operation_comes_up_and_some_images_stay():
    count = 600
    images = pictures(1).expand(count, -1, -1, -1)
    augmented = trivial_augment(images, torch_generator(0, "trivial"), torch.arange(count), count)
    same = (augmented == images).flatten(1).all(1)
    # One of 14 is left alone, and so are images whose strength is 0.
    assert count / 14 < int(same.sum()) < count / 4
    assert len({image.numpy().tobytes() for image in augmented}) > 200


@pytest.mark.parametrize("world", [2, 3])
def test_what_happens_to_an_image_does_not_depend_on_the_world(world):
    images, everyone = pictures(11), torch.arange(11)
    whole = trivial_augment(images, torch_generator(0, "a"), everyone, 11)
    boxed = erase(images, 0.7, torch_generator(0, "b"), everyone, 11)
    for rank in range(world):
        mine = everyone[rank::world]
        assert torch.equal(trivial_augment(images[mine], torch_generator(0, "a"), mine, 11), whole[mine])
        assert torch.equal(erase(images[mine], 0.7, torch_generator(0, "b"), mine, 11), boxed[mine])


def test_erasing_turns_a_box_grey_in_a_share_of_the_images():
    count = 1000
    images = torch.full((count, 3, SIDE, SIDE), 7, dtype=torch.uint8)
    erased = erase(images, 0.25, torch_generator(0, "erasing"), torch.arange(count), count)
    assert set(erased.unique().tolist()) == {7, ERASED}
    holes = erased[:, 0] == ERASED
    assert torch.equal(erased == ERASED, holes[:, None].expand(-1, 3, -1, -1)), "in every channel"
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None, :]), "a box"
    hit = holes.flatten(1).any(1)
    assert 0.21 < float(hit.float().mean()) < 0.29
    areas = holes[hit].float().mean(dim=(1, 2))
    assert 0.005 < float(areas.min()) < 0.06 and 0.28 < float(areas.max()) < 0.38
    for line in (rows, columns):
        often = line.float().mean(0)
        assert float(often.min()) > 0 and float((often - often.flip(0)).abs().max()) < 0.04, "anywhere"
    assert torch.equal(erase(images, 0.0, torch_generator(0, "erasing"), torch.arange(count), count), images)
