"""Pictures of the probe: the same seed distilled with and without the losses of the palette network, its grid, a real image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from palette.distill import Distilled
from ray_jobs import palette_figures

if TYPE_CHECKING:
    from tests.bench.palettes import Bench

COLORS = 8
WITHOUT = ("weights.maximum_color=0", "weights.palette_balance=0", "weights.color_assignment=0")
PLAIN = ("palette_start=plain",)  # as published: from the k-means start, all colours are in use without the losses too
RUNS = {
    "all three losses": ("network", ()),
    "no losses": ("network", WITHOUT),
    "plain start, all losses": ("network", PLAIN),
    "plain start, no losses": ("network", PLAIN + WITHOUT),
    "direct, no network": ("direct", ()),
}
POINTS = 60  # of the curves


def pictures(bench: "Bench", data: Path) -> dict[str, Figure]:
    """Figures by name, of networks' and direct palettes in 8 colours from one seed."""
    results, figures = {}, {}
    for name, (mode, changes) in RUNS.items():
        result, history = _distilled(bench, mode, changes)
        results[name] = _arrays(result)
        if mode == "network":
            figures |= _curves(history, name.replace(",", "").replace(" ", "_"))
        print(f"{name}: {history[-1][1]}", flush=True)
    named = data / "classes.txt"
    classes = named.read_text().split() if named.exists() else [str(label) for label in bench.classes]
    labels = np.repeat(bench.classes, bench.wanted.images_per_class)
    return figures | {
        "with_and_without": palette_figures.with_and_without(results),
        "grid": palette_figures.distilled_grid(*results["all three losses"], labels, classes),
        "grid_without_losses": palette_figures.distilled_grid(*results["no losses"], labels, classes),
        "bit_depths": palette_figures.bit_depths(_colourful(bench.images[:500].numpy())),
    }


def _distilled(
    bench: "Bench", mode: str, changes: Sequence[str]
) -> tuple[Distilled, list[tuple[int, dict[str, float]]]]:
    history: list[tuple[int, dict[str, float]]] = []
    result, _ = bench.distilled(
        bench.recipe(mode, COLORS, list(changes)),
        lambda step, metrics: history.append((step, metrics)),
        max(1, bench.wanted.steps // POINTS),
    )
    return result, history


def _arrays(result: Distilled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return result.images.numpy(), result.palettes.numpy(), result.indices.numpy()


def _curves(history: Sequence[tuple[int, dict[str, float]]], name: str) -> dict[str, Figure]:
    steps = [step for step, _ in history]
    series = {metric: [metrics[metric] for _, metrics in history] for metric in history[0][1]}
    mean, least = series.pop("colors_used"), series.pop("least_colors_used")
    return {
        f"colors_{name}": palette_figures.colors_in_use(steps, mean, least, COLORS),
        f"losses_{name}": palette_figures.losses(series, steps),
    }


def _colourful(images: np.ndarray) -> np.ndarray:
    """The image of most colours, counted in steps of 16 levels."""
    steps = (images.astype(int) // 16).reshape(len(images), -1, 3) @ (256, 16, 1)
    return images[np.argmax([len(np.unique(image)) for image in steps])]
