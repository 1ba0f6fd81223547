"""Top-1 over alpha (as the paper's Figure 6) and over the number of bins, from the lines of results/claims.jsonl.

python -m tests.bench.settings --lines tests/bench/results/claims.jsonl --figure figure6.png [--of cifar10-settings]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adq.controls import CONTROLS
from ray_jobs.comparison import Cell, cells
from ray_jobs.figures import BLUE, DPI, GREEN, GREY, ORANGE, WIDTH, bare, layout, title
from ray_jobs.options import Selection
from tests.bench.claims import outcome

USUAL = Selection()  # what a method without a setting in its name has


def setting_of(name: str, setting: str) -> tuple[str, float] | None:
    """`adq:alpha=0.3` as its method and the value of a setting; None for what differs in another one, and other methods."""
    method, *given = name.split(":")
    values = dict(one.split("=") for one in given)
    if set(values) - {setting} or method not in ("dq", "adq"):
        return None
    return method, float(values.get(setting, getattr(USUAL, setting)))


def line(axes: Axes, found: Sequence[tuple[float, Cell]], color: str, label: str, marker: str = "o") -> None:
    """Means at their places; bars are 95 % intervals."""
    at, mine = zip(*sorted(found, key=lambda pair: pair[0]), strict=True)
    means, halves = ([100 * getattr(cell, name) for cell in mine] for name in ("mean", "half_interval"))
    axes.errorbar(
        at, means, yerr=halves, color=color, marker=marker, markersize=6, linewidth=1.8, capsize=4, label=label
    )


def figure(found: Sequence[Cell]) -> Figure:
    """DQ is ADQ with an alpha of 0; the controls are those of ADQ as it is by default."""
    of = {name: [(at, cell) for cell in found if (at := setting_of(cell.method, name))] for name in ("alpha", "bins")}
    fig = Figure((WIDTH, 4.4), dpi=DPI, layout=layout())
    left, right = fig.subplots(1, 2, sharey=True)
    alphas = [(0.0, next(cell for cell in found if cell.method == "dq"))]
    alphas += [(value, cell) for (method, value), cell in of["alpha"] if method == "adq"]
    line(left, alphas, ORANGE, "adq")
    for number, name in enumerate(CONTROLS):
        if mine := [(USUAL.alpha + 0.03 * (number + 1), cell) for cell in found if cell.method == name]:
            line(left, mine, (GREEN, GREY, "#CC79A7")[number % 3], name, "sD^"[number % 3])
    left.set_xticks([value for value, _ in alphas])
    for method, color, aside in (("dq", BLUE, -0.15), ("adq", ORANGE, 0.15)):
        line(right, [(value + aside, cell) for (name, value), cell in of["bins"] if name == method], color, method)
    right.set_xticks(sorted({value for (_, value), _ in of["bins"]}))
    title(left, "Top-1 over alpha (0 is DQ), ten bins")
    title(right, "Top-1 over the number of bins")
    left.set_ylabel("per cent")
    left.set_xlabel("alpha")
    right.set_xlabel("bins (one is a stratified random draw)")
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=9)
        axes.grid(axis="y", color="#E6E6E6")
        bare(axes)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--of", default="cifar10-settings", metavar="NAME")
    parser.add_argument("--figure", type=Path, required=True)
    wanted = parser.parse_args()
    lines = [json.loads(text) for text in wanted.lines.read_text().splitlines()]
    if not (mine := [outcome(one) for one in lines if one["data"] == wanted.of]):
        parser.error(f"--of {wanted.of}: no line in {wanted.lines}")
    figure(cells(mine)).savefig(wanted.figure)


if __name__ == "__main__":
    main()
