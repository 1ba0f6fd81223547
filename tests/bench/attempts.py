"""Development of a selection that beats random and DQ: every attempt is a line, on a part of the training set alone.

    python -m tests.bench.attempts --out FILE [--methods random dq ...] [--seeds 2] [--compile --bfloat16]
    python -m tests.bench.attempts --out FILE --data ../shared/data/imagenette --side 64 --depth 4 --batch 64 --steps 500
    python -m tests.bench.attempts --out FILE --table

The last training shard is what is tested on, the others are selected from and trained on; the test set is not read. A seed varies
the extractor, the draw and the training; lines that are there are skipped. PyTorch alone. Methods are those of `adq.coresets`, with
settings after a colon, and those of CANDIDATES.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adq.batches import TensorImages, epoch_batches, steps_per_epoch
from adq.coresets import METHODS
from adq.extractor import FeatureExtractor, InputTransform, input_transform
from adq.geometry_coresets import lazy_greedy
from adq.graphcut import graphcut_bins
from adq.models import build
from adq.pool import Pool, by_class
from adq.process import keep_freed_memory
from adq.randomness import global_draws
from adq.recipe import Recipe
from adq.training import correct, train
from tests.bench.adaptive_colors import sized
from tests.bench.palettes_data import DATA, examples, load
from tests.bench.palettes_table import interval, read


def kernel_herding(pool: Pool, total: int, seed: int, width: float = 1.0) -> np.ndarray:
    """Herding in the space of a Gaussian kernel, `width` times the median distance of the class wide."""

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        squares = distances(pool.embeddings[mine]) ** 2
        kernel = np.exp(-squares / (2 * width**2 * np.median(squares)))
        return greedy(-kernel, count)

    return by_class(pool, total, seed, pick)


def energy(pool: Pool, total: int, seed: int, power: float = 1.0) -> np.ndarray:
    """Greedy on the energy distance to the class (Szekely and Rizzo, 2013), of distances to a `power`."""
    return by_class(
        pool, total, seed, lambda mine, count: greedy(distances(pool.embeddings[mine]) ** power, count)
    )  # fmt: skip


def facility(pool: Pool, total: int, seed: int, width: float = 1.0) -> np.ndarray:
    """Facility location whose similarity is a Gaussian of the distance, `width` times the median distance of the class wide."""

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        squares = distances(pool.embeddings[mine]) ** 2
        return lazy_greedy(np.exp(-squares / (2 * width**2 * np.median(squares))).astype(np.float32), count)

    return by_class(pool, total, seed, pick)


def head_of(pool: Pool, mine: np.ndarray, count: int, depth: float) -> np.ndarray:
    """The places in a class of the first share of its GraphCut order, ascending."""
    order = np.lexsort((pool.ranks[mine], pool.bins[mine]))
    return np.sort(order[: max(count, math.ceil(depth * len(mine)))])


def head_energy(pool: Pool, total: int, seed: int, depth: float = 0.6) -> np.ndarray:
    """`energy` inside the head of the GraphCut order."""

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        head = head_of(pool, mine, count, depth)
        return head[greedy(distances(pool.embeddings[mine[head]]), count)]

    return by_class(pool, total, seed, pick)


def head_herding(pool: Pool, total: int, seed: int, depth: float = 0.6) -> np.ndarray:
    """Herding inside the head of the GraphCut order."""

    def pick(mine: np.ndarray, count: int) -> np.ndarray:
        head = head_of(pool, mine, count, depth)
        unit = pool.embeddings[mine[head]] / np.linalg.norm(pool.embeddings[mine[head]], axis=1, keepdims=True)
        return head[greedy(-(unit @ unit.T).astype(np.float64), count)]

    return by_class(pool, total, seed, pick)


def greedy(cost: np.ndarray, count: int) -> np.ndarray:
    """Each pick is near to all on the mean, and far from the picks before it."""
    to_all, to_picks, picks = cost.mean(axis=1, dtype=np.float64), np.zeros(len(cost)), []
    for k in range(1, count + 1):
        values = k * to_all - to_picks
        values[picks] = np.inf
        picks.append(int(values.argmin()))
        to_picks += cost[picks[-1]]
    return np.array(picks)


def distances(rows: np.ndarray) -> np.ndarray:
    """Euclidean distances of unit vectors: float64 [n, n]."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.sqrt(np.maximum(2 - 2 * (unit @ unit.T).astype(np.float64), 0))


CANDIDATES: dict[str, Callable] = {
    "kernel-herding": kernel_herding, "energy": energy, "head-energy": head_energy, "head-herding": head_herding,
    "facility": facility,
}  # fmt: skip


