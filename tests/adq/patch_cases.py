"""Images with masks of their patches, and containers of them."""

import binascii
import io
import struct
from itertools import product

import numpy as np
from PIL import Image

from adq import images
from adq.patches import decode, encode, grid, keep_mask
from adq.randomness import numpy_generator


def saved(pixels: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A colourful picture whose neighbouring patches differ: uint8 [height, width, 3]."""
    coarse = numpy_generator(0, "smooth").integers(50, 200, (9, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def random_mask(height: int, width: int, theta: float = 0.25) -> np.ndarray:
    place = grid(height, width)
    return keep_mask(numpy_generator(0, "mask", height, width).random((place.rows, place.columns)), theta)


def whole(height: int, width: int) -> np.ndarray:
    return random_mask(height, width, 0)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9))


def fidelity(data: bytes, mask: np.ndarray, **options) -> float:
    """PSNR of the kept pixels against the decoded source, after checks of everything else that comes back."""
    source = np.asarray(images.decode(data))
    found = decode(encode(data, mask, **options))
    height, width = source.shape[:2]
    assert found.grid == grid(height, width) and np.array_equal(found.mask, mask)
    assert (
        found.pixels.dtype == np.uint8 and found.pixels.shape == source.shape and found.known.shape == (height, width)
    )
    for y, x in product(range(0, height, 5), range(0, width, 5)):
        assert found.known[y, x] == mask[y // found.grid.side, x // found.grid.side]
    assert not found.pixels[~found.known].any()
    return psnr(found.pixels[found.known], source[found.known])


def sealed(content: bytes) -> bytes:
    return content + struct.pack("<H", binascii.crc_hqx(content, 0))


def container(height=16, width=16, side=8, kind=4, quality=75, mask=b"\xf0", body=bytes(40), version=1) -> bytes:
    return sealed(struct.pack("<4sBHHBBB", b"\x89TSP", version, height, width, side // 8, kind, quality) + mask + body)
