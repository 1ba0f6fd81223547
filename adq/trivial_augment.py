"""TrivialAugment (Mueller and Hutter, ICCV 2021), its wide space: one random operation of random strength an image.

Operations, their ranges, rounding and borders are those of `torchvision.transforms.v2.TrivialAugmentWide`; here a batch goes
through each operation at once, and an image's draw is the same whatever worker holds it.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = 31
FACTOR, SHEAR, PIXELS, DEGREES, LOST_BITS = 0.99, 0.99, 32, 135.0, 6
GREY = (0.2989, 0.587, 0.114)


def trivial_augment(images: Tensor, generator: torch.Generator, positions: Tensor, count: int) -> Tensor:
    """Augment the images at `positions` of a global batch of `count`, for which the numbers are drawn as a whole.

    Args:
        images: uint8 [b, 3, S, S], on any device.
        generator: of this step alone, on the CPU.
        positions: int64 [b], on the CPU.

    Returns:
        uint8 [b, 3, S, S], on the same device.
    """
    operation = torch.randint(len(OPERATIONS) + 1, (count,), generator=generator)[positions]
    strength = torch.randint(STRENGTHS, (count,), generator=generator)[positions] / (STRENGTHS - 1)
    sign = torch.randint(2, (count,), generator=generator)[positions] * 2 - 1
    result = images.clone()
    for number, (_, apply) in enumerate(OPERATIONS.items()):
        rows = (operation == number).nonzero()[:, 0]  # the last number is for images that stay as they are
        if len(rows):
            at = rows.to(images.device)
            result[at] = apply(images[at], strength[rows].to(images.device), sign[rows].to(images.device))
    return result


def shear_x(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(images, {(0, 1): strength * sign * SHEAR}, centred=False)


def shear_y(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(images, {(1, 0): strength * sign * SHEAR}, centred=False)


def translate_x(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(images, {(0, 2): -(strength * sign * PIXELS).trunc()})


def translate_y(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _affine(images, {(1, 2): -(strength * sign * PIXELS).trunc()})


def rotate(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    angle = strength * sign * math.radians(DEGREES)
    return _affine(images, {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()})


def brightness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images[:, :1], dtype=torch.float32), strength * sign)


def color(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, _grey(images), strength * sign)


def contrast(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), strength * sign)


def sharpness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Less or more than the image's difference from its 3x3 mean, whose centre weighs 5 of 13; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images.float(), kernel / 13, groups=3).round()
    return _blend(images, smooth, strength * sign)


def posterize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    lost = (strength * LOST_BITS).round().to(torch.int32).view(-1, 1, 1, 1)
    return (images.int() >> lost << lost).to(torch.uint8)


def solarize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    threshold = (1 - strength).view(-1, 1, 1, 1) * 255
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Each channel stretched to 0 to 255; a flat one stays."""
    low, high = (edge(images, dim=(2, 3), keepdim=True).int() for edge in (torch.amin, torch.amax))
    stretched = (images.int() - low) * 255 // (high - low).clamp(min=1)
    return torch.where(low == high, images, stretched.to(torch.uint8))


def equalize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Each channel through its cumulative histogram, as Pillow does it; one whose steps would be below a pixel stays."""
    values = images.flatten(2).long()
    levels = torch.arange(256, device=images.device).expand(*values.shape[:2], 256).contiguous()
    # How many pixels are below each level: by sorting, since counting is not deterministic on GPUs.
    below = torch.searchsorted(values.sort(dim=2).values, levels)
    step = below.gather(2, values.amax(dim=2, keepdim=True)) // 255
    table = torch.where(step == 0, levels, (step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return table.gather(2, values).view_as(images).to(torch.uint8)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ShearX": shear_x, "ShearY": shear_y, "TranslateX": translate_x, "TranslateY": translate_y, "Rotate": rotate,
    "Brightness": brightness, "Color": color, "Contrast": contrast, "Sharpness": sharpness, "Posterize": posterize,
    "Solarize": solarize, "AutoContrast": autocontrast, "Equalize": equalize,
}  # fmt: skip


def _affine(images: Tensor, entries: dict[tuple[int, int], Tensor], centred: bool = True) -> Tensor:
    """The nearest pixel of each place, black outside of the image.

    Args:
        entries: of the matrix [2, 3] from a pixel in the result to one in the image; the others are those of the identity.
        centred: whether pixels are counted from the middle of the image, or from its top left corner.
    """
    side, device = images.shape[-1], images.device
    matrix = torch.eye(2, 3, device=device).expand(len(images), 2, 3).clone()
    for (row, column), values in entries.items():
        matrix[:, row, column] = values
    origin = side / 2 if centred else 0.0
    line = torch.arange(side, device=device) + 0.5 - origin
    places = torch.stack(
        [line.expand(side, side), line[:, None].expand(side, side), torch.ones(side, side, device=device)]
    )
    sources = torch.einsum("brc,cyx->byxr", matrix, places) + origin
    sampled = F.grid_sample(images.float(), sources * 2 / side - 1, mode="nearest", align_corners=False)
    return sampled.to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """float32 [b, 1, S, S], whole numbers."""
    weights = torch.tensor(GREY, device=images.device).view(3, 1, 1)
    return (images.float() * weights).sum(dim=1, keepdim=True).floor()


def _blend(images: Tensor, other: Tensor, change: Tensor) -> Tensor:
    """Nearly `other` at a change of -1, the image at 0, and as far beyond it at 1."""
    return _bytes(images.float() + (images.float() - other) * change.view(-1, 1, 1, 1) * FACTOR)


def _bytes(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