class Development:
    """A seed's extractor, what it sees of the pool, and trainings on what is selected."""

    def __init__(self, data: TensorImages, test: TensorImages, options: argparse.Namespace, seed: int):
        self.data, self.test, self.options, self.seed = data, test, options, seed
        side = data.images.shape[-1]
        self.arch, self.transform = f"convnet-d{options.depth}-w{options.width}", None
        self.transform = input_transform(self.arch, side)
        recipe = self.recipe(epochs=options.extractor_epochs, steps=None)
        model = self.trained(data, recipe, seed + 1000)
        embeddings = _embeddings(model, self.arch, data, self.transform)
        bins, ranks = graphcut_bins(embeddings, data.labels)
        self.pool = Pool([f"{row:06d}" for row in range(len(data))], data.labels, embeddings, bins, ranks)

    def recipe(self, **changes: int | None) -> Recipe:
        o = self.options
        settings = {"steps": o.steps, "batch_size": o.batch, "lr": o.lr, "compile": o.compile, "bfloat16": o.bfloat16}
        return Recipe(**settings | changes)

    def trained(self, data: TensorImages, recipe: Recipe, seed: int) -> torch.nn.Module:
        with global_draws(seed, "initial weights", self.arch):
            model = build(self.arch, int(self.data.labels.max()) + 1, data.images.shape[-1])
        batches, per_epoch = partial(epoch_batches, data, recipe, seed), steps_per_epoch(len(data), recipe.batch_size)
        train(model, batches, per_epoch, recipe, self.transform, seed, "cpu")
        return model

    def run(self, method: str, keep: float) -> dict:
        started = time.process_time()
        name, _, setting = method.partition(":")
        settings = dict([(setting.split("=")[0], float(setting.split("=")[1]))]) if setting else {}
        function = CANDIDATES.get(name) or METHODS[name].function
        rows = np.sort(function(self.pool, round(keep * len(self.data)), self.seed, **settings))
        selected = time.process_time() - started
        part = TensorImages(self.data.images[torch.from_numpy(rows)], self.data.labels[rows])
        right = correct(
            self.trained(part, self.recipe(), self.seed), self.test, np.arange(len(self.test)), self.transform, "cpu"
        )
        return {"images": len(rows), "top1": round(100 * float(right.mean()), 3), "select_seconds": round(selected, 2)}


def _embeddings(model: torch.nn.Module, arch: str, data: TensorImages, transform: InputTransform) -> np.ndarray:
    extractor = FeatureExtractor(model, arch)
    return torch.cat([extractor(transform.normalise(part))[0] for part in data.images.split(1000)]).numpy()


def key(row: dict) -> str:
    """What makes a line another one."""
    return json.dumps([row[name] for name in ("method", "keep", "seed", "settings")], sort_keys=True)


def table(rows: Sequence[dict]) -> str:
    """Markdown: means, and differences to random and DQ paired by seed, at each keep ratio and on the mean over them."""
    lines = []
    for settings in dict.fromkeys(json.dumps(row["settings"], sort_keys=True) for row in rows):
        mine = [row for row in rows if json.dumps(row["settings"], sort_keys=True) == settings]
        keeps = sorted({row["keep"] for row in mine})
        found: dict[str, dict[tuple, float]] = {}
        for row in mine:
            found.setdefault(row["method"], {})[row["keep"], row["seed"]] = row["top1"]
        data = json.loads(settings)["data"]
        columns = [f"{keep:.0%}, over random" for keep in keeps]
        lines += [f"| {data} | {' | '.join(columns)} | mean over random | over DQ | seeds |"]
        lines += ["|---" * (len(keeps) + 4) + "|"]
        ranked = sorted(found, key=lambda m: -statistics.fmean(found[m].values()))
        for method in ranked:
            cells = [f"{statistics.fmean(v for (k, _), v in found[method].items() if k == keep):.1f}, "
                     + _over(found[method], found.get("random", {}), [keep]) for keep in keeps]  # fmt: skip
            both = [_over(found[method], found.get(other, {}), keeps) for other in ("random", "dq")]
            seeds = len({seed for _, seed in found[method]})
            lines.append(f"| {method} | {' | '.join([*cells, *both])} | {seeds} |")
        lines.append("")
    return "\n".join(lines)


def _over(one: dict[tuple, float], other: dict[tuple, float], keeps: Sequence[float]) -> str:
    """The mean difference over some keep ratios, of the seeds that both have at all of them."""
    seeds = {seed for _, seed in one if all((keep, seed) in each for keep in keeps for each in (one, other))}
    if not seeds or one is other:
        return ""
    each = [statistics.fmean(one[keep, seed] - other[keep, seed] for keep in keeps) for seed in sorted(seeds)]
    mean, half = interval(each)
    return f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON")
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--side", type=int, default=0, help="pixels to which images are resized; 0: their own")
    parser.add_argument("--methods", nargs="+", default=["random", "dq", "herding", "prefix:depth=0.3"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.01, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--extractor-epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    wanted = parser.parse_args()
    rows = read(wanted.out)
    if wanted.table:
        return print(table(rows))
    torch.set_num_threads(1)
    keep_freed_memory()
    not_in_key = ("out", "table", "methods", "keep", "seeds", "first_seed")
    settings = {name: value for name, value in vars(wanted).items() if name not in not_in_key}
    settings |= {"data": wanted.data.name}
    last = len(list(wanted.data.glob("*train-*.tar"))) - 1
    data, test = (
        examples(sized(images, wanted.side), labels)
        for images, labels in (load(wanted.data, "train", last), load(wanted.data, "train", 1, last))
    )
    print(f"{len(data):,} images to select from, {len(test):,} to test on", flush=True)
    there = {key(row) for row in rows}
    for seed in range(wanted.first_seed, wanted.first_seed + wanted.seeds):
        lines = [
            {"method": m, "keep": k, "seed": seed, "settings": settings} for m in wanted.methods for k in wanted.keep
        ]
        lines = [line for line in lines if key(line) not in there]
        development = Development(data, test, wanted, seed) if lines else None
        for line in lines:
            found = development.run(line["method"], line["keep"]) | line
            with wanted.out.open("a") as out:
                out.write(json.dumps(found, sort_keys=True) + "\n")
            print(json.dumps({name: value for name, value in found.items() if name != "settings"}), flush=True)
    print(table(read(wanted.out)))


if __name__ == "__main__":
    main()
