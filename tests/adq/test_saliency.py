"""Grad-CAM against closed forms and plain autograd, and its mean over patches."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adq.extractor import InputTransform
from adq.fill import fill
from adq.models import build
from adq.randomness import torch_generator
from adq.saliency import fill_error, grad_cam, patch_saliency, random_saliency, whole_input

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL_NETWORKS = ("resnet18", "vit", "swin", "convnext", "mobilenet_v2", "convnet-d3-w8", "vgg11", "alexnet")


def network(arch: str, size: int = 32, classes: int = 5) -> nn.Module:
    """Fresh weights that tell classes apart: torchvision's ViT begins with a head of zeros, which has no gradient."""
    torch.manual_seed(0)
    model = build(arch, classes, size)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    return model


def inputs(count: int, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch_generator(0, "inputs"))


def reference(model: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, to_map=lambda x: x) -> Tensor:
    """Grad-CAM by plain autograd through the whole network, one image at a time, each equation written out."""
    model.eval()
    out = []
    for image, label in zip(images, labels.tolist(), strict=True):
        kept = []
        hook = layer.register_forward_hook(
            lambda _m, _i, output, kept=kept: kept.append(output) or output.retain_grad()
        )
        model(image[None].clone().requires_grad_())[0, label].backward()
        hook.remove()
        activation, gradient = to_map(kept[0])[0].detach(), to_map(kept[0].grad)[0]
        cam = torch.zeros(activation.shape[1:])
        for channel in range(len(activation)):
            cam += gradient[channel].mean() * activation[channel]
        out.append(cam.clamp(min=0))
    model.zero_grad(set_to_none=True)
    return torch.stack(out)


def test_a_resnet_has_a_closed_form():
    # Mean pooling and a linear layer: dy / dA_k is W_k / (h w) everywhere.
    model, images, labels = network("resnet18"), inputs(3), torch.tensor([4, 0, 2])
    model.eval()
    stem = nn.Sequential(*list(model.children())[:-2])
    with torch.no_grad():
        features = stem(images)
    want = torch.einsum("bk,bkhw->bhw", model.fc.weight[labels], features).relu() / features[0, 0].numel()
    got = grad_cam(model, images, labels)
    assert got.dtype == torch.float32 and got.shape == (3, 4, 4) and got.amax() > 0
    torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize(
    ("arch", "layer", "to_map", "side"),
    [
        ("convnet-d3-w8", "blocks.2.2", lambda x: x, 8),
        ("vit", "encoder.layers.encoder_layer_5.ln_1", lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (8, 8)), 8),
        ("swin", "features.5", lambda x: x.permute(0, 3, 1, 2), 4),
        ("convnext", "features.7", lambda x: x, 2),
        ("mobilenet_v2", "features", lambda x: x, 4),
    ],
)
def test_every_kind_of_network_against_plain_autograd(arch, layer, to_map, side):
    model, images, labels = network(arch), inputs(2), torch.tensor([1, 3])
    want = reference(model, model.get_submodule(layer), images, labels, to_map)
    got = grad_cam(model, images, labels)
    assert got.shape == (2, side, side) and got.amax() > 0
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * float(want.max()))


def test_patches_show_where_the_class_is_seen():
    # The colour decides the class: red above, blue below. Each class is found where its colour is.
    head = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        head[0].weight.zero_(), head[0].bias.zero_()
        head[0].weight[0, 0], head[0].weight[1, 2] = 1, 1
    image = torch.zeros(1, 3, 16, 16)
    image[:, 0, :8], image[:, 2, 8:] = 1, 1
    cams = grad_cam(head, image.expand(2, -1, -1, -1), torch.tensor([0, 1]))
    patches = patch_saliency(cams, 4, 4)
    assert (patches[0, :2] > 4 * patches[0, 2:]).all() and (patches[1, 2:] > 4 * patches[1, :2]).all()


