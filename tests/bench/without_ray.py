"""ADQ from shards to a choice without Ray: what the stages of `compress` do, in one process with PyTorch alone.

On a CPU with one thread the choices are those of `compare` to the bit (tests/ray_jobs/test_compare.py).
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adq.coresets import METHODS
from adq.diversity import Discriminator
from adq.dynamics import Dynamics, short_recipe, short_run
from adq.extractor import FeatureExtractor, input_transform
from adq.features import View, features, load
from adq.graphcut import graphcut_bins
from adq.images import EXTENSIONS
from adq.models import build
from adq.pool import Pool
from adq.randomness import global_draws
from adq.scores import Stored, bin_scores, discriminate, image_scores
from adq.selection import ALL_METHODS, BY_BINS, BY_IMPORTANCE, Choice, choose
from adq.training import Recipe, TensorImages, default_recipe, epoch_batches, steps_per_epoch, train
from tests.bench.palettes_data import samples

FEATURE_BATCH, BLOCK, DECODERS = 256, 4096, 8
COLUMNS = ("embedding", "pooled", "view", "view_pooled", "texture")
# Of methods, after a colon.
SETTINGS = {
    "alpha": float, "allocation": str, "balance": str, "depth": float, "permutation": int,
    "beta": float, "neighbours": int, "gamma_reverse": float,
}  # fmt: skip


class OutOfTime(Exception):
    """A training stopped at the end of an epoch, which its checkpoint holds."""


@dataclass(frozen=True)
class Split:
    """Images in the order of their keys, uint8 [N, 3, S, S], and where those of each shard stand, in the shard's order."""

    keys: list[str]
    images: TensorImages
    shards: list[np.ndarray]


def read_split(paths: list[Path], side: int) -> Split:
    """Decode the images of shards, whole if they are of this side, else resized and cut to it.

    Raises:
        ValueError: a shard without images.
    """
    transform = input_transform("convnet-d3", side)  # small images are taken whole
    keys, labels, images, sizes = [], [], [], []
    with ThreadPoolExecutor(DECODERS) as threads:
        for path in paths:
            found = samples(path)
            if not found:
                raise ValueError(f"{path} holds no images")
            keys += found
            labels += [int(sample["cls"]) for sample in found.values()]
            files = [next(sample[e] for e in EXTENSIONS if e in sample) for sample in found.values()]
            images += threads.map(partial(load, transform=transform), files)
            sizes.append(len(found))
    order = sorted(range(len(keys)), key=lambda i: keys[i].encode())
    places = np.empty(len(keys), dtype=np.int64)
    places[order] = np.arange(len(keys))
    data = TensorImages(torch.stack([images[i] for i in order]), np.array(labels)[order])
    return Split([keys[i] for i in order], data, np.split(places, np.cumsum(sizes)[:-1]))


@dataclass(frozen=True)
class Seen:
    """What an extractor and its scores say of the training images."""

    pool: Pool
    importance: np.ndarray  # float64 [m]


def fresh(arch: str, classes: int, side: int, seed: int, role: str) -> torch.nn.Module:
    """A network with the weights that (seed, role, arch) draw."""
    with global_draws(seed, "initial weights", *filter(None, [role]), arch):
        return build(arch, classes, side)


def trained(
    arch: str,
    classes: int,
    data: TensorImages,
    recipe: Recipe,
    seed: int,
    device: str,
    role: str = "",
    start: dict | None = None,
    save: Callable[[int, Callable[[], dict]], None] | None = None,
) -> torch.nn.Module:
    """A network from scratch, or from a checkpoint; its first weights are of (seed, role, arch). See `adq.training.train`."""
    side = data.images.shape[-1]
    model = fresh(arch, classes, side, seed, role)
    batches, per_epoch = partial(epoch_batches, data, recipe, seed), steps_per_epoch(len(data), recipe.batch_size)
    train(model, batches, per_epoch, recipe, input_transform(arch, side), seed, device, start=start, save=save)
    return model


