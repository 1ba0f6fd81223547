"""One number of colours for all images, or one for each class or image, at equal bytes: PSNR, and networks trained on them.

    python -m tests.bench.adaptive_colors --out FILE [--colors 4 8 16] [--seeds 5] [--runs one class image ...] [--no-train]
    python -m tests.bench.adaptive_colors --out FILE --table
    python -m tests.bench.adaptive_colors --out FILE --data ../shared/data/imagenette --side 64 --depth 4 --shards 8

A seed draws --per-class real images a class, and initial weights. The bytes are those of the container in which all of them have K
colours of k-means; a line a run, and lines that are there are skipped:

    one                 all images in K colours
    class, image        palette.adaptive in these bytes, for the least squared error
    class-psnr, image-psnr   for the largest mean PSNR
    rates               no images: what the rates of palette.adaptive predict for the container of "image", and what it takes
    full                the images as they are
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adq.extractor import input_transform
from adq.models import build
from adq.process import keep_freed_memory
from adq.randomness import numpy_generator, seed_of
from adq.rded import resized
from adq.training import Recipe, TensorImages, correct, epoch_batches, steps_per_epoch, train
from palette.adaptive import COLORS, NO_LESS, adaptive, overhead, palettize, rates_and_distortions
from palette.allocation import allocate
from palette.codec import encode
from palette.quantize import kmeans, paint, used_colours
from tests.bench.palettes_data import DATA, examples, load
from tests.bench.palettes_table import interval, key, read

ADAPTIVE = {
    "class": ("class", "error"),
    "image": ("image", "error"),
    "class-psnr": ("class", "psnr"),
    "image-psnr": ("image", "psnr"),
}
RUNS = ("full", "one", *ADAPTIVE, "rates")
MEASURES = {"psnr_of_mean_error": "PSNR of the mean error, dB", "mean_psnr": "mean PSNR, dB", "top1": "top-1, %"}


class Draw:
    """A seed's images, class by class: each number of colours is quantised once.

    Args:
        images: uint8 [N, S, S, 3]. labels: int [N].
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, per_class: int, seed: int, choices: Sequence[int]):
        self.classes, numbers = np.unique(labels, return_inverse=True)
        members = [np.flatnonzero(numbers == c) for c in range(len(self.classes))]
        picks = [
            rows[numpy_generator(seed, "adaptive colours", c).permutation(len(rows))[:per_class]]
            for c, rows in enumerate(members)
        ]
        self.images, self.labels = (
            images[np.concatenate(picks)],
            np.repeat(np.arange(len(picks)), [len(p) for p in picks]),
        )
        self.names, self.choices, self.seconds = [str(c) for c in self.classes], choices, 0.0
        self.quantised: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def quantiser(self, images: np.ndarray, colors: int) -> tuple[np.ndarray, np.ndarray]:
        if images is not self.images:
            return kmeans(images, colors)
        if colors not in self.quantised:
            started = time.process_time()
            self.quantised[colors] = kmeans(images, colors)
            self.seconds += time.process_time() - started
        return self.quantised[colors]

    def run(self, name: str, colors: int | None) -> tuple[dict, np.ndarray | None]:
        """What a line says of the images, and the images that networks are trained on."""
        if name == "full":
            return {}, self.images
        palettes, indices = self.quantiser(self.images, colors)
        budget = len(encode(palettes, indices, self.labels, self.names))
        if name == "rates":
            return self.predictions(budget), None
        seconds, used = 0.0, budget
        if name != "one":
            for k in self.choices:
                self.quantiser(self.images, k)
            (by, goal), started = ADAPTIVE[name], time.process_time()
            found = adaptive(self.images, budget, self.labels, self.names, self.quantiser, self.choices, by, goal)
            (palettes, indices, used), seconds = found, time.process_time() - started
        painted = paint(palettes, indices)
        errors = ((painted.astype(np.float64) - self.images) ** 2).mean(axis=(1, 2, 3))
        of_images = used_colours(indices, palettes.shape[1])
        return {
            "budget": budget,
            "bytes": used,
            "psnr_of_mean_error": round(decibel(errors.mean()), 4),
            "mean_psnr": round(float(np.mean([decibel(max(error, NO_LESS)) for error in errors])), 4),
            "colours": [int(q) for q in np.quantile(of_images, [0, 0.25, 0.5, 0.75, 1])],
            "seconds_quantising": round(self.seconds, 2),
            "seconds": round(seconds, 2),
        }, painted

    def predictions(self, budget: int) -> dict:
        """The container of "image", before any search, and how far above each prediction it is, in per cent."""
        around, rates, places = overhead(self.labels, self.names), None, None
        line: dict[str, object] = {"budget": budget}
        for name in ("without_mix", "with_mix"):
            rates, distortions = rates_and_distortions(self.images, self.choices, self.quantiser, places)
            places = allocate(rates, distortions, budget - around)
            predicted = rates[np.arange(len(places)), places].sum() + around
            palettes, indices = palettize(self.images, np.array(self.choices)[places], self.quantiser)
            used = len(encode(palettes, indices, self.labels, self.names))
            line[name] = {"predicted": round(predicted), "bytes": used, "above": round(100 * (used / predicted - 1), 3)}
        return line


