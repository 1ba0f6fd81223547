"""Networks by name: feature extractors and evaluation classifiers, in a small-image and a large-image form.

Images whose side is below `SMALL` get forms without early downsampling: ResNet with a 3x3 stem and no max-pool, ViT
and Swin with small patches, ConvNeXt with a 2-pixel stem, MobileNetV2 whose first strides are 1. Larger images get
torchvision's own forms.
"""

import http.client
import importlib.metadata
import itertools
import re
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor, nn

SMALL = 96
OWN = ("resnet18", "resnet50", "vit", "swin", "convnext", "mobilenet_v2", "convnet-d3", "convnet-d4", "convnet-d5")
LARGE_FORMS = {"vit": "vit_b_16", "swin": "swin_t", "convnext": "convnext_tiny"}
# Their training forward returns auxiliary outputs, not logits.
WITHOUT_LOGITS = ("googlenet", "inception_v3")
CONVNET = re.compile(r"convnet-d([1-9])(?:-w([1-9]\d*))?")
# One for every data set, so that nothing has to be measured on it first; torchvision's weights bring their own.
NATIVE_MEAN = (0.5, 0.5, 0.5)
NATIVE_STD = (0.25, 0.25, 0.25)
# The axes of space in the outputs of convolutions, of Swin, and of ViT.
MAP, CHANNELS_LAST, TOKENS = (2, 3), (1, 2), (1,)


