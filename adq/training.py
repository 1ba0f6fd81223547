"""Training a classifier: recipes, augmentation, accuracy.

Nothing here depends on how many workers share the work: the order of an epoch, the augmentation of an image and the
gradient of a step belong to the global batch, of which worker r of w holds the positions r, r + w, r + 2w, ...
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adq.models import SMALL, InputTransform
from adq.randomness import seed_of, torch_generator

# Share of the image's area, and width to height, of a random resized crop: those of torchvision's ImageNet recipes.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10

# Images uint8 [b, 3, S, S] and labels int64 [b] of one worker, and the size of the global batch; b may be 0.
Batch = tuple[Tensor, Tensor, int]


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. Exactly one of `epochs` and `steps` is set: passes over the data, or a fixed cost."""

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
        if min(self.epochs or 1, self.steps or 1, self.batch_size) < 1 or 0 in (self.epochs, self.steps):
            raise ValueError("epochs, steps and batch_size must be at least 1")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise ValueError(f"need lr > 0, 0 <= momentum < 1, weight_decay >= 0 and warmup_steps >= 0: got {self}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        for name, known in (
            ("optimizer", ("sgd", "adamw")),
            ("schedule", ("cosine", "constant")),
            ("augment", ("crop-flip", "resized-crop-flip", "none")),
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

    ResNets on small images get the recipe of DQ and ADQ (SGD 0.1, weight decay 5e-4, batch 128, crop with padding 4 at 32
    pixels, flip), on large ones torchvision's (batch 256, weight decay 1e-4); ViT, Swin and ConvNeXt get AdamW.
    """
    small = image_size < SMALL
    if epochs is None and steps is None:
        epochs = 200 if small else 90
    batch, augment = (128, "crop-flip") if small else (256, "resized-crop-flip")
    if arch.startswith("convnet-"):
        return Recipe(epochs, steps, lr=0.05, weight_decay=5e-4, augment="crop-flip")
    if arch.startswith(("vit", "swin", "convnext", "maxvit")):
        return Recipe(
            epochs,
            steps,
            batch,
            lr=5e-4,
            weight_decay=0.05,
            optimizer="adamw",
            warmup_steps=500,
            augment=augment,
            label_smoothing=0.1,
        )
    return Recipe(epochs, steps, batch, lr=0.1, weight_decay=5e-4 if small else 1e-4, augment=augment)


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


def augment(images: Tensor, kind: str, generator: torch.Generator, positions: Tensor, count: int) -> Tensor:
    """Augment the images at `positions` of a global batch of `count`, for which the numbers are drawn as a whole.

    "crop-flip": a random crop after zero padding by an eighth of the side (4 of 32 pixels), then a flip.
    "resized-crop-flip": a random box of `CROP_AREA` and `CROP_RATIO`, resized bilinearly to the whole, then a flip.

    Args:
        images: uint8 [b, 3, S, S], on any device.
        kind: `Recipe.augment`.
        generator: of this step alone, on the CPU.
        positions: int64 [b], on the CPU.

    Returns:
        uint8 [b, 3, S, S], on the same device.
    """
    if kind == "none":
        return images
    side, device = images.shape[-1], images.device
    flip = torch.rand(count, generator=generator)[positions].to(device) < 0.5
    if kind == "crop-flip":
        padding = side // 8
        top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)[:, positions].to(device)
        line = torch.arange(side, device=device)
        columns = left[:, None] + torch.where(flip[:, None], line.flip(0), line)
        pixels = (top[:, None] + line)[:, :, None] * (side + 2 * padding) + columns[:, None, :]
        padded = F.pad(images, [padding] * 4).flatten(2)
        return padded.gather(2, pixels.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)
    top, left, height, width = _boxes(count, generator)[:, positions].to(device)
    line = (torch.arange(side, device=device) + 0.5) / side
    x = left[:, None] + width[:, None] * torch.where(flip[:, None], line.flip(0), line)
    y = top[:, None] + height[:, None] * line
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1) * 2 - 1
    crops = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return crops.round().to(torch.uint8)


def _boxes(count: int, generator: torch.Generator) -> Tensor:
    """[4, count]: top, left, height, width as shares of the side; the whole image where no try fits."""
    area = torch.empty(count, CROP_TRIES).uniform_(*CROP_AREA, generator=generator)
    ratio = torch.empty(count, CROP_TRIES).uniform_(*map(math.log, CROP_RATIO), generator=generator).exp()
    height, width = (area / ratio).sqrt(), (area * ratio).sqrt()
    fits = (height <= 1) & (width <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    height, width = (torch.where(found, side.gather(1, first)[:, 0], 1.0) for side in (height, width))
    corner = torch.rand(2, count, generator=generator)
    return torch.stack([corner[0] * (1 - height), corner[1] * (1 - width), height, width])


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

    Each worker divides the sum of its losses by the size of the global batch, and gradients are summed by one all-reduce:
    the mean over the global batch for any world, also where a worker has fewer images or none. Batch norm sees the images
    of its own worker; its running statistics are averaged over workers after each epoch. No generator outlives a step, so
    a run that is resumed from a checkpoint continues with the same bits (on one CPU worker with the same threads).

    Args:
        model: initialised by the caller; with several workers, worker 0's weights are taken.
        batches: the batches of an epoch, counted from 0, for this worker: `epoch_batches` in memory, or a stream.
        steps_per_epoch: how many batches that gives, the same for every worker.
        transform: normalises; its resize and crop are the business of `batches`.
        start: a checkpoint that `save` was given, of the same recipe and seed.
        save: called with (epochs done, checkpoint on the CPU) after every `save_every` epochs and after the last; on every
            worker, with the same weights.
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
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)

    total = recipe.total_steps(steps_per_epoch)
    while step < total:
        in_epoch = min(steps_per_epoch, total - step)
        position = 0
        for position, batch in zip(range(1, in_epoch + 1), batches(epoch), strict=False):
            lr = recipe.lr_at(step, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = _gradients(model, batch, recipe, transform, (seed, epoch, position), device, rank, world)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step + 1} with lr {lr:.4g}: use a lower lr")
            optimizer.step()
            step += 1
            if on_step is not None:
                on_step(step, loss)
        if position < in_epoch:
            raise ValueError(f"epoch {epoch} gave {position} batches, {in_epoch} were expected")
        epoch += 1
        if world > 1:
            _average_statistics(model, world)
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
        images = augment(
            images.to(device), recipe.augment, torch_generator(seed, "augment", epoch, position), positions, count
        )
        inputs = transform.normalise(images)
        # Dropout and stochastic depth draw from torch's global generators.
        with torch.random.fork_rng(), torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            torch.manual_seed(seed_of(seed, "layers", epoch, position, rank))
            logits = model(inputs)
        losses = F.cross_entropy(
            logits.float(), labels.to(device), reduction="sum", label_smoothing=recipe.label_smoothing
        )
        loss = losses / count
        loss.backward()
    if world > 1:
        loss = _sum_over_workers(model, loss.detach())
    return loss.item()


def _sum_over_workers(model: nn.Module, loss: Tensor) -> Tensor:
    """Sum the gradients and the loss over all workers, in one message. Returns the loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = torch.cat([*(piece.reshape(-1) for piece in pieces), loss.reshape(1)])
    dist.all_reduce(message)
    sizes = [p.numel() for p in parameters]
    for parameter, total in zip(parameters, message[:-1].split(sizes), strict=True):
        parameter.grad = total.view_as(parameter)
    return message[-1]


def _average_statistics(model: nn.Module, world: int) -> None:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world


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
