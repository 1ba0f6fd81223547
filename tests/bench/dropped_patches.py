"""What dropped patches are worth: bytes, and top-1 of networks trained on what is left, however the gaps are filled.

    python -m tests.bench.dropped_patches --out FILE [--mae mae.pt] [--theta 15 25 50] [--seeds 3] [--runs full harmonic ...]
    python -m tests.bench.dropped_patches --out FILE --data ../shared/data/imagenette --side 64 --depth 4 --shards 8 --per-class 40
    python -m tests.bench.dropped_patches --out FILE --table

A seed draws --per-class real images a class, initial weights, order and augmentation. Bytes are those of the compact container; a
line a run, and lines that are there are skipped:

    full                    the files as they are
    mean, harmonic, mae     theta per cent of the patches dropped by Grad-CAM, the gaps filled so
    random+harmonic, ...    the same, of patches drawn by chance
    error+harmonic, ...     the same, of the patches that harmonic interpolation restores best
    fewer                   as many of the files as take the bytes of what Grad-CAM left
    jpeg, webp              all images, of the highest quality that takes no more bytes than that
    [random+, error+]masks  no images: how often a small network, shown which patches were dropped and nothing else, tells the
                            class of the last third of the images after it saw the others
"""

import argparse
import json
import math
import statistics
import tarfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adq import patches
from adq.batches import epoch_batches, steps_per_epoch
from adq.container import pack
from adq.extractor import InputTransform, input_transform
from adq.fill import FILLERS, fill
from adq.images import decode
from adq.mae_weights import load as load_mae
from adq.models import build
from adq.process import keep_freed_memory
from adq.randomness import numpy_generator, seed_of
from adq.recipe import Recipe
from adq.reconstruction import reconstruct
from adq.saliency import fill_error, grad_cam, patch_saliency, random_saliency, whole_input
from adq.training import train
from palette.encodings import Encoded, Encoding, encode
from tests.bench.adaptive_colors import sized, top1
from tests.bench.palettes_data import DATA, examples
from tests.bench.palettes_data import load as load_images
from tests.bench.palettes_table import interval, read

FILLED = (*FILLERS, "mae")
CHOICES = ("", "random", "error")  # by what patches are dropped; "": by Grad-CAM
AT_EQUAL_BYTES = ("fewer", "jpeg", "webp")
RUNS = (
    "full", *(f"{choice}+{filler}".strip("+") for choice in CHOICES for filler in FILLED), *AT_EQUAL_BYTES,
    *(f"{choice}+masks".strip("+") for choice in CHOICES),
)  # fmt: skip
QUALITIES = range(1, 96)
RANKED = 256  # images that are ranked together


