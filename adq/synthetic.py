"""A small data set drawn by this file: ten classes of patterned figures, 32 x 32 pixels, for demonstrations.

A class is a family of looks (figure, pattern, hue) of unequal frequency. Families overlap: a rare look may have its
figure, its pattern or its hue from a neighbour, so no single one of the three names the class. Place, size, rotation,
shear, colours, background, clutter, light, shadow, occlusion, blur and noise vary from image to image.
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from adq.randomness import key_order, numpy_generator
from adq.sources import Record
from adq.synthetic_figures import FIGURES, PATTERNS, Array

SIDE = 32
PIXEL = 2 / SIDE
STRANGE = 0.03  # share of images whose hue, and of others whose pattern, is that of any class


class Look(NamedTuple):
    """One sub-type of a class: its share of the class, its figure and pattern by name, its hue in degrees."""

    share: float
    figure: str
    pattern: str
    hue: float


# The first look of a class is the one that its name describes.
FAMILIES = {
    "striped-disc": (
        Look(0.50, "disc", "stripes", 14),
        Look(0.25, "half-disc", "stripes", 40),
        Look(0.15, "disc", "waves", 205),
        Look(0.10, "ring", "stripes", 340),
    ),
    "checkered-square": (
        Look(0.50, "square", "checks", 212),
        Look(0.25, "slab", "checks", 14),
        Look(0.15, "square", "lattice", 265),
        Look(0.10, "kite", "checks", 165),
    ),
    "dotted-triangle": (
        Look(0.55, "triangle", "dots", 44),
        Look(0.22, "arrow", "dots", 270),
        Look(0.15, "triangle", "lattice", 20),
        Look(0.08, "kite", "dots", 100),
    ),
    "ringed-star": (
        Look(0.50, "star", "rings", 340),
        Look(0.25, "spark", "rings", 215),
        Look(0.17, "star", "rays", 46),
        Look(0.08, "burst", "rings", 270),
    ),
    "brick-cross": (
        Look(0.50, "cross", "bricks", 12),
        Look(0.25, "tee", "bricks", 40),
        Look(0.15, "cross", "checks", 100),
        Look(0.10, "slab", "bricks", 340),
    ),
    "honeycomb-hexagon": (
        Look(0.55, "hexagon", "honeycomb", 42),
        Look(0.20, "octagon", "honeycomb", 95),
        Look(0.15, "hexagon", "dots", 170),
        Look(0.10, "disc", "honeycomb", 18),
    ),
    "wavy-crescent": (
        Look(0.50, "crescent", "waves", 190),
        Look(0.25, "drop", "waves", 215),
        Look(0.15, "crescent", "stripes", 275),
        Look(0.10, "half-disc", "waves", 46),
    ),
    "rayed-flower": (
        Look(0.50, "flower", "rays", 325),
        Look(0.25, "daisy", "rays", 48),
        Look(0.15, "flower", "rings", 265),
        Look(0.10, "daisy", "dots", 205),
    ),
    "veined-leaf": (
        Look(0.50, "leaf", "veins", 98),
        Look(0.25, "leaf", "veins", 22),
        Look(0.15, "drop", "veins", 150),
        Look(0.10, "heart", "stripes", 110),
    ),
    "scaled-fish": (
        Look(0.50, "fish", "scales", 172),
        Look(0.25, "fish", "scales", 16),
        Look(0.15, "fish", "stripes", 48),
        Look(0.10, "heart", "scales", 325),
    ),
}
CLASSES = tuple(FAMILIES)
LOOKS = [look for looks in FAMILIES.values() for look in looks]
SPLITS = ("train", "test")
FORMATS = {"jpg": {"format": "JPEG", "quality": 90, "subsampling": 0}, "png": {"format": "PNG"}}

Y, X = np.meshgrid(*[(np.arange(SIDE, dtype=np.float32) + 0.5) * PIXEL - 1] * 2, indexing="ij")
# Smooth interpolation of 4 knots to a side of pixels, for gradients and mottling.
KNOTS = np.maximum(0, 1 - np.abs((X[0][:, None] + 1) * 1.5 - np.arange(4))).astype(np.float32)
KNOTS = KNOTS**2 * (3 - 2 * KNOTS)


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """float32 [3] in [0, 1], from a hue in degrees."""
    k = (np.array([5, 3, 1], np.float32) + hue / 60) % 6
    return np.float32(value) * (1 - np.float32(saturation) * np.clip(np.minimum(k, 4 - k), 0, 1))


def _blend(canvas: Array, colour: Array, coverage: Array) -> None:
    canvas += coverage[..., None] * (colour - canvas)


def _coverage(distance: Array, unit: float) -> Array:
    """The share of each pixel inside, from a signed distance whose unit is `unit` half-sides of the image."""
    return np.clip(0.5 - distance * (unit / PIXEL), 0, 1)


def _coordinates(rng: np.random.Generator, size: float, reach: float, turn: float) -> tuple[Array, Array]:
    """The image's pixels in the coordinates of a figure: shifted, scaled, rotated, stretched, sheared, mirrored."""
    cx, cy = rng.uniform(-reach, reach, 2)
    stretch, shear = np.exp(rng.normal(0, 0.08)), rng.normal(0, 0.08)
    cos, sin = np.cos(turn) / size, np.sin(turn) / size
    u, v = cos * (X - cx) + sin * (Y - cy), cos * (Y - cy) - sin * (X - cx)
    return (u + shear * v) * stretch, v / stretch * rng.choice((-1, 1))


