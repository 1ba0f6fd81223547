"""The tables of the ADQ paper on one device, without Ray: a line a training, in as many calls as it takes.

    python -m tests.bench.tables --out FILE --work FOLDER [--device cuda --workers 4] [--arch resnet18] [--backbone resnet18]
      [--methods random dq adq support-points] [--keep 0.1 0.125 0.2 0.3] [--recipe cifar10] [--seeds 3] [--seconds 540]
    python -m tests.bench.tables --out FILE --table

For images below 96 px, and larger ones at a `--side` below it. Lines that are there are skipped, and with --seconds no training is
begun that would not be done in time: the same command goes on. --work keeps the decoded images, and what extractors see.
"""

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adq.extractor import input_transform
from adq.models import SMALL
from adq.process import settle
from adq.training import Recipe, TensorImages, correct, steps_per_epoch
from ray_jobs import recipe_files
from ray_jobs.comparison import cells
from tests.bench.claims import as_lines, outcome
from tests.bench.palettes_data import DATA
from tests.bench.palettes_table import read
from tests.bench.without_ray import Seen, Split, choice, look, read_split, seen, trained

NAMED = tuple(
    ["side", "shards", "recipe", "steps", "compile", "bfloat16", "device", "backbone", "extractor_epochs", "bins"]
)  # in a line's settings