def load_files(folder: Path, shards: int) -> tuple[list[str], list[bytes], np.ndarray]:
    """Keys, JPEG files and labels int64 [N] of the first training shards, in the order of the keys."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*train-*.tar"))[:shards]:
        with tarfile.open(path) as archive:
            for member in archive:
                name, _, extension = member.name.partition(".")
                found.setdefault(name, {})[extension] = archive.extractfile(member).read()
    keys = sorted(found)
    return keys, [found[name]["jpg"] for name in keys], np.array([int(found[name]["cls"]) for name in keys])


def ranker(images: Tensor, labels: Tensor, options: argparse.Namespace) -> tuple[nn.Module, InputTransform]:
    """The network whose Grad-CAM ranks patches: trained on the whole data set."""
    network, side = f"convnet-d{options.depth}-w{options.width}", images.shape[1]
    recipe = Recipe(
        epochs=options.ranker_epochs, lr=options.lr, batch_size=128, compile=options.compile, bfloat16=options.bfloat16
    )
    torch.manual_seed(seed_of(0, "ranker"))
    model, transform = build(network, int(labels.max()) + 1, side), input_transform(network, side)
    data = examples(images, labels)
    batches = partial(epoch_batches, data, recipe, 0)
    train(model, batches, steps_per_epoch(len(data), recipe.batch_size), recipe, transform, 0, "cpu")
    return model, transform


class Draw:
    """A seed's images in the order of their keys, and what is stored of them."""

    def __init__(self, data: tuple, per_class: int, seed: int, network: tuple[nn.Module, InputTransform], side: int):
        keys, files, labels = data
        picks = [
            numpy_generator(seed, "dropped patches", c).permutation(np.flatnonzero(labels == c))[:per_class]
            for c in range(int(labels.max()) + 1)
        ]
        # In this order, any first part has about as many of each class.
        rows = np.stack(picks, axis=1).ravel()
        self.seed, self.side = seed, side
        self.keys, self.labels = [keys[row] for row in rows], labels[rows]
        self.files = [Encoded("jpg", files[row]) for row in rows]
        self.names = [str(c) for c in range(len(picks))]
        self.model, self.transform = network

    def payload(self, files: Sequence[Encoded]) -> int:
        """Bytes of the container of the first images in other files."""
        return len(pack([f.data for f in files], [f.extension for f in files], self.labels[: len(files)], self.names))

    @cached_property
    def ranked(self) -> list[np.ndarray]:
        """The saliency of every image's patches, by Grad-CAM."""
        found: list[np.ndarray] = []
        for start in range(0, len(self.files), RANKED):
            images = [decode(file.data) for file in self.files[start : start + RANKED]]
            inputs = self.transform.normalise(torch.stack([whole_input(image, self.transform) for image in images]))
            maps = grad_cam(self.model, inputs, torch.from_numpy(self.labels[start : start + RANKED]))
            cuts = [patches.grid(image.height, image.width) for image in images]
            found += [patch_saliency(m[None], c.rows, c.columns)[0].numpy() for m, c in zip(maps, cuts, strict=True)]
        return found

    @cached_property
    def by_chance(self) -> list[np.ndarray]:
        return [random_saliency(k, *s.shape, self.seed) for k, s in zip(self.keys, self.ranked, strict=True)]

    @cached_property
    def by_error(self) -> list[np.ndarray]:
        return fill_error([decode(file.data) for file in self.files])

    def saliency(self, choice: str) -> list[np.ndarray]:
        return {"": self.ranked, "random": self.by_chance, "error": self.by_error}[choice]

    def dropped(self, theta: int, choice: str = "") -> list[Encoded]:
        files = [(file.extension, file.data) for file in self.files]
        return encode(files, Encoding(patches=theta), self.saliency(choice))

    def within(self, codec: str, budget: int) -> list[Encoded]:
        """All images, of the highest quality whose container takes no more bytes."""
        sources, made = [(file.extension, file.data) for file in self.files], {}

        def taken(quality: int) -> int:
            made[quality] = encode(sources, Encoding(codec=codec, level=quality))
            return self.payload(made[quality])

        fit = bisect_right(QUALITIES, budget, key=taken)  # more quality takes more bytes
        if not fit:
            raise ValueError(f"no quality of {codec} takes {budget:,} bytes or less")
        return made[QUALITIES[fit - 1]]

    def told_by_masks(self, theta: int, choice: str) -> float:
        """Top-1 in per cent on the last third of the images."""
        kept = [patches.keep_mask(one, theta / 100).ravel() for one in self.saliency(choice)]
        masks = torch.from_numpy(np.stack(kept)).float()
        labels, seen = torch.from_numpy(self.labels), len(masks) * 2 // 3
        torch.manual_seed(seed_of(self.seed, "masks"))
        model = nn.Sequential(nn.Linear(masks.shape[1], 64), nn.ReLU(), nn.Linear(64, len(self.names)))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-3)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(masks[:seen]), labels[:seen]).backward()
            optimizer.step()
        return 100 * float((model(masks[seen:]).argmax(dim=1) == labels[seen:]).float().mean())

    def run(self, name: str, theta: int | None, painter: Callable | None) -> tuple[dict, Tensor]:
        """What a line says of the stored images, and what networks are trained on: uint8 [n, S, S, 3]."""
        if name == "full":
            files = self.files
        elif name in AT_EQUAL_BYTES:
            budget = self.payload(self.dropped(theta))
            if name == "fewer":
                share = budget / self.payload(self.files)
                files = self.files[: int(len(self.files) * share) + 1]
                while self.payload(files) > budget:
                    files = files[:-1]
            else:
                files = self.within(name, budget)
        else:
            choice, _, filler = name.rpartition("+")
            files = self.dropped(theta, choice)
            return self._line(files), sized(_whole(files, filler, painter), self.side)
        return self._line(files), sized(torch.stack([_pixels(file) for file in files]), self.side)

    def _line(self, files: Sequence[Encoded]) -> dict:
        gained = sum(file.extension == "patches" for file in files)
        return {"bytes": self.payload(files), "images": len(files), "with_gaps": gained}


def _pixels(file: Encoded) -> Tensor:
    return torch.from_numpy(np.array(decode(file.data)))


def _whole(files: Sequence[Encoded], filler: str, painter: Callable | None) -> Tensor:
    """The images [n, H, W, 3], their gaps filled."""
    kept = [patches.decode(file.data) if file.extension == "patches" else None for file in files]
    pixels = torch.stack(
        [_pixels(f) if k is None else torch.from_numpy(k.pixels) for f, k in zip(files, kept, strict=True)]
    )
    full = torch.ones(pixels.shape[1:3], dtype=torch.bool)
    known = torch.stack([full if k is None else torch.from_numpy(k.known) for k in kept])
    if filler == "mae":
        return painter(pixels, known)
    return torch.cat([fill(p, k, filler) for p, k in zip(pixels.split(RANKED), known.split(RANKED), strict=True)])


