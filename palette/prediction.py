"""Palettes and indices as symbols of the entropy coder: steps from colour to colour, and ranks of colours near to a prediction.

Everything is vectorised over the images [N], and predicts the same for writing and for reading: from what is decoded already.
The prediction is the median edge detector of LOCO-I (Weinberger, Seroussi and Sapiro, IEEE Trans. Image Processing 2000).
"""

import numpy as np

from palette.entropy import Decoder, Encoder, Model

FAR = 1 << 30  # the key of a colour that an image does not have
THRESHOLDS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128])
EDGE = len(THRESHOLDS) + 1  # the context of the first row and column, where nothing is known of the roughness
RANK_CONTEXTS = EDGE + 1
COLOUR_CONTEXTS = 3  # of the steps in green, in red and in blue


class Ranking:
    """Pixel by pixel in raster order, the order of each image's colours and the context of the entropy coder.

    Args:
        palettes: uint8 [N, K, 3]. sizes: int [N], the colours that each image has. width: of the images, in pixels.
    """

    def __init__(self, palettes: np.ndarray, sizes: np.ndarray, width: int):
        count, colors = palettes.shape[:2]
        self.palettes, self.width = palettes, width
        self.channels = [np.ascontiguousarray(palettes[:, :, c], dtype=np.int32) for c in range(3)]
        # Added to the distance in the upper bits: ties go to the lowest index, and absent colours to the end.
        self.order = np.where(np.arange(colors) < sizes[:, None], np.arange(colors), FAR).astype(np.int32)
        self.every = np.arange(count)
        self.above, self.row = np.zeros((2, width, count, 3), dtype=np.uint8)
        self.x, self.top = 0, True

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """For the pixel at hand: keys int32 [N, K] that sort the colours by distance, and the contexts int64 [N]."""
        west, north, corner = (colours.astype(np.int32) for colours in self._around())
        low, high = np.minimum(west, north), np.maximum(west, north)
        median = np.where(corner >= high, low, np.where(corner <= low, high, west + north - corner))
        keys = np.zeros_like(self.order)
        for channel, value in zip(self.channels, median.T, strict=True):
            step = channel - value[:, None]
            keys += step * step
        keys = (keys << 8) + self.order
        if self.top or not self.x:
            return keys, np.full(len(keys), EDGE)
        radius = ((west - corner) ** 2 + (north - corner) ** 2).sum(axis=1, dtype=np.int32)
        near = (keys < radius[:, None] << 8).sum(axis=1)
        return keys, np.searchsorted(THRESHOLDS, near, side="right")

    def put(self, indices: np.ndarray) -> None:
        """The pixel at hand has these indices, int [N]; go on to the next."""
        self.row[self.x] = self.palettes[self.every, indices]
        self.x += 1
        if self.x == self.width:
            self.x, self.top = 0, False
            self.above, self.row = self.row, self.above

    def _around(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """West, north and north-west; outside the image, the one of them that is inside; black at the very first pixel."""
        if self.top:
            west = self.row[self.x - 1] if self.x else self.above[0]
            return west, west, west
        north = self.above[self.x]
        return (self.row[self.x - 1], north, self.above[self.x - 1]) if self.x else (north, north, north)


def colour_steps(colours: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Symbols 0 to 255 for green, red and blue, int64 [n, 3], from colours and the colours before them, uint8 [n, 3] RGB.

    The difference in green; the differences in red and blue less that one; modulo 256, with 0, -1, 1, -2, 2, ... in this order.
    """
    red, green, blue = (colours.astype(np.int64) - before).T
    steps = np.stack([green, red - green, blue - green], axis=1) & 255
    return np.where(steps < 128, 2 * steps, 511 - 2 * steps)


def next_colours(symbols: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The colours uint8 [n, 3] whose steps from the colours `before` are these symbols: the inverse of colour_steps."""
    green, red, blue = np.where(symbols % 2, (511 - symbols) // 2, symbols // 2).T
    return (before + np.stack([red + green, green, blue + green], axis=1)).astype(np.uint8)


def used(indices: np.ndarray, colors: int) -> np.ndarray:
    """bool [N, K]: the colours that each image uses."""
    used, every = np.zeros((len(indices), colors), dtype=bool), np.arange(len(indices))
    for pixel in indices.reshape(len(indices), -1).T:
        used[every, pixel] = True
    return used


def canonical(palettes: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same images with each colour once, in the order of (green, red, blue), zeros after it; and the number of colours [N]."""
    red, green, blue = palettes.astype(np.int32).transpose(2, 0, 1)
    colours = np.where(used(indices, palettes.shape[1]), green << 16 | red << 8 | blue, 1 << 24)
    order = np.argsort(colours, axis=1, kind="stable")
    colours = np.take_along_axis(colours, order, axis=1)
    first = colours < 1 << 24
    first[:, 1:] &= colours[:, 1:] != colours[:, :-1]
    places = np.cumsum(first, axis=1) - 1
    ordered = np.zeros_like(palettes)
    image, place = np.nonzero(first)
    ordered[image, places[image, place]] = palettes[image, order[image, place]]
    moved = np.empty(places.shape, dtype=np.uint8)
    np.put_along_axis(moved, order, places.astype(np.uint8), axis=1)
    return ordered, moved[np.arange(len(indices))[:, None, None], indices], first.sum(axis=1)


def write_palettes(coder: Encoder, palettes: np.ndarray, sizes: np.ndarray) -> None:
    """Canonical palettes uint8 [N, K, 3] of int [N] colours, colour by colour."""
    last, steps = Model(1, 2), Model(COLOUR_CONTEXTS, 256)
    lanes, before = np.arange(len(palettes)), np.zeros((len(palettes), 3), dtype=np.uint8)
    for place in range(palettes.shape[1]):
        if place:
            ended = sizes[lanes] == place
            coder.put(last, lanes, np.zeros_like(lanes), ended.astype(np.int64))
            lanes = lanes[~ended]
        colours = palettes[lanes, place]
        for channel, symbols in enumerate(colour_steps(colours, before[lanes]).T):
            coder.put(steps, lanes, np.full_like(lanes, channel), symbols)
        before[lanes] = colours


def read_palettes(coder: Decoder, count: int, colors: int) -> tuple[np.ndarray, np.ndarray]:
    """What write_palettes wrote: (palettes, sizes). Raises ValueError for colours out of order."""
    last, steps = Model(1, 2), Model(COLOUR_CONTEXTS, 256)
    palettes, sizes = np.zeros((count, colors, 3), dtype=np.uint8), np.full(count, colors)
    lanes, before = np.arange(count), np.zeros((count, 3), dtype=np.uint8)
    for place in range(colors):
        if place:
            ended = coder.get(last, lanes, np.zeros_like(lanes)) == 1
            sizes[lanes[ended]] = place
            lanes = lanes[~ended]
        symbols = [coder.get(steps, lanes, np.full_like(lanes, channel)) for channel in range(COLOUR_CONTEXTS)]
        colours = next_colours(np.stack(symbols, axis=1), before[lanes])
        if place and not _ascending(before[lanes], colours):
            raise ValueError("the colours of a palette are not in order")
        palettes[lanes, place] = before[lanes] = colours
    return palettes, sizes


def _ascending(before: np.ndarray, colours: np.ndarray) -> bool:
    places = [c.astype(np.int32) @ np.array([1 << 8, 1 << 16, 1], dtype=np.int32) for c in (before, colours)]
    return bool((places[0] < places[1]).all())


def write_indices(coder: Encoder, palettes: np.ndarray, indices: np.ndarray, sizes: np.ndarray) -> None:
    """Indices uint8 [N, H, W] into canonical palettes, pixel by pixel."""
    ranking, ranks = Ranking(palettes, sizes, indices.shape[2]), Model(RANK_CONTEXTS, palettes.shape[1])
    lanes = np.arange(len(palettes))
    for pixel in indices.reshape(len(indices), -1).T:
        keys, contexts = ranking.keys()
        coder.put(ranks, lanes, contexts, (keys < keys[lanes, pixel][:, None]).sum(axis=1))
        ranking.put(pixel)


def read_indices(coder: Decoder, palettes: np.ndarray, sizes: np.ndarray, height: int, width: int) -> np.ndarray:
    """What write_indices wrote, uint8 [N, H, W]. Raises ValueError for an index beyond its palette."""
    ranking, ranks = Ranking(palettes, sizes, width), Model(RANK_CONTEXTS, palettes.shape[1])
    lanes = np.arange(len(palettes))
    indices = np.empty((height * width, len(palettes)), dtype=np.uint8)
    for pixel in indices:
        keys, contexts = ranking.keys()
        found = coder.get(ranks, lanes, contexts)
        if (found >= sizes).any():
            raise ValueError("an index lies beyond its palette")
        keys.sort(axis=1)
        pixel[:] = keys[lanes, found] & 255
        ranking.put(pixel)
    return np.ascontiguousarray(indices.T).reshape(len(palettes), height, width)