def _background(rng: np.random.Generator) -> Array:
    """float32 [32, 32, 3]: a mottled gradient, at times patterned, with small plain figures as clutter."""
    hue, value = rng.uniform(0, 360), rng.uniform(0.25, 0.85)
    colour = _rgb(hue, rng.uniform(0.0, 0.25), value)
    knots = rng.normal(0, 1, (4, 4, 1)) * 0.07 + rng.normal(0, 1, (4, 4, 3)) * 0.025
    canvas = colour + np.einsum("ya,xb,abc->yxc", KNOTS, KNOTS, knots.astype(np.float32))
    if rng.random() < 0.25:
        period, turn = rng.uniform(0.25, 0.7), rng.uniform(0, np.pi)
        u, v = _coordinates(rng, period, 1, turn)
        pattern = PATTERNS[rng.choice(list(PATTERNS))](u, v)
        other = _rgb(hue + rng.normal(0, 40), rng.uniform(0.0, 0.25), np.clip(value + rng.normal(0, 0.12), 0.1, 1))
        _blend(canvas, other, _coverage(pattern, period) * 0.7)
    for _ in range(rng.integers(0, 3)):
        size = rng.uniform(0.08, 0.2)
        figure = FIGURES[rng.choice(list(FIGURES))]
        u, v = _coordinates(rng, size, 1, rng.uniform(0, 2 * np.pi))
        colour = _rgb(rng.uniform(0, 360), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.95))
        _blend(canvas, colour, _coverage(figure(u, v), size))
    return canvas


def _palette(rng: np.random.Generator, hue: float) -> tuple[Array, Array, Array]:
    """Ink, paper and outline: a saturated colour, a lighter and paler one, a dark one; at times exchanged."""
    hue += rng.normal(0, 7)
    ink = _rgb(hue, rng.uniform(0.65, 0.95), rng.uniform(0.45, 0.8))
    paper = _rgb(hue + rng.normal(10, 10), rng.uniform(0.15, 0.5), rng.uniform(0.8, 1.0))
    outline = _rgb(hue + 20, 0.6, rng.uniform(0.08, 0.3))
    return (paper, ink, outline) if rng.random() < 0.2 else (ink, paper, outline)


def _draw_figure(canvas: Array, rng: np.random.Generator, look: Look, size: float, reach: float) -> None:
    """A patterned figure with its shadow, and at times an outline."""
    ink, paper, outline = _palette(rng, look.hue)
    u, v = _coordinates(rng, size, reach, rng.normal(0, 0.2))
    distance = FIGURES[look.figure](u, v)
    if rng.random() < 0.5:
        canvas *= 1 - 0.5 * _coverage(np.roll(distance, rng.integers(1, 4, 2), (0, 1)) - 0.03, size * 0.5)[..., None]
    inside = _coverage(distance, size)
    # Coarser for small figures, whose patterns would be finer than the pixels.
    period = max(rng.uniform(0.45, 0.6), 0.26 / size)
    turn, shift = rng.normal(0, 0.12), rng.normal(0, 0.05, 2)
    cos, sin = np.cos(turn) / period, np.sin(turn) / period
    u, v = u - shift[0], v - shift[1]
    pattern = _coverage(PATTERNS[look.pattern](cos * u + sin * v, cos * v - sin * u), size * period)
    tiles = paper + pattern[..., None] * (ink - paper)
    _blend(canvas, tiles, inside)
    if rng.random() < 0.5:
        _blend(canvas, outline, _coverage(np.abs(distance) - 0.5 * PIXEL / size, size) * 0.8)


