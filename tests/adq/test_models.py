"""Networks by name: every form builds, features are what the docstrings say, weights that do not fit are refused."""

import itertools

import pytest
import torch
import torchvision
from torch import nn

from adq import models
from adq.extractor import FeatureExtractor, head_size, input_transform, load_weights, torchvision_state
from adq.models import build, default_backbone

CLASSES = 7
# embedding width, pooled width at 32 pixels: the sum of the widths of the stages
SMALL_WIDTHS = {
    "resnet18": (512, 64 + 128 + 256 + 512),
    "resnet18-w16": (128, 16 + 32 + 64 + 128),
    "resnet50-w8": (256, 32 + 64 + 128 + 256),
    "resnet50": (2048, 256 + 512 + 1024 + 2048),
    "vit": (256, 3 * 256),
    "swin": (384, 96 + 192 + 384),
    "convnext": (512, 64 + 128 + 256 + 512),
    "mobilenet_v2": (1280, 24 + 32 + 96 + 1280),
    "convnet-d3": (128 * 4 * 4, 3 * 128),
    "convnet-d4": (128 * 2 * 2, 4 * 128),
    "convnet-d5": (128, 5 * 128),
    "convnet-d3-w32": (32 * 4 * 4, 3 * 32),
    "vgg11": (512, 64 + 128 + 256 + 512),  # the fifth block leaves one pixel
    "alexnet": (192 * 4 * 4, 128 + 192 + 192),
    "shufflenet_v2_x0_5": (1024, 24 + 24 + 48 + 96),
}


@pytest.fixture(autouse=True)
def same_weights_each_time(one_thread):
    torch.manual_seed(0)


@pytest.mark.parametrize("arch", SMALL_WIDTHS)
def test_small_form_gives_documented_features_and_logits(arch):
    model = build(arch, CLASSES, 32)
    extractor = FeatureExtractor(model, arch)
    x = torch.randn(2, 3, 32, 32)
    embedding, pooled = extractor(x)
    width, pooled_width = SMALL_WIDTHS[arch]
    assert embedding.shape == (2, width) and pooled.shape == (2, pooled_width)
    assert embedding.dtype == pooled.dtype == torch.float32
    assert not embedding.requires_grad and not pooled.requires_grad
    with torch.no_grad():
        logits = model.eval()(x)
    assert logits.shape == (2, CLASSES)
    torch.testing.assert_close(extractor.head(embedding), logits)


def test_every_own_architecture_is_covered():
    assert set(models.OWN) <= set(SMALL_WIDTHS)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_large_form_is_torchvisions(arch):
    model = build(arch, CLASSES, 224)
    reference = torchvision.models.get_model(arch, num_classes=CLASSES)
    load_weights(model, reference.state_dict(), "torchvision")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), reference.eval()(x))
    embedding, pooled = FeatureExtractor(model, arch)(x)
    assert embedding.shape == ((1, 512) if arch == "resnet18" else (1, 1280))
    assert pooled.shape == ((1, 960) if arch == "resnet18" else (1, 16 + 24 + 32 + 96 + 1280))


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_resnet_of_width_64_is_the_resnet(arch, size):
    """The same layers under the same names, so that weights of one are weights of the other; half as wide, a quarter."""
    whole, named = build(arch, CLASSES, size).eval(), build(f"{arch}-w64", CLASSES, size).eval()
    load_weights(named, whole.state_dict(), arch)
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(named(x), whole(x))
    convolutions = [sum(p.numel() for p in build(n, CLASSES, size).layer3.parameters()) for n in (arch, f"{arch}-w32")]
    assert 3.9 < convolutions[0] / convolutions[1] < 4


@pytest.mark.parametrize("arch", ["resnet18", "resnet18-w16"])
def test_small_resnet_keeps_the_resolution_of_its_first_stage(arch):
    model = build(arch, CLASSES, 32)
    shapes = []
    model.layer1.register_forward_hook(lambda _, __, output: shapes.append(output.shape[2:]))
    model(torch.randn(2, 3, 32, 32))
    assert shapes == [(32, 32)]


def test_a_convnet_without_a_width_has_the_usual_one():
    assert build("convnet-d3", CLASSES, 32, 0)(torch.zeros(1, 3, 32, 32)).shape == (1, CLASSES)
    sizes = [sum(p.numel() for p in build("convnet-d3", CLASSES, 32, width).parameters()) for width in (0, 128, 8)]
    assert sizes[0] == sizes[1] > sizes[2]


@pytest.mark.parametrize("size", [28, 40, 64])
@pytest.mark.parametrize("arch", ["vit", "swin", "convnext", "mobilenet_v2", "convnet-d3-w8", "alexnet"])
def test_small_forms_take_other_small_sizes(arch, size):
    with torch.no_grad():
        assert build(arch, CLASSES, size).eval()(torch.randn(1, 3, size, size)).shape == (1, CLASSES)