def key(row: dict) -> str:
    """What makes a line another one."""
    return json.dumps([row["run"], row["theta"], row["seed"], row["settings"]], sort_keys=True)


def table(rows: Sequence[dict]) -> str:
    """Markdown: means over seeds with 95 % t-intervals, and differences paired by seed."""
    lines = [
        "| theta, % | run | images | bytes | of them all, % | top-1, % | to full | to harmonic | seeds |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    found: dict[tuple, dict[int, dict]] = {}
    for row in rows:
        found.setdefault((json.dumps(row["settings"], sort_keys=True), row["theta"], row["run"]), {})[row["seed"]] = row
    for settings, theta, run in sorted(found, key=lambda name: (name[0], name[1] or 0, RUNS.index(name[2]))):
        each, full = found[settings, theta, run], found.get((settings, None, "full"), {})
        share = [100 * each[seed]["bytes"] / full[seed]["bytes"] for seed in each if seed in full]
        mean, half = interval([row["top1"] for row in each.values()])
        cells = [
            str(theta or ""), run, *(f"{statistics.fmean(r[n] for r in each.values()):,.0f}" for n in ("images", "bytes")),
            f"{statistics.fmean(share):.1f}" if share else "", f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}"),
            _over(each, full), _over(each, found.get((settings, theta, "harmonic"), {})), str(len(each)),
        ]  # fmt: skip
        if run.endswith("masks"):  # of which no network of the others was trained
            cells[3:5], cells[6:8] = ["", ""], ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _over(each: dict[int, dict], others: dict[int, dict]) -> str:
    common = [seed for seed in each if seed in others and each[seed] is not others[seed]]
    if not common:
        return ""
    mean, half = interval([each[seed]["top1"] - others[seed]["top1"] for seed in common])
    return f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON")
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--shards", type=int, default=10, help="of the training set; all of the test set is used")
    parser.add_argument("--side", type=int, default=0, help="pixels at which networks see the images; 0: their own")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--theta", nargs="+", type=int, default=[25], help="per cent of the patches")
    parser.add_argument("--mae", type=Path, help="weights of tests.bench.mae, for the runs of mae")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--ranker-epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--augment", default="crop-flip")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    wanted = parser.parse_args()
    rows = read(wanted.out)
    if wanted.table:
        return print(table(rows))
    if not wanted.mae and any("mae" in run for run in wanted.runs):
        parser.error("runs of mae need --mae FILE; or name other --runs")
    torch.set_num_threads(1)
    keep_freed_memory()
    not_in_key = ("out", "table", "data", "runs", "theta", "seeds", "mae")
    settings = {name: value for name, value in vars(wanted).items() if name not in not_in_key}
    settings |= {"data": wanted.data.name}
    there, planned = {key(row) for row in rows}, []
    for seed in range(wanted.seeds):
        for run in wanted.runs:
            for theta in [None] if run == "full" else wanted.theta:
                line = {"run": run, "theta": theta, "seed": seed, "settings": settings}
                planned += [line] if key(line) not in there else []
    if not planned:
        return print(table(rows))
    data = load_files(wanted.data, wanted.shards)
    images, labels = load_images(wanted.data, "train", wanted.shards)
    network = ranker(sized(images, wanted.side), labels, wanted)
    del images
    pictures, answers = load_images(wanted.data, "val", 1_000)
    test = examples(sized(pictures, wanted.side), answers)
    name = f"convnet-d{wanted.depth}-w{wanted.width}"
    recipe = Recipe(
        steps=wanted.steps, lr=wanted.lr, batch_size=64, augment=wanted.augment, compile=wanted.compile,
        bfloat16=wanted.bfloat16,
    )  # fmt: skip
    painter = partial(reconstruct, load_mae(wanted.mae), device="cpu") if wanted.mae else None
    draw = None
    for line in planned:
        if draw is None or draw.seed != line["seed"]:
            draw = Draw(data, wanted.per_class, line["seed"], network, wanted.side)
        started = time.process_time()
        if line["run"].endswith("masks"):
            found = {"images": len(draw.files), "bytes": 0}
            found["top1"] = round(draw.told_by_masks(line["theta"], line["run"].rpartition("+")[0]), 3)
        else:
            found, whole = draw.run(line["run"], line["theta"], painter)
            found["seconds"] = round(time.process_time() - started, 1)
            labels = draw.labels[: len(whole)]
            found["top1"] = round(top1(whole.numpy(), labels, test, name, recipe, line["seed"]), 3)
        rows.append(found | line)
        with wanted.out.open("a") as out:
            out.write(json.dumps(rows[-1], sort_keys=True) + "\n")
        print(json.dumps({name: line[name] for name in ("run", "theta", "seed")} | found), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
