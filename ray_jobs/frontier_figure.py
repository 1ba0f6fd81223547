"""Accuracy over bytes: a line for every way to spend them, and the frontier above all."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ray_jobs.budget import as_budget
from ray_jobs.comparison_figures import COLORS, MARKERS
from ray_jobs.figures import DPI, GREY, WIDTH, bare, layout, title
from ray_jobs.frontier_report import Point, best

LEGEND = 145  # characters in a line, about, with eight for a line and a marker each
FEW = 6  # lines that can be told apart with all their intervals


def accuracy_over_bytes(found: Sequence[Point], arch: str) -> Figure:
    """Top-1 over the payload; a colour an encoding, a marker a method; bars are 95 % intervals, in a crowd only of what leads.

    Args:
        found: the points of one network.
    """
    encodings, methods = (sorted({getattr(point, name) for point in found}) for name in ("encoding", "method"))
    fig = Figure((WIDTH, 5.6), dpi=DPI, layout=layout())
    axes = fig.subplots()
    leaders = sorted(best(found), key=lambda point: point.budget)
    axes.plot(
        [p.payload for p in leaders], [100 * p.mean for p in leaders], color="#DDDDDD", linewidth=9, zorder=0, label="frontier",
        solid_capstyle="round",
    )  # fmt: skip
    names = sorted({(point.encoding, point.method) for point in found})
    for encoding, method in names:
        mine = [point for point in found if (point.encoding, point.method) == (encoding, method)]
        mine.sort(key=lambda point: point.budget)
        shown = len(names) <= FEW or not encoding or any(point in leaders for point in mine)
        axes.errorbar(
            [p.payload for p in mine], [100 * p.mean for p in mine],
            yerr=np.nan_to_num([100 * p.half_interval for p in mine]) if shown else None, label=mine[0].name, capsize=2,
            linewidth=1.2 if shown else 0.8, markersize=5, alpha=1 if shown else 0.6,
            color=COLORS[encodings.index(encoding) % len(COLORS)] if encoding else GREY,
            marker=MARKERS[methods.index(method) % len(MARKERS)],
        )  # fmt: skip
    axes.set_xscale("log")
    budgets = sorted({point.budget for point in found})
    axes.set_xticks(budgets, [as_budget(budget) for budget in budgets])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("payload")
    axes.set_ylabel("per cent")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", color="#E6E6E6")
    title(axes, f"{arch}: top-1 of the last epoch")
    columns = max(1, LEGEND // (8 + max(len(point.name) for point in found)))
    fig.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    bare(axes)
    return fig