def decibel(error: float) -> float:
    return 10 * math.log10(255**2 / error)


def top1(images: np.ndarray, labels: np.ndarray, test: TensorImages, network: str, recipe: Recipe, seed: int) -> float:
    """In per cent, of a network trained on images; seeds draw weights, order and augmentation."""
    side = images.shape[1]
    torch.manual_seed(seed_of(seed, "bench network"))
    model, transform = build(network, int(labels.max()) + 1, side), input_transform(network, side)
    batches = partial(epoch_batches, examples(torch.from_numpy(images), torch.from_numpy(labels)), recipe, seed)
    train(model, batches, steps_per_epoch(len(images), recipe.batch_size), recipe, transform, seed, "cpu")
    return 100 * float(correct(model, test, np.arange(len(test)), transform, "cpu").mean())


def sized(images: torch.Tensor, side: int | None) -> torch.Tensor:
    """uint8 [N, S, S, 3] with this side, bilinear and antialiased."""
    if not side:
        return images
    return torch.cat([resized(part.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1) for part in images.split(64)])


def table(rows: Sequence[dict]) -> str:
    """Markdown: means over seeds, and differences to one K for all, paired by seed, with 95 % t-intervals."""
    found: dict[str, dict[tuple, dict[int, dict]]] = {}
    for row in rows:
        same = found.setdefault(json.dumps(row["settings"], sort_keys=True), {})
        same.setdefault((row["run"], row["colors"]), {})[row["seed"]] = row
    lines = []
    for settings, runs in found.items():
        lines += ["", settings, ""]
        lines.append("| K | run | bytes | bytes, % of one K | colours used: median, most | "
                     + " | ".join(f"{name} | over one K" for name in MEASURES.values()) + " | seeds |")  # fmt: skip
        lines.append("|---" * (6 + 2 * len(MEASURES) - 1) + "|---|")
        ordered = sorted(runs, key=lambda run: (run[1] or 0, RUNS.index(run[0])))
        for run, colors in (run for run in ordered if run[0] != "rates"):
            each, plain = runs[run, colors], runs.get(("one", colors), {})
            lines.append(
                _line([str(colors or ""), run, *_sizes(list(each.values()))], each, plain if run != "one" else {})
            )
        if len({colors for _, colors in runs if colors}) > 1:
            plain = _pooled(runs, "one")
            pooled = ((run, _pooled(runs, run)) for run in ADAPTIVE)
            lines += [_line(["mean", run, "", "", ""], each, plain) for run, each in pooled if each]
        for (run, colors), each in runs.items():
            if run == "rates":
                errors = {name: [row[name]["above"] for row in each.values()] for name in ("without_mix", "with_mix")}
                text = ", ".join(f"{name} {min(e):+.2f} to {max(e):+.2f} %" for name, e in errors.items())
                lines += ["", f"K = {colors}: the container above the prediction, {len(each)} seeds: {text}"]
    return "\n".join(lines[1:])


