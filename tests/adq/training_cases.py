"""Small networks and images that they can learn."""

import torch
from torch import nn

from adq.extractor import input_transform
from adq.models import build
from adq.randomness import torch_generator
from adq.training import (
    Recipe,
    TensorImages,
    epoch_batches,
    steps_per_epoch,
    train,
)

CLASSES = 4
TRANSFORM = input_transform("convnet-d3", 16)


def striped_images(count: int, size: int = 16) -> TensorImages:
    """Noise with stripes whose period is the class: learnable, but not from one pixel."""
    generator = torch_generator(0, "striped images")
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    phase = torch.randint(0, 8, (count, 1), generator=generator)
    stripes = torch.sin((torch.arange(size) + phase) * 2 * torch.pi / (labels[:, None] + 2))
    noise = torch.randn(count, 3, size, size, generator=generator)
    values = 128 + 50 * stripes[:, None, None, :] + 25 * noise
    return TensorImages(values.clamp(0, 255).to(torch.uint8), labels.numpy())


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("convnet-d2-w8", CLASSES, 16)


def stateful_network(seed: int = 0) -> nn.Module:
    """Batch norm has statistics, and dropout draws from a global generator."""
    torch.manual_seed(seed)
    convolution = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, CLASSES))


def run(model: nn.Module, images: TensorImages, recipe: Recipe, seed: int = 0, rank: int = 0, world: int = 1, **rest):
    train(
        model,
        lambda epoch: epoch_batches(images, recipe, seed, epoch, rank, world),
        steps_per_epoch(len(images), recipe.batch_size),
        recipe,
        TRANSFORM,
        seed,
        "cpu",
        rank,
        world,
        **rest,
    )
    return model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