class Work:
    """A folder with decoded images and with what extractors see, so that a second call begins at once."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options = folder, options

    def split(self, name: str, shards: int | None = None) -> Split:
        path = self.folder / f"{name}-{self.options.side}-{shards or 'all'}.npz"
        if not path.exists():
            paths = sorted(self.options.data.glob(f"*{name}-*.tar"))[:shards]
            if not paths:
                raise FileNotFoundError(f"no {name} shards in {self.options.data}")
            made = read_split(paths, self.options.side)
            sizes = [len(shard) for shard in made.shards]
            _save(
                path, keys=np.array(made.keys), images=made.images.images.numpy(), labels=made.images.labels,
                shards=np.concatenate(made.shards), sizes=np.array(sizes),
            )  # fmt: skip
        held = np.load(path)
        data = TensorImages(torch.from_numpy(held["images"]), held["labels"])
        return Split(held["keys"].tolist(), data, np.split(held["shards"], np.cumsum(held["sizes"])[:-1]))

    def seen(self, split: Split, seed: int) -> Seen:
        o = self.options
        named = (o.side, o.shards or "all", o.backbone, o.extractor_epochs, o.bins, seed, o.device)
        path = self.folder / f"seen-{'-'.join(map(str, named))}.npz"
        if not path.exists():
            started = time.perf_counter()
            _save(path, **look(split, o.backbone, o.extractor_epochs, o.bins, seed, o.device))
            print(f"extractor {seed}: {time.perf_counter() - started:.0f} s", flush=True)
        return seen(split, np.load(path))


def _save(path: Path, **arrays: np.ndarray) -> None:
    whole = path.with_suffix(".part.npz")
    np.savez(whole, **arrays)
    whole.replace(path)


_held: dict[str, Split] = {}  # of a worker process


def _open(folder: Path, options: argparse.Namespace) -> None:
    settle(options.threads)
    work = Work(folder, options)
    _held.update(train=work.split("train", options.shards), test=work.split("val"))


def _train_and_test(arch: str, recipe: Recipe, rows: np.ndarray, seed: int, device: str) -> dict:
    """In a worker process: top-1 on the test images after the last step, a share of 1, and seconds."""
    started = time.perf_counter()
    whole, test = _held["train"].images, _held["test"].images
    part = TensorImages(whole.batch(rows), whole.labels[rows])
    model = trained(arch, int(whole.labels.max()) + 1, part, recipe, seed, device)
    right = correct(model, test, np.arange(len(test)), input_transform(arch, test.images.shape[-1]), device)
    return {"top1": float(right.mean()), "train_seconds": round(time.perf_counter() - started, 1)}


def key(line: dict) -> str:
    """What makes a line another one."""
    return json.dumps(
        [line[name] for name in ("method", "keep", "seed", "extractor", "arch", "settings")], sort_keys=True
    )


def lines(work: Work, options: argparse.Namespace, there: set[str]) -> Iterator[tuple[dict, Recipe, np.ndarray]]:
    """The trainings that are not there, with their recipes and images; a selection is made when its training is next."""
    split, known = work.split("train", options.shards), {}
    recipes = {arch: _recipe(options, arch) for arch in options.arch}
    settings = {"data": options.data.name} | {name: getattr(options, name) for name in NAMED}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        extractor = options.feature_seed + (seed % options.extractors if options.extractors else seed)
        for keep in options.keep:
            for method in options.methods:
                for arch, recipe in recipes.items():
                    line = {"method": method, "keep": keep, "seed": seed, "extractor": extractor, "arch": arch}
                    line["settings"] = settings
                    if key(line) in there:
                        continue
                    if extractor not in known:
                        known = {extractor: work.seen(split, extractor)}
                    started = time.perf_counter()
                    made = choice(known[extractor], method, keep, seed)
                    rows = np.flatnonzero(made.chosen)
                    digest = hashlib.sha256("\n".join(split.keys[row] for row in rows).encode()).hexdigest()
                    seconds = round(time.perf_counter() - started, 2)
                    line |= {"images": len(rows), "moved": made.moved, "selection": digest, "seconds": seconds}
                    yield line, recipe, rows


def _recipe(options: argparse.Namespace, arch: str) -> Recipe:
    recipe = recipe_files.read(options.recipe).recipe(arch)
    recipe = replace(recipe, compile=options.compile, bfloat16=options.bfloat16)
    return replace(recipe, steps=options.steps, epochs=None) if options.steps else recipe


def train_all(work: Work, options: argparse.Namespace, there: set[str]) -> None:
    """Train what is not there, several at once, each line written as it is done."""
    deadline = time.monotonic() + options.seconds if options.seconds else None
    running: dict[Future, dict] = {}
    slowest: dict[str, float] = {}  # seconds a step, by network, of those done
    work.split("val")  # decoded once, before the workers ask for it
    left = lines(work, options, there)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _open, (work.folder, options)) as pool:
        upcoming = next(left, None)
        while upcoming or running:
            while upcoming and len(running) < options.workers:
                line, recipe, rows = upcoming
                steps = recipe.total_steps(steps_per_epoch(len(rows), recipe.batch_size))
                if deadline and time.monotonic() + steps * slowest.get(line["arch"], 0) > deadline:
                    print(f"no time for {_name(line)}: run again", flush=True)
                    upcoming = None
                    break
                future = pool.submit(_train_and_test, line["arch"], recipe, rows, line["seed"], options.device)
                running[future] = line | {"steps": steps}
                upcoming = next(left, None)
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                line = running.pop(future) | future.result()
                each, arch = line["train_seconds"] / line["steps"], line["arch"]
                slowest[arch] = max(slowest.get(arch, 0), each)
                with options.out.open("a") as out:
                    out.write(json.dumps(line, sort_keys=True) + "\n")
                print(f"{_name(line)}: {100 * line['top1']:.2f} %, {line['train_seconds']:.0f} s", flush=True)


def _name(line: dict) -> str:
    return f"{line['arch']} {line['method']} keep {line['keep']:g} seed {line['seed']}"


def table(found: list[dict]) -> str:
    """Markdown, for each setting and network: means, intervals, differences to random and DQ taken seed by seed."""
    groups: dict[str, list[dict]] = {}
    for line in found:
        groups.setdefault(f"{line['arch']}, {json.dumps(line['settings'], sort_keys=True)}", []).append(line)
    return "\n\n".join(
        f"{name}\n\n{as_lines(cells([outcome(line) for line in mine]))}" for name, mine in groups.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON")
    parser.add_argument("--work", type=Path, default=Path("tables"), help="decoded images, and what extractors see")
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
    parser.add_argument("--data", type=Path, default=DATA, help="a folder of *train-*.tar and *val-*.tar")
    parser.add_argument("--shards", type=int, help="of the training set; all by default")
    parser.add_argument("--side", type=int, default=32, help=f"pixels of the images, below {SMALL}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once")
    parser.add_argument("--threads", type=int, default=1, help="of one training, on a CPU")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--extractor-epochs", type=int, default=10)
    parser.add_argument("--bins", type=int, default=10)
    parser.add_argument("--arch", nargs="+", default=["resnet18"])
    parser.add_argument("--recipe", default="cifar10", help=f"a TOML file, or of {', '.join(recipe_files.names())}")
    parser.add_argument("--steps", type=int, help="instead of the recipe's length")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU, too")
    parser.add_argument("--methods", nargs="+", default=["random", "dq", "adq", "support-points"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.1, 0.125, 0.2, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--feature-seed", type=int, default=0, help="of the first extractor")
    parser.add_argument("--extractors", type=int, default=0, help="seed s takes number s modulo this; 0: one a seed")
    parser.add_argument("--seconds", type=float, help="begin no training that would take longer than is left of these")
    options = parser.parse_args()
    found = read(options.out)
    if not options.table:
        if not 8 <= options.side < SMALL:
            parser.error(f"--side {options.side}: expected 8 to {SMALL - 1}; compare takes larger images")
        settle(options.threads)
        train_all(Work(options.work, options), options, {key(line) for line in found})
        found = read(options.out)
    print(table(found))


if __name__ == "__main__":
    main()
