"""Augmentation of uint8 batches for training, the same for an image whatever worker holds it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZED_CROP = "resized-crop-flip"
AUGMENTATIONS = ("crop-flip", RESIZED_CROP, "flip", "none")
# Share of the image's area, and width to height, of a random resized crop: those of torchvision's ImageNet recipes.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
# Share of the image's area, and width to height, of an erased box, and what is there afterwards: mid-grey, about 0 when normalised.
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
ERASED = 128


def augment(images: Tensor, kind: str, generator: torch.Generator, positions: Tensor, count: int) -> Tensor:
    """Augment the images at `positions` of a global batch of `count`, for which the numbers are drawn as a whole.

    "crop-flip": a random crop after zero padding by an eighth of the side (4 of 32 pixels), then a flip.
    "resized-crop-flip": a random box of `CROP_AREA` and `CROP_RATIO`, resized bilinearly to the whole, then a flip. Where
    images are decoded in each epoch anew, `adq.batches` cuts the box from the whole image instead, and "flip" is what is left.

    Args:
        images: uint8 [b, 3, S, S], on any device.
        kind: `Recipe.augment`.
        generator: of this step alone, on the CPU.
        positions: int64 [b], on the CPU.

    Returns:
        uint8 [b, 3, S, S], on the same device.
    """
    if kind == "none":
        return images
    side, device = images.shape[-1], images.device
    flip = torch.rand(count, generator=generator)[positions].to(device) < 0.5
    if kind == "flip":
        return torch.where(flip[:, None, None, None], images.flip(3), images)
    if kind == "crop-flip":
        padding = side // 8
        top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)[:, positions].to(device)
        line = torch.arange(side, device=device)
        columns = left[:, None] + torch.where(flip[:, None], line.flip(0), line)
        pixels = (top[:, None] + line)[:, :, None] * (side + 2 * padding) + columns[:, None, :]
        padded = F.pad(images, [padding] * 4).flatten(2)
        return padded.gather(2, pixels.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)
    top, left, height, width = crop_boxes(crop_draws(count, generator)[positions]).to(device)
    line = (torch.arange(side, device=device) + 0.5) / side
    x = left[:, None] + width[:, None] * torch.where(flip[:, None], line.flip(0), line)
    y = top[:, None] + height[:, None] * line
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1) * 2 - 1
    crops = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return crops.round().to(torch.uint8)


def crop_draws(count: int, generator: torch.Generator) -> Tensor:
    """What random resized crops of `count` images are made of: float32 [count, 2 CROP_TRIES + 2].

    Areas and ratios of the tries, and the place of the box between top and bottom and between left and right.
    """
    area = torch.empty(count, CROP_TRIES).uniform_(*CROP_AREA, generator=generator)
    ratio = torch.empty(count, CROP_TRIES).uniform_(*map(math.log, CROP_RATIO), generator=generator).exp()
    return torch.cat([area, ratio, torch.rand(2, count, generator=generator).T], dim=1)


def crop_boxes(draws: Tensor, aspect: float = 1.0) -> Tensor:
    """Boxes in images of one aspect, width by height, by torchvision's rule: the first try that fits into the image.

    Where none fits, the largest central box of a permitted ratio.

    Args:
        draws: float [n, 2 CROP_TRIES + 2], of `crop_draws`.

    Returns:
        float [4, n]: top, left, height and width as shares of the image's height and width.
    """
    area, ratio, corner = draws.split([CROP_TRIES, CROP_TRIES, 2], dim=1)
    height, width = (area / ratio * aspect).sqrt(), (area * ratio / aspect).sqrt()
    fits = (height <= 1) & (width <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    largest = min(1.0, aspect / CROP_RATIO[0]), min(1.0, CROP_RATIO[1] / aspect)
    height, width = (
        torch.where(found, side.gather(1, first)[:, 0], other)
        for side, other in zip((height, width), largest, strict=True)
    )
    down, right = (torch.where(found, place, 0.5) for place in corner.T)
    return torch.stack([down * (1 - height), right * (1 - width), height, width])


def erase(images: Tensor, share: float, generator: torch.Generator, positions: Tensor, count: int) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020): a box of `ERASED_AREA` and `ERASED_RATIO` turns grey in a `share` of the images.

    Args and result are those of `augment`. A box that would be longer than the image is cut to it.
    """
    side, device = images.shape[-1], images.device
    chosen = torch.rand(count, generator=generator) < share
    area = torch.empty(count).uniform_(*ERASED_AREA, generator=generator)
    ratio = torch.empty(count).uniform_(*map(math.log, ERASED_RATIO), generator=generator).exp()
    sizes = torch.stack([area / ratio, area * ratio]).sqrt().clamp(max=1)  # height and width
    corners = torch.rand(2, count, generator=generator) * (1 - sizes)
    middles = (torch.arange(side) + 0.5) / side
    inside = (corners[:, :, None] <= middles) & (middles < (corners + sizes)[:, :, None])
    rows, columns = inside[:, positions].to(device)
    boxes = rows[:, :, None] & columns[:, None, :] & chosen[positions].to(device)[:, None, None]
    return images.masked_fill(boxes[:, None], ERASED)