def _sizes(rows: Sequence[dict]) -> list[str]:
    if "bytes" not in rows[0]:
        return ["", "", ""]
    used, share = (
        statistics.fmean(values) for values in zip(*((r["bytes"], r["bytes"] / r["budget"]) for r in rows), strict=True)
    )
    median, most = (statistics.fmean(row["colours"][i] for row in rows) for i in (2, 4))
    return [f"{used:,.0f}", f"{100 * share:.2f}", f"{median:.0f}, {most:.0f}"]


def _line(cells: list[str], each: dict[int, dict], plain: dict[int, dict]) -> str:
    for name in MEASURES:
        cells = cells + _compared(each, plain, name)
    return f"| {' | '.join(cells)} | {len(each)} |"


def _pooled(runs: dict[tuple, dict[int, dict]], name: str) -> dict[int, dict]:
    """By seed, the means over K of a run, for the seeds that have all K."""
    each = [rows for (run, _), rows in runs.items() if run == name]
    seeds = [seed for seed in (each[0] if each else ()) if all(seed in rows for rows in each)]
    return {
        seed: {
            m: statistics.fmean(rows[seed][m] for rows in each)
            for m in MEASURES
            if all(m in rows[seed] for rows in each)
        }
        for seed in seeds
    }


def _compared(each: dict[int, dict], plain: dict[int, dict], name: str) -> list[str]:
    """The mean, and the difference to one K for all, of the seeds that have both."""
    values = [row[name] for row in each.values() if name in row]
    common = [seed for seed in each if seed in plain and name in each[seed] and name in plain[seed]]
    mean = f"{statistics.fmean(values):.2f}" if values else ""
    if not common:
        return [mean, ""]
    difference, half = interval([each[seed][name] - plain[seed][name] for seed in common])
    return [mean, f"{difference:+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON")
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--shards", type=int, default=10, help="of the training set; all of the test set is used")
    parser.add_argument("--side", type=int, help="pixels; another one than the files' is made by resizing")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--colors", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--choices", nargs="+", type=int, default=COLORS, help="numbers of colours to choose from")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--augment", default="crop-flip")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()
    rows = read(wanted.out)
    if wanted.table:
        return print(table(rows))
    torch.set_num_threads(wanted.threads)
    keep_freed_memory()
    not_in_key = ("out", "table", "data", "runs", "colors", "seeds", "first_seed", "threads")
    settings = {name: value for name, value in vars(wanted).items() if name not in not_in_key}
    settings |= {"data": wanted.data.name, "choices": list(wanted.choices)}
    there = {key(row) for row in rows}
    planned = []
    for seed in range(wanted.first_seed, wanted.first_seed + wanted.seeds):
        for run in wanted.runs:
            for colors in [None] if run == "full" else wanted.colors:
                line = {"run": run, "colors": colors, "seed": seed, "settings": settings}
                planned += [line] if key(line) not in there and (wanted.train or run != "full") else []
    if not planned:
        return print(table(rows))
    images, labels = load(wanted.data, "train", wanted.shards)
    images, labels = sized(images, wanted.side).numpy(), labels.numpy()
    test = None
    if wanted.train:
        pictures, answers = load(wanted.data, "val", 1_000)
        test = examples(sized(pictures, wanted.side), answers)
    network = f"convnet-d{wanted.depth}-w{wanted.width}"
    recipe = Recipe(steps=wanted.steps, lr=wanted.lr, batch_size=64, augment=wanted.augment, compile=wanted.compile)
    draw, drawn, done = None, None, {}
    for line in planned:
        if drawn != line["seed"]:
            drawn, done = line["seed"], {}
            draw = Draw(images, labels, wanted.per_class, drawn, wanted.choices)
        found, painted = draw.run(line["run"], line["colors"])
        started = time.process_time()
        if wanted.train and painted is not None:
            same = painted.tobytes()  # where one K for all is the best allocation
            done[same] = (
                done[same] if same in done else round(top1(painted, draw.labels, test, network, recipe, drawn), 3)
            )
            found["top1"] = done[same]
            found["seconds_training"] = round(time.process_time() - started, 1)
        rows.append(found | line)
        with wanted.out.open("a") as out:
            out.write(json.dumps(rows[-1], sort_keys=True) + "\n")
        print(json.dumps({"run": line["run"], "colors": line["colors"], "seed": drawn} | found), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
