"""Images of which only some patches are stored: the grid of patches, what is kept, and the container of what is left.

Format, version 1. Numbers are little endian.

    magic        4 bytes    89 54 53 50
    version      1 byte     1
    height       2 bytes    H, from 1 to 16,384; H W is at most 2^26
    width        2 bytes    W
    side         1 byte     of a patch, in units of 8 pixels; `grid` says which
    kind         1 byte     0 WebP, 1 grey JPEG, 2 JPEG 4:4:4, 3 JPEG 4:2:2, 4 JPEG 4:2:0; 8 more: a JPEG with own Huffman tables
    quality      1 byte     of a JPEG's quantisation tables, 1 to 100: those of Annex K of ITU-T T.81, scaled as libjpeg does;
                            0: own tables, and of WebP
    mask         a bit a patch, 1 where it is kept, row by row, highest bit first; the last byte is filled up with zeros
    picture      the kept patches, see below
    CRC-16       2 bytes    of everything before it: polynomial 0x1021, from 0 (XMODEM)

The picture is made of tiles, and mended when it is read, as `adq.patch_layout` says. Of its file, this is stored:

    WebP    the only chunk of the file, "VP8 ", without its bytes 3 to 9: the start code and the sides
    JPEG    own quantisation tables: of luma and, unless it is grey, chroma, 64 bytes each in zigzag order; own Huffman tables: DC
            and AC of luma and, unless it is grey, of chroma, each as 16 counts, then the symbols; the scan of the baseline file,
            without restart markers, of the components 1 (luma), 2 and 3 (chroma). Other Huffman tables are those of Annex K
"""

import binascii
import math
import struct
from dataclasses import dataclass

import numpy as np

from adq import images
from adq.file_heads import split
from adq.patch_files import (
    JPEG_420,
    OWN_HUFFMAN,
    WEBP,
    jpeg_body,
    jpeg_file,
    plain_jpeg,
    read_planes,
    saved,
    tables_of,
    webp_file,
)  # fmt: skip
from adq.patch_layout import SMOOTHED, columns_of, laid, mend, spread, tiling, unlaid

MAGIC = b"\x89TSP"
VERSION = 1
HEADER = struct.Struct("<4sBHHBBB")  # magic, version, height, width, side / 8, kind, quality
CHECKSUM = 2
LARGEST_SIDE, LARGEST = 1 << 14, 1 << 26
SMALL = 96  # pixels, below which an image has patches of 8
WEBP_QUALITY = 90
SLAB = 256  # rows that are converted at once: little memory for large images


@dataclass(frozen=True)
class Grid:
    """Patches of side x side pixels from the top left corner; the last row and column may be cut by the border."""

    side: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Patches:
    """The kept patches of an image, where they lie."""

    pixels: np.ndarray  # uint8 [H, W, 3], 0 in gaps
    known: np.ndarray  # bool [H, W]
    grid: Grid
    mask: np.ndarray  # bool [rows, columns], True where kept


def fits(height: int, width: int) -> bool:
    """Whether an image of so many pixels has a `grid`: sides of 1 to 16,384, and at most 2^26 pixels."""
    return min(height, width) >= 1 and max(height, width) <= LARGEST_SIDE and height * width <= LARGEST


