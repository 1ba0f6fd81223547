"""Starts of a synthetic set: real images chosen class by class, in full colour, or noise.

The colour-guided start of AutoPalette is "graphcut" with embeddings of quantised images (`quantise`), made by a network that was
trained on quantised images: exact greedy GraphCut, which the caller's embeddings make colour-guided.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adq.graphcut import graphcut_select
from adq.randomness import numpy_generator, torch_generator
from palette.quantize import median_cut, paint

STARTS = ("graphcut", "random", "noise", "kmeans")
WITH_EMBEDDINGS = ("graphcut", "kmeans")


def quantise(images: Tensor, colors: int, chunk: int = 512) -> Tensor:
    """uint8 [N, H, W, 3] to the same images in `colors` colours each, by median cut."""
    return torch.cat([paint(*median_cut(part, colors)) for part in images.split(chunk)])


def initialize(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    images_per_class: int,
    start: str = "graphcut",
    embeddings: np.ndarray | None = None,
    lam: float | str = "balanced",
    seed: int = 0,
) -> Tensor:
    """The images that a synthetic set starts from; those of a class depend on nothing of the others.

    Args:
        images: uint8 [N, S, S, 3], in the order of their keys.
        labels: int64 [N].
        classes: those that are wanted.
        start: "graphcut", "kmeans" (the image nearest to each k-means centre), "random" (real images) or "noise".
        embeddings: float [N, d], for "graphcut" and "kmeans".
        lam: GraphCut's weight of the similarity to all; "balanced" is 2 k / n for k images of n: with lam = 1, as
            published, and k far below n, the picks are just those nearest to the mean of the class.

    Returns:
        uint8 [len(classes) * images_per_class, S, S, 3], class by class, in the order of the picks.

    Raises:
        ValueError: an unknown start, no embeddings where they are needed, or a class with too few images.
    """
    if start not in STARTS:
        raise ValueError(f"start {start!r}: expected one of {', '.join(STARTS)}")
    if start == "noise":
        return torch.cat([_noise(images.shape[1:], images_per_class, seed, label) for label in classes])
    if start in WITH_EMBEDDINGS and (embeddings is None or len(embeddings) != len(images)):
        raise ValueError(f"start {start!r} needs one row of embeddings for each of the {len(images)} images")
    chosen = []
    for label in classes:
        members = (labels.cpu() == label).nonzero()[:, 0].numpy()
        if len(members) < images_per_class:
            raise ValueError(f"class {label} has {len(members)} images: {images_per_class} are needed to start from")
        if start == "random":
            picks = numpy_generator(seed, "start", label).permutation(len(members))[:images_per_class]
        elif start == "kmeans":
            picks = _nearest_to_centres(embeddings[members], images_per_class, seed, label)
        else:
            weight = 2.0 * images_per_class / len(members) if lam == "balanced" else float(lam)
            picks = graphcut_select(embeddings[members], images_per_class, kernel="cosine", lam=weight)
        chosen.append(members[picks])
    return images[torch.from_numpy(np.concatenate(chosen)).to(images.device)].cpu()


def _noise(shape: Sequence[int], count: int, seed: int, label: int) -> Tensor:
    """Normal noise, of mean 127.5 and deviation 63.75 levels, as natural images have about."""
    values = torch.randn(count, *shape, generator=torch_generator(seed, "start", label))
    return (values * 63.75 + 127.5).clamp(0, 255).round().to(torch.uint8)


def _nearest_to_centres(rows: np.ndarray, count: int, seed: int, label: int, iterations: int = 30) -> np.ndarray:
    """k-means with a k-means++ start, then the nearest row to each centre, none twice: int64 [count]."""
    rows = rows.astype(np.float64)
    generator = numpy_generator(seed, "start", label)
    picks = [int(generator.integers(len(rows)))]
    distances = np.full(len(rows), np.inf)
    for _ in range(count - 1):
        distances = np.minimum(distances, ((rows - rows[picks[-1]]) ** 2).sum(axis=1))
        total = distances.sum()
        picks.append(int(generator.choice(len(rows), p=distances / total if total else None)))
    centres = rows[picks]
    for _ in range(iterations):
        nearest = _squared_distances(rows, centres).argmin(axis=1)
        centres = np.stack(
            [rows[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k] for k in range(count)]
        )
    distances = _squared_distances(rows, centres)
    out = []
    for k in range(count):
        distances[out, k] = np.inf
        out.append(int(distances[:, k].argmin()))
    return np.array(out, dtype=np.int64)


def _squared_distances(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return (rows**2).sum(axis=1)[:, None] - 2 * rows @ centres.T + (centres**2).sum(axis=1)
