"""Scores of the bins: texture (eq. 3) and diversity (eq. 4 and 5), with their errors, and the importance (eq. 6 to 8) of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from adq.diversity import (
    Discriminator,
    bootstrap_error,
    cosines,
    diversity,
    halves,
    project,
    ratios,
    retrieval,
    top_share,
    train_discriminator,
)  # fmt: skip
from adq.importance import importance, normalize
from adq.randomness import numpy_generator

RETRIEVAL_LIMIT = 1000
COLUMNS = (
    "bin", "size", "representativeness", "representativeness_se", "diversity", "diversity_se", "top_1_percent_share",
    "representativeness_normalized", "diversity_normalized", "importance",
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Features as they are stored, columns side by side; float32 where rows are taken. See `adq.diversity.Features`."""

    columns: tuple[np.ndarray, ...]  # [N, .] each, float32 or float16
    rows: np.ndarray | None = None  # those that are meant, int64 [n]; all by default

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), sum(column.shape[1] for column in self.columns)

    def __len__(self) -> int:
        return len(self.columns[0]) if self.rows is None else len(self.rows)

    def __getitem__(self, wanted: slice | torch.Tensor) -> torch.Tensor:
        wanted = wanted if isinstance(wanted, slice) else wanted.numpy()
        rows = wanted if self.rows is None else self.rows[wanted]
        return torch.from_numpy(np.concatenate([column[rows].astype(np.float32) for column in self.columns], axis=1))

    def of(self, rows: np.ndarray) -> "Stored":
        return Stored(self.columns, rows)


@dataclass(frozen=True)
class Discriminated:
    """N images projected by both discriminators, each trained on one half, and how well these learned."""

    projected: Mapping[str, np.ndarray]  # half int64 [N]; by_0, by_1, own_view float32 [N, k]
    heads: dict[str, torch.Tensor]  # the weights of both
    losses: np.ndarray  # float64 [2, steps], InfoNCE
    retrieval: dict[str, float]  # before and after: the share of the other half whose own view is the nearest


def discriminate(
    keys: list[str], images: Stored, views: Stored, config: Discriminator, seed: int
) -> Discriminated:  # fmt: skip
    """Train the discriminator of eq. 4 on each half of the data, and project every image by both.

    Args:
        keys: N, ascending. images, views: [penultimate ; pooled intermediate] features of the images and of their views, [N, e].

    Raises:
        ValueError: a half has fewer than two images.
    """
    side = halves(keys, seed)
    by, own_view = [], torch.empty(len(keys), config.dim)
    heads, found = {}, {"before": [], "after": []}
    losses = np.zeros((2, config.steps))
    for half in (0, 1):
        mine, other = np.flatnonzero(side == half), np.flatnonzero(side != half)

        def on_step(step: int, loss: float, half: int = half) -> None:
            losses[half, step] = loss

        own, others = (images.of(mine), views.of(mine)), (images.of(other), views.of(other))
        untrained = train_discriminator(*own, replace(config, steps=0), seed, str(half))
        head = train_discriminator(*own, config, seed, str(half), on_step)
        found["before"].append(retrieval(untrained, *others, RETRIEVAL_LIMIT))
        found["after"].append(retrieval(head, *others, RETRIEVAL_LIMIT))
        by.append(project(head, images).numpy())
        own_view[torch.from_numpy(other)] = project(head, views.of(other))
        heads |= {f"{half}.{name}": value for name, value in head.state_dict().items()}
    projected = {"half": side, "by_0": by[0], "by_1": by[1], "own_view": own_view.numpy()}
    return Discriminated(projected, heads, losses, {when: float(np.mean(v)) for when, v in found.items()})


def image_scores(
    projected: Mapping[str, np.ndarray], members: np.ndarray, rows: slice, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of some images of a bin the bracket of eq. 5, its sum over the whole bin, and the mean cosine to the others.

    An image is scored by the discriminator that was trained on the other half, and so are its negatives.

    Args:
        projected: of `Discriminated`. members: int64 [n], the bin's images, in key order. rows: a range of these.

    Returns:
        float64 [rows] each.
    """
    wanted = members[rows]
    places = np.arange(len(members))[rows]
    ratio, cosine = np.empty(len(wanted)), np.empty(len(wanted))
    for half in (0, 1):
        mine = np.flatnonzero(projected["half"][wanted] == half)
        if not len(mine):
            continue
        whole = torch.from_numpy(projected[f"by_{1 - half}"][members])
        views = torch.zeros_like(whole)
        at = torch.from_numpy(places[mine])
        views[at] = torch.from_numpy(projected["own_view"][wanted[mine]])
        ratio[mine] = ratios(whole, views, at, temperature).numpy()
        cosine[mine] = cosines(whole, at).numpy()
    return ratio, cosine


def bin_scores(
    bins: np.ndarray,
    count: int,
    texture: np.ndarray,
    ratio: np.ndarray,
    cosine: np.ndarray,
    seed: int,
    how: str = "mean",
    norm: str = "minmax",
    scores: str = "both",
) -> dict[str, np.ndarray]:
    """What is known of every bin, by COLUMNS: arrays [m].

    Args:
        bins: int [N], of m = `count`. texture: float [N], eq. 3. ratio, cosine: float [N], of `image_scores`.
        seed: of the bootstrap. how: as in `adq.diversity.diversity`. norm, scores: as in `adq.importance.importance`.

    Raises:
        ValueError: an empty bin.
    """
    rows = []
    for n in range(count):
        mine = np.flatnonzero(bins == n)
        if not len(mine):
            raise ValueError(f"bin {n} is empty: every class has fewer images than bins; lower --bins")

        def div(chosen: np.ndarray, mine: np.ndarray = mine) -> float:
            return diversity(ratio[mine[chosen]], cosine[mine[chosen]], how)

        def rep(chosen: np.ndarray, mine: np.ndarray = mine) -> float:
            return float(texture[mine[chosen]].mean())

        everything = np.arange(len(mine))
        errors = [bootstrap_error(f, len(mine), numpy_generator(seed, "bootstrap", n)) for f in (rep, div)]
        rows.append((n, len(mine), rep(everything), errors[0], div(everything), errors[1], top_share(ratio[mine])))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    normalized = [normalize(columns[i], norm) for i in (2, 4)]
    total = importance(columns[2], columns[4], norm, scores)
    return dict(zip(COLUMNS, [*columns, *normalized, total], strict=True))
