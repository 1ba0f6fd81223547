"""Texture level against a case worked by hand."""

import pytest
import torch

from adq.texture import texture_level


def test_a_vertical_edge_by_hand():
    # Grey 0 | 1 on 4 x 4: |Gx| = 4 in the two columns at the edge, 0 at the reflected borders, Gy = 0: mean 0.5 * 4 * 8 / 16 = 1.
    image = torch.zeros(1, 3, 4, 4)
    image[:, :, :, 2:] = 1
    torch.testing.assert_close(texture_level(image), torch.tensor([1.0]))
    torch.testing.assert_close(texture_level(image.transpose(2, 3)), torch.tensor([1.0]))


def test_rec_601_weighs_the_channels():
    image = torch.zeros(3, 3, 4, 4)
    for channel in range(3):
        image[channel, channel, :, 2:] = 1
    torch.testing.assert_close(texture_level(image), torch.tensor([0.299, 0.587, 0.114]))


def test_a_single_bright_pixel_by_hand():
    # Centre of 5 x 5: Gx is +-1, +-2, +-1 in the columns beside it, so sum |Gx| = 8, and sum |Gy| = 8: 0.5 * 16 / 25.
    image = torch.zeros(1, 3, 5, 5)
    image[:, :, 2, 2] = 1
    torch.testing.assert_close(texture_level(image), torch.tensor([8 / 25]))


def test_partial_patches_are_dropped():
    image = torch.zeros(1, 3, 5, 5)
    image[:, :, :, 4] = 1  # the edge lies in columns 3 and 4; only columns 0 to 3 fill whole 2 x 2 patches
    torch.testing.assert_close(texture_level(image, patch=2), torch.tensor([0.5 * 4 * 4 / 16]))
    assert texture_level(image, patch=5) > 0


def test_flat_images_have_none_and_noise_has_more_than_a_gradient():
    g = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    noise = torch.rand(1, 3, 64, 64, generator=g)
    levels = texture_level(torch.cat([torch.full((1, 3, 64, 64), 0.4), ramp, noise]))
    assert levels[0] == pytest.approx(0, abs=1e-6)
    assert levels[0] < levels[1] < levels[2]


def test_clear_errors():
    with pytest.raises(ValueError, match="outside"):
        texture_level(torch.full((1, 3, 8, 8), 255.0))
    with pytest.raises(ValueError, match="shape"):
        texture_level(torch.zeros(3, 8, 8))
