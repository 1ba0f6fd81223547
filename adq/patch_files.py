"""The picture of kept patches as a file, and without what every reader knows: JPEG tables of a quality, headers, WebP's frame.

See the format at the top of `adq.patches`.
"""

import io
import re
import struct
import warnings
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

from adq import images
from adq.file_heads import EOI, RIFF, SOI, SOS, join, split

WEBP, GREY, JPEG_444, JPEG_422, JPEG_420 = range(5)
OWN_HUFFMAN = 8
BLOCKS = {GREY: 1, JPEG_444: 3, JPEG_422: 2, JPEG_420: 1.5}  # of a JPEG, for each 8 x 8 pixels
LUMA_SAMPLING = {GREY: 0x11, JPEG_444: 0x11, JPEG_422: 0x21, JPEG_420: 0x22}
SAMPLINGS = {0: JPEG_444, 1: JPEG_422, 2: JPEG_420}  # Pillow's numbers
ROOM = ImageFile.MAXBLOCK  # bytes that Pillow reserves at least for a file with own Huffman tables
DQT, DHT, SOF0 = 0xDB, 0xC4, 0xC0
HUFFMAN_TABLES = (0x00, 0x10, 0x01, 0x11)  # DC and AC of luma, then of chroma


def read_planes(file: bytes, kind: int, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, C] of the picture: RGB of WebP, otherwise luma and chroma."""
    try:
        with Image.open(io.BytesIO(file), formats=("WEBP" if kind == WEBP else "JPEG",)) as image:
            if image.size != shape[::-1]:
                raise ValueError(f"{image.size} pixels instead of {shape[::-1]}")
            image.draft("YCbCr", image.size)
            return np.asarray(image).reshape(*shape, -1)
    except Exception as error:  # as of `images.decode`
        raise ValueError(f"the picture in the container of patches: {type(error).__name__}: {error}") from error


def saved(picture: np.ndarray, mode: str, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image = Image.frombytes(mode, picture.shape[1::-1], picture.tobytes())
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def plain_jpeg(data: bytes) -> tuple[int, np.ndarray, tuple[tuple[int, ...], ...]] | None:
    """(kind, luma and chroma [H, W, C], tables of luma and chroma) of an upright baseline-precision JPEG; None for other files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
            kind = GREY if image.mode == "L" else SAMPLINGS.get(JpegImagePlugin.get_sampling(image))
            tables = tuple(tuple(image.quantization[component[3]]) for component in image.layer)
            turned = image.getexif().get(ExifTags.Base.Orientation) in images.UPRIGHT
            if kind is None or turned or tables[1:2] != tables[2:3] or max(map(max, tables)) > 255:
                return None
            image.draft("YCbCr", image.size)  # which libjpeg refuses of a JPEG that holds RGB
            return kind, np.asarray(image).reshape(image.height, image.width, -1), tables[:2]
    except Exception:  # what a damaged file raises, too: `images.decode` gives its reason
        return None


def jpeg_body(picture: np.ndarray, kind: int, tables: tuple[tuple[int, ...], ...]) -> tuple[int, int, bytes]:
    """(kind with OWN_HUFFMAN, quality, bytes) of a picture, as the format has them."""
    settings = {"qtables": [list(table) for table in tables], "subsampling": kind - JPEG_444}
    mode = "L" if kind == GREY else "YCbCr"
    head, scan = split(saved(picture, mode, "JPEG", **settings))
    quality = _qualities(kind).get(tables, 0)
    start = b"" if quality else b"".join(body[1:] for body in segments(head, DQT))
    if len(scan) < max(ROOM, 2 * picture.shape[0] * picture.shape[1]) - ROOM // 2:  # Pillow has no room for more
        head, tuned = split(saved(picture, mode, "JPEG", optimize=True, **settings))
        tuned = b"".join(body[1:] for body in segments(head, DHT)) + tuned
        if len(tuned) < len(scan):
            return kind + OWN_HUFFMAN, quality, start + tuned
    return kind, quality, start + scan


def jpeg_file(body: bytes, kind: int, own: bool, quality: int, shape: tuple[int, int]) -> bytes:
    """The JPEG of what the format has of it. Raises ValueError where that cannot be."""
    numbers = range(1 if kind == GREY else 2)
    head = plain_head(quality or 1, kind)
    quantisation, huffman = (segments(head, marker) for marker in (DQT, DHT))
    if not quality:
        quantisation, body = [bytes([i]) + body[64 * i : 64 * (i + 1)] for i in numbers], body[64 * len(numbers) :]
    if own:
        huffman = []
        for number in HUFFMAN_TABLES[: 2 * len(numbers)]:
            size = 16 + sum(body[:16])
            huffman.append(bytes([number]) + body[:size])
            body = body[size:]
    if 8 * len(body) < 2 * BLOCKS[kind] * (shape[0] // 8) * (shape[1] // 8):  # a block has at least two codes
        raise ValueError(
            f"the container of patches holds {len(body)} bytes of a JPEG of {shape[0]} x {shape[1]} pixels"
        )
    if re.search(rb"\xff(?!\0)", body):
        raise ValueError("the JPEG in the container of patches holds a marker inside its scan")
    components = [(1, LUMA_SAMPLING[kind], 0), (2, 0x11, 1), (3, 0x11, 1)][: 1 if kind == GREY else 3]
    frame = struct.pack(">BHHB", 8, *shape, len(components)) + b"".join(map(bytes, components))
    scan = bytes([len(components)]) + b"".join(bytes([i, 0x11 * table]) for i, _, table in components) + b"\0\x3f\0"
    parts = (
        [(DQT, table) for table in quantisation] + [(SOF0, frame)] + [(DHT, table) for table in huffman] + [(SOS, scan)]
    )
    return join(SOI + b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(x)) + x for marker, x in parts) + EOI, body)


def webp_file(body: bytes, shape: tuple[int, int]) -> bytes:
    return join(RIFF + b"VP8 \x9d\x01\x2a" + struct.pack("<HH", *shape[::-1]), body)


def segments(head: bytes, wanted: int) -> list[bytes]:
    """The contents of the segments of a kind in the head of a JPEG."""
    found, at = [], 2
    while head[at + 1] != SOS:
        end = at + 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        if head[at + 1] == wanted:
            found.append(head[at + 4 : end])
        at = end
    return found


@cache
def plain_head(quality: int, kind: int) -> bytes:
    """The head of libjpeg's JPEG of this quality, with the tables of Annex K."""
    block = np.zeros((8, 8, 1 if kind == GREY else 3), dtype=np.uint8)
    return split(saved(block, "L" if kind == GREY else "YCbCr", "JPEG", quality=quality))[0]


def tables_of(quality: int, kind: int) -> tuple[tuple[int, ...], ...]:
    """The quantisation tables of a quality as Pillow has them."""
    image = Image.open(io.BytesIO(join(plain_head(quality, kind), b"")), formats=("JPEG",))
    return tuple(tuple(table) for table in image.quantization.values())


@cache
def _qualities(kind: int) -> dict[tuple[tuple[int, ...], ...], int]:
    return {tables_of(quality, kind): quality for quality in range(1, 101)}