class InPlace(nn.Module):
    """As torchvision's DenseNet: what follows the last feature map works on its memory."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).relu_().mean(dim=(2, 3)))


def test_networks_that_work_in_place_show_the_map_as_it_was():
    torch.manual_seed(0)
    model, images = InPlace(), inputs(1)
    features = model.features(images)[0].detach()
    weights = model.head.weight[2] * (features > 0).float().mean(dim=(1, 2)) / features[0].numel()
    got = grad_cam(model, images, torch.tensor([2]))[0]
    torch.testing.assert_close(got, torch.einsum("k,khw->hw", weights, features).relu().detach())


@pytest.mark.parametrize("arch", SMALL_NETWORKS)
def test_images_do_not_depend_on_each_other_and_the_network_is_left_as_it_was(arch):
    model, images, labels = network(arch).train(), inputs(3), torch.tensor([0, 1, 2])
    frozen = next(
        module for module in model.modules() if isinstance(module, nn.Dropout | nn.BatchNorm2d | nn.ReLU | nn.GELU)
    )
    frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    next(model.parameters()).requires_grad_(False)
    together = grad_cam(model, images, labels)
    alone = torch.cat([grad_cam(model, images[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5 * float(alone.max()))
    assert together.min() >= 0 and together.amax() > 0 and max(together.shape[1:]) > 1
    assert [module.training for module in model.modules()] == modes and any(modes)
    assert all(parameter.grad is None for parameter in model.parameters()) and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "no statistics moved"
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_networks_and_callers_without_gradients_are_served_alike():
    model, images, labels = network("vit"), inputs(2), torch.tensor([0, 1])
    want = grad_cam(model, images, labels)
    with torch.no_grad():
        got = grad_cam(model.requires_grad_(False), images, labels)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(got, want)


def test_wrong_labels_and_networks_are_named_and_leave_the_mode():
    model = network("convnet-d3-w8").train()
    for labels, match in ((torch.tensor([0, 5]), "knows 5 classes"), (torch.tensor([0, -1]), "run from -1")):
        with pytest.raises(ValueError, match=match):
            grad_cam(model, inputs(2), labels)
    with pytest.raises(ValueError, match="expected int64"):
        grad_cam(model, inputs(2), torch.tensor([0]))
    with pytest.raises(ValueError, match="no module of Sequential"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), inputs(1), torch.tensor([0]))
    assert model.training and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("cells", "patches"), [(7, 14), (4, 4), (8, 4), (7, 4), (14, 5), (2, 7), (1, 3), (3, 4)])
def test_means_over_patches_are_exact(cells, patches):
    # Against the same function of space, sampled a thousand times a patch.
    cam = torch.rand(1, cells, 1, generator=torch_generator(0, "cam"), dtype=torch.float64)
    places = (np.arange(patches * 1000) + 0.5) / (patches * 1000) * cells
    values = cam[0, :, 0].numpy()
    line = np.interp(places, np.arange(cells) + 0.5, values) if cells < patches else values[places.astype(int)]
    want = line.reshape(patches, 1000).mean(axis=1)
    got = patch_saliency(cam, patches, 1)[0, :, 0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-3)
    np.testing.assert_allclose(got.mean(), values.mean(), atol=1e-6)


def test_means_over_patches_by_hand():
    cam = torch.tensor([[[1.0, 3.0], [5.0, 11.0]]])
    assert patch_saliency(cam, 1, 2).tolist() == [[[3.0, 7.0]]]
    assert patch_saliency(cam, 2, 2).tolist() == cam.tolist()
    # 0 and 8 with middles at 1/4 and 3/4: constant up to the first, linear between. Quarters have means 0, 2, 6, 8.
    np.testing.assert_allclose(patch_saliency(torch.tensor([[[0.0, 8.0]]]), 1, 4)[0, 0], [0, 2, 6, 8])
    # Three cells over an image of 1.5 patches: the first patch has two of them, the other, cut one, has the last.
    np.testing.assert_allclose(patch_saliency(torch.tensor([[[1.0, 3.0, 9.0]]]), 1, 2, extent=(1, 1.5))[0, 0], [2, 9])


def test_rows_and_columns_are_not_mixed_up():
    cam = torch.arange(6.0).view(1, 2, 3)
    assert torch.equal(patch_saliency(cam, 3, 7), patch_saliency(cam.transpose(1, 2), 7, 3).transpose(1, 2))
    assert patch_saliency(cam, 3, 7).shape == (1, 3, 7)


def test_maps_and_extents_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="expected \\[B, h, w\\]"):
        patch_saliency(torch.rand(3, 3), 2, 2)
    for extent in ((2.5, 2), (1, 2), (2, 1.0)):
        with pytest.raises(ValueError, match="does not have 2 x 2"):
            patch_saliency(torch.rand(1, 3, 3), 2, 2, extent)


def test_the_whole_image_is_seen_uncropped():
    pixels = np.zeros((40, 100, 3), dtype=np.uint8)
    pixels[:, :50, 0], pixels[20:, :, 1] = 200, 100
    transform = InputTransform(37, 32, (0.5,) * 3, (0.25,) * 3, "bicubic")
    seen = whole_input(Image.fromarray(pixels), transform)
    assert seen.dtype == torch.uint8 and seen.shape == (3, 32, 32) and seen.is_contiguous()
    assert (seen[0, :, :14] == 200).all() and (seen[0, :, 18:] == 0).all() and (seen[1, 18:] == 100).all()
    same = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(whole_input(Image.fromarray(same), transform).permute(1, 2, 0).numpy(), same)


def test_chance_depends_on_the_seed_and_the_key_alone():
    first = random_saliency("a", 14, 12, 3)
    random_saliency("b", 14, 12, 3)
    assert first.shape == (14, 12) and np.array_equal(first, random_saliency("a", 14, 12, 3))
    for key, seed in (("b", 3), ("a", 4)):
        assert not np.array_equal(first, random_saliency(key, 14, 12, seed))
    ranks = np.mean([random_saliency(str(key), 4, 4, 0) for key in range(500)], axis=0)
    assert np.abs(ranks - 0.5).max() < 0.06, "no place is preferred"


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_what_the_patches_beside_cannot_tell_is_salient():
    flat = np.full((32, 40, 3), 77, np.uint8)
    flat[8:16, 24:32] = picture(8, 8)
    (found,) = fill_error([Image.fromarray(flat)])
    assert found.shape == (4, 5) and np.unravel_index(found.argmax(), found.shape) == (1, 3)
    # Those beside it are restored from its noisy border, the rest exactly.
    assert {tuple(at) for at in np.argwhere(found > 1e-9)} == {(1, 3), (0, 3), (2, 3), (1, 2), (1, 4)}
    ramp = np.broadcast_to(np.arange(0, 96, 3, dtype=np.uint8)[None, :, None], (32, 32, 3))
    (slope,) = fill_error([Image.fromarray(ramp.copy())])
    assert slope[:, 1:-1].max() < 1 < slope[:, [0, -1]].min(), "a slope goes on inside, not beyond the border"


def test_the_error_is_that_of_the_fill_patch_by_patch():
    whole = picture(20, 27)
    (found,) = fill_error([Image.fromarray(whole)])
    assert found.shape == (3, 4)
    for parity in (0, 1):
        known = np.ones((20, 27), bool)
        for row in range(3):
            for column in range(4):
                known[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = (row + column) % 2 == parity
        filled = fill(torch.from_numpy(whole)[None], torch.from_numpy(known)[None])[0].numpy().astype(float)
        for row in range(3):
            for column in range(4):
                if (row + column) % 2 != parity:
                    cut = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                    assert found[row, column] == pytest.approx(np.square(filled - whole)[cut].mean())


def test_images_of_several_sizes_are_apart_and_a_single_patch_has_no_error():
    pictures = [
        Image.fromarray(picture(*size, seed)) for seed, size in enumerate([(16, 16), (8, 5), (16, 16), (224, 224)])
    ]
    found = fill_error(pictures)
    assert [error.shape for error in found] == [(2, 2), (1, 1), (2, 2), (14, 14)] and found[1][0, 0] == 0
    for alone, together in zip(pictures, found, strict=True):
        np.testing.assert_allclose(fill_error([alone])[0], together, rtol=1e-6)


def test_large_images_are_not_held():
    made: list[weakref.ref] = []
    held: list[int] = []

    def pictures():
        for seed in range(4):
            image = Image.fromarray(picture(200, 200, seed))
            made.append(weakref.ref(image))
            held.append(sum(one() is not None for one in made))
            yield image

    found = fill_error(pictures())
    assert max(held) <= 2, "that which is made, and that which was looked at last"
    for seed, error in enumerate(found):
        assert np.array_equal(error, fill_error([Image.fromarray(picture(200, 200, seed))])[0])
