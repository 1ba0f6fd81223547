"""What a trained masked autoencoder is for: the unknown pixels of images filled, and how close the result is."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adq.fill import DEFAULT_FILLER, fill
from adq.mae import MAE, MEAN, STD, mask_to_patches, normalised_base, patches_to_mask, unpatchify

BATCH = 64  # images that are painted at once
# Share of a patch that is known where the network sees it, in images of another size than its own; 3/8 is as good, 9/10 worse.
SEEN = 0.5


@torch.no_grad()
def reconstruct(model: MAE, pixels: Tensor, known: Tensor, device: str, batch_size: int = BATCH) -> Tensor:
    """Fill the unknown pixels; the known ones stay as they are.

    The network sees its patches of which every pixel is known. Images of another size are filled without it, by its base or else
    harmonically, and resized to its own size, at which it sees its patches of which `SEEN` is known; how its picture of the others
    differs from the fill is resized back, and added to the fill.

    Args:
        pixels: uint8 [B, H, W, 3]; unknown ones are not looked at.
        known: bool [B, H, W].
        device: where the network runs, in float32.

    Returns:
        uint8 [B, H, W, 3], on the CPU.

    Raises:
        ValueError: other types or shapes; an image without known pixels, for a network with a base or of another size.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[3] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}; expected uint8 [B, H, W, 3]")
    if known.dtype != torch.bool or known.shape != pixels.shape[:3]:
        raise ValueError(f"known is {known.dtype} {tuple(known.shape)}; expected bool {tuple(pixels.shape[:3])}")
    model.to(device)
    was_training = model.training
    model.eval()
    out = []
    for images, there in zip(pixels.split(batch_size), known.split(batch_size), strict=True):
        painted = _painted(model, images.to(device), there.to(device)).cpu()
        out.append(torch.where(there.cpu()[..., None], images.cpu(), painted))
    model.train(was_training)
    return torch.cat(out) if out else pixels.cpu()


def _painted(model: MAE, pixels: Tensor, known: Tensor) -> Tensor:
    """The picture of every pixel, uint8 [b, H, W, 3]."""
    config, (height, width) = model.config, pixels.shape[1:3]
    side = config.image_size
    if (height, width) == (side, side):
        painted = _predicted(model, pixels, known, mask_to_patches(known, config.patch_size))
    else:
        filled = fill(pixels, known, DEFAULT_FILLER if config.base == "none" else config.base)
        filled = filled.permute(0, 3, 1, 2).float()
        small = _resized(filled, side, side).round().clamp(0, 255)
        seen = mostly_known(known, config.grid)
        images = small.to(torch.uint8).permute(0, 2, 3, 1)
        added = _predicted(model, images, torch.ones_like(images[..., 0], dtype=torch.bool), seen) - small
        # What the network paints over patches that it sees has never been trained.
        added = added.masked_fill(patches_to_mask(seen, config.patch_size)[:, None], 0)
        painted = filled + _resized(added, height, width)
    return painted.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def mostly_known(known: Tensor, grid: int) -> Tensor:
    """Which patches of a grid laid over images have at least `SEEN` of their pixels: bool [B, H, W] to bool [B, grid^2]."""
    return F.adaptive_avg_pool2d(known[:, None].float(), grid).flatten(1) >= SEEN


def _predicted(model: MAE, images: Tensor, known: Tensor, seen: Tensor) -> Tensor:
    """The network's picture of images of its own size, uint8 [b, S, S, 3]: float32 [b, 3, S, S] from 0 to 255.

    Args:
        known: bool [b, S, S], what its base is filled from. seen: bool [b, n], the patches that it sees.
    """
    config = model.config
    base = normalised_base(config, images, known)
    inputs = config.transform.normalise(images.permute(0, 3, 1, 2))
    predicted = unpatchify(model(inputs, seen, base).float(), config.patch_size)
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    return (predicted * std + mean).clamp(0, 255)


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(values, (height, width), mode="bilinear", antialias=True, align_corners=False)


def psnr(a: Tensor, b: Tensor, where: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of the chosen pixels of all images together; infinite where they are equal.

    Together, since one image that is met exactly would make a mean over images infinite.

    Args:
        a, b: uint8 [B, H, W, 3]. where: bool [B, H, W].

    Raises:
        ValueError: other types or shapes, or no pixel is chosen.
    """
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.shape[3:] != (3,):
        raise ValueError(
            f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}: expected uint8 [B, H, W, 3], alike"
        )
    if where.dtype != torch.bool or where.shape != a.shape[:3] or not bool(where.any()):
        raise ValueError(f"where is {where.dtype} {tuple(where.shape)}; expected bool {tuple(a.shape[:3])}, some true")
    error = (a[where].long() - b[where].long()).square().double().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf
