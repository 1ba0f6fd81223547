"""Sheets of small images with their palettes: enlarged by whole numbers and shown pixel for pixel.

So a sheet has no colour that its images have not. The strip below an image is its palette: the colour of most pixels first,
each as wide as its share, a pixel at least.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ray_jobs.figures import DPI, INK, WIDTH

WIDE = int(WIDTH * DPI)  # pixels
LARGEST_SIDE = 132  # of a small image after enlarging, in pixels of the figure
STRIP, BETWEEN, GAP, MARGIN = 16, 4, 7, 14  # pixels
FRAME = 200  # grey, a pixel around images and strips: white ends somewhere
CHARACTER, LINE, LABEL = 10.6, 22, 16  # width and height of 9-point text in pixels; characters of a label's line


def strip_widths(use: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The colours that are in use, most pixels first (ties: the lower index), and the width of each in a strip.

    Args:
        use: pixels of each colour, int [K].
        width: of the strip in pixels.

    Returns:
        indices [m] and widths [m] that sum to `width`; each is at least 1, so a strip that is too narrow drops the rarest.
    """
    order = np.argsort(-use, kind="stable")
    order = order[use[order] > 0][:width]
    edges = np.round(np.cumsum(use[order]) / use[order].sum() * (width - len(order))).astype(int)
    return order, 1 + np.diff(edges, prepend=0)


def tile(
    images: np.ndarray,
    palettes: np.ndarray | None,
    indices: np.ndarray | None,
    number: int,
    factor: int,
    always: bool = False,
) -> np.ndarray:
    """An image, enlarged, and below it its palette; uint8 [height, width, 3]. `always`: room for a strip that is not there."""
    image = _framed(images[number].repeat(factor, axis=0).repeat(factor, axis=1))
    if palettes is None and not always:
        return image
    below = np.full((BETWEEN + STRIP + 2, image.shape[1], 3), 255, dtype=np.uint8)
    if palettes is not None:
        use = np.bincount(indices[number].ravel(), minlength=palettes.shape[1])
        colors, widths = strip_widths(use, image.shape[1] - 2)
        below[BETWEEN:] = _framed(palettes[number][colors].repeat(widths, axis=0)[None].repeat(STRIP, axis=0))
    return np.concatenate([image, below])


def _framed(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME)


def sheet(
    tiles: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str] | None,
    title: str,
    heads: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Rows of equally large tiles on one axis, of which a pixel is a pixel of the figure.

    Args:
        labels: one a row, at its left, or none. heads: a text above each tile, or none.
    """
    height, width = tiles[0][0].shape[:2]
    above = 0 if heads is None else LINE * max(head.count("\n") + 1 for row in heads for head in row) + 6
    pitch, columns = (above + height + GAP, width + GAP), max(map(len, tiles))
    left = _label_width(labels)
    canvas = np.full((len(tiles) * pitch[0] - GAP, columns * pitch[1] - GAP, 3), 255, dtype=np.uint8)
    for row, cells in enumerate(tiles):
        for column, cell in enumerate(cells):
            top, start = row * pitch[0] + above, column * pitch[1]
            canvas[top : top + height, start : start + width] = cell
    across = max(left + canvas.shape[1] + MARGIN, 5 * DPI)
    title = textwrap.fill(title, int((across - 2 * MARGIN) / 11.8))
    head = MARGIN + 28 * (title.count("\n") + 1)
    down = head + canvas.shape[0] + MARGIN
    fig = Figure((across / DPI, down / DPI), dpi=DPI)
    fig.suptitle(
        title, x=MARGIN / across, y=1 - MARGIN / down, ha="left", va="top", fontsize=11, fontweight="bold", color=INK
    )
    axes = fig.add_axes((left / across, MARGIN / down, canvas.shape[1] / across, canvas.shape[0] / down))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    centres = [row * pitch[0] + above + height / 2 for row in range(len(tiles))]
    axes.set_yticks(
        centres if labels else [], [_wrapped(label) for label in labels] if labels else [], fontsize=9, color=INK
    )
    for row, texts in enumerate(heads or []):
        for column, text in enumerate(texts):
            at = column * pitch[1] + width / 2, row * pitch[0] + above - 4
            axes.text(*at, text, ha="center", va="bottom", fontsize=9, color=INK)
    return fig


def _label_width(labels: Sequence[str] | None) -> int:
    lines = [line for label in labels or [] for line in _wrapped(label).split("\n")]
    return int(MARGIN + CHARACTER * max(map(len, lines)) + GAP) if lines else MARGIN


def _wrapped(label: str) -> str:
    return "\n".join(part for line in label.split("\n") for part in textwrap.wrap(line, LABEL) or [""])


def most_columns(images: np.ndarray, labels: Sequence[str]) -> int:
    """How many images fit beside each other in the width of a figure."""
    return max(1, (WIDE - _label_width(labels) - MARGIN) // (images.shape[2] + 2 + GAP))


def enlargement(images: np.ndarray, columns: int, labels: Sequence[str]) -> int:
    """The whole number by which so many images in a row are enlarged."""
    side = min(LARGEST_SIDE, (WIDE - _label_width(labels) - MARGIN) // columns - GAP - 2)
    return max(1, side // images.shape[2])
