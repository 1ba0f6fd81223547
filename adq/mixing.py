"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of a global batch.

A step has one draw, and each image is mixed with the one before it in the global batch, the first with the last; the order
of a batch is random already. So a mixed image does not depend on the number of workers. The neighbour of an image lies with
another worker, unless there is only one: all workers then send each other their images, in uint8, at every step.
"""

import math

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def own_share(mixup: float, cutmix: float, side: int, generator: np.random.Generator) -> Tensor:
    """How much of each pixel stays an image's own; the rest is its neighbour's, and the mean is the own label's share.

    Args:
        mixup: alpha; its share is one number of Beta(alpha, alpha), for all pixels.
        cutmix: alpha; its share is 0 in a box of the area 1 - Beta(alpha, alpha), cut off at the border, and 1 around it.
            If both are above 0, each is as likely.

    Returns:
        float32 [side, side].
    """
    cuts = cutmix > 0 and (mixup <= 0 or generator.random() < 0.5)
    share = generator.beta(cutmix, cutmix) if cuts else generator.beta(mixup, mixup)
    if not cuts:
        return torch.full((side, side), share, dtype=torch.float32)
    half = 0.5 * math.sqrt(1 - share) * side
    y, x = generator.integers(side, size=2)
    own = torch.ones(side, side)
    own[max(0, round(y - half)) : round(y + half), max(0, round(x - half)) : round(x + half)] = 0
    return own


def neighbours(mine: Tensor, rank: int, world: int, count: int) -> Tensor:
    """For each of a worker's rows of a global batch, the row before it in the batch, which other workers may hold.

    A collective: with several workers, each must call it, also one without rows.

    Args:
        mine: [b, ...], rows `rank`, `rank` + `world`, ... of `count`.

    Returns:
        [b, ...].
    """
    if world == 1:
        return mine.roll(1, dims=0)
    padded = mine.new_zeros((-(-count // world), *mine.shape[1:]))
    padded[: len(mine)] = mine
    shares = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(shares, padded)
    return interleaved(shares, count).roll(1, dims=0)[rank::world]


def interleaved(shares: list[Tensor], count: int) -> Tensor:
    """[count, ...]: the global batch of the workers' shares, each padded to [ceil(count / world), ...]."""
    return torch.stack(shares, dim=1).flatten(0, 1)[:count]


def mixed(mine: Tensor, others: Tensor, own: Tensor) -> Tensor:
    """Images float [b, 3, S, S] with their neighbours, by `own_share`."""
    return others.lerp(mine, own.to(mine.device))


def mixed_labels(mine: Tensor, others: Tensor, own: Tensor, classes: int) -> Tensor:
    """Probabilities float32 [b, C] of mixed images.

    Args:
        mine, others: int64 [b], or probabilities [b, C].
    """
    share = own.mean().item()
    return share * probabilities(mine, classes) + (1 - share) * probabilities(others, classes)


def probabilities(labels: Tensor, classes: int) -> Tensor:
    """float32 [b, C] of labels int64 [b]; soft ones stay what they are."""
    return labels if labels.is_floating_point() else F.one_hot(labels, classes).float()
