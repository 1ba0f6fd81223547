"""Kept patches as one picture that codecs take: tiles side by side, and chroma that keeps to its tile.

The image is cut into tiles; its last row and column are repeated where tiles go beyond. A tile is a patch. Only where chroma is
subsampled (WebP, 4:2:2, 4:2:0), so that a block of it covers 16 pixels, and a patch has 8, a tile is 2 x 2 patches. The n tiles
with a kept patch are put side by side, in their order, row by row, in a picture of c columns: of the numbers from ceil(sqrt(n)) to
half as many more, the first that leaves the fewest places empty in the last row. Empty places, and dropped patches in tiles of
2 x 2, hold anything that costs little.

Decoders that smooth chroma (libjpeg: a pixel is 3/4 of its own sample and 1/4 of the next) do so across tiles that were no
neighbours in the image. `mend` smooths these borders anew, with the true neighbour, or with none where it was dropped.
"""

import math

import numpy as np

from adq.patch_files import GREY, JPEG_420, JPEG_422, JPEG_444, WEBP

SMOOTHED = {JPEG_422: (1,), JPEG_420: (0, 1)}  # the axes along which chroma has half as many samples


def tiling(mask: np.ndarray, side: int, kind: int) -> tuple[int, np.ndarray]:
    """The side of a tile, and which tiles are stored: bool [tile rows, tile columns]."""
    if side >= 16 or kind in (GREY, JPEG_444):
        return side, mask
    mask = np.pad(mask, [(0, length % 2) for length in mask.shape])
    return 2 * side, mask[0::2, 0::2] | mask[0::2, 1::2] | mask[1::2, 0::2] | mask[1::2, 1::2]


def columns_of(tiles: int) -> int:
    """Of the picture of so many tiles."""
    least = math.isqrt(tiles - 1) + 1
    return min(range(least, least + least // 2 + 1), key=lambda columns: -tiles % columns)


def spread(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask of patches as one of their pixels."""
    return mask.repeat(side, axis=0).repeat(side, axis=1)


def laid(planes: np.ndarray, mask: np.ndarray, patch: int, kind: int, recover: bool) -> np.ndarray:
    """The tiles with a kept patch side by side: uint8 [h, w, C] of planes [H, W, C].

    Args:
        mask: bool [rows, columns], True where a patch of `patch` pixels is kept.
        recover: whether chroma was smoothed as of `kind`, and its samples are wanted back.
    """
    side, stored = tiling(mask, patch, kind)
    shape = (stored.shape[0] * side, stored.shape[1] * side)
    planes = np.pad(
        planes, [(0, to - length) for to, length in zip(shape, planes.shape[:2], strict=True)] + [(0, 0)], "edge"
    )
    if recover:
        for axis in SMOOTHED.get(kind, ()):
            planes[..., 1:] = _samples(planes[..., 1:], axis)
    known = np.pad(mask, [(0, to // patch - length) for to, length in zip(shape, mask.shape, strict=True)])
    tiles = _cut(planes, side)[stored]
    # Flat luma without its chroma costs least of a JPEG: whole blocks of chroma keep their coefficients.
    painted = tiles if kind == WEBP else tiles[..., :1]
    if side > patch:
        for tile, here in zip(painted, _cut(spread(known, patch)[..., None], side)[stored, ..., 0], strict=True):
            tile[~here] = tile[here].mean(axis=0).round()
    columns = columns_of(len(tiles))
    flat = tiles[-1, -8:, -8:].mean(axis=(0, 1)).round().astype(np.uint8)  # the mean of the last block: no change of it
    tiles = np.concatenate([tiles, np.broadcast_to(flat, (-len(tiles) % columns, *tiles.shape[1:]))])
    rows = len(tiles) // columns
    return tiles.reshape(rows, columns, side, side, -1).swapaxes(1, 2).reshape(rows * side, columns * side, -1)


def unlaid(picture: np.ndarray, stored: np.ndarray, side: int) -> np.ndarray:
    """The tiles of a picture where they were in the image, zeros elsewhere: uint8 [R, side, C, side, n]."""
    out = np.zeros((*stored.shape, side, side, picture.shape[2]), dtype=np.uint8)
    out[stored] = _cut(picture, side).reshape(-1, *out.shape[2:])[: np.count_nonzero(stored)]
    return np.ascontiguousarray(out.swapaxes(1, 2))


def mend(chroma: np.ndarray, stored: np.ndarray, layout: tuple[int, int], axis: int) -> None:
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


def _samples(chroma: np.ndarray, axis: int) -> np.ndarray:
    """The samples, each twice, of chroma that was smoothed along an axis; the mean of libjpeg gives them back as they are.

    Sample c between l and r became the pixels a = (3 c + l) / 4 and b = (3 c + r) / 4, so that with the pixels next to them,
    (3 l + c) / 4 and (3 r + c) / 4, it is 3 (a + b) less these, by 4.
    """
    moved = np.moveaxis(chroma, axis, 0).astype(np.int16)
    wide = np.concatenate([moved[:1], moved, moved[-1:]])
    samples = (3 * (moved[0::2] + moved[1::2]) - wide[0:-2:2] - wide[3::2] + 2) >> 2
    return np.moveaxis(samples.clip(0, 255).repeat(2, axis=0), 0, axis)


def _cut(planes: np.ndarray, side: int) -> np.ndarray:
    """[R side, C side, n] to tiles [R, C, side, side, n]."""
    rows, columns = (length // side for length in planes.shape[:2])
    return planes.reshape(rows, side, columns, side, -1).swapaxes(1, 2)
