"""Is a GPU right? What must come out as on a CPU, and what must come out twice the same, on real images, with PyTorch alone.

    python -m tests.bench.devices [--device cuda] [--images 2000] [--steps 20] [--only bins train ...]

A line a check: what, whether it holds, how far apart, seconds. The exit status is 1 where one does not.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adq.augmentation import AUGMENTATIONS, RESIZED_CROP, augment
from adq.extractor import FeatureExtractor, input_transform
from adq.features import View, augmented, features
from adq.fill import fill
from adq.graphcut import graphcut_bins
from adq.mae import PRESETS, fresh, patches_to_mask
from adq.mae_training import MAERecipe, random_masks
from adq.mae_training import train as train_mae
from adq.models import build
from adq.process import settle
from adq.randomness import global_draws, torch_generator
from adq.reconstruction import reconstruct
from adq.saliency import grad_cam
from adq.texture import texture_level
from adq.training import TensorImages, default_recipe, epoch_batches, steps_per_epoch, train
from adq.trivial_augment import trivial_augment
from palette.distill import distill
from palette.experts import ExpertRecipe, train_expert
from palette.recipe import Distillation, Trajectories
from tests.bench.palettes_data import DATA, examples, load

ARCH = "convnet-d3-w32"
NETWORKS = (ARCH, "resnet18", "vit", "swin", "convnext", "mobilenet_v2", "vgg11", "alexnet")
FEW = 256  # images, where more would tell nothing

Found = Iterator[tuple[str, bool, str]]  # what, whether it holds, how far apart


@dataclass(frozen=True)
class Bench:
    """Real images, the device that is asked about, and how long to train."""

    data: TensorImages
    device: str
    steps: int

    @property
    def side(self) -> int:
        return self.data.images.shape[-1]

    @property
    def classes(self) -> int:
        return int(self.data.labels.max()) + 1

    def network(self, arch: str = ARCH) -> torch.nn.Module:
        with global_draws(0, "devices", arch):
            return build(arch, self.classes, self.side)

    def on_both(self, work: Callable[[str], Tensor]) -> tuple[Tensor, Tensor]:
        """What comes out on a CPU and on the device, as float64 on the CPU."""
        return tuple(work(device).detach().cpu().double() for device in ("cpu", self.device))

    def repeats(self, work: Callable[[], Tensor]) -> tuple[bool, str]:
        first, second = work().detach().cpu(), work().detach().cpu()
        return torch.equal(first, second), f"{int((first != second).sum())} of {first.numel():,} numbers differ"


def near(pair: tuple[Tensor, Tensor], within: float) -> tuple[bool, str]:
    """Whether two results differ by no more than so much anywhere."""
    apart = float((pair[0] - pair[1]).abs().max())
    return apart <= within, f"{apart:.3g} apart at most, {within:g} allowed"


def mostly_equal(pair: tuple[Tensor, Tensor], share: float) -> tuple[bool, str]:
    """Whether all but a share of the numbers are the same."""
    differ = float((pair[0] != pair[1]).double().mean())
    return differ <= share, f"{differ:.2%} differ, {share:.2%} allowed"


def bins(bench: Bench) -> Found:
    """GraphCut decides every pick as exact arithmetic would: its bins and ranks are the same anywhere."""
    model, transform = bench.network(), input_transform(ARCH, bench.side)
    rows = FeatureExtractor(model, ARCH)(transform.normalise(bench.data.images))[0].numpy()
    for scope in ("class", "global"):
        here, there = (
            graphcut_bins(rows, bench.data.labels, 10, scope, device=device) for device in ("cpu", bench.device)
        )
        wrong = int((here[0] != there[0]).sum()), int((here[1] != there[1]).sum())
        yield f"bins, scope {scope}", wrong == (0, 0), f"{wrong[0]} bins and {wrong[1]} ranks differ"


def seen(bench: Bench) -> Found:
    """Features in bfloat16 on a GPU; views and texture in float32."""
    pixels, keys = bench.data.images[:FEW], [f"{i:06d}" for i in range(FEW)]
    transform = input_transform(ARCH, bench.side)

    def embedded(device: str) -> Tensor:
        extractor = FeatureExtractor(bench.network(), ARCH).to(device).eval()
        return torch.from_numpy(features(extractor, pixels, keys[: len(pixels)], transform, View(), 0).embedding)

    here, there = bench.on_both(embedded)
    cosine = float(torch.cosine_similarity(here, there).min())
    yield "embeddings", cosine > 0.999, f"cosine {cosine:.6f} at least, 0.999 wanted"
    unit = pixels.float() / 255
    views = bench.on_both(lambda device: augmented(unit.to(device), keys[: len(unit)], View(), 0))
    yield "augmented views", *near(views, 1e-3)
    yield "texture, eq. 3", *near(bench.on_both(lambda device: texture_level(unit.to(device), 32)), 1e-5)


def augmentations(bench: Bench) -> Found:
    """Crops and flips move bytes; TrivialAugment rounds."""
    pixels = bench.data.images[:FEW]
    positions = torch.arange(len(pixels))
    for kind in (kind for kind in AUGMENTATIONS if kind != RESIZED_CROP):
        pair = bench.on_both(
            lambda device, kind=kind: augment(
                pixels.to(device), kind, torch_generator(0, "devices"), positions, len(pixels)
            )
        )
        yield f"augmentation {kind}", *mostly_equal(pair, 0)
    pair = bench.on_both(
        lambda device: trivial_augment(pixels.to(device), torch_generator(0, "devices"), positions, len(pixels))
    )
    yield "TrivialAugment", *mostly_equal(pair, 0.01)


def training(bench: Bench) -> Found:
    """Every network learns the same twice, and its first losses are those on a CPU."""
    for arch in NETWORKS:
        recipe = replace(default_recipe(arch, bench.side, steps=bench.steps), batch_size=64)
        per_epoch = steps_per_epoch(len(bench.data), recipe.batch_size)

        def weights(device: str, steps: int, arch: str = arch, recipe=recipe, per_epoch: int = per_epoch) -> Tensor:
            model, losses = bench.network(arch), []
            train(
                model, partial(epoch_batches, bench.data, recipe, 0), per_epoch, replace(recipe, steps=steps),
                input_transform(arch, bench.side), 0, device, on_step=lambda _, loss: losses.append(loss),
            )  # fmt: skip
            flat = torch.cat([value.detach().float().flatten().cpu() for value in model.state_dict().values()])
            return torch.cat([torch.tensor(losses), flat])

        yield f"training of {arch}, twice", *bench.repeats(lambda: weights(bench.device, bench.steps))
        pair = bench.on_both(lambda device: weights(device, 1)[:1])
        yield f"first loss of {arch}", *near(pair, 0.05)


def distillation(bench: Bench) -> Found:
    """Both matchings repeat; the first steps of distribution matching are those on a CPU."""
    images, labels = bench.data.images.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(bench.data.labels)
    small = Distillation(images_per_class=1, colors=4, steps=3, batch_real=32, width=16, start="random")

    def made(config: Distillation, device: str, experts: tuple[Tensor, ...] = ()) -> Tensor:
        return distill(images, labels, config, device=device, experts=experts).images.float()

    for mode in ("none", "direct", "network", "soft"):
        config = replace(small, mode=mode)
        yield f"distribution matching, {mode}, twice", *bench.repeats(partial(made, config, bench.device))
    pair = bench.on_both(partial(made, replace(small, mode="none", steps=1)))
    yield "distribution matching, a step", *near(pair, 1.0)
    expert = ExpertRecipe(epochs=3, depth=3, width=16)

    def taught(device: str) -> Tensor:
        return train_expert(images, labels, bench.classes, expert, 0, 0, device)

    yield "an expert, twice", *bench.repeats(lambda: taught(bench.device))
    path = Trajectories(student_steps=2, last_start=1)
    config = replace(small, matching="tm", mode="direct", trajectories=path)
    experts = (taught(bench.device),)
    yield "trajectory matching, twice", *bench.repeats(partial(made, config, bench.device, experts))


def gaps(bench: Bench) -> Found:
    """Grad-CAM, harmonic fill, and the masked autoencoder."""
    pixels, transform = bench.data.images[:FEW], input_transform(ARCH, bench.side)
    labels = torch.from_numpy(np.asarray(bench.data.labels[:FEW], dtype=np.int64))

    def cams(device: str) -> Tensor:
        return grad_cam(bench.network().to(device), transform.normalise(pixels.to(device)), labels)

    here, there = bench.on_both(cams)
    yield "Grad-CAM", *near((here / here.max(), there / here.max()), 0.02)
    config = PRESETS["small-32"]
    grid = config.image_size // config.patch_size
    known = patches_to_mask(random_masks(len(pixels), grid**2, 0.25, torch_generator(0, "devices")), config.patch_size)
    shown = pixels.permute(0, 2, 3, 1).contiguous()
    pair = bench.on_both(lambda device: fill(shown.to(device), known.to(device)).float())
    yield "harmonic fill", *near(pair, 1.0)
    recipe = MAERecipe(bench.steps, 64, block=config.patch_size)

    def learned() -> torch.nn.Module:
        model = fresh(config, 0)
        train_mae(model, partial(epoch_batches, bench.data, recipe, 0), recipe, 0, bench.device)
        return model

    weights = bench.repeats(lambda: torch.cat([value.flatten().cpu() for value in learned().state_dict().values()]))
    yield "masked autoencoder, twice", *weights
    model = learned()
    pair = bench.on_both(lambda device: reconstruct(model, shown, known, device).float())
    yield "masked autoencoder, its pictures", *near(pair, 2.0)


CHECKS: dict[str, Callable[[Bench], Found]] = {
    "bins": bins, "seen": seen, "augmentations": augmentations, "training": training, "distillation": distillation, "gaps": gaps,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    options = parser.parse_args()
    settle(torch.get_num_threads())
    if options.device.startswith("cuda"):
        print(f"{torch.cuda.get_device_name(options.device)}, PyTorch {torch.__version__}", flush=True)
    whole = examples(*load(options.data, "train", 1))
    spread = slice(0, None, max(1, len(whole) // options.images))  # keys are in the order of the classes
    bench = Bench(TensorImages(whole.images[spread], whole.labels[spread]), options.device, options.steps)
    failed, started = 0, time.perf_counter()
    for name in options.only:
        for what, holds, told in CHECKS[name](bench):
            failed += not holds
            seconds = time.perf_counter() - started
            print(f"{'ok    ' if holds else 'FAILED'} {what}: {told} ({seconds:.1f} s)", flush=True)
            started = time.perf_counter()
    print(f"{failed} checks failed" if failed else "all hold")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
