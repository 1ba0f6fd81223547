"""Small sets of images in few colours, and containers of them."""

import struct
import zlib

import numpy as np

from palette.codec import HEADER, MAGIC, decode, encode
from palette.quantize import median_cut, paint
from tests.palette.images import few_colours, noise

CLASSES = ["cat", "kůň 馬", ""]


def sets(count: int, colors: int, height: int = 8, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Palettes and indices of noise, some of whose colours are not used or come twice."""
    rng = np.random.default_rng(seed)
    palettes = rng.integers(0, 256, (count, colors, 3), dtype=np.uint8)
    palettes[:, -1] = palettes[:, 0]
    return palettes, rng.integers(0, rng.integers(1, colors + 1), (count, height, width)).astype(np.uint8)


def small() -> bytes:
    palettes, indices = median_cut(np.concatenate([noise(2, 4, 5), few_colours(1, 1, 4, 5)]), 5)
    return encode(palettes, indices, np.array([2, 0, 1]), CLASSES)


def sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


def header(height=4, width=5, colors=5, classes=1, count=3, version=1, soft=0, magic=MAGIC) -> bytes:
    return HEADER.pack(magic, version, soft, height, width, colors, classes, count)


def same(data: bytes, palettes: np.ndarray, indices: np.ndarray) -> None:
    found, places, _, _ = decode(data)
    assert found.shape == palettes.shape and found.dtype == places.dtype == np.uint8
    np.testing.assert_array_equal(paint(found, places), paint(palettes, indices))
