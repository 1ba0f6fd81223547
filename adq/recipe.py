"""How a classifier is trained: what can be set, and what is set where nobody says."""

import math
from dataclasses import dataclass, replace

from adq.augmentation import AUGMENTATIONS
from adq.models import SMALL


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: for `epochs` over the data or for `steps`, a fixed cost; one of them is set.

    What follows `label_smoothing` is what ImageNet recipes add since 2021, after torchvision's; all of it is off by default.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128  # of all workers together
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    nesterov: bool = False
    schedule: str = "cosine"
    warmup_steps: int = 0  # at most a tenth of the run
    augment: str = "crop-flip"
    label_smoothing: float = 0.0
    lr_batch: int = 0  # the batch size that `lr` is meant for: another one scales it in proportion; 0: `lr` as it is
    decay_vectors: bool = True  # False: weight decay spares biases, norms and other vectors
    clip_norm: float = 0.0  # the largest norm of a step's gradient; 0: any
    trivial_augment: bool = False  # one operation of TrivialAugment an image, after `augment`
    erasing: float = 0.0  # share of the images that lose a box
    mixup: float = 0.0  # alpha of Beta(alpha, alpha); 0: off; with cutmix too, each step takes one of them
    cutmix: float = 0.0
    ema: float = 0.0  # decay a step of the weights' average, which is then what training returns; 0: off
    compile: bool = False  # the network's steps by torch.compile: seconds at the start, then faster; rounds otherwise
    bfloat16: bool = False  # autocast on CPUs, too, some of which are faster in it; always on CUDA

    def __post_init__(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"set epochs or steps, one of them: got epochs={self.epochs}, steps={self.steps}")
        if (self.epochs if self.steps is None else self.steps) < 1 or self.batch_size < 1:
            raise ValueError(f"epochs, steps and batch_size must be at least 1: got {self}")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise ValueError(f"need lr > 0, 0 <= momentum < 1, weight_decay >= 0 and warmup_steps >= 0: got {self}")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("lr_batch", "clip_norm", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0, which is off, or more: not {getattr(self, name)}")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing is a share of the images, from 0 to 1: not {self.erasing}")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        for name, known in (
            ("optimizer", ("sgd", "adamw")),
            ("schedule", ("cosine", "constant")),
            ("augment", AUGMENTATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other, so that labels become probabilities."""
        return self.mixup > 0 or self.cutmix > 0

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps if self.steps is not None else self.epochs * steps_per_epoch

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step 0 <= `step` < `total`: linear warm-up, then half a cosine to zero, or constant."""
        lr = self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr
        warmup = min(self.warmup_steps, total // 10)
        if step < warmup:
            return lr * (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return lr
        return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def default_recipe(arch: str, image_size: int, epochs: int | None = None, steps: int | None = None) -> Recipe:
    """The recipe of a network: 200 epochs on small images, 90 on large ones, unless `epochs` or `steps` is given.

    ResNets on small images get the recipe of DQ and ADQ (SGD 0.1, weight decay 5e-4, batch 128, crop 32 with padding
    4, flip), on large ones torchvision's (batch 256, weight decay 1e-4). ViT, Swin and ConvNeXt get AdamW, ConvNets a
    lower learning rate, VGG and AlexNet, which diverge at it, a still lower one.
    """
    small = image_size < SMALL
    if epochs is None and steps is None:
        epochs = 200 if small else 90
    base = (
        Recipe(epochs, steps) if small else Recipe(epochs, steps, 256, weight_decay=1e-4, augment="resized-crop-flip")
    )
    if arch.startswith("convnet-"):
        return replace(base, lr=0.05)
    if arch.startswith(("vgg", "alexnet")):
        return replace(base, lr=0.01)
    if arch.startswith(("vit", "swin", "convnext", "maxvit")):
        adamw = {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.05}
        return replace(base, **adamw, warmup_steps=500, label_smoothing=0.1)
    return base
