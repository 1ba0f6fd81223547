"""The small masked autoencoder against fills without a network: PSNR on dropped patches of held-out images.

    python -m tests.bench.mae --data FOLDER [--device cuda] [--steps N] [--seconds 600] [--size small-32] [--out mae.pt]

Needs PyTorch, NumPy and Pillow alone. FOLDER holds WebDataset shards *train-*.tar and *val-*.tar; images of another side than the
network's are brought to it as the job `mae` does: the shorter side resized, then the central square. The network is trained on
the train shards and tested on the val shards, of whose images 25 % of the patches of 8 pixels (16 from 96 pixels) are dropped at
random. Seconds are of the process's own CPU time on a CPU, so that they mean the same on a busy machine; `--seconds` measures a
step first, and trains for as many as fit. The last line is JSON.
"""

import argparse
import io
import json
import math
import tarfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adq.batches import TensorImages, epoch_batches, steps_per_epoch
from adq.fill import fill
from adq.images import resize_and_crop
from adq.mae import BASES, MAE, PRESETS, fresh, patches_to_mask
from adq.mae_training import MAERecipe, random_masks, train
from adq.mae_weights import to_bytes
from adq.patches import grid
from adq.process import keep_freed_memory
from adq.randomness import torch_generator
from adq.reconstruction import psnr, reconstruct

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
DROPPED = 0.25
TIMED = 20  # steps that are measured
SPEAK_SECONDS = 30


def load(folder: Path, split: str, side: int) -> Tensor:
    """uint8 [N, side, side, 3], in the order of the keys."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob(f"*{split}-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.rpartition(".")
                if extension.lower() in ("jpg", "jpeg", "png", "webp"):
                    found[key] = archive.extractfile(member).read()
    if not found:
        raise FileNotFoundError(f"no {split} shards in {folder}")
    files = (Image.open(io.BytesIO(found[key])).convert("RGB") for key in sorted(found))
    images = np.stack([resize_and_crop(image, side, side) for image in files])
    return torch.from_numpy(images).permute(0, 2, 3, 1).contiguous()


def clock(device: str) -> float:
    """Seconds: of wall on a GPU, of this process's work on a CPU."""
    return time.perf_counter() if device.startswith("cuda") else time.process_time()


def trained(options: argparse.Namespace, images: Tensor, steps: int, quiet: bool = False) -> tuple[MAE, float]:
    """A network and the seconds that it took."""
    config = replace(PRESETS[options.size], **({"base": options.base} if options.base else {}))
    side = config.image_size
    recipe = MAERecipe(
        steps, options.batch, options.lr, mask_ratio=options.mask_ratio, block=grid(side, side).side,
        bfloat16=options.bfloat16,
    )  # fmt: skip
    if not quiet:
        print(f"{config}\n{recipe}, {steps_per_epoch(len(images), recipe.batch_size):,} steps an epoch", flush=True)
    data = TensorImages(images.permute(0, 3, 1, 2).contiguous(), np.zeros(len(images), dtype=np.int64))
    model, losses = fresh(config, options.seed), []
    began = spoken = clock(options.device)

    def on_step(step: int, loss: float) -> None:
        nonlocal spoken
        losses.append(loss)
        if not quiet and clock(options.device) - spoken > SPEAK_SECONDS:
            spoken = clock(options.device)
            recent = sum(losses[-200:]) / len(losses[-200:])
            print(f"step {step:,} of {steps:,}, loss {recent:.4f}, {spoken - began:.0f} s", flush=True)

    batches = partial(epoch_batches, data, recipe, options.seed)
    train(model, batches, recipe, options.seed, options.device, on_step=on_step)
    return model, clock(options.device) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--size", default="small-32", choices=[name for name in PRESETS if name != "vit-large"])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int)
    length.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--batch", type=int, default=MAERecipe.batch_size)
    parser.add_argument("--lr", type=float, default=MAERecipe.lr)
    parser.add_argument("--mask-ratio", type=float, default=MAERecipe.mask_ratio)
    parser.add_argument("--base", choices=BASES, help="what the network starts from; the size's own by default")
    parser.add_argument("--float32", dest="bfloat16", action="store_false", help="no bfloat16 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    side = PRESETS[options.size].image_size
    images, tests = (load(options.data, split, side) for split in ("train", "val"))
    steps = options.steps
    if steps is None:
        trained(options, images, 1, quiet=True)  # what is loaded and built on first use
        _, seconds = trained(options, images, TIMED, quiet=True)
        steps = max(1, int(options.seconds / seconds * TIMED))
    model, seconds = trained(options, images, steps)
    if options.out:
        options.out.write_bytes(to_bytes(model))

    block = grid(side, side).side
    masks = random_masks(len(tests), (side // block) ** 2, DROPPED, torch_generator(options.seed, "dropped"))
    known = patches_to_mask(masks, block)
    began = clock(options.device)
    painted = reconstruct(model, tests, known, options.device)
    painting = clock(options.device) - began
    fills = {filler: fill(tests, known, filler) for filler in ("mean", "harmonic")}
    found = {name: round(psnr(made, tests, ~known), 3) for name, made in ({"mae": painted} | fills).items()}
    errors = {
        name: ((made.float() - tests.float()) * ~known[..., None]).square().mean(dim=(1, 2, 3))
        for name, made in ({"mae": painted} | fills).items()
    }
    better = float((errors["mae"] < errors["harmonic"]).float().mean())
    for name, value in found.items():
        print(f"{name:<9} {value:6.2f} dB")
    print(f"closer than harmonic on {better:.1%} of {len(tests):,} held-out images")
    line = {
        "size": options.size, "config": asdict(model.config), "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps, "batch": options.batch, "lr": options.lr, "mask_ratio": options.mask_ratio, "bfloat16": options.bfloat16,
        "device": options.device, "threads": options.threads, "seed": options.seed, "train_seconds": round(seconds, 1),
        "images_seen": steps * options.batch, "reconstruct_ms": round(1000 * painting / len(tests), 3),
        "held_out": len(tests), "psnr": found, "closer_than_harmonic": round(better, 4),
    }  # fmt: skip
    assert all(math.isfinite(value) for value in found.values())
    print(json.dumps(line))


if __name__ == "__main__":
    main()
