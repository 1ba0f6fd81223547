"""A recipe on the real images, without Ray: top-1 on all test images, and seconds.

    python -m tests.bench.recipes --recipe cifar10-cpu --arch convnet-d3-w32 [--steps N | --epochs N] [--device cuda] [--seeds 3]
    python -m tests.bench.recipes --recipe cifar10 imagenet --arch resnet18 vit --overfit 32 --steps 60 [--out FILE]

One JSON line a seed, then the mean; to --out, which keeps what it has. The last weights count, or their average where the recipe
asks for it. --overfit trains on so many images, of all classes, and tests on the same: what cannot learn them by heart is broken.
"""

import argparse
import itertools
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adq.extractor import input_transform
from adq.models import build
from adq.process import keep_freed_memory
from adq.randomness import global_draws
from adq.training import Recipe, TensorImages, correct, epoch_batches, steps_per_epoch, train
from ray_jobs import recipe_files
from tests.bench.adaptive_colors import sized
from tests.bench.palettes_data import DATA, examples, load

SPEAK_SECONDS = 30


def wanted_recipe(options: argparse.Namespace, name: str, arch: str) -> Recipe:
    recipe = recipe_files.read(name).recipe(arch)
    recipe = replace(recipe, bfloat16=recipe.bfloat16 or options.bfloat16, compile=recipe.compile or options.compile)
    if options.steps or options.epochs:
        return replace(recipe, steps=options.steps, epochs=options.epochs)
    return recipe


def one(
    name: str, arch: str, recipe: Recipe, data: TensorImages, test: TensorImages, seed: int, device: str
) -> dict:  # fmt: skip
    """Train and test a network. Raises ValueError for images of one class, which any network knows."""
    side, classes = data.images.shape[-1], int(data.labels.max()) + 1
    if classes < 2 or len(np.unique(data.labels)) < 2:
        raise ValueError(f"{len(data)} images of one class: there is nothing to learn")
    with global_draws(seed, "initial weights", arch):
        model = build(arch, classes, side)
    per_epoch = steps_per_epoch(len(data), recipe.batch_size)
    total, transform = recipe.total_steps(per_epoch), input_transform(arch, side)
    began = spoken = time.perf_counter()
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        nonlocal spoken
        losses.append(loss)
        if time.perf_counter() - spoken > SPEAK_SECONDS:
            spoken = time.perf_counter()
            recent = statistics.fmean(losses[-100:])
            print(f"step {step:,} of {total:,}, loss {recent:.3f}, {spoken - began:.0f} s", flush=True)

    batches = partial(epoch_batches, data, recipe, seed)
    train(model, batches, per_epoch, recipe, transform, seed, device, on_step=on_step)
    trained = time.perf_counter()
    right = correct(model, test, np.arange(len(test)), transform, device)
    return {
        "recipe": name, "arch": arch, "seed": seed, "images": len(data), "classes": classes, "steps": total, "side": side,
        "first_loss": round(losses[0], 4),
        "loss": round(statistics.fmean(losses[-100:]), 4), "top1": round(100 * float(right.mean()), 2),
        "train_seconds": round(trained - began, 1), "test_seconds": round(time.perf_counter() - trained, 1),
    }  # fmt: skip


def images_of(options: argparse.Namespace, split: str, shards: int) -> TensorImages:
    images, labels = load(options.data, split, shards)
    return examples(sized(images, options.side), labels)


def across_classes(data: TensorImages, count: int) -> TensorImages:
    """Every n-th image: keys are in the order of the classes."""
    rows = np.linspace(0, len(data) - 1, count).astype(np.int64)
    return TensorImages(data.batch(rows), data.labels[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipe", nargs="+", default=["cifar10-cpu"], help=f"TOML files, or of {', '.join(recipe_files.names())}"
    )
    parser.add_argument("--arch", nargs="+", default=["convnet-d3-w32"])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="instead of the recipe's length")
    length.add_argument("--epochs", type=int, help="instead of the recipe's length")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU, too")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--shards", type=int, default=10, help="of the training set; all of the test set is used")
    parser.add_argument("--side", type=int, help="pixels at which networks see the images; their own otherwise")
    parser.add_argument(
        "--overfit", type=int, metavar="IMAGES", help="train and test on so many images alone, of all classes"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="lines are added to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        keep_freed_memory()
    data = images_of(options, "train", 1 if options.overfit else options.shards)
    if options.overfit:
        data = test = across_classes(data, options.overfit)
    else:
        test = images_of(options, "val", len(list(options.data.glob("*val-*.tar"))))
    for name, arch in itertools.product(options.recipe, options.arch):
        recipe, found = wanted_recipe(options, name, arch), []
        for seed in range(options.seeds):
            found.append(one(name, arch, recipe, data, test, seed, options.device) | {"overfit": bool(options.overfit)})
            print(json.dumps(found[-1]), flush=True)
            if options.out:
                with options.out.open("a") as out:
                    out.write(json.dumps(found[-1]) + "\n")
        top1 = [line["top1"] for line in found]
        spread = f", sd {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        seconds = sum(line["train_seconds"] + line["test_seconds"] for line in found)
        print(f"{name}, {arch}: top-1 {statistics.fmean(top1):.2f} %{spread}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