@dataclass(frozen=True)
class InputTransform:
    """From an image to a network's input: shorter side to `resize`, central `crop`, to [0, 1], minus mean, by std."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def __post_init__(self):
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be positive and at most resize {self.resize}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"expected three means and three positive deviations, got {self.mean} and {self.std}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation is bilinear or bicubic, not {self.interpolation!r}")

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] to float32 of the same shape."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return (images.float() - mean * 255) / (std * 255)


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


def build(arch: str, num_classes: int, image_size: int, width: int = 128) -> nn.Module:
    """A classifier with fresh weights, drawn from torch's global generator (seed it first).

    Args:
        arch: one of `OWN`, "convnet-dD-wW" (D blocks of W channels), or a torchvision classifier by its name.
        image_size: side of the square input, in pixels; below `SMALL` the small-image form is built.
        width: channels of a ConvNet whose name gives none.

    Returns:
        A module from normalised images [B, 3, image_size, image_size] to logits [B, num_classes].

    Raises:
        ValueError: the name is unknown, or the network cannot take images of this size.
        RuntimeError: torch and torchvision do not match.
    """
    if convnet := CONVNET.fullmatch(arch):
        return ConvNet(int(convnet[1]), int(convnet[2] or width), num_classes, image_size)
    small = image_size < SMALL
    if small and arch in SMALL_FORMS:
        return SMALL_FORMS[arch](num_classes, image_size)
    name = LARGE_FORMS.get(arch, arch)
    if name not in _torchvision_names():
        raise ValueError(
            f"unknown architecture {arch!r}; known: {', '.join(OWN)}, convnet-dD-wW, or of torchvision: "
            + ", ".join(_torchvision_names())
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
    if small and isinstance(model, zoo().ResNet):
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def _torchvision_names() -> list[str]:
    return [name for name in zoo().list_models(module=zoo()) if name not in WITHOUT_LOGITS]


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


SMALL_FORMS = {"vit": _small_vit, "swin": _small_swin, "convnext": _small_convnext, "mobilenet_v2": _small_mobilenet}


class FeatureExtractor(nn.Module):
    """Features of a frozen classifier, always in evaluation mode and without gradients; its forward is not rewritten.

    The pooled features are means over space after: each stage of a ResNet, Swin or ConvNeXt; each block of a ConvNet;
    the last layer at each resolution of any other network. ViT: means over the patch tokens after a quarter, half and
    three quarters of the blocks (3, 6 and 9 of 12), or after each third of fewer than 12.
    """

    def __init__(self, model: nn.Module, arch: str):
        """Raises ValueError for a network that has no linear layer."""
        super().__init__()
        self.model, self.arch = model, arch
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"{arch} has no linear layer, whose input would be the embedding")
        self.head_name = linear[-1]

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: head(embedding) are the logits."""
        return self.model.get_submodule(self.head_name)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, S, S] to (embedding [B, d], pooled [B, e]), both float32.

        The embedding is the input of the last linear layer.
        """
        self.model.eval()
        seen: dict[str, Tensor] = {}
        means: dict[int | tuple[int, ...], Tensor] = {}
        hooks = [self.head.register_forward_pre_hook(lambda _, inputs: seen.update(embedding=inputs[0]))]
        try:
            for index, (stage, axes) in enumerate(_stages(self.model)):
                hooks.append(stage.register_forward_hook(partial(_record, means, index, axes)))
            self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not means:
            raise ValueError(f"{self.arch}: none of its layers gives a map that could be pooled")
        return seen["embedding"].float(), torch.cat(list(means.values()), dim=1)


def _record(means: dict, index: int, axes: tuple | None, _layer: nn.Module, _inputs: tuple, output: object) -> None:
    if axes is not None:
        # The first token is the class token.
        means[index] = (output[:, 1:] if axes == TOKENS else output).float().mean(dim=axes)
    elif isinstance(output, Tensor) and output.dim() == 4 and max(output.shape[2:]) > 1:
        # One entry a resolution, overwritten by later layers.
        means[tuple(output.shape[2:])] = output.float().mean(dim=MAP)


def _stages(model: nn.Module) -> list[tuple[nn.Module, tuple | None]]:
    """(layer, axes to average), or (layer, None) where the shapes decide what ends a stage."""
    if isinstance(model, ConvNet):
        return [(block, MAP) for block in model.blocks]
    if isinstance(model, zoo().VisionTransformer):
        layers = model.encoder.layers
        parts = 4 if len(layers) >= 12 else 3
        return [(layers[max(1, len(layers) * i // parts) - 1], TOKENS) for i in (1, 2, 3)]
    if isinstance(model, zoo().ResNet):
        return [(layer, MAP) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]
    if isinstance(model, zoo().SwinTransformer | zoo().ConvNeXt):
        axes = MAP if isinstance(model, zoo().ConvNeXt) else CHANNELS_LAST
        return [(stage, axes) for stage in model.features[1::2]]
    nested = [[*m.children()] if isinstance(m, nn.Sequential | nn.ModuleList) else [m] for m in model.children()]
    return [(layer, None) for layers in nested for layer in layers]


def head_size(arch: str, state: dict[str, Tensor]) -> int:
    """Classes of a checkpoint of `arch`: rows of its last matrix. Raises ValueError if it has none."""
    matrices = [tensor for name, tensor in state.items() if name.endswith("weight") and tensor.dim() == 2]
    if not matrices:
        raise ValueError(
            f"this checkpoint has no linear layer, so it is none of {arch}: {', '.join(list(state)[:3])}, ..."
        )
    return matrices[-1].shape[0]


def load_weights(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load `state`, all of it or nothing. Raises ValueError: names `origin` and the first tensors that do not fit."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shapes = [f"{n} is {given[n]}, not {own[n]}" for n in own if n in given and given[n] != own[n]]
    missing = [f"{n} is missing" for n in own if n not in given]
    extra = [f"{n} is unexpected" for n in given if n not in own]
    if wrong := shapes[:3] + missing[:3] + extra[:3]:
        count = len(shapes) + len(missing) + len(extra)
        raise ValueError(
            f"{origin}: mismatched weights, {count} against the network's {len(own)} tensors: {'; '.join(wrong)}. "
            "Give the weights of this architecture, image size and number of classes"
        )
    model.load_state_dict(state)


def _weights(arch: str, weights_name: str) -> object:
    name = LARGE_FORMS.get(arch, arch)
    if name not in _torchvision_names():
        raise ValueError(f"torchvision has no weights for {arch!r}: give a local file with --weights FILE")
    known = zoo().get_model_weights(name)
    if weights_name not in known.__members__:
        raise ValueError(f"{arch} has no weights {weights_name!r}; available: {', '.join(known.__members__) or 'none'}")
    return known[weights_name]


def torchvision_state(arch: str, weights_name: str) -> dict[str, Tensor]:
    """The tensors of torchvision's weights `weights_name` ("DEFAULT", "IMAGENET1K_V1", ...), downloaded once a machine.

    They fit `build(arch, head_size(arch, state), input_transform(arch, ..., weights_name).crop)`.

    Raises:
        ValueError: unknown name, with the available ones.
        RuntimeError: the download failed.
    """
    weights = _weights(arch, weights_name)
    try:
        model = zoo().get_model(LARGE_FORMS.get(arch, arch), weights=weights, progress=False)
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"cannot download {weights_name} of {arch} ({error}): fetch {weights.url} on a machine with access "
            "and give it with --weights FILE"
        ) from error
    return model.state_dict()


def input_transform(arch: str, image_size: int, weights_name: str | None = None) -> InputTransform:
    """The weights' own transform; without torchvision weights, one fixed mean and deviation at `image_size`.

    The native form takes small images and those of ConvNets whole; of others it resizes to 8/7 and crops (256, 224).
    Build the network for `crop` pixels.

    Raises:
        ValueError: unknown weights name, with the available ones.
    """
    if weights_name is not None:
        preset = _weights(arch, weights_name).transforms()
        mean, std = tuple(preset.mean), tuple(preset.std)
        return InputTransform(preset.resize_size[0], preset.crop_size[0], mean, std, preset.interpolation.value)
    whole = image_size < SMALL or CONVNET.fullmatch(arch)
    return InputTransform(image_size if whole else round(image_size * 8 / 7), image_size, NATIVE_MEAN, NATIVE_STD)


def default_backbone(image_size: int, device: str) -> str:
    """ViT-B/16 for large images; for small ones ResNet-18 on "cuda" and a ConvNet on "cpu"."""
    if image_size >= SMALL:
        return "vit_b_16"
    return "resnet18" if device.startswith("cuda") else "convnet-d3-w64"