def _occlude(canvas: Array, rng: np.random.Generator) -> None:
    """A bar of any colour across the image."""
    turn, edge = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6)
    across = np.abs(np.cos(turn) * X + np.sin(turn) * Y - edge) - rng.uniform(0.06, 0.22)
    _blend(canvas, _rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.5), rng.uniform(0.15, 0.9)), _coverage(across, 1))


def _light(canvas: Array, rng: np.random.Generator) -> Array:
    """Direction, tint, brightness, fading, blur and noise of the picture as a whole."""
    turn, strength = rng.uniform(0, 2 * np.pi), abs(rng.normal(0, 0.15))
    canvas = canvas * (1 + strength * (np.cos(turn) * X + np.sin(turn) * Y))[..., None] * rng.normal(1, 0.04, 3)
    canvas *= np.exp(rng.normal(0, 0.12))
    if rng.random() < 0.04:
        grey = canvas.mean(2, keepdims=True)
        canvas = grey + (canvas - grey) * rng.uniform(0, 0.6)
    if rng.random() < 0.12:
        for axis in (0, 1):
            canvas = 0.5 * canvas + 0.25 * (np.roll(canvas, 1, axis) + np.roll(canvas, -1, axis))
    return canvas + rng.normal(0, 1, canvas.shape) * rng.gamma(2, 0.01)


def image(label: int, index: int, seed: int = 0, split: str = "train") -> np.ndarray:
    """One image, a function of its arguments alone.

    Args:
        label: position in `CLASSES`.
        index: number of the image within its class and split, from 0.
        split: "train" or "test": different images of the same kind.

    Returns:
        uint8 [32, 32, 3].

    Raises:
        ValueError: no such label, index or split.
    """
    if not 0 <= label < len(CLASSES) or index < 0 or split not in SPLITS:
        raise ValueError(
            f"label {label}, index {index}, split {split!r}: expected a label below {len(CLASSES)}, an index from 0 "
            f"and a split of {SPLITS}"
        )
    rng = numpy_generator(seed, "synthetic image", split, CLASSES[label], index)
    looks = FAMILIES[CLASSES[label]]
    look = looks[rng.choice(len(looks), p=[look.share for look in looks])]
    stranger = LOOKS[rng.integers(len(LOOKS))]
    strange = rng.random()
    if strange < STRANGE:
        look = look._replace(hue=stranger.hue)
    elif strange < 2 * STRANGE:
        look = look._replace(pattern=stranger.pattern)
    canvas = _background(rng)
    if rng.random() < 0.06:
        _draw_figure(canvas, rng, stranger, rng.uniform(0.2, 0.35), 1.0)
    size = rng.uniform(0.3, 0.45) if rng.random() < 0.05 else rng.uniform(0.72, 0.92)
    _draw_figure(canvas, rng, look, size, 1.02 - size)
    if rng.random() < 0.1:
        _occlude(canvas, rng)
    return (np.clip(_light(canvas, rng), 0, 1) * 255).round().astype(np.uint8)


def encoded(label: int, index: int, seed: int = 0, split: str = "train", ext: str = "jpg") -> bytes:
    """`image` as a file: "jpg" (quality 90, colours at full resolution) or "png"."""
    if ext not in FORMATS:
        raise ValueError(f"extension {ext!r}: expected one of {tuple(FORMATS)}")
    file = io.BytesIO()
    Image.fromarray(image(label, index, seed, split)).save(file, **FORMATS[ext])
    return file.getvalue()


def samples(per_class: int, split: str, seed: int = 0, ext: str = "jpg") -> Iterator[Record]:
    """`per_class` images of every class, in one fixed order that mixes the classes; keys are CLASS_INDEX.

    A larger `per_class` adds images and keeps those of a smaller one. The splits share keys, not images.
    """
    items = [(label, index) for label in range(len(CLASSES)) for index in range(per_class)]
    keys = [f"{CLASSES[label]}_{index:05d}" for label, index in items]
    for position in key_order(keys, seed, f"synthetic order {split}"):
        label, index = items[position]
        yield Record(keys[position], ext, encoded(label, index, seed, split, ext), label)
