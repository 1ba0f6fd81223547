"""Figures of a run, drawn without a display.

They are matplotlib `Figure` objects that no global state knows: drop them when they are saved. 900 pixels wide they are
legible, and their colours (Okabe and Ito's) are told apart by colour-blind readers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#B5B5B5", "#333333"
WIDTH = 9.0
DPI = 140


def bin_scores(table: Mapping[str, np.ndarray]) -> Figure:
    """Scores of the bins (eq. 3 and 5) with their standard errors, and the importance made of them (eq. 6 to 8).

    Args:
        table: arrays [m]: bin, representativeness, diversity, representativeness_se, diversity_se, importance.
    """
    fig = Figure((WIDTH, 7.2), dpi=DPI, layout=layout())
    top, middle, bottom = fig.subplots(3, 1, sharex=True)
    bins = np.asarray(table["bin"])
    for axes, score, color, what in (
        (top, "representativeness", BLUE, "Representativeness of each bin: the texture of its images (eq. 3)"),
        (middle, "diversity", ORANGE, "Diversity of each bin: how far its images are from each other (eq. 5)"),
    ):
        axes.errorbar(
            bins,
            table[score],
            yerr=table[f"{score}_se"],
            color=color,
            marker="o",
            markersize=6,
            linewidth=1.8,
            capsize=4,
        )
        title(axes, what)
        axes.set_ylabel("score ± standard error")
        axes.grid(axis="y", color="#E6E6E6")
    importance = np.asarray(table["importance"], dtype=float)
    bars = bottom.bar(bins, importance, color=GREEN, width=0.7)
    if len(bins) <= 20:
        bottom.bar_label(bars, labels=[f"{value:.2f}" for value in importance], padding=2, color=INK)
    bottom.set_ylim(0, max(1e-9, float(importance.max(initial=0)) * 1.18))
    title(bottom, "Importance of each bin: both scores, normalised and added (eq. 6 to 8)")
    bottom.set_ylabel("importance")
    bottom.set_xlabel("bin, in the order in which GraphCut filled them")
    bottom.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    for axes in (top, middle, bottom):
        bare(axes)
    return fig


def bin_shares(
    bins: Sequence[int], sizes: Sequence[int], quotas: Sequence[int], dq_quotas: Sequence[int], keep: float
) -> Figure:
    """The share that is kept of every bin, beside the uniform share of DQ (alpha = 0).

    Args:
        bins, sizes, quotas, dq_quotas: [m] each; sizes and quotas in images.
        keep: the keep ratio.
    """
    bins, sizes, quotas, dq_quotas = (np.asarray(values) for values in (bins, sizes, quotas, dq_quotas))
    total = max(1, int(dq_quotas.sum()))
    moved = np.abs(quotas / max(1, int(quotas.sum())) - dq_quotas / total).sum() / 2
    shares, dq_shares = quotas / np.maximum(sizes, 1), dq_quotas / np.maximum(sizes, 1)
    fig = Figure((WIDTH, 4.6), dpi=DPI, layout=layout())
    axes = fig.subplots()
    width = 0.4
    axes.bar(bins - width / 2, dq_shares, width, color=GREY, label="DQ: the same share of every bin")
    bars = axes.bar(bins + width / 2, shares, width, color=BLUE, label="this subset")
    if len(bins) <= 20:
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.bar_label(bars, labels=[f"{quota:,}" for quota in quotas], padding=3, fontsize=9, color=INK, bbox=behind)
        axes.set_xlabel("bin (the numbers on the bars are images)")
    else:
        axes.set_xlabel("bin")
    axes.axhline(keep, color=INK, linewidth=1, linestyle="--", label=f"keep ratio {keep:.3g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_ylim(0, max(1e-9, keep, shares.max(initial=0), dq_shares.max(initial=0)) * 1.28)
    axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    axes.set_ylabel("share of the bin that is kept")
    title(axes, f"Share kept of every bin: {moved:.1%} of the choice moved away from DQ")
    axes.legend(ncols=3, loc="upper center", frameon=False)
    bare(axes)
    return fig


def bin_grid(images: Mapping[int, Sequence[np.ndarray]], titles: Mapping[int, str] | None = None) -> Figure:
    """Chosen images, a row a bin.

    Args:
        images: for each bin a few images, uint8 [H, W, 3], of any sizes.
        titles: what to write before a row; "bin n" by default.
    """
    titles = titles or {}
    columns = max((len(row) for row in images.values()), default=1)
    side = min(0.95, (WIDTH - 1.1) / max(columns, 1))
    fig = Figure((max(3.6, columns * side + 1.1), max(1, len(images)) * side + 0.5), dpi=DPI, layout=layout())
    fig.get_layout_engine().set(wspace=0.01, hspace=0.01, w_pad=0.02, h_pad=0.02, rect=(0.01, 0.01, 0.98, 0.98))
    fig.suptitle("Images chosen from every bin", fontsize=12, color=INK, fontweight="bold")
    grid = fig.subplots(max(1, len(images)), max(1, columns), squeeze=False)
    for cells, (bin_number, row) in zip(grid, sorted(images.items()), strict=False):
        for position, axes in enumerate(cells):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if position < len(row):
                axes.imshow(row[position], interpolation="nearest" if max(row[position].shape) <= 64 else "auto")
        label = titles.get(bin_number, f"bin {bin_number}")
        cells[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10, color=INK, labelpad=8)
    return fig


def class_counts(counts: np.ndarray, bins: Sequence[int] | None = None, classes: Sequence[str] | None = None) -> Figure:
    """Images of every class in every bin, as a heat map.

    Args:
        counts: [bins, classes], images.
        bins, classes: their names; numbers by default.
    """
    counts = np.asarray(counts)
    rows, columns = counts.shape
    bins = range(rows) if bins is None else bins
    classes = [str(number) for number in range(columns)] if classes is None else classes
    fig = Figure((WIDTH, min(9.0, 1.7 + 0.36 * rows)), dpi=DPI, layout=layout())
    axes = fig.subplots()
    image = axes.imshow(counts, cmap="cividis", vmin=0, aspect="auto", interpolation="nearest")
    fig.colorbar(image, ax=axes, label="images", pad=0.015)
    title(axes, f"Classes in the bins: {counts.min():,} to {counts.max():,} images of a class in a bin")
    axes.set_ylabel("bin")
    axes.set_xlabel("class")
    axes.set_yticks(range(rows), [str(number) for number in bins])
    if columns <= 25:
        tilt = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 3 else {}
        axes.set_xticks(range(columns), classes, **tilt)
        middle = counts.max(initial=0) / 2
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, f"{count}", ha="center", va="center", color="white" if count < middle else "black")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return fig


def loss_curve(steps: Sequence[int], losses: Sequence[float], what: str) -> Figure:
    """A loss over the steps; for more than 200 steps also its running mean over a fiftieth of them."""
    steps, losses = np.asarray(steps), np.asarray(losses, dtype=float)
    fig = Figure((WIDTH, 4.0), dpi=DPI, layout=layout())
    axes = fig.subplots()
    if len(losses) > 200:
        window = len(losses) // 50
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        axes.plot(steps, losses, color=GREY, linewidth=0.8, label="each step")
        axes.plot(steps[window // 2 :][: len(smooth)], smooth, color=BLUE, linewidth=2, label=f"mean of {window} steps")
        axes.legend(frameon=False)
    else:
        axes.plot(steps, losses, color=BLUE, linewidth=2, marker="o" if len(losses) <= 30 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(axis="y", color="#E6E6E6")
    title(axes, what)
    bare(axes)
    return fig


def layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(rect=(0.01, 0.015, 0.98, 0.97))


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=12, fontweight="bold", color=INK)


def bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
