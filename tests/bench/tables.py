"""The tables of the ADQ paper on one device, without Ray: a line a training, in as many calls as it takes.

    python -m tests.bench.tables --out FILE --work FOLDER [--device cuda --workers 4] [--arch resnet18] [--backbone resnet18]
      [--methods random dq adq support-points] [--keep 0.1 0.125 0.2 0.3] [--recipe cifar10] [--seeds 3] [--seconds 540]
    python -m tests.bench.tables --out FILE --table

For images below 96 px, and larger ones at a `--side` below it. Lines that are there are skipped. --work keeps the decoded images,
what extractors see, and how far a training is: with --seconds trainings stop at the end of an epoch, and the same command goes on.
"""

import argparse
import hashlib
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adq.controls import CONTROLS, PERMUTATIONS
from adq.extractor import input_transform
from adq.models import SMALL
from adq.process import settle
from adq.recipe import Recipe
from adq.sampling import kept
from adq.selection import needs
from adq.training import TensorImages, correct, steps_per_epoch
from ray_jobs import recipe_files
from tests.bench.palettes_data import DATA
from tests.bench.without_ray import OutOfTime, Seen, Split, choice, look, parsed, read_split, seen, trained, watch

CHECKPOINT_SECONDS = 30
PERMUTATION = ":permutation="  # in the name of a method; all of one importance share a row of the table
# In a line's settings.
NAMED = ("side", "shards", "device", "backbone", "extractor_epochs", "bins", "feature_seed", "extractors")


