"""Representativeness: the texture level of an image (ADQ eq. 3)."""

import torch
import torch.nn.functional as F

REC_601 = (0.299, 0.587, 0.114)


def texture_level(images: torch.Tensor, patch: int = 32) -> torch.Tensor:
    """The mean over L x L patches of a gradient magnitude (ADQ eq. 3).

    Grey level (Rec. 601), 3 x 3 Sobel on the whole image with a reflect-101 border, 0.5 |Gx| + 0.5 |Gy|, then the mean of every
    patch; patches that the border cuts are dropped.

    Args:
        images: float [B, 3, H, W] in [0, 1], before normalisation.
        patch: L in pixels; at most the shorter side counts (the whole image for CIFAR).

    Returns:
        float32 [B], 0 for a flat image.

    Raises:
        ValueError: not [B, 3, H, W], values outside [0, 1], a side below 2 pixels.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 2:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected [B, 3, H, W] with H and W at least 2")
    if not images.is_floating_point() or (images.numel() and (images.min() < 0 or images.max() > 1)):
        raise ValueError("images hold values outside [0, 1], or integers; divide by 255 before normalisation")
    weights = images.new_tensor(REC_601)
    grey = (images * weights[:, None, None]).sum(dim=1)
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    left, right = padded[:, :, :-2], padded[:, :, 2:]
    across = right - left
    gradient_x = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    down = padded[:, 2:] - padded[:, :-2]
    gradient_y = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    magnitude = 0.5 * gradient_x.abs() + 0.5 * gradient_y.abs()
    size = min(patch, *magnitude.shape[1:])
    rows, columns = magnitude.shape[1] // size, magnitude.shape[2] // size
    whole = magnitude[:, : rows * size, : columns * size]
    return whole.reshape(len(images), rows, size, columns, size).mean(dim=(1, 2, 3, 4)).float()