def test_resnet_pooled_features_are_the_means_of_its_stages():
    model = build("resnet18", CLASSES, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    embedding, pooled = FeatureExtractor(model, "resnet18")(x)
    with torch.no_grad():
        y = model.relu(model.bn1(model.conv1(x)))
        means = []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            y = stage(y)
            means.append(y.mean(dim=(2, 3)))
    torch.testing.assert_close(pooled, torch.cat(means, dim=1))
    torch.testing.assert_close(embedding, means[-1])


def test_vit_of_twelve_blocks_pools_after_3_6_and_9():
    model = torchvision.models.VisionTransformer(32, 8, 12, 2, 16, 32, num_classes=CLASSES).eval()
    x = torch.randn(2, 3, 32, 32)
    _, pooled = FeatureExtractor(model, "vit")(x)
    with torch.no_grad():
        y = (
            torch.cat([model.class_token.expand(2, -1, -1), model._process_input(x)], dim=1)
            + model.encoder.pos_embedding
        )
        means = []
        for block in model.encoder.layers:
            y = block(y)
            means.append(y[:, 1:].mean(dim=1))
    torch.testing.assert_close(pooled, torch.cat([means[2], means[5], means[8]], dim=1))


def test_swin_pools_over_space_and_not_over_channels():
    model = build("swin", CLASSES, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    _, pooled = FeatureExtractor(model, "swin")(x)
    with torch.no_grad():
        first = model.features[1](model.features[0](x))
    assert first.shape == (2, 16, 16, 96)
    torch.testing.assert_close(pooled[:, :96], first.mean(dim=(1, 2)))


def test_extractor_uses_evaluation_mode_and_leaves_no_hook():
    model = build("mobilenet_v2", CLASSES, 32).train()
    statistics = [buffer.clone() for buffer in model.buffers()]
    x = torch.randn(2, 3, 32, 32)
    extractor = FeatureExtractor(model, "mobilenet_v2").train()
    first, again = extractor(x), extractor(x)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_network_without_linear_layer_has_no_embedding():
    with pytest.raises(ValueError, match="squeezenet1_0 has no linear layer"):
        FeatureExtractor(build("squeezenet1_0", CLASSES, 224), "squeezenet1_0")


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown architecture 'resnet19'.*convnet-d3.*densenet121"):
        build("resnet19", CLASSES, 32)
    with pytest.raises(ValueError, match="unknown architecture 'googlenet'"):
        build("googlenet", CLASSES, 224)


def test_sizes_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="no patch size divides 31"):
        build("vit", CLASSES, 31)
    with pytest.raises(ValueError, match="patches of 16 pixels: 100"):
        build("vit_b_16", CLASSES, 100)
    with pytest.raises(ValueError, match="28 pixels are too few"):
        build("convnet-d5", CLASSES, 28)
    with pytest.raises(ValueError, match="vgg11 halves the image 5 times: 28 pixels are too few"):
        build("vgg11", CLASSES, 28)


def test_vgg11_and_alexnet_are_small_below_96_pixels_and_torchvisions_above():
    small = {arch: sum(p.numel() for p in build(arch, 10, 32).parameters()) for arch in ("vgg11", "alexnet")}
    # VGG11's 3x3 convolutions with biases, two numbers of a norm a channel, and 512 x 10 + 10 of the head.
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    assert small["vgg11"] == sum((9 * a + 3) * b for a, b in itertools.pairwise(widths)) + 5130
    assert small["alexnet"] < 3e6
    with torch.device("meta"):
        for arch in small:
            large = build(arch, 10, 224)
            reference = torchvision.models.get_model(arch, num_classes=10)
            assert {n: t.shape for n, t in large.state_dict().items()} == {
                n: t.shape for n, t in reference.state_dict().items()
            }


def test_mismatched_weights_name_the_tensors_and_the_file():
    model = build("convnet-d3-w8", CLASSES, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = build("convnet-d3-w8", CLASSES + 1, 32).state_dict()
    del state["blocks.0.0.bias"]
    state["fc.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"my\.pt: mismatched weights") as caught:
        load_weights(model, state, "my.pt")
    for text in ("head.weight is (8, 128), not (7, 128)", "blocks.0.0.bias is missing", "fc.bias is unexpected"):
        assert text in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("arch", ["resnet18", "vit", "swin", "convnext", "mobilenet_v2", "convnet-d3-w8"])
def test_head_size_is_the_checkpoints_number_of_classes(arch):
    assert head_size(arch, build(arch, CLASSES, 32).state_dict()) == CLASSES


def test_transform_of_weights_is_their_own():
    vit = input_transform("vit", 224, "IMAGENET1K_SWAG_E2E_V1")
    assert (vit.resize, vit.crop, vit.interpolation) == (384, 384, "bicubic")
    resnet = input_transform("resnet18", 32, "DEFAULT")
    assert (resnet.resize, resnet.crop, resnet.mean) == (256, 224, (0.485, 0.456, 0.406))
    with pytest.raises(ValueError, match=r"no weights 'V9'; available: .*IMAGENET1K_V1"):
        input_transform("resnet18", 224, "V9")
    with pytest.raises(ValueError, match="no weights for 'convnet-d3'"):
        input_transform("convnet-d3", 32, "DEFAULT")


def test_native_transform():
    small, large = input_transform("resnet18", 32), input_transform("resnet18", 224)
    assert (small.resize, small.crop) == (32, 32)
    assert (large.resize, large.crop) == (256, 224)
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert small.normalise(images).flatten(1).tolist() == [[-2.0] * 3, [2.0] * 3]


def test_a_failed_download_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(RuntimeError, match=r"network is unreachable.*https://.*--weights FILE"):
        torchvision_state("resnet18", "DEFAULT")


def test_a_pair_that_does_not_match_is_named(monkeypatch):
    models.zoo.cache_clear()
    monkeypatch.setattr(models.torch.ops, "torchvision", object())
    with pytest.raises(
        RuntimeError,
        match=rf"torch {torch.__version__[:4]}.*torchvision 0\..*operators do not load.*requirements\.lock",
    ):
        build("resnet18", CLASSES, 32)


def test_default_backbone():
    assert default_backbone(224, "cpu") == "vit_b_16"
    assert default_backbone(32, "cuda:0") == "resnet18"
    assert isinstance(build(default_backbone(32, "cpu"), CLASSES, 32), nn.Module)
