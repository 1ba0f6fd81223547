"""Training a classifier: recipes, augmentation, accuracy.

Nothing here depends on how many workers share the work: the order of an epoch, the augmentation of an image and the
gradient of a step belong to the global batch, of which worker r of w holds the positions r, r + w, r + 2w, ...
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adq.augmentation import AUGMENTATIONS, augment
from adq.extractor import InputTransform
from adq.models import SMALL
from adq.randomness import global_draws, torch_generator

# Images uint8 [b, 3, S, S] and labels int64 [b] of one worker, and the size of the global batch; b may be 0.
Batch = tuple[Tensor, Tensor, int]


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: for `epochs` over the data or for `steps`, a fixed cost; one of them is set."""

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

    def __post_init__(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"set epochs or steps, one of them: got epochs={self.epochs}, steps={self.steps}")
        if (self.epochs if self.steps is None else self.steps) < 1 or self.batch_size < 1:
            raise ValueError(f"epochs, steps and batch_size must be at least 1: got {self}")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise ValueError(f"need lr > 0, 0 <= momentum < 1, weight_decay >= 0 and warmup_steps >= 0: got {self}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        for name, known in (
            ("optimizer", ("sgd", "adamw")),
            ("schedule", ("cosine", "constant")),
            ("augment", AUGMENTATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps if self.steps is not None else self.epochs * steps_per_epoch

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step 0 <= `step` < `total`: linear warm-up, then half a cosine to zero, or constant."""
        warmup = min(self.warmup_steps, total // 10)
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def default_recipe(arch: str, image_size: int, epochs: int | None = None, steps: int | None = None) -> Recipe:
    """The recipe of a network: 200 epochs on small images, 90 on large ones, unless `epochs` or `steps` is given.

    ResNets on small images get the recipe of DQ and ADQ (SGD 0.1, weight decay 5e-4, batch 128, crop 32 with padding
    4, flip), on large ones torchvision's (batch 256, weight decay 1e-4). ViT, Swin and ConvNeXt get AdamW, ConvNets a
    lower learning rate.
    """
    small = image_size < SMALL
    if epochs is None and steps is None:
        epochs = 200 if small else 90
    base = (
        Recipe(epochs, steps) if small else Recipe(epochs, steps, 256, weight_decay=1e-4, augment="resized-crop-flip")
    )
    if arch.startswith("convnet-"):
        return replace(base, lr=0.05)
    if arch.startswith(("vit", "swin", "convnext", "maxvit")):
        adamw = {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.05}
        return replace(base, **adamw, warmup_steps=500, label_smoothing=0.1)
    return base


class ImageSet(Protocol):
    """Images by position, in memory or decoded on access; `labels` is int64 [N]."""

    labels: np.ndarray

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Tensor:
        """uint8 [B, 3, S, S] of the images at int64 [B] positions."""


@dataclass(frozen=True)
class TensorImages:
    """Images in memory: uint8 [N, 3, S, S] with labels int64 [N]."""

    images: Tensor
    labels: np.ndarray

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            raise ValueError(f"expected uint8 [N, 3, S, S], got {self.images.dtype} {tuple(self.images.shape)}")
        if np.shape(self.labels) != (len(self.images),):
            raise ValueError(f"{len(self.images)} images, but labels of shape {np.shape(self.labels)}")

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> Tensor:
        return self.images[torch.from_numpy(np.asarray(indices, dtype=np.int64))]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Global batches in an epoch of `count` images, the last, partial one included."""
    return math.ceil(count / batch_size)


def epoch_batches(
    images: ImageSet, recipe: Recipe, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """What worker `rank` of `world` trains on in an epoch: every image once, in an order of (seed, epoch) alone.

    Yields:
        `steps_per_epoch` batches for every world: slice [rank::world] of each global batch.
    """
    order = torch.randperm(len(images), generator=torch_generator(seed, "order", epoch)).numpy()
    labels = np.asarray(images.labels, dtype=np.int64)
    for start in range(0, len(order), recipe.batch_size):
        whole = order[start : start + recipe.batch_size]
        mine = whole[rank::world]
        yield images.batch(mine), torch.from_numpy(labels[mine]), len(whole)


def train(
    model: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    steps_per_epoch: int,
    recipe: Recipe,
    transform: InputTransform,
    seed: int,
    device: str,
    rank: int = 0,
    world: int = 1,
    start: dict | None = None,
    save: Callable[[int, dict], None] | None = None,
    save_every: int = 1,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train `model` in place, with bfloat16 autocast on CUDA.

    Each worker divides the sum of its losses by the size of the global batch, and one all-reduce sums the gradients:
    the mean over the global batch for any world, also where a worker has fewer images, or none. What stays local: batch
    norm sees the images of its own worker (running statistics are averaged after each epoch), and dropout draws per
    worker. No generator outlives a step, so a run resumed from a checkpoint ends with the same bits (one CPU worker,
    same number of threads).

    Args:
        model: initialised by the caller; with several workers, worker 0's weights are taken.
        batches: the batches of an epoch, counted from 0, for this worker: `epoch_batches` in memory, or a stream.
        steps_per_epoch: how many batches that gives, the same for every worker.
        transform: normalises; its resize and crop are the business of `batches`.
        start: a checkpoint that `save` was given, of the same recipe and seed.
        save: called on every worker with (epochs done, checkpoint on the CPU) every `save_every` epochs and at the end.
        on_step: called with (steps done, mean loss of the global batch).

    Raises:
        FloatingPointError: the loss is no longer finite; names the step and the learning rate.
        ValueError: `batches` does not give what it should, or `start` belongs to another run.
        RuntimeError: world > 1 without a process group.
    """
    if world > 1 and not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"training with {world} workers needs torch.distributed: call init_process_group first")
    model.to(device, memory_format=torch.channels_last if device.startswith("cuda") else torch.preserve_format).train()
    optimizer = _optimizer(model, recipe)
    run = {"recipe": asdict(recipe), "seed": seed, "steps_per_epoch": steps_per_epoch}
    step, epoch = 0, 0
    if start is not None:
        if different := [name for name in run if start[name] != run[name]]:
            raise ValueError(f"the checkpoint is of another run: it differs in {', '.join(different)}")
        model.load_state_dict(start["model"])
        optimizer.load_state_dict(start["optimizer"])
        step, epoch = start["step"], start["epoch"]
    if world > 1:
        _exchange([*model.parameters(), *_statistics(model)], partial(dist.broadcast, src=0))

    total = recipe.total_steps(steps_per_epoch)
    while step < total:
        in_epoch = min(steps_per_epoch, total - step)
        stream, given = batches(epoch), 0
        for given, batch in zip(range(1, in_epoch + 1), stream, strict=False):
            lr = recipe.lr_at(step, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = _gradients(model, batch, recipe, transform, (seed, epoch, given), device, rank, world)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step + 1} with lr {lr:.4g}: use a lower lr")
            optimizer.step()
            step += 1
            if on_step is not None:
                on_step(step, loss)
        if given < in_epoch or (in_epoch == steps_per_epoch and next(stream, None) is not None):
            raise ValueError(f"epoch {epoch} does not have the {steps_per_epoch} batches that were announced")
        epoch += 1
        if world > 1:
            statistics = _statistics(model)
            _exchange(statistics, dist.all_reduce)
            for statistic in statistics:
                statistic /= world
        if save is not None and (epoch % save_every == 0 or step == total):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(epoch, {**run, "epoch": epoch, "step": step, **_on_cpu(state)})


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )


def _gradients(
    model: nn.Module,
    batch: Batch,
    recipe: Recipe,
    transform: InputTransform,
    draw: tuple[int, int, int],
    device: str,
    rank: int,
    world: int,
) -> float:
    """Leaves the gradient of the global batch's mean loss in every parameter, and returns that loss."""
    images, labels, count = batch
    positions = torch.arange(rank, count, world)
    if len(images) != len(positions) or len(labels) != len(positions):
        raise ValueError(
            f"worker {rank} of {world} got {len(images)} images and {len(labels)} labels of a global batch of {count}, "
            f"expected {len(positions)}"
        )
    seed, epoch, position = draw
    model.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    if len(images):
        cuda = device.startswith("cuda")
        generator = torch_generator(seed, "augment", epoch, position)
        inputs = transform.normalise(augment(images.to(device), recipe.augment, generator, positions, count))
        # Dropout and stochastic depth draw from torch's global generators.
        draws = global_draws(seed, "layers", epoch, position, rank, device=device)
        with draws, torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            logits = model(inputs).float()
        smoothing = recipe.label_smoothing
        loss = F.cross_entropy(logits, labels.to(device), reduction="sum", label_smoothing=smoothing) / count
        loss.backward()
    if world > 1:
        loss = loss.detach()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        _exchange([loss, *(parameter.grad for parameter in model.parameters())], dist.all_reduce)
    return loss.item()


def _statistics(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


@torch.no_grad()
def _exchange(tensors: list[Tensor], collective: Callable[[Tensor], object]) -> None:
    """Apply a collective to all tensors in place, as one message."""
    if not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    collective(message)
    for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _on_cpu(value: object) -> object:
    """A copy of nested dictionaries and lists with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


@torch.no_grad()
def predict(
    model: nn.Module,
    images: ImageSet,
    indices: np.ndarray,
    transform: InputTransform,
    device: str,
    batch_size: int = 256,
) -> Tensor:
    """Logits of the images at `indices`, int64 [n], in evaluation mode and float32, in batches of a fixed size.

    Returns:
        float32 [n, C] on the CPU. Raises ValueError if there are no indices.
    """
    if len(indices) == 0:
        raise ValueError("no images to predict")
    model.to(device)
    was_training = model.training
    model.eval()
    logits = []
    for start in range(0, len(indices), batch_size):
        batch = images.batch(indices[start : start + batch_size]).to(device)
        logits.append(model(transform.normalise(batch)).float().cpu())
    model.train(was_training)
    return torch.cat(logits)


def correct(
    model: nn.Module, images: ImageSet, indices: np.ndarray, transform: InputTransform, device: str
) -> np.ndarray:
    """Whether each image at `indices` is classified correctly: bool [n]; its mean is the top-1 accuracy."""
    predicted = predict(model, images, indices, transform, device).argmax(dim=1).numpy()
    return predicted == np.asarray(images.labels)[indices]
