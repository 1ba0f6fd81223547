"""Networks by name, in a small-image and a large-image form.

Images whose side is below `SMALL` get forms without early downsampling: ResNet with a 3x3 stem and no max-pool, ViT
and Swin with small patches, ConvNeXt with a 2-pixel stem, MobileNetV2 whose first strides are 1, VGG11 and AlexNet with
one linear layer. Larger images get torchvision's own forms.
"""

import importlib.metadata
import itertools
import re
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from adq.small_networks import small_alexnet, small_vgg11

SMALL = 96
WIDTH = 128  # channels of a ConvNet whose name gives none
LARGE_SIDE = 224  # at which images from there on are seen, unless asked otherwise
OWN = (
    "resnet18", "resnet50", "vit", "swin", "convnext", "mobilenet_v2", "convnet-d3", "convnet-d4", "convnet-d5", "vgg11", "alexnet",
)  # fmt: skip
LARGE_FORMS = {"vit": "vit_b_16", "swin": "swin_t", "convnext": "convnext_tiny"}
# Their training forward returns auxiliary outputs, not logits.
WITHOUT_LOGITS = ("googlenet", "inception_v3")
CONVNET = re.compile(r"convnet-d([1-9])(?:-w([1-9]\d*))?")
RESNET_STEM = 64
NARROW_RESNET = re.compile(r"(resnet18|resnet50)-w([1-9]\d*)")


