"""Distilled palettes beside quantising afterwards, real images and lossy files: one JSON line a run; lines there are skipped.

    python -m tests.bench.palettes --out FILE [--seeds 5] [--colors 4 8 32] [--runs none direct network ...] [--set FIELD=VALUE ...]
    python -m tests.bench.palettes --out FILE [--table] [--figures DIR] [--tracking-uri URI]
    python -m tests.bench.palettes --pictures DIR [--tracking-uri URI]

A run is a way to make a set of --images-per-class images a class:

    random, none                      real images; DM in full colour
    direct, network, soft, buckets    DM with palettes, modes of palette.recipe
    random+Q, none+Q                  quantised afterwards, Q being median_cut, kmeans or octree
    random+Q@bytes                    real images, as many as fit in the payload bytes of "direct" in K colours
    random+C                          the same with C webp or jpeg, of the quality that is best on a part of the training set
    none+C, none+C@bytes              DM's images in these bytes, of the best quality that fits; with @bytes up to six times as
                                      many images, their number too chosen on a part of the training set

--set changes the recipe ("weights.maximum_color=0"), --name says what was changed. The seed is that of the distillation; every set
trains the same --networks networks. Payload bytes: those of tests.bench.palettes_bytes, or 3 a pixel in full colour.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adq.extractor import input_transform
from adq.models import build
from adq.process import keep_freed_memory
from adq.randomness import seed_of
from adq.training import Recipe, TensorImages, correct, epoch_batches, steps_per_epoch, train
from palette.distill import Distilled, distill
from palette.initialize import WITH_EMBEDDINGS, initialize, quantise
from palette.matching import embed
from palette.network import MODES, normalise
from palette.recipe import Distillation
from tests.bench.palettes_bytes import QUANTISERS, at_equal_bytes, palette_bytes, quantised
from tests.bench.palettes_data import DATA, examples, load
from tests.bench.palettes_table import drawn, keep, key, read, table


class Bench:
    """One seed: what several runs share is made once (the real images' embeddings, DM in full colour, budgets).

    Args:
        budgets: by K, payload bytes of "direct" that are known already.
    """

    def __init__(
        self,
        wanted: argparse.Namespace,
        seed: int,
        data: tuple[Tensor, Tensor],
        test: TensorImages | None = None,
        budgets: dict[int, int] | None = None,
    ):
        self.wanted, self.seed, self.test = wanted, seed, test
        self.budgets, self.in_full_colour = dict(budgets or {}), {}
        self.images, self.labels = data
        self.classes = torch.unique(self.labels).tolist()
        self.targets: dict[int, Tensor] = {}
        self.network = f"convnet-d{wanted.depth}-w{wanted.width}"

    def recipe(self, mode: str, colors: int | None, changes: list[str] = ()) -> Distillation:
        wanted = self.wanted
        base = Distillation(
            images_per_class=wanted.images_per_class, mode=mode, colors=colors or 32, start="random", steps=wanted.steps,
            width=wanted.width, depth=wanted.depth, seed=self.seed,
        )  # fmt: skip
        for change in changes:
            name, _, value = change.partition("=")
            base = changed(base, name.split("."), value)
        return base

    def distilled(
        self, recipe: Distillation, on_step: Callable[[int, dict[str, float]], None] | None = None, log_every: int = 50
    ) -> tuple[Distilled, dict[str, float]]:
        """The set, and the metrics of the last step."""
        logged: dict[str, float] = {}
        embeddings = self.embeddings(recipe.colors) if recipe.start in WITH_EMBEDDINGS else None
        plain = self.recipe("none", None)
        same = all(
            getattr(recipe, name) == getattr(plain, name)
            for name in ("batch_real", "augmentations", "depth", "width", "seed")
        )
        result = distill(
            self.images, self.labels, recipe, embeddings=embeddings, targets=self.targets if same else None,
            on_step=on_step or (lambda step, metrics: logged.update(metrics)), log_every=log_every,
        )  # fmt: skip
        return result, logged

    def full_colour(self, count: int) -> Tensor:
        """DM's images, `count` a class."""
        if count not in self.in_full_colour:
            recipe = replace(self.recipe("none", None), images_per_class=count)
            self.in_full_colour[count] = self.distilled(recipe)[0].images
        return self.in_full_colour[count]

    def start(self, count: int, train: Tensor | None = None) -> Tensor:
        """Random real images, `count` a class; the first ones are the same for any count.

        Args:
            train: bool [N], those that may be chosen.
        """
        images, labels = (self.images, self.labels) if train is None else (self.images[train], self.labels[train])
        return initialize(images, labels, self.classes, count, "random", seed=self.seed)

    def embeddings(self, colors: int) -> np.ndarray:
        """Of the training images in `colors` colours, by a network trained on them."""
        seen = quantise(self.images, colors)
        network = self.trained(seen, self.labels, Recipe(epochs=self.wanted.embedding_epochs, lr=0.05), 0)
        with torch.no_grad():
            return torch.cat([embed(network, normalise(part)) for part in seen.split(32)]).numpy()

    def trained(self, images: Tensor, labels: Tensor, recipe: Recipe, number: int) -> torch.nn.Module:
        side = images.shape[1]
        torch.manual_seed(seed_of(0, "bench network", number))
        model = build(self.network, len(self.classes), side)
        batches = partial(epoch_batches, examples(images, labels), recipe, number)
        transform = input_transform(self.network, side)
        train(model, batches, steps_per_epoch(len(images), recipe.batch_size), recipe, transform, number, "cpu")
        return model

    def accuracies(self, images: Tensor, networks: int, test: TensorImages | None = None) -> list[float]:
        """Top-1 in percent of networks trained on images in the order of their classes."""
        wanted, test = self.wanted, test or self.test
        labels = torch.tensor(self.classes).repeat_interleave(len(images) // len(self.classes))
        recipe = Recipe(steps=wanted.eval_steps, lr=wanted.eval_lr, batch_size=64, augment=wanted.eval_augment)
        transform, everything = input_transform(self.network, images.shape[1]), np.arange(len(test))
        models = [self.trained(images, labels, recipe, number) for number in range(networks)]
        return [100 * float(correct(model, test, everything, transform, "cpu").mean()) for model in models]

    def run(self, name: str, colors: int | None, changes: list[str]) -> dict:
        """Everything of a line but its key."""
        source, _, after = name.partition("+")
        kind, _, rule = after.partition("@")
        after_known = source in ("random", "none") and kind in ("webp", "jpeg", *QUANTISERS) and rule in ("", "bytes")
        if not (after_known if after else source in ("random", *MODES)):
            raise ValueError(f"no run {name!r}: see the head of this file")
        extra: dict[str, object] = {}
        if kind in ("webp", "jpeg") or rule:
            images, payload, extra = at_equal_bytes(self, source, kind, rule, colors)
        elif kind:
            images, payload = quantised(self, source, kind, colors, self.wanted.images_per_class)
        elif source in MODES and source != "none":
            result, extra = self.distilled(self.recipe(source, colors, changes))
            images, payload = result.images, palette_bytes(result.palettes, result.indices, self.classes)
        else:
            if source == "none" and changes:
                images = self.distilled(self.recipe("none", None, changes))[0].images
            else:
                images = self.plain(source, self.wanted.images_per_class)
            payload = images.numel()
        accuracy = self.accuracies(images, self.wanted.networks)
        return {"images": len(images), "payload_bytes": payload, "top1": [round(a, 3) for a in accuracy]} | extra

    def plain(self, source: str, count: int) -> Tensor:
        return self.full_colour(count) if source == "none" else self.start(count)

    @cached_property
    def most(self) -> int:
        """Images of the rarest class."""
        return int(self.labels.bincount()[self.classes].min())

    @cached_property
    def judges(self) -> Tensor:
        """bool [N]: the part of the training set on which qualities are chosen."""
        return torch.arange(len(self.images)) % 5 == 0

    def budget(self, colors: int) -> int:
        """The payload bytes of "direct" in K colours."""
        if colors not in self.budgets:
            result, _ = self.distilled(self.recipe("direct", colors))
            self.budgets[colors] = palette_bytes(result.palettes, result.indices, self.classes)
        return self.budgets[colors]

    def best(self, candidates: list[tuple[Tensor, int]]) -> int:
        """The number beside those images whose networks do best on the judging part of the training set."""
        judge = examples(self.images[self.judges], self.labels[self.judges])
        scores = [
            (statistics.mean(self.accuracies(images, self.wanted.networks, judge)), number)
            for images, number in candidates
        ]
        return max(scores)[1]


def changed(config, path: list[str], value: str):
    """A frozen configuration with one field, perhaps of a part of it, set to a value that is given as text."""
    if path[0] not in {field.name for field in fields(config)}:
        raise ValueError(f"no field {path[0]!r} in {type(config).__name__}")
    current = getattr(config, path[0])
    if len(path) > 1 and is_dataclass(current):
        return replace(config, **{path[0]: changed(current, path[1:], value)})
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return replace(config, **{path[0]: tuple(parsed) if isinstance(parsed, list) else parsed})


def planned(wanted: argparse.Namespace) -> Iterator[tuple[int, str, int | None]]:
    for seed in range(wanted.first_seed, wanted.first_seed + wanted.seeds):
        for name in wanted.runs:
            full = name in ("random", "none")
            yield from ((seed, name, colors) for colors in ([None] if full else wanted.colors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="lines of JSON")
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the lines that are there")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="distil with and without losses, and draw the sets"
    )
    parser.add_argument("--tracking-uri", help="of MLflow: log the figures there too")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--shards", type=int, default=10, help="of the training set; all of the test set is used")
    parser.add_argument(
        "--runs", nargs="+", default=["random", "none", "none+median_cut", "none+kmeans", "direct", "network"]
    )
    parser.add_argument("--colors", nargs="+", type=int, default=[4, 8, 32])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images-per-class", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--name", default="", help="of the variant that --set makes")
    parser.add_argument("--eval-steps", type=int, default=100)
    parser.add_argument("--eval-lr", type=float, default=0.02)
    parser.add_argument("--eval-augment", default="none")
    parser.add_argument("--embedding-epochs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    wanted = parser.parse_args()
    if wanted.out is None and wanted.pictures is None:
        parser.error("give --out FILE, or --pictures DIR")
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
        keep_freed_memory()
    if wanted.pictures:
        from tests.bench.palettes_pictures import pictures  # the only part that needs matplotlib

        bench = Bench(wanted, wanted.first_seed, load(wanted.data, "train", wanted.shards))
        return keep(pictures(bench, wanted.data), "pictures", wanted.pictures, wanted.tracking_uri)
    rows = read(wanted.out)
    if wanted.table or wanted.figures:
        text = table(rows)
        print(text)
        return keep(drawn(rows), "accuracy", wanted.figures, wanted.tracking_uri, text) if wanted.figures else None
    not_in_key = (
        "out", "table", "data", "runs", "colors", "seeds", "first_seed", "threads", "figures", "pictures", "tracking_uri",
    )  # fmt: skip
    settings = {name: value for name, value in vars(wanted).items() if name not in not_in_key}
    there = {key(row): row for row in rows}
    bench = data = test = None
    for seed, name, colors in planned(wanted):
        line = {"run": name, "name": wanted.name, "colors": colors, "seed": seed, "settings": settings}
        if key(line) in there:
            continue
        if data is None:
            data = load(wanted.data, "train", wanted.shards)
            images, labels = load(wanted.data, "val", 1_000)
            test = examples(images, labels)
        if bench is None or bench.seed != seed:
            plain = {"run": "direct", "seed": seed, "settings": settings | {"name": "", "set": []}}
            known = {k: there[key(plain | {"colors": k})] for k in wanted.colors if key(plain | {"colors": k}) in there}
            bench = Bench(wanted, seed, data, test, {k: row["payload_bytes"] for k, row in known.items()})
        started = time.perf_counter()
        row = bench.run(name, colors, wanted.set) | line
        if name == "direct" and not wanted.set:
            bench.budgets[colors] = row["payload_bytes"]
        row["seconds"] = round(time.perf_counter() - started, 1)
        with wanted.out.open("a") as out:
            out.write(json.dumps(row, sort_keys=True) + "\n")
        print(f"{name} K={colors} seed {seed} {wanted.name}: {row['top1']} {row['payload_bytes']:,} bytes, "
              f"{row['seconds']} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
