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

The image is cut into tiles; its last row and column are repeated where tiles go beyond. A tile is a patch. Only where chroma is
subsampled (WebP, 4:2:2, 4:2:0), so that a block of it covers 16 pixels, and a patch has 8, a tile is 2 x 2 patches. The n tiles
with a kept patch are put side by side, in their order, row by row, in a picture of c columns: of the numbers from ceil(sqrt(n)) to
half as many more, the first that leaves the fewest places empty in the last row. Empty places, and dropped patches in tiles of
2 x 2, hold anything that costs little.

    WebP    the only chunk of the file, "VP8 ", without its bytes 3 to 9: the start code and the sides
    JPEG    own quantisation tables: of luma and, unless it is grey, chroma, 64 bytes each in zigzag order; own Huffman tables: DC
            and AC of luma and, unless it is grey, of chroma, each as 16 counts, then the symbols; the scan of the baseline file,
            without restart markers, of the components 1 (luma), 2 and 3 (chroma). Other Huffman tables are those of Annex K

Decoders that smooth chroma (libjpeg: a pixel is 3/4 of its own sample and 1/4 of the next) do so across tiles that were no
neighbours in the image. `decode` smooths these borders anew, with the true neighbour, or with none where it was dropped.
"""

import binascii
import math
import struct
from dataclasses import dataclass

import numpy as np

from adq import images
from adq.container import split
from adq.patch_files import (
    GREY,
    JPEG_420,
    JPEG_422,
    JPEG_444,
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

MAGIC = b"\x89TSP"
VERSION = 1
HEADER = struct.Struct("<4sBHHBBB")  # magic, version, height, width, side / 8, kind, quality
CHECKSUM = 2
LARGEST_SIDE, LARGEST = 1 << 14, 1 << 26
SMALL = 96  # pixels, below which an image has patches of 8

SMOOTHED = {JPEG_422: (1,), JPEG_420: (0, 1)}  # the axes along which chroma has half as many samples
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


def grid(height: int, width: int) -> Grid:
    """The patches of an image: a multiple of 16 pixels near a 14th of the shorter side; 8 where that is below 96 pixels.

    Raises:
        ValueError: a side outside 1 to 16,384, or more than 2^26 pixels.
    """
    shorter = min(height, width)
    if shorter < 1 or max(height, width) > LARGEST_SIDE or height * width > LARGEST:
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
    picture = _picture(planes, mask, place, kind, recover=source is not None)
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
    side, tiles = _tiles(mask, place.side, kind)
    count = np.count_nonzero(tiles)
    layout = -(-count // _columns(count)), _columns(count)
    shape = (layout[0] * side, layout[1] * side)
    body = data[start:-CHECKSUM]
    file = webp_file(body, shape) if kind == WEBP else jpeg_file(body, kind, own, quality, shape)
    planes = _unlaid(read_planes(file, kind, shape), tiles, side)
    for axis in SMOOTHED.get(kind, ()):
        _mend(planes[..., 1:], tiles, layout, axis)
    planes = planes.reshape(tiles.shape[0] * side, tiles.shape[1] * side, -1)[:height, :width]
    pixels = planes.copy() if kind == WEBP else _rgb(planes)
    known = _spread(mask, place.side)[:height, :width]
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


def _spread(mask: np.ndarray, side: int) -> np.ndarray:
    return mask.repeat(side, axis=0).repeat(side, axis=1)


def _tiles(mask: np.ndarray, side: int, kind: int) -> tuple[int, np.ndarray]:
    """The side of a tile, and which tiles are stored: bool [tile rows, tile columns]."""
    if side >= 16 or kind in (GREY, JPEG_444):
        return side, mask
    mask = np.pad(mask, [(0, length % 2) for length in mask.shape])
    return 2 * side, mask[0::2, 0::2] | mask[0::2, 1::2] | mask[1::2, 0::2] | mask[1::2, 1::2]


def _columns(tiles: int) -> int:
    least = math.isqrt(tiles - 1) + 1
    return min(range(least, least + least // 2 + 1), key=lambda columns: -tiles % columns)


def _picture(planes: np.ndarray, mask: np.ndarray, place: Grid, kind: int, recover: bool) -> np.ndarray:
    """The tiles side by side: uint8 [h, w, C] of planes [H, W, C]."""
    side, stored = _tiles(mask, place.side, kind)
    shape = (stored.shape[0] * side, stored.shape[1] * side)
    planes = np.pad(
        planes, [(0, to - length) for to, length in zip(shape, planes.shape[:2], strict=True)] + [(0, 0)], "edge"
    )
    if recover:
        for axis in SMOOTHED.get(kind, ()):
            planes[..., 1:] = _samples(planes[..., 1:], axis)
    known = np.pad(mask, [(0, to // place.side - length) for to, length in zip(shape, mask.shape, strict=True)])
    tiles = _cut(planes, side)[stored]
    # Flat luma without its chroma costs least of a JPEG: whole blocks of chroma keep their coefficients.
    painted = tiles if kind == WEBP else tiles[..., :1]
    if side > place.side:
        for tile, here in zip(painted, _cut(_spread(known, place.side)[..., None], side)[stored, ..., 0], strict=True):
            tile[~here] = tile[here].mean(axis=0).round()
    columns = _columns(len(tiles))
    flat = tiles[-1, -8:, -8:].mean(axis=(0, 1)).round().astype(np.uint8)  # the mean of the last block: no change of it
    tiles = np.concatenate([tiles, np.broadcast_to(flat, (-len(tiles) % columns, *tiles.shape[1:]))])
    rows = len(tiles) // columns
    return tiles.reshape(rows, columns, side, side, -1).swapaxes(1, 2).reshape(rows * side, columns * side, -1)


def _cut(planes: np.ndarray, side: int) -> np.ndarray:
    """[R side, C side, n] to tiles [R, C, side, side, n]."""
    rows, columns = (length // side for length in planes.shape[:2])
    return planes.reshape(rows, side, columns, side, -1).swapaxes(1, 2)


def _unlaid(picture: np.ndarray, stored: np.ndarray, side: int) -> np.ndarray:
    """The tiles of a picture where they were in the image, zeros elsewhere: uint8 [R, side, C, side, n]."""
    out = np.zeros((*stored.shape, side, side, picture.shape[2]), dtype=np.uint8)
    out[stored] = _cut(picture, side).reshape(-1, *out.shape[2:])[: np.count_nonzero(stored)]
    return np.ascontiguousarray(out.swapaxes(1, 2))


def _samples(chroma: np.ndarray, axis: int) -> np.ndarray:
    """The samples, each twice, of chroma that was smoothed along an axis; the mean of libjpeg gives them back as they are.

    Sample c between l and r became the pixels a = (3 c + l) / 4 and b = (3 c + r) / 4, so that with the pixels next to them,
    (3 l + c) / 4 and (3 r + c) / 4, it is 3 (a + b) less these, by 4.
    """
    moved = np.moveaxis(chroma, axis, 0).astype(np.int16)
    wide = np.concatenate([moved[:1], moved, moved[-1:]])
    samples = (3 * (moved[0::2] + moved[1::2]) - wide[0:-2:2] - wide[3::2] + 2) >> 2
    return np.moveaxis(samples.clip(0, 255).repeat(2, axis=0), 0, axis)


def _mend(chroma: np.ndarray, stored: np.ndarray, layout: tuple[int, int], axis: int) -> None:
    """Smooth chroma [R, side, C, side, n] anew, in place, at the borders of tiles whose neighbours in the picture were others.

    The last two pixels inside a tile, a = (3 c + l) / 4 and b = (3 l + c) / 4, give the sample at its border, c = (3 a - b) / 2.
    """
    number = np.where(stored, stored.cumsum().reshape(stored.shape) - 1, -1)
    place, last_place, step = (
        (number % layout[1], layout[1] - 1, 1) if axis else (number // layout[1], layout[0] - 1, layout[1])
    )
    if axis == 0:
        chroma, number, place = chroma.transpose(2, 3, 0, 1, 4), number.T, place.T
    neighbours = np.pad(number, ((0, 0), (1, 1)), constant_values=-1)
    before, after = neighbours[:, :-2], neighbours[:, 2:]
    inner = chroma[:, :, :, [1, 2, -2, -3]].astype(np.int16)
    first, last = ((3 * inner[..., i, :] - inner[..., i + 1, :]) / 2 for i in (0, 2))
    for border, own, other, beside, beside_in_picture in (
        (0, first, np.roll(last, 1, axis=2), before, np.where(place > 0, number - step, -1)),
        (-1, last, np.roll(first, -1, axis=2), after, np.where(place < last_place, number + step, -1)),
    ):
        pixels = (3 * own + np.where(beside[:, None, :, None] >= 0, other, own)) / 4
        wrong = (beside != beside_in_picture)[:, None, :, None]
        chroma[:, :, :, border] = np.where(wrong, pixels.round().clip(0, 255), chroma[:, :, :, border])


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