class Work:
    """A folder with decoded images, what extractors see, and checkpoints, so that a second call begins at once."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options = folder, options

    def paths(self, name: str) -> list[Path]:
        """The shards of a split. Raises FileNotFoundError where there is none."""
        paths = sorted(self.options.data.glob(f"*{name}-*.tar"))[: self.options.shards if name == "train" else None]
        if not paths:
            raise FileNotFoundError(f"no {name} shards in {self.options.data}")
        return paths

    def digest(self) -> str:
        """Of the shards' names and sizes."""
        shards = [(path.name, path.stat().st_size) for name in ("train", "val") for path in self.paths(name)]
        return _digest([self.options.data.name, shards])

    @property
    def where(self) -> str:
        """What features and accuracies hang on: a GPU's own name."""
        device = self.options.device
        return torch.cuda.get_device_name(device) if device.startswith("cuda") else device

    def split(self, name: str) -> Split:
        path = self.folder / f"{name}-{self.digest()}-{self.options.side}.npz"
        if not path.exists():
            made = read_split(self.paths(name), self.options.side)
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
        same = [self.digest(), o.side, o.backbone, seed, self.where, o.threads]

        def made(name: str, settings: list, make: Callable[[], dict[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
            path = self.folder / f"{name}-{_digest([*same, *settings])}.npz"
            if not path.exists():
                started = time.perf_counter()
                _save(path, **make())
                print(f"{name} {seed}: {time.perf_counter() - started:.0f} s", flush=True)
            return np.load(path)

        looks = partial(look, split, o.backbone, o.extractor_epochs, o.bins, seed, o.device)
        looked = made("extractor", [o.extractor_epochs, o.bins], looks)
        if not any("dynamics" in needs(parsed(method)[0]) for method in o.methods):
            return seen(split, looked)
        return seen(split, looked, made("watched", [], partial(watch, split, o.backbone, seed, o.device)))


def _save(path: Path, **arrays: np.ndarray) -> None:
    whole = path.with_suffix(".part.npz")
    np.savez(whole, **arrays)
    whole.replace(path)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


_held: dict[str, Split] = {}  # of a worker process


def _open(folder: Path, options: argparse.Namespace) -> None:
    settle(options.threads)
    work = Work(folder, options)
    _held.update(train=work.split("train"), test=work.split("val"))


def _train_and_test(
    line: dict, recipe: Recipe, rows: np.ndarray, state: Path, until: float, out: Path, device: str
) -> dict:
    """In a worker process: train from the checkpoint `state` on, test after the last step, and write the line.

    Raises:
        OutOfTime: the time `until` has come; the checkpoint is written.
    """
    started, spent, kept_at = time.perf_counter(), 0.0, time.time()
    whole, test, arch = _held["train"].images, _held["test"].images, line["arch"]
    start = None
    if state.exists():
        start, spent = (found := torch.load(state, weights_only=True))["training"], found["seconds"]

    def save(_epoch: int, checkpoint: Callable[[], dict]) -> None:
        nonlocal kept_at
        over = time.time() > until
        if over or time.time() - kept_at > CHECKPOINT_SECONDS:
            part = state.with_suffix(".part")
            torch.save({"training": checkpoint(), "seconds": spent + time.perf_counter() - started}, part)
            part.replace(state)
            kept_at = time.time()
        if over:
            raise OutOfTime

    part = TensorImages(whole.batch(rows), whole.labels[rows])
    model = trained(arch, int(whole.labels.max()) + 1, part, recipe, line["seed"], device, start=start, save=save)
    right = correct(model, test, np.arange(len(test)), input_transform(arch, test.images.shape[-1]), device)
    seconds = round(spent + time.perf_counter() - started, 3)
    line = line | {"top1": float(right.mean()), "train_seconds": seconds}
    with out.open("a") as lines_of:  # here, so that a line is there as soon as its network is
        lines_of.write(json.dumps(line, sort_keys=True) + "\n")
    state.unlink(missing_ok=True)
    return line


def key(line: dict) -> str:
    """What makes a line another one."""
    return _digest([line[name] for name in ("method", "keep", "seed", "extractor", "arch", "settings")])


def with_permutations(methods: list[str], seeds: int) -> list[str]:
    """What is trained in each seed: of the permuted control as many permutations as make PERMUTATIONS in all seeds."""
    more = [f"{PERMUTATION}{n}" for n in range(1, -(-PERMUTATIONS // seeds))]
    permuted = [method for method in methods if method.startswith("adq-permuted") and PERMUTATION not in method]
    return list(dict.fromkeys([*methods, *(method + suffix for method in permuted for suffix in more)]))


def lines(
    work: Work, options: argparse.Namespace, there: set[str], until: float
) -> Iterator[tuple[dict, Recipe, np.ndarray]]:
    """The trainings that are not there, with their recipes and images; a selection is made when its training is next.

    Raises:
        OutOfTime: the time `until` has come, and there are more.
    """
    split, known = work.split("train"), {}
    shared = {"data": options.data.name, "shards_digest": work.digest()} | {n: getattr(options, n) for n in NAMED}
    shared |= {"recipe_name": options.recipe, "where": work.where}
    recipes = {arch: _recipe(options, arch) for arch in options.arch}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        extractor = options.feature_seed + (seed % options.extractors if options.extractors else seed)
        for keep in options.keep:
            for method in with_permutations(options.methods, options.seeds):
                named = {"method": method, "keep": keep, "seed": seed, "extractor": extractor}
                each = [
                    named | {"arch": arch, "settings": shared | {"recipe": asdict(r)}} for arch, r in recipes.items()
                ]
                each = [line for line in each if key(line) not in there]
                if not each:
                    continue
                if time.time() > until:
                    raise OutOfTime
                if extractor not in known:
                    known = {extractor: work.seen(split, extractor)}
                started = time.perf_counter()
                made = choice(known[extractor], method, keep, seed)
                rows, seconds = np.flatnonzero(made.chosen), round(time.perf_counter() - started, 2)
                digest = hashlib.sha256("\n".join(split.keys[row] for row in rows).encode()).hexdigest()
                told = {"images": len(rows), "moved": made.moved, "selection": digest, "seconds": seconds}
                for line in each:
                    recipe = recipes[line["arch"]]
                    steps = recipe.total_steps(steps_per_epoch(len(rows), recipe.batch_size))
                    yield line | told | {"steps": steps}, recipe, rows


def _recipe(options: argparse.Namespace, arch: str) -> Recipe:
    recipe = recipe_files.read(options.recipe).recipe(arch)
    recipe = replace(recipe, compile=options.compile, bfloat16=options.bfloat16)
    return replace(recipe, steps=options.steps, epochs=None) if options.steps else recipe


def train_all(work: Work, options: argparse.Namespace, there: set[str]) -> int:
    """Train what is not there, several at once. Returns how many failed or ran out of time."""
    until = time.time() + options.seconds if options.seconds else float("inf")
    running: dict[Future, dict] = {}
    unfinished = 0
    work.split("val")  # decoded once, before the workers ask for it
    left = lines(work, options, there, until)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _open, (work.folder, options)) as pool:
        while True:
            while len(running) < options.workers:
                try:
                    line, recipe, rows = next(left)
                except StopIteration:
                    break
                except OutOfTime:
                    unfinished += 1
                    print("out of time; the same command goes on", flush=True)
                    break
                state = work.folder / f"state-{key(line)}.pt"
                ask = partial(pool.submit, _train_and_test, line, recipe, rows, state, until)
                running[ask(options.out, options.device)] = line
            if not running:
                return unfinished
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                line = running.pop(future)
                name = f"{line['arch']} {line['method']} keep {line['keep']:g} seed {line['seed']}"
                try:
                    done = future.result()
                    print(f"{name}: {100 * done['top1']:.2f} %, {done['train_seconds']:.0f} s", flush=True)
                except OutOfTime:
                    unfinished += 1
                    print(f"{name}: out of time; the same command goes on", flush=True)
                except (ArithmeticError, RuntimeError) as error:  # diverged, or no memory: the others go on
                    unfinished += 1
                    print(f"{name}: {error}", file=sys.stderr, flush=True)


def read(path: Path) -> list[dict]:
    """The lines that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(found: list[dict]) -> str:
    """Markdown, for each setting and network: means, intervals, differences to random and DQ taken seed by seed."""
    from ray_jobs.comparison import cells  # which load pyarrow and matplotlib: training does without
    from tests.bench.claims import as_lines, outcome

    groups: dict[str, list[dict]] = {}
    for line in found:
        groups.setdefault(f"{line['arch']} {json.dumps(line['settings'], sort_keys=True)}", []).append(line)
    told = []
    for mine in groups.values():
        settings = {name: value for name, value in mine[0]["settings"].items() if name != "recipe"}
        heading = ", ".join([mine[0]["arch"], *(f"{name} {value}" for name, value in settings.items())])
        rows = [line | {"method": re.sub(rf"{PERMUTATION}\d+", "", line["method"])} for line in mine]
        told.append(f"{heading}\n\n{as_lines(cells([outcome(line) for line in rows]))}")
    return "\n\n".join(told)


def main() -> int:
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
    parser.add_argument("--methods", nargs="+", default=["random", "dq", "adq", *CONTROLS, "support-points"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.1, 0.125, 0.2, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--feature-seed", type=int, default=0, help="of the first extractor")
    parser.add_argument("--extractors", type=int, default=0, help="seed s takes number s modulo this; 0: one a seed")
    parser.add_argument("--seconds", type=float, help="stop the trainings after so many, at the end of an epoch")
    options = parser.parse_args()
    unfinished = 0
    if not options.table:
        if not 8 <= options.side < SMALL:
            parser.error(f"--side {options.side}: expected 8 to {SMALL - 1}; compare takes larger images")
        try:
            for method in options.methods:
                parsed(method)
            for keep in options.keep:
                kept(keep, 10**9)
        except ValueError as error:
            parser.error(str(error))
        settle(options.threads)
        unfinished = train_all(Work(options.work, options), options, {key(line) for line in read(options.out)})
    try:
        print(table(read(options.out)))
    except ModuleNotFoundError as missing:
        print(f"no table without {missing.name}; --table prints it of the same lines where Tessera is installed")
    return int(bool(unfinished))


if __name__ == "__main__":
    sys.exit(main())
