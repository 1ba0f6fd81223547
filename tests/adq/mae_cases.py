"""Small masked autoencoders, and pictures and masks for them."""

import io
import math

import torch
from torch import Tensor

from adq.mae import (
    MAE,
    MAEConfig,
    fresh,
)
from adq.mae_training import random_masks
from adq.randomness import torch_generator

TINY = MAEConfig(16, 4, 64, 2, 4, 32, 1, 2)


def lively(config: MAEConfig) -> MAE:
    """A network none of whose tensors is zero, so that each of them counts."""
    model, generator = fresh(config, 0), torch_generator(0, "lively")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pictures(count: int, side: int = 16) -> Tensor:
    """uint8 [N, 3, S, S]: upright waves of eight pixels' length, of random phases and colours."""
    generator = torch_generator(3, "waves")
    phase = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    color = 40 + 60 * torch.rand(count, 3, 1, 1, generator=generator)
    wave = torch.sin(torch.arange(side) * 2 * math.pi / 8 + phase)
    return (128 + color * wave).round().to(torch.uint8).expand(-1, -1, side, -1).contiguous()


def masks(count: int, cells: int = 16, ratio: float = 0.5) -> Tensor:
    return random_masks(count, cells, ratio, torch_generator(1, "masks"))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
