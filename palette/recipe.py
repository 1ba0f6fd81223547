"""What is distilled, and how: the configuration of a distillation."""

import math
from dataclasses import dataclass, field

from palette.augment import OPERATIONS
from palette.initialize import STARTS
from palette.losses import LossWeights
from palette.network import MODES


@dataclass(frozen=True)
class Trajectories:
    """Trajectory matching; the defaults are those of CIFAR-10 at one image a class."""

    student_steps: int = 80
    batch_size: int | None = None  # synthetic images a student step; None: all
    first_start: int = 0  # the largest start epoch at the first step and, from the middle of the run, later
    last_start: int = 15
    step_size: float = 0.01  # the student's, at the start: it is learned
    step_size_lr: float = 1e-7
    threshold: float = 1.2  # steps whose loss is larger change nothing
    soft_labels: bool = False
    label_lr: float = 3.0

    def __post_init__(self):
        if self.student_steps < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError(f"student_steps and batch_size must be at least 1: got {self}")
        if not 0 <= self.first_start <= self.last_start:
            raise ValueError(f"need 0 <= first_start <= last_start: got {self.first_start} and {self.last_start}")
        if not (self.step_size > 0 and self.step_size_lr >= 0 and self.threshold > 0 and self.label_lr >= 0):
            raise ValueError(f"need step_size, threshold > 0 and learning rates >= 0: got {self}")


@dataclass(frozen=True)
class Distillation:
    """What is distilled, and how; the defaults are the paper's, with the palettes of `direct` mode."""

    images_per_class: int = 10
    colors: int = 32  # K, in every mode but "none"
    matching: str = "dm"
    mode: str = "direct"
    start: str = "graphcut"
    lam: float | str = "balanced"  # of GraphCut
    steps: int = 20_000
    image_lr: float | None = None  # None: DM 1, 10 from 50 images a class; TM 1000
    momentum: float = 0.5
    batch_real: int = 256  # a class and step
    depth: int = 3
    width: int = 128
    augmentations: tuple[str, ...] = OPERATIONS  # one of them a draw
    compiled: bool = False  # distribution matching's network, by torch.compile
    seed: int = 0
    palette_lr: float = 0.05
    palette_momentum: float = 0.5
    palette_weight_decay: float = 5e-4
    palette_task_weight: float = 1.0  # of the task loss (DM: the mean over classes) on the palette network
    palette_start: str = "kmeans"  # of the assignment, or "plain"
    relative_colors: bool = True  # the network sees colours relative to their image
    warmup_epochs: int = 0  # of the palette network on real images; the paper's 2 for ImageNet
    weights: LossWeights = field(default_factory=LossWeights)
    trajectories: Trajectories = field(default_factory=Trajectories)

    def __post_init__(self):
        known = (("matching", ("dm", "tm")), ("mode", MODES), ("start", STARTS), ("palette_start", ("kmeans", "plain")))
        for name, values in known:
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(values)}, not {getattr(self, name)!r}")
        if self.compiled and self.matching == "tm":
            raise ValueError(
                "compiled works with distribution matching alone: trajectories need gradients of gradients"
            )
        if not 2 <= self.colors <= 256:
            raise ValueError(f"colors must be 2 to 256, not {self.colors}")
        if min(self.images_per_class, self.steps, self.batch_real, self.depth, self.width) < 1:
            raise ValueError(f"images_per_class, steps, batch_real, depth and width must be at least 1: got {self}")
        rates = (self.learning_rate, self.palette_lr, self.palette_weight_decay, self.palette_task_weight)
        if min(rates) < 0 or not all(map(math.isfinite, rates)) or self.warmup_epochs < 0:
            raise ValueError(f"learning rates, weights and warmup_epochs must be at least 0: got {self}")
        if not (0 <= self.momentum < 1 and 0 <= self.palette_momentum < 1):
            raise ValueError(f"momentum is in [0, 1): got {self.momentum} and {self.palette_momentum}")
        if not set(self.augmentations) <= set(OPERATIONS):
            raise ValueError(f"augmentations must be some of {', '.join(OPERATIONS)}, not {self.augmentations}")
        if self.lam != "balanced" and not isinstance(self.lam, int | float):
            raise ValueError(f"lam is a number or 'balanced', not {self.lam!r}")

    @property
    def learning_rate(self) -> float:
        """Of the images at the first step."""
        if self.image_lr is not None:
            return self.image_lr
        return 1000.0 if self.matching == "tm" else 10.0 if self.images_per_class >= 50 else 1.0
