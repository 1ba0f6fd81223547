"""Figures and patterns of the embedded data set, as signed distances: negative inside, smooth edges in any size.

Coordinates are the figure's own, float32 arrays of one shape; a figure has a radius of about 1, a pattern a period of 1.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Drawing = Callable[[Array, Array], Array]


def _wave(t: Array, width: float = 0.25) -> Array:
    """Signed distance to bands of half-width `width` around the integers, for a period of 1."""
    return np.abs(t - np.rint(t)) - width


def _box(u: Array, v: Array, a: float, b: float) -> Array:
    return np.maximum(np.abs(u) - a, np.abs(v) - b)


def _disc(u: Array, v: Array, radius: float, x: float = 0.0, y: float = 0.0) -> Array:
    return np.hypot(u - x, v - y) - radius


def _fold(u: Array, v: Array, count: int) -> tuple[Array, Array]:
    """The coordinates in one of `count` equal sectors: along its axis, and away from it (never negative)."""
    radius, angle, sector = np.hypot(u, v), np.arctan2(v, u), 2 * np.pi / count
    angle -= sector * np.rint(angle / sector)
    return radius * np.cos(angle), np.abs(radius * np.sin(angle))


def _polygon(u: Array, v: Array, count: int, apothem: float) -> Array:
    return _fold(u, v, count)[0] - apothem


def _star(u: Array, v: Array, count: int, notch: float) -> Array:
    along, away = _fold(u, v, count)
    x, y = notch * np.cos(np.pi / count), notch * np.sin(np.pi / count)
    return ((along - 1.1) * y + away * (1.1 - x)) / np.hypot(y, 1.1 - x)


def _petals(u: Array, v: Array, count: int, depth: float) -> Array:
    return (np.hypot(u, v) - 0.85 - depth * np.cos(count * np.arctan2(v, u))) * 0.75


def _cross(u: Array, v: Array) -> Array:
    return np.minimum(_box(u, v, 1.0, 0.38), _box(u, v, 0.38, 1.0))


def _tee(u: Array, v: Array) -> Array:
    return np.minimum(_box(u, v + 0.6, 1.0, 0.36), _box(u, v - 0.2, 0.36, 0.85))


def _arrow(u: Array, v: Array) -> Array:
    return np.minimum(_polygon(0.35 - u, v, 3, 0.4), _box(u + 0.55, v, 0.5, 0.3))


def _leaf(u: Array, v: Array) -> Array:
    return np.maximum(_disc(u, v, 1.35, y=0.8), _disc(u, v, 1.35, y=-0.8))


def _drop(u: Array, v: Array) -> Array:
    point = np.maximum(0.508 * (u - 1) + 0.861 * np.abs(v), 0.035 - u)
    return np.minimum(_disc(u, v, 0.66, x=-0.3), point)


def _heart(u: Array, v: Array) -> Array:
    v = np.abs(v)
    point = np.maximum((u + v) * 0.7071 - 0.631, np.maximum(v - 0.816, -u - 0.3))
    return np.minimum(_disc(u, v, 0.56, x=-0.32, y=0.42), point)


def _fish(u: Array, v: Array) -> Array:
    body = np.maximum(_disc(u, v, 1.1, x=0.22, y=0.58), _disc(u, v, 1.1, x=0.22, y=-0.58))
    tail = np.maximum(np.maximum(np.abs(v) * 0.8 + u * 0.6 + 0.28, -u - 1.12), -0.4 * np.abs(v) - u - 1.0)
    return np.minimum(body, tail)


FIGURES: dict[str, Drawing] = {
    "disc": lambda u, v: _disc(u, v, 0.95),
    "half-disc": lambda u, v: np.maximum(_disc(u, v, 1.1, y=-0.4), -v - 0.4),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.3,
    "square": lambda u, v: _box(u, v, 0.82, 0.82),
    "slab": lambda u, v: _box(u, v, 1.05, 0.58),
    "kite": lambda u, v: (np.abs(u) * 0.75 + np.abs(v) - 0.8) * 0.8,
    "triangle": lambda u, v: _polygon(u, v, 3, 0.58),
    "arrow": _arrow,
    "star": lambda u, v: _star(u, v, 5, 0.52),
    "spark": lambda u, v: _star(u, v, 4, 0.5),
    "burst": lambda u, v: _star(u, v, 8, 0.68),
    "cross": _cross,
    "tee": _tee,
    "hexagon": lambda u, v: _polygon(u, v, 6, 0.86),
    "octagon": lambda u, v: _polygon(u, v, 8, 0.9),
    "crescent": lambda u, v: np.maximum(_disc(u, v, 1.0), 0.72 - np.hypot(u - 0.48, v)),
    "drop": _drop,
    "flower": lambda u, v: _petals(u, v, 5, 0.25),
    "daisy": lambda u, v: _petals(u, v, 8, 0.2),
    "leaf": _leaf,
    "heart": _heart,
    "fish": _fish,
}


def _checks(u: Array, v: Array) -> Array:
    a, b = _wave(u / 1.6), _wave(v / 1.6)
    return np.maximum(np.minimum(a, b), -np.maximum(a, b))


def _bricks(u: Array, v: Array) -> Array:
    row = np.rint(v)
    return np.maximum(_wave(u * 0.55 + 0.5 * (row % 2), 0.43) / 0.55, np.abs(v - row) - 0.36)


def _honeycomb(u: Array, v: Array) -> Array:
    """Hexagonal cells around the centres of a triangular lattice; the walls between them are outside."""
    shifted = [(u - np.rint(u), v - 1.732 * np.rint(v / 1.732))]
    shifted.append((u - 0.5 - np.rint(u - 0.5), v - 0.866 - 1.732 * np.rint((v - 0.866) / 1.732)))
    cells = [np.maximum(np.abs(a), np.abs(a) * 0.5 + np.abs(b) * 0.866) for a, b in shifted]
    return np.minimum(*cells) - 0.36


def _scales(u: Array, v: Array) -> Array:
    """Thin arcs, one row shifted against the next."""
    row = np.floor(u * 1.3)
    across = v - 0.5 * (row % 2)
    return np.abs(u * 1.3 - row - 0.95 + 2.6 * (across - np.rint(across)) ** 2) / 1.5 - 0.16


def _dots(u: Array, v: Array) -> Array:
    row = np.rint(v / 0.9)
    across = u - 0.5 * (row % 2)
    return np.hypot(across - np.rint(across), v - 0.9 * row) - 0.3


# In units of the pattern's period.
PATTERNS: dict[str, Drawing] = {
    "stripes": lambda u, v: _wave(u),
    "waves": lambda u, v: _wave(u + 0.3 * np.sin(3.2 * v)),
    "checks": _checks,
    "lattice": lambda u, v: np.minimum(_wave(u * 0.8, 0.17), _wave(v * 0.8, 0.17)),
    "dots": _dots,
    "rings": lambda u, v: _wave(np.hypot(u, v)),
    "rays": lambda u, v: _wave(np.arctan2(v, u) * (5 / np.pi)) * np.hypot(u, v) * 0.6,
    "bricks": _bricks,
    "honeycomb": _honeycomb,
    "veins": lambda u, v: np.minimum(_wave(u - 0.8 * np.abs(v), 0.2), np.abs(v) - 0.16),
    "scales": _scales,
}
