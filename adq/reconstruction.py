"""What a trained masked autoencoder is for: the unknown pixels of images filled, and how close the result is."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adq.mae import MAE, MEAN, STD, mask_to_patches, normalised_base, unpatchify

BATCH = 64  # images that are painted at once
# Weights of a known pixel in a resized image: below, some of an unknown one is in it.
WHOLE = 1 - 1e-4


@torch.no_grad()
def reconstruct(model: MAE, pixels: Tensor, known: Tensor, device: str, batch_size: int = BATCH) -> Tensor:
    """Fill the unknown pixels; the known ones stay as they are.

    The network sees its patches of which every pixel is known. Images of another size are resized to its own for the
    prediction, which is resized back.

    Args:
        pixels: uint8 [B, H, W, 3]; unknown ones are not looked at.
        known: bool [B, H, W].
        device: where the network runs, in float32.

    Returns:
        uint8 [B, H, W, 3], on the CPU.

    Raises:
        ValueError: other types or shapes; an image without known pixels, for a network with a base.
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
    """The network's picture of every pixel, uint8 [b, H, W, 3]."""
    config, (height, width) = model.config, pixels.shape[1:3]
    images, sure = pixels.permute(0, 3, 1, 2), known
    if (height, width) != (config.image_size, config.image_size):
        images = _resized(images.float(), config.image_size, config.image_size).round().clamp(0, 255).to(torch.uint8)
        sure = _resized(known[:, None].float(), config.image_size, config.image_size)[:, 0] > WHOLE
    seen = mask_to_patches(sure, config.patch_size)
    base = normalised_base(config, images.permute(0, 2, 3, 1), sure)
    predicted = unpatchify(model(config.transform.normalise(images), seen, base).float(), config.patch_size)
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    painted = (predicted * std + mean).clamp(0, 255)
    if (height, width) != (config.image_size, config.image_size):
        painted = _resized(painted, height, width)
    return painted.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


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