def look(split: Split, arch: str, epochs: int, bins: int, seed: int, device: str) -> dict[str, np.ndarray]:
    """Train an extractor; its embeddings, the bins and ranks of GraphCut (class scope), and the importance of the bins."""
    data = split.images
    side, classes = data.images.shape[-1], int(data.labels.max()) + 1
    model = trained(arch, classes, data, default_recipe(arch, side, epochs), seed, device, "extractor")
    extractor, transform = FeatureExtractor(model, arch).to(device).eval(), input_transform(arch, side)
    columns: dict[str, np.ndarray] = {}
    for shard in split.shards:
        for start in range(0, len(shard), FEATURE_BATCH):
            rows = shard[start : start + FEATURE_BATCH]
            keys = [split.keys[row] for row in rows]
            found = features(extractor, data.batch(rows), keys, transform, View(), seed)
            for name, values in zip(COLUMNS, found, strict=True):
                columns.setdefault(name, np.empty((len(data), *values.shape[1:]), values.dtype))[rows] = values
    embeddings = columns["embedding"]
    number, ranks = graphcut_bins(embeddings, data.labels, bins, device=device)
    images, views = (
        Stored((columns[one], columns[two])) for one, two in (("embedding", "pooled"), ("view", "view_pooled"))
    )
    config = Discriminator()
    made = discriminate(split.keys, images, views, config, seed)
    ratio, cosine = np.empty(len(data)), np.empty(len(data))
    for n in range(bins):
        members = np.flatnonzero(number == n)
        for start in range(0, len(members), BLOCK):
            rows = slice(start, start + BLOCK)
            found = image_scores(made.projected, members, rows, config.temperature)
            ratio[members[rows]], cosine[members[rows]] = found
    scores = bin_scores(number, bins, columns["texture"].astype(np.float64), ratio, cosine, seed)
    return {"embeddings": embeddings, "bins": number, "ranks": ranks} | {f"score_{k}": v for k, v in scores.items()}


def watch(split: Split, arch: str, seed: int, device: str) -> dict[str, np.ndarray]:
    """How the training images are learnt in a short training, for the methods that select by difficulty: `Dynamics` as arrays."""
    data = split.images
    side, classes = data.images.shape[-1], int(data.labels.max()) + 1
    model = fresh(arch, classes, side, seed, "watched")
    return vars(short_run(data, model, short_recipe(arch, side), input_transform(arch, side), seed, device))


def seen(split: Split, looked: Mapping[str, np.ndarray], watched: Mapping[str, np.ndarray] | None = None) -> Seen:
    """What `look` and `watch` found, as methods take it."""
    labels = np.asarray(split.images.labels, dtype=np.int64)
    learnt = Dynamics(**watched) if watched else None
    pool = Pool(split.keys, labels, looked["embeddings"], looked["bins"], looked["ranks"], learnt)
    return Seen(pool, looked["score_importance"])


def choice(known: Seen, method: str, keep: float, seed: int) -> Choice:
    """What a method keeps, in the order of the keys.

    Args:
        method: a name, with settings after colons: see `parsed`.
    """
    name, settings = parsed(method)
    return choose(known.pool, name, keep, seed, known.importance, **settings)


def parsed(method: str) -> tuple[str, dict[str, object]]:
    """A method's name and settings, such as adq:alpha=1.

    Raises:
        ValueError: an unknown name, or a setting that it does not read.
    """
    name, *given = method.split(":")
    if name not in ALL_METHODS:
        raise ValueError(f"method {name!r}: expected one of {', '.join(ALL_METHODS)}")
    reads = ("alpha", "allocation") if name in BY_IMPORTANCE else METHODS[name].settings
    reads += ("balance",) if name in (*BY_BINS, "random") else ()
    reads += ("permutation",) if name == "adq-permuted" else ()
    pairs = [setting.partition("=")[::2] for setting in given]
    if unknown := [setting for setting, _ in pairs if setting not in reads]:
        raise ValueError(f"method {name} has no setting {unknown[0]!r} here; known: {', '.join(reads) or 'none'}")
    return name, {setting: SETTINGS[setting](value) for setting, value in pairs}
