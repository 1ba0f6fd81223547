"""How a network comes to know each training image: what coreset methods read from a short training run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adq.extractor import InputTransform
from adq.training import ImageSet, Recipe, default_recipe, epoch_batches, predict, steps_per_epoch, train

EPOCHS = 10  # of a short run: EL2N's paper reads its tenth to twentieth epoch
BLOCK = 8192  # images whose logits are held at once; a multiple of the batches that `predict` cuts


@dataclass(frozen=True)
class Dynamics:
    """What a run tells of each of N training images, predicted after each of E epochs."""

    el2n: np.ndarray  # float32 [N]: |softmax - one-hot| after the last epoch, 0 to sqrt 2
    forgetting: np.ndarray  # float32 [N]: times from right to wrong; E where never right
    confidence: np.ndarray  # float32 [N]: the largest class probability after the last epoch
    correct: np.ndarray  # bool [E, N]

    def __post_init__(self):
        count = np.shape(self.el2n)
        for name in ("el2n", "forgetting", "confidence"):
            values = getattr(self, name)
            if len(count) != 1 or np.shape(values) != count or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite numbers, one an image, got shape {np.shape(values)}")
        if np.ndim(self.correct) != 2 or np.shape(self.correct)[1:] != count:
            raise ValueError(f"correct must be [E, {count[0]}], got shape {np.shape(self.correct)}")


class Known(NamedTuple):
    """How a network knows n images."""

    error: np.ndarray  # float64 [n]: |softmax - one-hot|
    confidence: np.ndarray  # float32 [n]: the largest class probability
    correct: np.ndarray  # bool [n]


def known(logits: Tensor, labels: np.ndarray, rows: np.ndarray) -> Known:
    """What logits, float [n, C], tell of n images of these classes.

    Args:
        rows: int64 [n], the images' places in their set, for the message.

    Raises:
        FloatingPointError: a logit that is not finite; names the row.
    """
    logits = logits.detach().to("cpu", torch.float64)
    finite = torch.isfinite(logits).all(dim=1)
    if not finite.all():
        raise FloatingPointError(f"the logits of image {rows[int(finite.int().argmin())]} are not finite")
    classes = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    right, probability = logits.argmax(dim=1) == classes, logits.softmax(dim=1)
    confidence = probability.amax(dim=1).float()
    probability[torch.arange(len(classes)), classes] -= 1.0
    return Known(probability.square().sum(dim=1).sqrt().numpy(), confidence.numpy(), right.numpy())


class Recorder:
    """Gathers `Dynamics` from logits, epoch by epoch.

    Args:
        labels: int [N], the class of each image.
        state: of `Recorder.state`, to go on from.
    """

    def __init__(self, labels: np.ndarray, state: dict[str, np.ndarray] | None = None):
        self.labels = np.asarray(labels, dtype=np.int64)
        if self.labels.ndim != 1 or not len(self.labels):
            raise ValueError(f"expected one class an image, got labels of shape {np.shape(labels)}")
        count = len(self.labels)
        if state is None:
            state = {"correct": np.zeros((0, count)), "el2n": np.zeros(count), "confidence": np.zeros(count)}
        self.correct = np.array(state["correct"], dtype=bool)
        self.el2n, self.confidence = (np.array(state[name], dtype=np.float32) for name in ("el2n", "confidence"))
        if self.correct.shape[1:] != (count,) or {self.el2n.shape, self.confidence.shape} != {(count,)}:
            raise ValueError(f"the state is not of {count} images")

    def record(self, logits: Iterable[Tensor]) -> None:
        """Take note of an epoch.

        Args:
            logits: float [*, C] blocks, together N rows in the order of the labels.

        Raises:
            ValueError: another number of rows. FloatingPointError: a logit that is not finite; names the row.
        """
        told, done = [], 0
        for block in logits:
            labels = self.labels[done : done + len(block)]
            if len(labels) != len(block):
                raise ValueError(f"an epoch of more than {len(self.labels)} rows of logits")
            told.append(known(block, labels, np.arange(done, done + len(block))))
            done += len(block)
        if done != len(self.labels):
            raise ValueError(f"an epoch of {done} rows of logits, expected {len(self.labels)}")
        self.take(Known(*(np.concatenate(parts) for parts in zip(*told, strict=True))))

    def take(self, epoch: Known) -> None:
        """Take note of an epoch of all N images, in the order of the labels."""
        self.el2n, self.confidence = epoch.error.astype(np.float32), epoch.confidence
        self.correct = np.concatenate([self.correct, epoch.correct[None]])

    def state(self) -> dict[str, np.ndarray]:
        """All that is recorded, as arrays: correct bool [E, N], el2n and confidence float32 [N]."""
        return {"correct": self.correct, "el2n": self.el2n, "confidence": self.confidence}

    def dynamics(self) -> Dynamics:
        """What is recorded so far. Raises ValueError before the first epoch."""
        if not len(self.correct):
            raise ValueError("no epoch is recorded yet")
        forgotten = (self.correct[:-1] & ~self.correct[1:]).sum(axis=0)
        forgotten[~self.correct.any(axis=0)] = len(self.correct)
        return Dynamics(self.el2n, forgotten.astype(np.float32), self.confidence, self.correct)


def short_recipe(arch: str, side: int) -> Recipe:
    """The network's own recipe for EPOCHS epochs, without decay: EL2N's paper reads epochs early in a long schedule."""
    return replace(default_recipe(arch, side, EPOCHS), schedule="constant")


def short_run(
    images: ImageSet,
    model: nn.Module,
    recipe: Recipe,
    transform: InputTransform,
    seed: int,
    device: str,
) -> Dynamics:
    """Train `model` in place and predict all training images after each epoch, without augmentation.

    EL2N (Paul et al., NeurIPS 2021, arXiv 2107.07075) is of the last epoch, where the paper takes a mean over several runs.
    Forgetting (Toneva et al., ICLR 2019, arXiv 1812.05159) is counted between the ends of epochs.

    Args:
        images: labels are classes, int64 [N].
    """
    recorder = Recorder(images.labels)

    def blocks() -> Iterator[Tensor]:
        for first in range(0, len(images), BLOCK):
            yield predict(model, images, np.arange(first, min(first + BLOCK, len(images))), transform, device)

    train(
        model,
        lambda epoch: epoch_batches(images, recipe, seed, epoch),
        steps_per_epoch(len(images), recipe.batch_size),
        recipe,
        transform,
        seed,
        device,
        save=lambda epoch, checkpoint: recorder.record(blocks()),
    )
    return recorder.dynamics()
