"""VGG11 and AlexNet for small images, as dataset distillation tests its sets on them (DC: Zhao et al., ICLR 2021).

Both end in one linear layer: the large classifiers of the originals would hold most of the weights.
"""

from torch import Tensor, nn

# Channels of the 3x3 convolutions between two poolings: configuration A of VGG.
VGG11_BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
# (channels, kernel) of AlexNet's convolutions between two poolings; the first has stride 1 here.
ALEXNET_BLOCKS = (((128, 5),), ((192, 5),), ((256, 3), (192, 3), (192, 3)))


class Stacked(nn.Module):
    """Blocks of convolutions, each halving the image by max pooling, and a linear layer on what they leave."""

    def __init__(self, blocks: list[nn.Module], channels: int, num_classes: int, image_size: int, name: str):
        """Raises ValueError if nothing is left of the image."""
        super().__init__()
        side = image_size >> len(blocks)
        if side < 1:
            raise ValueError(f"{name} halves the image {len(blocks)} times: {image_size} pixels are too few")
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels * side * side, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to logits [B, C]."""
        return self.head(self.blocks(x).flatten(1))


def small_vgg11(num_classes: int, image_size: int) -> nn.Module:
    """Instance norm after each convolution: batch norm knows too little of a distilled set. From 32 pixels on."""
    blocks, before = [], 3
    for block in VGG11_BLOCKS:
        layers: list[nn.Module] = []
        for channels in block:
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.GroupNorm(channels, channels), nn.ReLU()]
            before = channels
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    return Stacked(blocks, before, num_classes, image_size, "vgg11")


def small_alexnet(num_classes: int, image_size: int) -> nn.Module:
    """Without norms, as the original. From 8 pixels on."""
    blocks, before = [], 3
    for block in ALEXNET_BLOCKS:
        layers: list[nn.Module] = []
        for channels, kernel in block:
            layers += [nn.Conv2d(before, channels, kernel, padding=kernel // 2), nn.ReLU()]
            before = channels
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    return Stacked(blocks, before, num_classes, image_size, "alexnet")
