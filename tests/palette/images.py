"""The images that the tests quantise: real ones, noise, and images of few colours."""

import io

import numpy as np
from PIL import Image

from adq.shards import locate, read_samples
from tests.conftest import cifar10_shard


def cifar10(count: int) -> np.ndarray:
    """uint8 [count, 32, 32, 3]; skips where the real images are missing."""
    data = locate([cifar10_shard(0)])
    found = [np.asarray(Image.open(io.BytesIO(sample["jpg"]))) for sample in first(count, data)]
    return np.stack(found)


def first(count: int, data) -> list[dict]:
    samples = read_samples(data, data.shards[0])
    return [next(samples) for _ in range(count)]


def noise(count: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def few_colours(count: int, colors: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """Images of exactly `colors` colours each, at most height * width."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, height * width, 3), dtype=np.uint8)
    for image in out:
        codes = rng.choice(1 << 24, colors, replace=False)
        table = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
        image[:] = table[rng.permutation(np.arange(height * width) % colors)]
    return out.reshape(count, height, width, 3)
