"""A step of distribution matching against a plain loop over classes, both in one process, alternating.

    python -m tests.bench.distill [--threads 2] [--width 128] [--batch 256] [--steps 20] [--device cuda]

The plain loop is that of the published code: the data is one float tensor [N, 3, S, S], and each class in turn passes its
real images and its synthetic images, both augmented by one draw; one backward pass. Prints both losses, the time a step,
and how much of the plain loop's time is not spent in its own forward and backward passes; the last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from adq.models import ConvNet
from adq.process import keep_freed_memory
from adq.randomness import seed_of, torch_generator
from palette.augment import Draws, augment, draw
from palette.network import full_colour, normalise
from palette.objectives import distributions
from palette.recipe import Distillation


class Clock:
    """Time by name; on a GPU, once its work is done."""

    def __init__(self, device: str):
        self.seconds: dict[str, float] = {}
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def __call__(self, name: str, work: Callable):
        self.wait()
        start = time.perf_counter()
        result = work()
        self.wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def plain_step(
    config: Distillation, data: Tensor, members: list[Tensor], latents: Tensor, step: int, clock: Clock
) -> float:
    """Class by class; "forward" and "backward" are the network's passes with the augmentation before them."""
    side, seed = data.shape[-1], config.seed
    torch.manual_seed(seed_of(seed, "network", step))
    network = ConvNet(config.depth, config.width, 1, side).to(data.device).requires_grad_(False)

    def embed(images: Tensor, draws: Draws) -> Tensor:
        return network.blocks(augment(images, draws, torch.zeros(len(images), dtype=torch.int64))).flatten(1)

    loss = torch.zeros((), device=data.device)
    synthetic = full_colour(latents).split(config.images_per_class)
    for label, indices in enumerate(members):
        draws = draw(torch_generator(seed, "dsa", step, label), side)
        order = torch.randperm(len(indices), generator=torch_generator(seed, "real", step, label))
        real = data[indices[order[: config.batch_real]].to(data.device)]
        with torch.no_grad():
            target = clock("forward", lambda real=real, draws=draws: embed(real, draws).mean(dim=0))
        found = clock("forward", lambda label=label, draws=draws: embed(synthetic[label], draws).mean(dim=0))
        loss = loss + (target - found).square().sum()
    clock("backward", loss.backward)
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="PyTorch's own choice where it is not given")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images-per-class", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile, for ours alone")
    wanted = parser.parse_args()
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
        keep_freed_memory()
    config = Distillation(
        images_per_class=wanted.images_per_class, batch_real=wanted.batch, depth=wanted.depth, width=wanted.width,
        mode="none", start="random", compiled=wanted.compile,
    )  # fmt: skip
    generator = torch_generator(0, "bench")
    shape = (wanted.classes * 4 * wanted.batch, wanted.side, wanted.side, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(wanted.device)
    labels = torch.arange(len(images)) % wanted.classes
    data = normalise(images).contiguous()
    members = [(labels == label).nonzero()[:, 0] for label in range(wanted.classes)]
    start = torch.cat([data[indices[: wanted.images_per_class].to(wanted.device)] for indices in members])
    objective = distributions(config, images, labels, list(range(wanted.classes)))

    rows = []
    for step in range(wanted.steps + 1):
        clock = Clock(wanted.device)
        plain_latents, latents = (start.clone().requires_grad_(True) for _ in range(2))
        plain = clock("plain", lambda at=step, x=plain_latents, c=clock: plain_step(config, data, members, x, at, c))

        def ours_step(at: int = step, x: Tensor = latents) -> float:
            loss = objective(at, full_colour(x))
            loss.backward()
            return float(loss.detach())

        ours = clock("ours", ours_step)
        difference = abs(plain - ours) / abs(plain)
        gradients = float((plain_latents.grad - latents.grad).abs().max() / plain_latents.grad.abs().max())
        seconds = clock.seconds
        passes = seconds["forward"] + seconds["backward"]
        if step:  # the first warms up
            rows.append((seconds["plain"], seconds["ours"], passes, difference, gradients))
        print(
            f"step {step}: plain {1e3 * seconds['plain']:.1f} ms (its passes {1e3 * passes:.1f}), "
            f"ours {1e3 * seconds['ours']:.1f} ms, losses {plain:.6f} {ours:.6f}",
            flush=True,
        )
    plain, ours, passes = (statistics.median(column) for column in list(zip(*rows, strict=True))[:3])
    result = {
        "plain_ms": round(1e3 * plain, 2), "ours_ms": round(1e3 * ours, 2), "ratio": round(plain / ours, 3),
        "plain_over_its_passes": round(statistics.median(row[0] / row[2] for row in rows), 3),
        "largest_relative_loss_difference": max(row[3] for row in rows),
        "largest_relative_gradient_difference": max(row[4] for row in rows),
        "threads": torch.get_num_threads(), "device": wanted.device, "width": wanted.width, "batch": wanted.batch,
        "steps": wanted.steps, "compiled": wanted.compile,
    }  # fmt: skip
    print(f"median: plain {result['plain_ms']} ms, ours {result['ours_ms']} ms, {result['ratio']} times as fast")
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
