"""The three losses that keep a palette network's K colours in use (AutoPalette, arXiv 2411.11329, section 3).

They see detached images and train the network alone. Maps m are soft maps [B, K, N] of N = H W pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three losses; 0 turns one off."""

    maximum_color: float = 1.0
    palette_balance: float | None = None  # log K where it is not given: weight 1 without the division by log K
    color_assignment: float = 3.0

    def __post_init__(self):
        for name in ("maximum_color", "palette_balance", "color_assignment"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"the weight of {name} must be at least 0, not {value}")

    def balance(self, colors: int) -> float:
        return math.log(colors) if self.palette_balance is None else self.palette_balance


def maximum_color_loss(maps: Tensor) -> Tensor:
    """L_m = - mean over b, k of max_ij m[b, k, ij]: in [-1, 0], -1 where every colour is claimed by some pixel."""
    return -maps.amax(dim=2).mean()


def palette_balance_loss(maps: Tensor) -> Tensor:
    """L_b = - mean_b H(mean_ij m[b]) / log K: in [-1, 0], -1 where the colours share the pixels evenly."""
    # A share that underflows to 0 would have an infinite gradient times 0.
    shares = maps.mean(dim=2).clamp(min=torch.finfo(maps.dtype).tiny)
    return -torch.special.entr(shares).sum(dim=1).mean() / math.log(maps.shape[1])


def color_assignment_loss(maps: Tensor, target: Tensor) -> Tensor:
    """L_a = mean_b |A_s - A_t|_F^2 / n: pixels that median cut puts in one colour shall share one, whichever it is.

    A = F^T F [n, n] with columns of length 1, of F_s the soft maps and F_t the one-hot target of n pixels. The n x n
    matrices are never made: with unit columns the loss is 2 - 2 / n sum_ij A_s A_t, and
    sum_i (f_i . f_j) (g_i . g_j) = f_j^T (F G^T) g_j.

    Args:
        maps: [B, K, n].
        target: integers [B, n] in 0 .. K - 1.

    Returns:
        A scalar in [0, 2].
    """
    one_hot = F.one_hot(target.long(), maps.shape[1]).transpose(1, 2).to(maps.dtype)

    def products(f: Tensor, g: Tensor) -> Tensor:
        return (f * (f @ g.transpose(1, 2) @ g)).sum(dim=1)

    lengths = (products(maps, maps) * products(one_hot, one_hot)).sqrt()
    return 2 - 2 * (products(maps, one_hot) / lengths).mean()


def palette_losses(
    maps: Tensor, target: Tensor, pixels: Tensor, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses that are on, and each of the three by name, unweighted and without gradient.

    Args:
        maps: [B, K, N].
        target: uint8 [B, H, W], indices of median cut in true RGB.
        pixels: int64 [B, n], those that the colour assignment loss looks at.
    """
    seen = maps.gather(2, pixels[:, None].expand(-1, maps.shape[1], -1))
    losses = {
        "maximum_color": maximum_color_loss(maps),
        "palette_balance": palette_balance_loss(maps),
        "color_assignment": color_assignment_loss(seen, target.flatten(1).gather(1, pixels)),
    }
    factors = (weights.maximum_color, weights.balance(maps.shape[1]), weights.color_assignment)
    total = sum(
        (factor * loss for factor, loss in zip(factors, losses.values(), strict=True) if factor), maps.new_zeros(())
    )
    return total, {name: loss.detach() for name, loss in losses.items()}