def grid(height: int, width: int) -> Grid:
    """The patches of an image: a multiple of 16 pixels near a 14th of the shorter side; 8 where that is below 96 pixels.

    Raises:
        ValueError: a side outside 1 to 16,384, or more than 2^26 pixels.
    """
    shorter = min(height, width)
    if not fits(height, width):
        raise ValueError(f"{height} x {width} pixels: expected sides of 1 to {LARGEST_SIDE:,} and at most 2^26 pixels")
    side = 8 if shorter < SMALL else 16 * max(1, round(shorter / (14 * 16)))
    return Grid(side, -(-height // side), -(-width // side))


def keep_mask(saliency: np.ndarray, theta: float) -> np.ndarray:
    """Which patches stay when the floor(theta n) least salient of n are dropped; of equals, the lowest index goes first.

    Args:
        saliency: real [rows, columns]. theta: from 0 to below 1.

    Returns:
        bool [rows, columns]; at least one is kept.

    Raises:
        ValueError: another shape, NaN, or theta out of range.
    """
    saliency = np.asarray(saliency)
    if saliency.ndim != 2 or not saliency.size:
        raise ValueError(f"the saliency has shape {list(saliency.shape)}; expected [rows, columns]")
    if np.isnan(saliency).any():
        raise ValueError("the saliency of a patch is NaN; the network that gave it is broken")
    if not 0 <= theta < 1:
        raise ValueError(f"theta {theta}: the share of patches to drop is from 0 to below 1")
    dropped = math.floor(round(theta * saliency.size, 9))  # 0.29 of 100 are 29, though the product is below
    mask = np.ones(saliency.size, dtype=bool)
    mask[np.argsort(saliency, axis=None, kind="stable")[: min(dropped, saliency.size - 1)]] = False
    return mask.reshape(saliency.shape)


def is_patches(data: bytes) -> bool:
    """Whether these bytes begin as a container of patches does."""
    return data[: len(MAGIC)] == MAGIC


def header_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the whole image, from the header alone. Raises ValueError."""
    height, width, *_ = _header(data)
    return width, height


def encode(data: bytes, mask: np.ndarray, quality: int | None = None, codec: str = "jpeg") -> bytes:
    """The kept patches of an image as bytes.

    Without a quality, a JPEG (grey or YCbCr, upright) is stored with its own quantisation tables and subsampling. Its blocks stay
    whole and its chroma samples are recovered, so that coefficients come out as they were: all but a few where the tables are fine
    (quality 90 and above), and those of blocks that the image's border cuts. Any other image becomes WebP of quality 90.

    Args:
        data: an image file. mask: bool [rows, columns] of the image's `grid`, upright; True where a patch is kept.
        quality: 1 to 100, with which `codec` ("jpeg", 4:2:0, or "webp") stores the patches; None as above, whatever the codec.

    Raises:
        adq.images.UndecodableImage: the file is no image.
        ValueError: a mask of another shape or without any patch, an image too large, an unknown codec or quality.
    """
    if codec not in ("jpeg", "webp") or not (quality is None or 1 <= quality <= 100):
        raise ValueError(f"codec {codec!r}, quality {quality}: expected jpeg or webp, and 1 to 100 or None")
    source = plain_jpeg(data) if quality is None else None
    if source:
        kind, planes, tables = source
    else:
        image = images.decode(data)
        kind = WEBP if quality is None or codec == "webp" else JPEG_420
        planes = np.asarray(image if kind == WEBP else image.convert("YCbCr"))
        tables = () if kind == WEBP else tables_of(quality, JPEG_420)
    height, width = planes.shape[:2]
    place, mask = grid(height, width), np.asarray(mask)
    if mask.dtype != bool or mask.shape != (place.rows, place.columns) or not mask.any():
        raise ValueError(
            f"the mask is {mask.dtype} {list(mask.shape)} with {np.count_nonzero(mask)} patches kept; expected bool "
            f"{[place.rows, place.columns]} for {height} x {width} pixels, at least one of them True"
        )
    picture = laid(planes, mask, place.side, kind, recover=source is not None)
    if kind == WEBP:
        level, body = 0, split(saved(picture, "RGB", "WEBP", quality=quality or WEBP_QUALITY, method=6))[1]
    else:
        kind, level, body = jpeg_body(picture, kind, tables)
    content = (
        HEADER.pack(MAGIC, VERSION, height, width, place.side // 8, kind, level) + np.packbits(mask).tobytes() + body
    )
    return content + struct.pack("<H", binascii.crc_hqx(content, 0))


def decode(data: bytes) -> Patches:
    """What `encode` has kept.

    Memory is bounded by the sides in the header, which `grid` bounds: the picture is decoded as what the mask says that it must be.

    Raises:
        ValueError: bytes that `encode` does not write: truncated, altered, claiming too much; says which.
    """
    height, width, place, kind, own, quality = _header(data)
    count = place.rows * place.columns
    start = HEADER.size + -(-count // 8)
    if len(data) < start + CHECKSUM:
        raise ValueError("the container of patches ends inside its mask")
    if binascii.crc_hqx(data[:-CHECKSUM], 0) != int.from_bytes(data[-CHECKSUM:], "little"):
        raise ValueError(
            "the container of patches is damaged, truncated or followed by other bytes: its checksum differs"
        )
    bits = np.unpackbits(np.frombuffer(data, np.uint8, start - HEADER.size, HEADER.size)).astype(bool)
    mask = bits[:count].reshape(place.rows, place.columns)
    if bits[count:].any() or not mask.any():
        raise ValueError("the mask of the container keeps no patch, or patches outside the image")
    side, tiles = tiling(mask, place.side, kind)
    count = np.count_nonzero(tiles)
    layout = -(-count // columns_of(count)), columns_of(count)
    shape = (layout[0] * side, layout[1] * side)
    body = data[start:-CHECKSUM]
    file = webp_file(body, shape) if kind == WEBP else jpeg_file(body, kind, own, quality, shape)
    planes = unlaid(read_planes(file, kind, shape), tiles, side)
    for axis in SMOOTHED.get(kind, ()):
        mend(planes[..., 1:], tiles, layout, axis)
    planes = planes.reshape(tiles.shape[0] * side, tiles.shape[1] * side, -1)[:height, :width]
    pixels = planes.copy() if kind == WEBP else _rgb(planes)
    known = spread(mask, place.side)[:height, :width]
    pixels *= known[:, :, None]
    return Patches(pixels, known, place, mask)


def _header(data: bytes) -> tuple[int, int, Grid, int, bool, int]:
    """(height, width, grid, kind, whether a JPEG has own Huffman tables, quality)."""
    if not is_patches(data) or len(data) < HEADER.size:
        raise ValueError("no container of patches: it begins otherwise, or is cut short")
    _, version, height, width, side, kind, quality = HEADER.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"the container of patches has version {version}; this reader knows version {VERSION}")
    place = grid(height, width)
    if 8 * side != place.side:
        raise ValueError(f"patches of {8 * side} pixels in {height} x {width}; expected {place.side}")
    own, kind = divmod(kind, OWN_HUFFMAN)
    if kind > JPEG_420 or own > (kind != WEBP) or quality > (100 if kind else 0):
        raise ValueError(f"the container of patches is of kind {8 * own + kind}, quality {quality}, which are unknown")
    return height, width, place, kind, bool(own), quality


def _rgb(planes: np.ndarray) -> np.ndarray:
    """YCbCr or grey to RGB, rounded as libjpeg does; Pillow's own conversion is off by one in two pixels of five."""
    if planes.shape[2] == 1:
        return np.repeat(planes, 3, axis=2)
    out = np.empty(planes.shape, dtype=np.uint8)
    for top in range(0, len(planes), SLAB):
        luma, blue, red = np.moveaxis(planes[top : top + SLAB].astype(np.int32), 2, 0)
        blue, red = blue - 128, red - 128
        parts = 91881 * red, -22554 * blue - 46802 * red, 116130 * blue  # 1.402, -0.344136, -0.714136, 1.772 by 2^16
        for channel, part in enumerate(parts):
            out[top : top + SLAB, :, channel] = (luma + ((part + 32768) >> 16)).clip(0, 255)
    return out
