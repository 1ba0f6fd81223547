"""Distilled palettes beside quantising afterwards, real images and lossy files: one JSON line a run; lines there are skipped.

    python -m tests.bench.palettes --out FILE [--seeds 5] [--colors 4 8 32] [--runs none direct network ...] [--set FIELD=VALUE ...]
    python -m tests.bench.palettes --out FILE --table

A run is a way to make a set of --images-per-class images a class:

    random, none                      real images; DM in full colour
    direct, network, soft, buckets    DM with palettes, modes of palette.recipe
    random+Q, none+Q                  quantised afterwards, Q being median_cut, kmeans or octree
    random+C, none+C                  webp or jpeg (tables shared, counted once) at the payload bytes of "direct" in K colours: real
                                      images, as many as fit, of the quality that is best on a part of the training set; or
                                      DM's images, of the best quality that fits

--set changes the recipe ("weights.maximum_color=0"), --name says what was changed. The seed is that of the distillation; every set
trains the same --networks networks. Payload bytes: palette.codec's container, WebP and JPEG files, or 3 a pixel in full colour.
"""

import argparse
import io
import json
import statistics
import tarfile
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adq.extractor import input_transform
from adq.images import decode
from adq.models import build
from adq.randomness import seed_of
from adq.training import Recipe, TensorImages, correct, epoch_batches, steps_per_epoch, train
from palette.codec import encode
from palette.distill import Distilled, distill
from palette.initialize import WITH_EMBEDDINGS, initialize, quantise
from palette.matching import embed
from palette.network import MODES, normalise
from palette.octree import octree
from palette.quantize import kmeans, median_cut, paint
from palette.recipe import Distillation

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
QUANTISERS = {"median_cut": median_cut, "kmeans": kmeans, "octree": octree}
QUALITIES = (5, 10, 20, 35, 50, 65, 80, 90, 95)
TIMES_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t of 1 to 9 degrees of freedom


def load(folder: Path, split: str, shards: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, S, S, 3] and labels int64 [N] of the first shards, in the order of their keys."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(f"*{split}-*.tar"))[:shards]:
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                found.setdefault(key, {})[extension] = archive.extractfile(member).read()
    if not found:
        raise FileNotFoundError(f"no {split} shards in {folder}")
    keys = sorted(found)
    images = np.stack([np.asarray(decode(found[key]["jpg"])) for key in keys])
    return torch.from_numpy(images), torch.tensor([int(found[key]["cls"]) for key in keys])


def compressed(image: np.ndarray, kind: str, quality: int) -> tuple[np.ndarray, int]:
    """An image after a lossy codec, and its bytes; those of JPEG without the tables, which all images share."""
    out = io.BytesIO()
    if kind == "webp":
        Image.fromarray(image).save(out, "WEBP", quality=quality, method=6)
        return np.asarray(decode(out.getvalue())), len(out.getvalue())
    Image.fromarray(image).save(out, "JPEG", quality=quality, streamtype=2)
    return np.asarray(decode(_jpeg_tables(quality)[:-2] + out.getvalue()[2:])), len(out.getvalue())


