"""Image files of many kinds, and containers of them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

CLASSES = ["cat", "kůň 馬", ""]


def noise(seed: int, height: int = 12, width: int = 10, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8), mode
    )


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of_few_colours(seed: int) -> Image.Image:
    return noise(seed).quantize(7)


# By name: an image file of a seed. Of KINDS, all have one head; of OTHERS, each has its own or none.
KINDS = {
    "jpeg": lambda s: saved(noise(s), "JPEG", quality=75),
    "grey jpeg": lambda s: saved(noise(s, mode="L"), "JPEG"),
    "cmyk jpeg": lambda s: saved(noise(s, mode="CMYK"), "JPEG"),
    "commented jpeg": lambda s: saved(noise(s), "JPEG", comment=b"the same \xff\xda in each", icc_profile=bytes(300)),
    "webp": lambda s: saved(noise(s), "WEBP", quality=50),
    "lossless webp": lambda s: saved(noise(s), "WEBP", lossless=True),
    "png": lambda s: saved(noise(s), "PNG"),
    "palette png": lambda s: saved(of_few_colours(s), "PNG", transparency=bytes([s % 256] * 3)),
    "png of many chunks": lambda s: saved(noise(s, 180, 180), "PNG"),
}
OTHERS = {
    "optimised jpeg": lambda s: saved(noise(s), "JPEG", optimize=True),
    "progressive jpeg": lambda s: saved(noise(s), "JPEG", progressive=True),
    "webp with alpha": lambda s: saved(noise(s, mode="RGBA"), "WEBP"),
    "gif": lambda s: saved(of_few_colours(s), "GIF"),
    "bmp": lambda s: saved(noise(s), "BMP"),
    "tiff": lambda s: saved(noise(s), "TIFF"),
    "no image": lambda s: b"no image at all",
    "nothing": lambda s: b"",
}
EVERY = KINDS | OTHERS


def sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))
