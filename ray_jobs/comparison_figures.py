"""Accuracy over the keep ratio, a line a method."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ray_jobs.comparison import BASELINES, compared_at
from ray_jobs.figures import BLUE, DPI, GREEN, GREY, INK, ORANGE, WIDTH, bare, layout, title

if TYPE_CHECKING:
    from ray_jobs.comparison import Cell

COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", INK, "#8C564B", "#882255", "#117733", "#AA4499")
MARKERS = "osD^vPX*<>hp"
LINES = ("-", "--", ":")  # once the colours are used up


def accuracy_over_keep(found: "Sequence[Cell]", arch: str) -> Figure:
    """Top-1 over the keep ratio on the left, the difference to random on the right; bars are 95 % intervals.

    Args:
        found: the cells of one network.
    """
    methods = list(dict.fromkeys(cell.method for cell in found))
    chosen = {cell.keep for cell in found if cell.method in BASELINES}
    at_share = {cell.keep: compared_at(cell.keep, chosen) or cell.keep for cell in found}
    shares = sorted(set(at_share.values()))
    place = {keep: shares.index(share) for keep, share in at_share.items()}
    beside = "random" in methods and len(methods) > 1
    fig = Figure((WIDTH * 1.2, 5.4), dpi=DPI, layout=layout())
    axes = fig.subplots(1, 2 if beside else 1, squeeze=False)[0]
    spread = 0.24 / max(1, len(methods))
    for number, method in enumerate(methods):
        mine = [cell for cell in found if cell.method == method]
        at = np.array([place[cell.keep] for cell in mine]) + spread * (number - (len(methods) - 1) / 2)
        color = GREY if method == "random" else COLORS[number % len(COLORS)]
        style = {
            "color": color,
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
            "capsize": 3,
            "linewidth": 1.2,
            "linestyle": LINES[number // len(COLORS) % len(LINES)],
        }
        means, halves = np.array([[cell.mean, cell.half_interval] for cell in mine]).T * 100
        axes[0].errorbar(at, means, yerr=np.nan_to_num(halves), label=method, **style)
        if beside and method != "random":
            means, halves = np.array([cell.over_random for cell in mine]).T * 100
            axes[1].errorbar(at, means, yerr=np.nan_to_num(halves), **style)
    fig.suptitle(arch, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    title(axes[0], "top-1 of the last epoch")
    axes[0].set_ylabel("per cent")
    fig.legend(loc="outside lower center", ncols=min(len(methods), 6), frameon=False, fontsize=9)
    if beside:
        axes[1].axhline(0, color=GREY, linewidth=1.5)
        title(axes[1], "above random, seed by seed")
        axes[1].set_ylabel("points")
    for one in axes:
        one.set_xticks(range(len(shares)), [f"{100 * share:.3g} %" for share in shares])
        one.set_xlabel("images kept")
        one.grid(axis="y", color="#E6E6E6")
        one.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bare(one)
    return fig