def _jpeg_tables(quality: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", quality=quality, streamtype=1)
    return out.getvalue()


def shared_bytes(kind: str, quality: int) -> int:
    return len(_jpeg_tables(quality)) if kind == "jpeg" else 0


class Bench:
    """One seed: what several runs share is made once (the real images' embeddings, DM in full colour)."""

    def __init__(self, wanted: argparse.Namespace, seed: int, data: tuple[Tensor, Tensor], test: TensorImages):
        self.wanted, self.seed, self.test = wanted, seed, test
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

    def distilled(self, recipe: Distillation) -> tuple[Distilled, dict[str, float]]:
        logged: dict[str, float] = {}
        embeddings = self.embeddings(recipe.colors) if recipe.start in WITH_EMBEDDINGS else None
        plain = self.recipe("none", None)
        same = all(
            getattr(recipe, name) == getattr(plain, name)
            for name in ("batch_real", "augmentations", "depth", "width", "seed")
        )
        result = distill(
            self.images, self.labels, recipe, embeddings=embeddings, targets=self.targets if same else None,
            on_step=lambda step, metrics: logged.update(metrics),
        )  # fmt: skip
        return result, logged

    @cached_property
    def full_colour(self) -> Tensor:
        return self.distilled(self.recipe("none", None))[0].images

    def start(self, count: int) -> Tensor:
        return initialize(self.images, self.labels, self.classes, count, "random", seed=self.seed)

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
        examples = TensorImages(images.permute(0, 3, 1, 2).contiguous(), labels.numpy())
        batches = partial(epoch_batches, examples, recipe, number)
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
        extra: dict[str, object] = {}
        if after in ("webp", "jpeg"):
            images, payload, extra = self.lossy(source, after, colors)
        elif after:
            palettes, indices = QUANTISERS[after](self.plain(source), colors)
            images, payload = paint(palettes, indices), self.payload(palettes, indices)
        elif source in MODES and source != "none":
            result, extra = self.distilled(self.recipe(source, colors, changes))
            images, payload = result.images, self.payload(result.palettes, result.indices)
        else:
            images = self.distilled(self.recipe("none", None, changes))[0].images if changes else self.plain(source)
            payload = images.numel()
        accuracy = self.accuracies(images, self.wanted.networks)
        return {"images": len(images), "payload_bytes": payload, "top1": [round(a, 3) for a in accuracy]} | extra

    def plain(self, source: str) -> Tensor:
        return self.full_colour if source == "none" else self.start(self.wanted.images_per_class)

    def payload(self, palettes: Tensor, indices: Tensor) -> int:
        labels = np.repeat(np.arange(len(self.classes)), len(indices) // len(self.classes))
        return len(encode(palettes.numpy(), indices.numpy(), labels, [str(label) for label in self.classes]))

    def lossy(self, source: str, kind: str, colors: int) -> tuple[Tensor, int, dict]:
        """Real images or DM's as WebP or JPEG, in the payload bytes of "direct" at this K."""
        result, _ = self.distilled(self.recipe("direct", colors))
        budget = self.payload(result.palettes, result.indices)
        if source == "none":
            for quality in sorted(QUALITIES, reverse=True):
                images, used = self._encoded(self.full_colour, kind, quality)
                if used <= budget:
                    break
            return images, used, {"quality": quality, "budget": budget}
        held_out = torch.arange(len(self.images)) % 5 == 0
        judge = TensorImages(self.images[held_out].permute(0, 3, 1, 2).contiguous(), self.labels[held_out].numpy())
        candidates = []
        for quality in QUALITIES:
            images, used = self._as_many_as_fit(kind, quality, budget)
            if len(images):
                top1 = statistics.mean(self.accuracies(images, 1, judge))
                candidates.append((top1, quality, images, used))
        _, quality, images, used = max(candidates, key=lambda candidate: candidate[:2])
        return images, used, {"quality": quality, "budget": budget}

    def _encoded(self, images: Tensor, kind: str, quality: int) -> tuple[Tensor, int]:
        parts = [compressed(image, kind, quality) for image in images.numpy()]
        labels = len(parts)  # a byte each
        return torch.from_numpy(np.stack([p[0] for p in parts])), shared_bytes(kind, quality) + labels + sum(
            p[1] for p in parts
        )

    def _as_many_as_fit(self, kind: str, quality: int, budget: int) -> tuple[Tensor, int]:
        best = (self.images[:0], 0)
        for count in range(1, 200):
            images, used = self._encoded(self.start(count), kind, quality)
            if used > budget:
                break
            best = (images, used)
        return best


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


def table(path: Path) -> None:
    """Means over the seeds of each seed's mean over networks, with 95 % intervals over the seeds."""
    groups: dict[tuple, list[dict]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        groups.setdefault((row["run"], row["name"], row["colors"]), []).append(row)
    print("| run | variant | K | images | payload bytes | colours used | top-1 | 95 % interval | seeds |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for (run, name, colors), rows in groups.items():
        means = [statistics.mean(row["top1"]) for row in rows]
        interval = "" if len(rows) < 2 else (
            f"± {TIMES_975[min(len(rows), 10) - 2] * statistics.stdev(means) / len(rows) ** 0.5:.1f}"
        )  # fmt: skip
        used = [row["colors_used"] for row in rows if "colors_used" in row]
        print(
            f"| {run} | {name} | {colors or ''} | {round(statistics.mean(row['images'] for row in rows))} | "
            f"{round(statistics.mean(row['payload_bytes'] for row in rows)):,} | "
            f"{f'{statistics.mean(used):.1f}' if used else ''} | {statistics.mean(means):.1f} | {interval} | {len(rows)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
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
    if wanted.table:
        return table(wanted.out)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    not_in_key = ("out", "table", "data", "runs", "colors", "seeds", "first_seed", "threads")
    settings = {name: value for name, value in vars(wanted).items() if name not in not_in_key}
    there = {}
    if wanted.out.exists():
        for line in wanted.out.read_text().splitlines():
            row = json.loads(line)
            there[json.dumps([row["run"], row["colors"], row["seed"], row["settings"]], sort_keys=True)] = row
    bench = data = test = None
    for seed, name, colors in planned(wanted):
        if json.dumps([name, colors, seed, settings], sort_keys=True) in there:
            continue
        if data is None:
            data = load(wanted.data, "train", wanted.shards)
            images, labels = load(wanted.data, "val", 1_000)
            test = TensorImages(images.permute(0, 3, 1, 2).contiguous(), labels.numpy())
        if bench is None or bench.seed != seed:
            bench = Bench(wanted, seed, data, test)
        started = time.perf_counter()
        row = bench.run(name, colors, wanted.set)
        row |= {"run": name, "name": wanted.name, "colors": colors, "seed": seed, "settings": settings}
        row["seconds"] = round(time.perf_counter() - started, 1)
        with wanted.out.open("a") as out:
            out.write(json.dumps(row, sort_keys=True) + "\n")
        print(f"{name} K={colors} seed {seed} {wanted.name}: {row['top1']} {row['payload_bytes']:,} bytes, "
              f"{row['seconds']} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
