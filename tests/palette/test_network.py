"""What is seen is what is stored, and the gradient goes where each mode says."""

import itertools

import pytest
import torch

from adq.extractor import input_transform
from adq.randomness import torch_generator
from palette.network import PaletteNetwork, by_network, by_palette, full_colour, normalise, soft_image, to_uint8
from palette.quantize import kmeans, paint, used_colours
from tests.palette.images import noise

COLORS = 4


def pictures(count=3, side=12):
    """Smooth images with different ranges of colour."""
    coarse = torch.from_numpy(noise(count, 4, 4)).permute(0, 3, 1, 2).float()
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    return (smooth * torch.linspace(0.3, 1, count).view(-1, 1, 1, 1)).byte().permute(0, 2, 3, 1).contiguous()


def latents_of(images):
    jitter = 0.01 * torch.randn(len(images), 3, *images.shape[1:3], generator=torch_generator(0, "jitter"))
    return (normalise(images) + jitter).requires_grad_(True)


def network():
    palette = PaletteNetwork(COLORS)
    palette.start_from_kmeans(pictures(8))
    return palette


def painted(mode, latents):
    if mode in ("direct", "buckets"):
        palettes = kmeans(to_uint8(latents), COLORS)[0]
        return by_palette(latents, palettes, buckets=mode == "buckets")
    return by_network(latents, network(), 0.5, soft=mode == "soft")


def test_normalising_is_that_of_the_evaluation_and_has_an_inverse():
    images = torch.from_numpy(noise(2, 5, 5))
    expected = input_transform("convnet-d3", 5).normalise(images.permute(0, 3, 1, 2))
    torch.testing.assert_close(normalise(images), expected)
    assert torch.equal(to_uint8(normalise(images)), images)
    assert torch.equal(to_uint8(torch.full((1, 3, 1, 1), 9.0)), torch.full((1, 1, 1, 3), 255, dtype=torch.uint8))


@pytest.mark.parametrize("mode", ["direct", "buckets", "network"])
def test_the_forward_image_is_exactly_what_is_stored(mode):
    latents = latents_of(pictures())
    result = painted(mode, latents)
    assert result.palettes.dtype == result.indices.dtype == torch.uint8
    assert torch.equal(result.images, normalise(paint(result.palettes, result.indices)))
    assert used_colours(result.indices, COLORS).max() <= COLORS
    assert torch.equal(full_colour(latents), normalise(to_uint8(latents)))


@pytest.mark.parametrize("mode", ["direct", "network"])
def test_the_identity_path_gives_the_gradient_unchanged(mode):
    latents = latents_of(pictures())
    weights = torch.randn(latents.shape, generator=torch_generator(1, "weights"))
    (gradient,) = torch.autograd.grad((painted(mode, latents).images * weights).sum(), latents)
    assert torch.equal(gradient, weights)


def test_buckets_give_the_mean_gradient_of_each_colour():
    latents = latents_of(pictures())
    weights = torch.randn(latents.shape, generator=torch_generator(1, "weights"))
    result = painted("buckets", latents)
    (gradient,) = torch.autograd.grad((result.images * weights).sum(), latents)
    for image, place in ((0, 0), (2, 1)):
        same = result.indices[image] == place
        torch.testing.assert_close(
            gradient[image][:, same], weights[image][:, same].mean(dim=1, keepdim=True).expand(-1, int(same.sum()))
        )


def test_soft_mode_is_the_papers_form():
    latents, palette = latents_of(pictures()), network()
    result = by_network(latents, palette, 0.25, soft=True)
    expected = soft_image(latents, palette(latents))
    torch.testing.assert_close(result.images, expected)
    weights = torch.randn(latents.shape, generator=torch_generator(1, "weights"))
    parameters = [latents, *palette.parameters()]
    found = torch.autograd.grad((result.images * weights).sum(), parameters)
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    torch.testing.assert_close(found[0], wanted[0])
    for ours, whole in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours, 0.25 * whole, rtol=1e-4, atol=1e-5)


def test_the_task_reaches_the_network_through_the_soft_image_with_its_weight():
    latents, palette = latents_of(pictures()), network()
    weights = torch.randn(latents.shape, generator=torch_generator(1, "weights"))
    soft = soft_image(latents.detach(), palette(latents.detach()))
    wanted = torch.autograd.grad((soft * weights).sum(), list(palette.parameters()))
    found = torch.autograd.grad((by_network(latents, palette, 0.25).images * weights).sum(), list(palette.parameters()))
    for ours, whole in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, 0.25 * whole, rtol=1e-4, atol=1e-5)


def test_a_lloyd_step_never_makes_the_error_grow_and_revives_colors():
    images = pictures()
    latents = latents_of(images)
    palettes = kmeans(images, COLORS, iterations=0)[0]
    errors = []
    for _ in range(6):
        result = by_palette(latents, palettes)
        palettes = result.palettes
        errors.append(float((result.images - latents).square().sum().detach()))
    assert all(later <= before * 1.001 for before, later in itertools.pairwise(errors))
    dead = palettes.clone()
    dead[:, 1:] = 255
    for _ in range(4):
        dead = by_palette(latents, dead).palettes
    assert used_colours(by_palette(latents, dead).indices, COLORS).min() == COLORS


def test_the_start_is_the_nearest_of_k_global_colors():
    images, palette = pictures(8), PaletteNetwork(COLORS, relative=False)
    palette.start_from_kmeans(images)
    maps = palette(normalise(images))
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(8, 144))
    pixels = (normalise(images).permute(0, 2, 3, 1) * 32 + 128).round().clamp(0, 255).byte()
    indices = kmeans(pixels.reshape(1, -1, 1, 3), COLORS, iterations=30)[1]
    agree = maps.argmax(dim=1).flatten() == indices.flatten()
    assert agree.float().mean() > 0.97, "but for ties and the rounding of the levels"
    fresh = PaletteNetwork(32)
    before = len(fresh(normalise(images)).argmax(dim=1).unique())
    fresh.start_from_kmeans(images)
    assert len(fresh(normalise(images)).argmax(dim=1).unique()) > max(before, 24)


def test_relative_colors_do_not_change_with_light():
    images, palette = normalise(pictures()), network()
    darker = 0.5 * images - 0.7
    assert (palette(images).argmax(dim=1) == palette(darker).argmax(dim=1)).float().mean() > 0.97
