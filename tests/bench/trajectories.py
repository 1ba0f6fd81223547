"""Texture against trajectory distance (ADQ, Figure 4): is training on a bin of high texture nearer to training on everything?

    python -m tests.bench.trajectories [--steps 600] [--seeds 3] [--compile] [--out FILE] [--figure FILE]

A network is trained on all images, others from the same weights on each GraphCut bin and on random parts of the same size. The
distance of two trainings is |theta_bin(t) - theta_all(t)| / |theta_all(t) - theta(0)|, its mean over ten points of time t. The
noise floor is that of a second training on all images from the same weights, in another order of batches. Bins come from the
embeddings of the first network that is trained on everything. PyTorch alone; a JSON line a part (--out: in a file, too), then
correlations.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adq.extractor import FeatureExtractor, InputTransform, input_transform
from adq.graphcut import graphcut_bins
from adq.models import build
from adq.process import keep_freed_memory
from adq.randomness import global_draws, numpy_generator
from adq.recipe import Recipe
from adq.texture import texture_level
from adq.training import TensorImages, epoch_batches, steps_per_epoch, train
from tests.bench.palettes_data import DATA, examples, load

POINTS = 10  # of time
FLOOR = "all, another order"


def trajectory(
    data: TensorImages,
    recipe: Recipe,
    transform: InputTransform,
    arch: str,
    seed: int,
    device: str,
    order: int | None = None,
) -> tuple[nn.Module, Tensor]:
    """The trained network, and its weights at the start and at `POINTS` points of time, float32 [POINTS + 1, weights].

    Args:
        order: seed of the order of the batches, where it is not `seed`.
    """
    with global_draws(seed, "initial weights", arch):
        model = build(arch, int(data.labels.max()) + 1, data.images.shape[-1]).to(device)
    every, found = recipe.steps // POINTS, [_flat(model)]

    def on_step(step: int, _loss: float) -> None:
        if step % every == 0 and len(found) <= POINTS:
            found.append(_flat(model))

    per_epoch = steps_per_epoch(len(data), recipe.batch_size)
    batches = partial(epoch_batches, data, recipe, seed if order is None else order)
    train(model, batches, per_epoch, recipe, transform, seed, device, on_step=on_step)
    return model, torch.stack(found)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).float().cpu()


def distance(one: Tensor, whole: Tensor) -> float:
    """Mean over time of |one(t) - whole(t)| / |whole(t) - whole(0)|, both [POINTS + 1, weights]."""
    return float(((one - whole)[1:].norm(dim=1) / (whole - whole[0])[1:].norm(dim=1)).mean())


def textures(data: TensorImages) -> np.ndarray:
    return torch.cat([texture_level(part.float() / 255) for part in data.images.split(1000)]).numpy()


def embeddings(model: nn.Module, arch: str, data: TensorImages, transform: InputTransform, device: str) -> np.ndarray:
    extractor = FeatureExtractor(model, arch)
    parts = [extractor(transform.normalise(part.to(device)))[0].cpu() for part in data.images.split(1000)]
    return nn.functional.normalize(torch.cat(parts)).numpy()


def part_of(data: TensorImages, rows: np.ndarray) -> TensorImages:
    return TensorImages(data.images[torch.from_numpy(rows)], data.labels[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="convnet-d3-w32")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--controls", type=int, default=2, help="random parts of the size of a bin")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="JSON lines: what is printed of each part, with the settings")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        keep_freed_memory()
    data = examples(*load(options.data, "train", options.shards))
    transform = input_transform(options.arch, data.images.shape[-1])
    recipe = Recipe(steps=options.steps, lr=0.05, compile=options.compile)
    settings = {"arch": options.arch, "steps": options.steps, "data": options.data.name, "shards": options.shards}
    level, bins, lines = textures(data), None, []
    if options.out:
        options.out.write_text("")
    for seed in range(options.seeds):
        began = time.perf_counter()
        run = partial(
            trajectory, recipe=recipe, transform=transform, arch=options.arch, seed=seed, device=options.device
        )
        model, whole = run(data)
        if bins is None:
            number_of, _ = graphcut_bins(embeddings(model, options.arch, data, transform, options.device), data.labels)
            bins = [np.flatnonzero(number_of == number) for number in range(10)]
        parts = {f"bin {number + 1}": rows for number, rows in enumerate(bins)}
        for number in range(options.controls):
            chosen = numpy_generator(seed, "random part", number).choice(len(data), len(bins[0]), replace=False)
            parts[f"random {number + 1}"] = np.sort(chosen)
        parts[FLOOR] = np.arange(len(data))
        for name, rows in parts.items():
            _, other = run(part_of(data, rows), order=options.seeds + seed if name == FLOOR else seed)
            line = {
                "part": name, "seed": seed, "images": len(rows), "texture": round(float(level[rows].mean()), 5),
                "distance": round(distance(other, whole), 5),
            }  # fmt: skip
            lines.append(line)
            print(json.dumps(line), flush=True)
            if options.out:
                with options.out.open("a") as out:
                    out.write(json.dumps(line | {"settings": settings}, sort_keys=True) + "\n")
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    told = []
    for seed in range(options.seeds):
        mine = [line for line in lines if line["seed"] == seed and line["part"].startswith("bin")]
        told.append(float(np.corrcoef([x["texture"] for x in mine], [x["distance"] for x in mine])[0, 1]))
    means = {
        name: round(statistics.fmean(mine), 5)
        for name, start in (("random_parts", "random"), ("noise_floor", FLOOR))
        if (mine := [line["distance"] for line in lines if line["part"].startswith(start)])
    }
    print(json.dumps({"correlation_by_seed": [round(one, 3) for one in told]} | means))
    if options.figure:
        draw(lines, options.figure)


def draw(lines: list[dict], path: Path) -> None:
    """Mean distance of every bin over its texture; random parts and the noise floor in grey."""
    from matplotlib.figure import Figure

    fig = Figure((6, 4.2), dpi=110, layout="constrained")
    axes = fig.subplots()
    for name in dict.fromkeys(line["part"] for line in lines):
        mine = [line for line in lines if line["part"] == name]
        color = "#0072B2" if name.startswith("bin") else "#999999"
        values = [line["distance"] for line in mine]
        x, y = mine[0]["texture"], statistics.fmean(values)
        axes.errorbar(x, y, yerr=[[y - min(values)], [max(values) - y]], marker="o", color=color, capsize=2)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8, color=color)
    axes.set_xlabel("texture level (eq. 3), mean of the part")
    axes.set_ylabel("distance to training on everything")
    axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(path)


if __name__ == "__main__":
    main()