class ConvNet(nn.Module):
    """The ConvNet of dataset distillation: `depth` blocks of 3x3 convolution, instance norm, ReLU, 2x2 mean pooling."""

    def __init__(self, depth: int, width: int, num_classes: int, image_size: int):
        super().__init__()
        side = image_size >> depth
        if side < 1:
            raise ValueError(f"convnet-d{depth} halves the image {depth} times: {image_size} pixels are too few")
        self.blocks = nn.Sequential()
        for before, after in itertools.pairwise([3] + [width] * depth):
            conv, norm = nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(after, after)
            self.blocks.append(nn.Sequential(conv, norm, nn.ReLU(), nn.AvgPool2d(2)))
        self.head = nn.Linear(width * side * side, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to logits [B, C]."""
        return self.head(self.blocks(x).flatten(1))


@cache
def zoo() -> ModuleType:
    """torchvision.models, loaded only for the networks that come from there: it takes seconds.

    Raises:
        RuntimeError: torch and torchvision do not match; names both versions.
    """
    try:
        import torchvision.models

        if hasattr(torch.ops.torchvision, "nms"):
            return torchvision.models
        reason, cause = "its operators do not load", None
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason, cause = error, error
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    raise RuntimeError(
        f"torch {torch.__version__} and torchvision {version} do not match ({reason}): install the pair of requirements.lock"
    ) from cause


def build(arch: str, num_classes: int, image_size: int, width: int = 0) -> nn.Module:
    """A classifier with fresh weights, drawn from torch's global generator (seed it first).

    Args:
        arch: one of `OWN`, "convnet-dD-wW" (D blocks of W channels), "resnet18-wW" or "resnet50-wW" (a stem of W channels
            instead of 64, everything behind it in proportion), or a torchvision classifier by its name.
        image_size: side of the square input, in pixels; below `SMALL` the small-image form is built.
        width: channels of a ConvNet whose name gives none; 0: WIDTH.

    Returns:
        A module from normalised images [B, 3, image_size, image_size] to logits [B, num_classes].

    Raises:
        ValueError: the name is unknown, or the network cannot take images of this size.
        RuntimeError: torch and torchvision do not match.
    """
    if convnet := CONVNET.fullmatch(arch):
        return ConvNet(int(convnet[1]), int(convnet[2] or width or WIDTH), num_classes, image_size)
    small = image_size < SMALL
    if narrow := NARROW_RESNET.fullmatch(arch):
        return _resnet(narrow[1], num_classes, small, int(narrow[2]))
    if small and arch in SMALL_FORMS:
        return SMALL_FORMS[arch](num_classes, image_size)
    name = LARGE_FORMS.get(arch, arch)
    if name not in torchvision_names():
        raise ValueError(
            f"unknown architecture {arch!r}; known: {', '.join(OWN)}, convnet-dD-wW, resnet18-wW, or of torchvision: "
            + ", ".join(torchvision_names())
        )
    sized = {}
    if name.startswith("vit_"):
        patch = int(name.rsplit("_", 1)[1])
        if image_size % patch:
            raise ValueError(f"{name} cuts the image into patches of {patch} pixels: {image_size} is no multiple")
        sized = {"image_size": image_size}
    elif name == "maxvit_t":
        sized = {"input_size": (image_size, image_size)}
    model = zoo().get_model(name, weights=None, num_classes=num_classes, **sized)
    return _whole_first_stage(model, RESNET_STEM) if small and isinstance(model, zoo().ResNet) else model


def torchvision_names() -> list[str]:
    return [name for name in zoo().list_models(module=zoo()) if name not in WITHOUT_LOGITS]


def _whole_first_stage(model: nn.Module, width: int) -> nn.Module:
    """A ResNet's small-image form: 3x3 convolution of stride 1 and no max-pool, so that its first stage has every pixel."""
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _resnet(name: str, num_classes: int, small: bool, width: int) -> nn.Module:
    """ResNet-18 or -50 whose stages have W, 2 W, 4 W and 8 W channels (times 4 in ResNet-50's bottlenecks)."""
    family = zoo().resnet

    class Narrow(family.ResNet):
        def _make_layer(self, block, planes, *rest, **options):
            if planes == RESNET_STEM:
                self.inplanes = width
            return super()._make_layer(block, planes * width // RESNET_STEM, *rest, **options)

    blocks = (family.BasicBlock, [2, 2, 2, 2]) if name == "resnet18" else (family.Bottleneck, [3, 4, 6, 3])
    model = Narrow(*blocks, num_classes=num_classes)
    model.bn1 = nn.BatchNorm2d(width)
    model.fc = nn.Linear(8 * width * blocks[0].expansion, num_classes)
    if small:
        return _whole_first_stage(model, width)
    model.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def _small_vit(num_classes: int, image_size: int) -> nn.Module:
    patches = [p for p in range(2, image_size) if image_size % p == 0 and 4 <= image_size // p <= 24]
    if not patches:
        raise ValueError(
            f"vit: no patch size divides {image_size} pixels into 4 to 24 patches a side; resize the images"
        )
    patch = min(patches, key=lambda p: abs(image_size // p - 8))
    return zoo().VisionTransformer(
        image_size, patch, num_layers=6, num_heads=4, hidden_dim=256, mlp_dim=1024, num_classes=num_classes
    )


def _small_swin(num_classes: int, image_size: int) -> nn.Module:
    return zoo().SwinTransformer(
        [2, 2], 96, depths=[2, 6, 2], num_heads=[3, 6, 12], window_size=[4, 4], num_classes=num_classes
    )


def _small_convnext(num_classes: int, image_size: int) -> nn.Module:
    block = zoo().convnext.CNBlockConfig
    stages = [block(64, 128, 2), block(128, 256, 2), block(256, 512, 6), block(512, None, 2)]
    model = zoo().ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=num_classes)
    model.features[0][0] = nn.Conv2d(3, 64, 2, stride=2)
    nn.init.trunc_normal_(model.features[0][0].weight, std=0.02)
    nn.init.zeros_(model.features[0][0].bias)
    return model


def _small_mobilenet(num_classes: int, image_size: int) -> nn.Module:
    # (expansion, channels, repeats, stride) of the paper's table 2, the second row's stride 1 instead of 2.
    rows = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    model = zoo().MobileNetV2(num_classes, inverted_residual_setting=[list(row) for row in rows])
    model.features[0][0].stride = (1, 1)
    return model


SMALL_FORMS = {
    "vit": _small_vit, "swin": _small_swin, "convnext": _small_convnext, "mobilenet_v2": _small_mobilenet,
    "vgg11": small_vgg11, "alexnet": small_alexnet,
}  # fmt: skip


def default_backbone(image_size: int, device: str) -> str:
    """ViT-B/16 for large images; for small ones ResNet-18 on "cuda" and a ConvNet on "cpu"."""
    if image_size >= SMALL:
        return "vit_b_16"
    return "resnet18" if device.startswith("cuda") else "convnet-d3-w64"
