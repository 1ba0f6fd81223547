"""Figures of distilled images in few colours, of what happens while they are distilled, and of what they are worth."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from palette.codec import encode
from palette.quantize import check_images, check_indices, check_palettes, median_cut, paint, psnr, used_colours
from ray_jobs.figures import BLUE, DPI, GREEN, GREY, INK, ORANGE, WIDTH
from ray_jobs.palette_sheet import GAP, MARGIN, WIDE, enlargement, most_columns, sheet, tile

CLASSES, COLUMNS = 20, 10  # the most that a grid shows
SMALLEST_SIDE = 200  # of an image of which details are to be seen
LINES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"), (INK, "X"))
LOSSES = {
    "loss": "Matching loss",
    "maximum_color": "Maximum colour (-1: every colour is claimed)",
    "palette_balance": "Palette balance (-1: colours are used evenly)",
    "color_assignment": "Colour assignment (0: as median cut)",
}


def distilled_grid(
    images: np.ndarray,
    palettes: np.ndarray | None,
    indices: np.ndarray | None,
    labels: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """Distilled images, a row a class, each with its palette below; at most 20 classes, and 10 images of each.

    Args:
        images: uint8 [n, S, S, 3].
        palettes, indices: uint8 [n, K, 3] and [n, S, S]; both None for images in full colour.
        labels: int [n], in any order; classes without images have no row.
        classes: their names.

    Raises:
        ValueError: another type or shape, or labels that are no numbers of classes.
    """
    _check_set(images, palettes, indices)
    labels = np.asarray(labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}; expected whole numbers [{len(images)}]")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} classes")
    present = np.unique(labels)
    shown, most = present[:CLASSES], int(np.bincount(labels).max())
    columns = min(most, COLUMNS, most_columns(images, [classes[label] for label in shown]))
    factor = enlargement(images, columns, [classes[label] for label in shown])
    rows = []
    for label in shown:
        members = np.flatnonzero(labels == label)[:columns]
        rows.append([tile(images, palettes, indices, member, factor) for member in members])
    what = f"{_of(len(shown), len(present), 'class', 'classes')}, {_of(columns, most, 'image', 'images')} each"
    title = f"Distilled images: {what}"
    if palettes is not None:
        title += f"; palettes of at most {palettes.shape[1]} colours, by use"
    return sheet(rows, [classes[label] for label in shown], title)


def with_and_without(rows: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """The same distilled images from several runs, a row a run, palettes below, the colours in use beside.

    Args:
        rows: by the run's name, images uint8 [n, S, S, 3], palettes uint8 [n, K, 3] and indices uint8 [n, S, S], of the
            same n and S in every run. Of more than 10 images, some are shown, evenly spread.

    Raises:
        ValueError: no run, another type or shape, or runs whose images differ in number or size.
    """
    if not rows:
        raise ValueError("no runs to compare; expected at least one")
    for images, palettes, indices in rows.values():
        _check_set(images, palettes, indices)
    shapes = {name: tuple(images.shape[:3]) for name, (images, _, _) in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the runs' images differ in number or size: {shapes}")
    labels = []
    for name, (_, palettes, indices) in rows.items():
        used, colors = used_colours(indices, palettes.shape[1]), palettes.shape[1]
        labels.append(f"{name}\n{used.mean():.1f} of {colors} used\nat least {used.min()}")
    first = next(iter(rows.values()))[0]
    columns = min(len(first), COLUMNS, most_columns(first, labels))
    factor = enlargement(first, columns, labels)
    chosen = np.linspace(0, len(first), columns, endpoint=False).astype(int)
    tiles = [[tile(*run, number, factor) for number in chosen] for run in rows.values()]
    return sheet(
        tiles, labels, f"The same {_of(columns, len(first), 'image', 'images')} from each run, palettes by use"
    )


def bit_depths(image: np.ndarray, bits: Sequence[int] = (8, 6, 3, 1)) -> Figure:
    """A real image beside itself in 2^bits colours by median cut: PSNR, and bytes of a container that holds this image alone.

    Args:
        image: uint8 [S, S, 3].

    Raises:
        ValueError: another type or shape, or bits outside 1 to 8.
    """
    image = np.asarray(image)
    check_images(image[None])
    if not bits or not all(1 <= depth <= 8 for depth in bits):
        raise ValueError(f"bits are {list(bits)}; expected whole numbers from 1 to 8")
    cells = [("original", f"{image.nbytes:,} bytes raw", image[None], None, None)]
    for depth in bits:
        palettes, indices = median_cut(image[None], 2**depth)
        painted, used = paint(palettes, indices), int(used_colours(indices, 2**depth)[0])
        noise, size = float(psnr(image[None], painted)[0]), len(encode(palettes, indices, np.zeros(1, dtype=int), [""]))
        colors = f"{used} colours" if used == 2**depth else f"{used} of {2**depth} colours"
        quality = f"{noise:.1f} dB" if math.isfinite(noise) else "no loss"
        name = f"{depth} bit{'s' * (depth > 1)}: {colors}"
        cells.append((name, f"{quality}, {size:,} bytes", painted, palettes, indices))
    factors = {n: ((WIDE - 2 * MARGIN) // n - GAP - 2) // image.shape[1] for n in range(1, len(cells) + 1)}
    columns = max((n for n, factor in factors.items() if factor * image.shape[1] >= SMALLEST_SIDE), default=1)
    columns = -(-len(cells) // -(-len(cells) // columns))  # rows of about the same length
    factor = max(1, factors[columns])
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    tiles = [[tile(*cell[2:], 0, factor, always=True) for cell in row] for row in rows]
    heads = [["\n".join(cell[:2]) for cell in row] for row in rows]
    title = "One image by median cut: PSNR, and bytes of its container, header and palette included"
    return sheet(tiles, None, title, heads)


def colors_in_use(steps: Sequence[int], mean: Sequence[float], least: Sequence[float], colors: int) -> Figure:
    """Colours in use over a distillation: the mean over the images, and the image that uses fewest.

    Args:
        steps, mean, least: [t] each.
        colors: K.

    Raises:
        ValueError: series that are empty or not equally long.
    """
    _check_lengths(steps, {"mean": mean, "least": least})
    fig, axes = _chart(
        4.0, f"Colours in use: at the end {mean[-1]:.1f} of {colors}, and {least[-1]:.0f} in the poorest image"
    )
    axes.axhline(colors, color=GREY, linewidth=1.5, linestyle="--", label=f"K = {colors}")
    few = len(steps) <= 30
    axes.plot(steps, mean, color=BLUE, linewidth=2, marker="o" if few else None, label="mean of the images")
    axes.plot(steps, least, color=ORANGE, linewidth=2, marker="s" if few else None, label="the poorest image")
    axes.set_ylim(0, 1.08 * colors)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("colours")
    axes.legend(frameon=False, loc="lower right", ncols=3)
    return fig


def losses(history: Mapping[str, Sequence[float]], steps: Sequence[int]) -> Figure:
    """Losses over a distillation, one axis each.

    Args:
        history: by name, [t] each; the names are those that `palette.distill` gives to on_step.
        steps: [t].

    Raises:
        ValueError: nothing to draw, or series that are not as long as the steps.
    """
    _check_lengths(steps, history)
    columns = min(2, len(history))
    rows = -(-len(history) // columns)
    fig = Figure((WIDTH, 0.6 + 2.4 * rows), dpi=DPI, layout=ConstrainedLayoutEngine(rect=(0.01, 0.015, 0.98, 0.97)))
    grid = fig.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axes, (name, values) in zip(grid, history.items(), strict=False):
        axes.plot(steps, values, color=BLUE, linewidth=1.8, marker="o" if len(steps) <= 30 else None, markersize=4)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _bare(axes, LOSSES.get(name, name.replace("_", " ")), size=10.5)
    for axes in grid[max(0, len(history) - columns) : len(history)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    for axes in grid[len(history) :]:
        axes.remove()
    return fig


def accuracy_over_colors(
    series: Mapping[str, Sequence[tuple[int, float, float]]], full: tuple[float, float] | None = None
) -> Figure:
    """Top-1 over the number of colours, a line a start or a method, beside full colour.

    Args:
        series: by name, (K, mean top-1 in percent, half of its 95 % interval; NaN where it is not known), in any order.
        full: the same two numbers of full colour.

    Raises:
        ValueError: nothing to draw, or a K below 1.
    """
    points = {
        name: np.array(sorted(values), dtype=float).reshape(-1, 3) for name, values in series.items() if len(values)
    }
    if not points:
        raise ValueError("no accuracies to draw; expected (K, mean, half interval) of at least one method")
    every = np.unique(np.concatenate([values[:, 0] for values in points.values()]))
    if every[0] < 1:
        raise ValueError(f"a number of colours is {every[0]:g}; expected at least 1")
    fig, axes = _chart(5.0, "Accuracy over the number of colours")
    if full is not None:
        mean, half = full
        half = 0.0 if math.isnan(half) else half
        axes.axhspan(mean - half, mean + half, color=GREY, alpha=0.35, linewidth=0)
        spread = f" ± {half:.1f}" if half else ""
        axes.axhline(mean, color=INK, linewidth=1.2, linestyle="--", label=f"full colour: {mean:.1f}{spread}")
    for number, (name, values) in enumerate(points.items()):
        color, marker = LINES[number % len(LINES)]
        # Side by side, so that the bars of several methods at one K can be told apart.
        aside = 2 ** (0.05 * (number - (len(points) - 1) / 2))
        axes.errorbar(
            values[:, 0] * aside, values[:, 1], yerr=np.nan_to_num(values[:, 2]), color=color, marker=marker, markersize=6,
            linewidth=1.6, linestyle="-" if number < len(LINES) else ":", capsize=3, elinewidth=1.2, label=name,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:g}" for value in every])
    axes.set_xlim(every[0] / 1.25, every[-1] * 1.25)
    axes.set_xlabel("K, colours an image")
    axes.set_ylabel("top-1 in percent, 95 % interval")
    axes.legend(frameon=False, ncols=2 if len(points) > 3 else 1, fontsize=9)
    return fig


def _of(shown: int, there: int, one: str, many: str) -> str:
    if shown == there:
        return f"{there} {one if there == 1 else many}"
    return f"{shown} of {there:,} {many}"


def _check_set(images: np.ndarray, palettes: np.ndarray | None, indices: np.ndarray | None) -> None:
    check_images(images)
    if (palettes is None) != (indices is None):
        raise ValueError("palettes and indices come together, or neither does")
    if palettes is None:
        return
    check_palettes(palettes, len(images))
    check_indices(indices)
    if indices.shape != images.shape[:3]:
        raise ValueError(f"indices have shape {indices.shape}; expected {images.shape[:3]}, as the images")
    used_colours(indices, palettes.shape[1])


def _check_lengths(steps: Sequence[int], series: Mapping[str, Sequence[float]]) -> None:
    wrong = {name: len(values) for name, values in series.items() if len(values) != len(steps)}
    if not len(steps) or not series or wrong:
        raise ValueError(f"{len(steps)} steps, and series of other lengths or none at all: {wrong}")


def _chart(height: float, title: str) -> tuple[Figure, Axes]:
    fig = Figure((WIDTH, height), dpi=DPI, layout=ConstrainedLayoutEngine(rect=(0.01, 0.015, 0.98, 0.97)))
    axes = fig.subplots()
    _bare(axes, title)
    return fig, axes


def _bare(axes: Axes, title: str, size: float = 12) -> None:
    axes.set_title(title, loc="left", fontsize=size, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6")
    axes.set_axisbelow(True)
