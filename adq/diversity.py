"""Diversity of a bin: a trained discriminator (ADQ eq. 4) and the score that it gives (eq. 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adq.randomness import global_draws, seed_of, torch_generator

BLOCK = 8192  # rows of features that are float32 at once


class Features(Protocol):
    """Rows of features [n, e], float32 where they are taken: a tensor is one."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Discriminator:
    """How the discriminator d is trained: instance discrimination by InfoNCE, the same for all bins."""

    temperature: float = 0.07
    steps: int = 300
    batch_size: int = 512
    lr: float = 1e-3
    hidden: int = 256
    dim: int = 128

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"--temperature {self.temperature}: expected a number above 0, e.g. 0.07")


class Head(nn.Module):
    """d: standardised [penultimate ; pooled intermediate] features to unit vectors."""

    def __init__(self, features: int, config: Discriminator):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.layers = nn.Sequential(nn.Linear(features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.dim))

    def standardize(self, x: "Features") -> None:
        """Mean and standard deviation of every feature, over blocks of rows: x need not be in memory at once as float32."""
        blocks = [(start, min(start + BLOCK, len(x))) for start in range(0, len(x), BLOCK)]
        mean = sum(x[a:b].double().sum(dim=0) for a, b in blocks) / len(x)
        squares = sum((x[a:b].double() - mean).square().sum(dim=0) for a, b in blocks)
        self.mean.copy_(mean)
        self.std.copy_((squares / (len(x) - 1)).sqrt().clamp_min(1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.layers((x - self.mean) / self.std), dim=1)


def halves(keys: list[str], seed: int) -> np.ndarray:
    """Two halves of the data by a hash of the key: int64 [N] of 0 and 1. Each is scored by the d trained on the other."""
    return np.fromiter((seed_of(seed, "half", key) & 1 for key in keys), dtype=np.int64, count=len(keys))


def train_discriminator(
    features: Features,
    views: Features,
    config: Discriminator,
    seed: int,
    name: str,
    on_step: Callable[[int, float], None] | None = None,
) -> Head:
    """Train d by instance discrimination: the augmented view of an image is its positive, the other images its negatives.

    Args:
        features, views: [n, e], the images and one augmented view of each, in key order.
        name: which half this is; part of the seed.

    Returns:
        The trained head, in evaluation mode.

    Raises:
        ValueError: fewer than two images.
    """
    if len(features) < 2:
        raise ValueError(
            f"the discriminator needs at least two images in each half of the data, and has {len(features)}"
        )
    with global_draws(seed, "discriminator", name):
        head = Head(features.shape[1], config)
    head.standardize(features)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=1e-4)
    order = torch_generator(seed, "discriminator-order", name)
    head.train()
    for step in range(config.steps):
        chosen = torch.randperm(len(features), generator=order)[: config.batch_size]
        loss = info_nce(head(features[chosen]), head(views[chosen]), config.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if on_step:
            on_step(step, loss.item())
    return head.eval()


def info_nce(images: torch.Tensor, views: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE over a batch of unit vectors [b, k], both ways; log b where nothing is learned."""
    logits = images @ views.T / temperature
    labels = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))


@torch.no_grad()
def project(head: Head, features: Features) -> torch.Tensor:
    """d of every row, block by block: float32 [n, k]."""
    return torch.cat([head(features[start : start + BLOCK]) for start in range(0, len(features), BLOCK)])


@torch.no_grad()
def retrieval(head: Head, features: Features, views: Features, limit: int = 1000) -> float:
    """Share of at most `limit` images, spread evenly over the keys, whose own view is the nearest of all their views.

    Keys often are in the order of the classes: the first ones would be alike.
    """
    rows = torch.linspace(0, len(features) - 1, min(limit, len(features))).long()
    images, views = head(features[rows]), head(views[rows])
    return (images @ views.T).argmax(dim=1).eq(torch.arange(len(images))).float().mean().item()


@torch.no_grad()
def ratios(
    projected: torch.Tensor,
    views: torch.Tensor,
    rows: slice | torch.Tensor,
    temperature: float,
    block: int = 2048,
) -> torch.Tensor:
    """The bracket of eq. 5 for some images of a bin, its sum over all others of the bin computed exactly, in blocks.

        ratio_i = (1 / N_neg) sum_{j != i} exp(cos(d(x_i), d(x_j)) / tau) / exp(cos(d(x_i), d(x_i+)) / tau)

    Args:
        projected, views: float32 [n, k], unit vectors d(x) and d(x+) of the whole bin. rows: which images.

    Returns:
        float64 [rows]; 0 in a bin of one image, which has nothing to be like.
    """
    mine, positive = projected[rows], views[rows]
    places = torch.arange(len(projected))[rows]
    out = torch.zeros(len(mine), dtype=torch.float64)
    if len(projected) == 1:
        return out
    for start in range(0, len(projected), block):
        others = projected[start : start + block]
        similarity = (mine @ others.T).double()
        # exp(cos / tau) is divided by exp(1 / tau): neither side can overflow.
        term = torch.exp((similarity - 1.0) / temperature)
        own = (places >= start) & (places < start + len(others))
        term[own.nonzero()[:, 0], places[own] - start] = 0.0
        out += term.sum(dim=1)
    towards = (mine.double() * positive.double()).sum(dim=1)
    return out / (len(projected) - 1) / torch.exp((towards - 1.0) / temperature)


def cosines(projected: torch.Tensor, rows: slice) -> torch.Tensor:
    """The mean cosine of each row to the others of its bin: float64 [rows]; 1 in a bin of one image."""
    mine = projected[rows].double()
    if len(projected) == 1:
        return torch.ones(1, dtype=torch.float64)
    return (mine @ projected.double().sum(dim=0) - (mine * mine).sum(dim=1)) / (len(projected) - 1)


def diversity(ratio: np.ndarray, cosine: np.ndarray, how: str = "mean") -> float:
    """Diversity of a bin from its images (ADQ eq. 5); higher is more diverse.

    Args:
        ratio: float [n], from `ratios`. cosine: float [n], from `cosines`.
        how: "mean" = eq. 5, - mean_i ratio_i (at most 0); "log" = - mean_i log ratio_i, much less ruled by a few images;
            "code" = 1 / mean cosine, as in the published code.
    """
    if how == "mean":
        return float(-np.mean(ratio))
    if how == "log":
        return float(-np.mean(np.log(np.maximum(ratio, 1e-30))))
    if how == "code":
        return float(1.0 / max(np.mean(cosine), 1e-6))
    raise ValueError(f"--diversity {how}: expected mean, log or code")


def top_share(ratio: np.ndarray, top: float = 0.01) -> float:
    """The share of eq. 5 that the top 1 % of the images carry: near 0.01 when all weigh alike, near 1 when a few rule."""
    count = max(1, round(top * len(ratio)))
    total = ratio.sum()
    return float(np.sort(ratio)[-count:].sum() / total) if total > 0 else 0.0


def bootstrap_error(
    statistic: Callable[[np.ndarray], float], count: int, generator: np.random.Generator, draws: int = 200
) -> float:
    """Standard error of a bin's score by bootstrap over its images: `statistic` of resampled positions into the bin."""
    values = [statistic(generator.integers(0, count, count)) for _ in range(draws)]
    return float(np.std(values))
