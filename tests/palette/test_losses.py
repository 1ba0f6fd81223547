"""The three losses of the palette network on cases done by hand, and against the formula with its n x n matrices."""

import math

import pytest
import torch

from adq.randomness import torch_generator
from palette.losses import (
    LossWeights,
    color_assignment_loss,
    maximum_color_loss,
    palette_balance_loss,
    palette_losses,
)


def maps(batch=2, colors=4, pixels=9, seed=0):
    logits = torch.randn(batch, colors, pixels, generator=torch_generator(seed, "maps"), dtype=torch.float64)
    return logits.mul(2).softmax(dim=1).requires_grad_(True)


def hard(indices, colors):
    return torch.nn.functional.one_hot(torch.tensor(indices), colors).transpose(1, 2).double()


def test_maximum_color():
    assert maximum_color_loss(hard([[0, 1, 2, 1]], 3)) == -1
    assert maximum_color_loss(hard([[0, 0, 0, 0]], 4)) == -0.25
    soft = torch.tensor([[[0.9, 0.2], [0.1, 0.8]], [[0.5, 0.7], [0.5, 0.3]]])
    torch.testing.assert_close(maximum_color_loss(soft), torch.tensor(-(0.9 + 0.8 + 0.7 + 0.5) / 4))


def test_palette_balance():
    torch.testing.assert_close(palette_balance_loss(hard([[0, 1, 2, 3]], 4)).item(), -1.0)
    torch.testing.assert_close(palette_balance_loss(hard([[2, 2, 2, 2]], 4)).item(), 0.0)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    torch.testing.assert_close(palette_balance_loss(hard([[0, 1, 1, 1]], 2)).item(), -quarter)


def test_colors_that_underflow_have_finite_gradients():
    logits = torch.tensor([[[0.0, 0.0], [0.0, -1.0], [-300.0, -300.0]]], requires_grad=True)
    palette_balance_loss(logits.softmax(dim=1)).backward()
    assert torch.isfinite(logits.grad).all()


def test_color_assignment_is_the_formula_with_n_by_n_matrices():
    found, target = maps(), torch.randint(0, 4, (2, 9), generator=torch_generator(1, "target"))
    one_hot = hard(target.tolist(), 4)
    expected = 0
    for f_s, f_t in zip(found, one_hot, strict=True):
        a_s, a_t = ((f.T @ f) / (f.T @ f).norm(dim=0) for f in (f_s, f_t))
        expected += (a_s - a_t).square().sum() / 9 / 2
    torch.testing.assert_close(color_assignment_loss(found, target), expected)
    assert torch.autograd.gradcheck(lambda m: color_assignment_loss(m, target), (found,))


def test_color_assignment_asks_for_the_same_partition_whatever_its_names():
    partition = [[0, 0, 1, 2, 2, 1]]
    renamed = torch.tensor([[2, 2, 0, 1, 1, 0]])
    assert color_assignment_loss(hard(partition, 3), renamed).abs() < 1e-12
    # One colour for all against two of three pixels each: columns 1/sqrt(6) against 1/sqrt(3) in three of six places.
    one = hard([[0] * 6], 2)
    expected = 2 - 2 * 3 / math.sqrt(18)
    torch.testing.assert_close(color_assignment_loss(one, torch.tensor([[0, 0, 0, 1, 1, 1]])).item(), expected)


def test_each_loss_has_its_weight_and_can_be_turned_off():
    found, target = maps(pixels=16), torch.randint(0, 4, (2, 4, 4), generator=torch_generator(2, "target"))
    pixels = torch.tensor([[0, 3, 5], [1, 2, 15]])
    total, parts = palette_losses(found, target, pixels, LossWeights())
    expected = parts["maximum_color"] + math.log(4) * parts["palette_balance"] + 3 * parts["color_assignment"]
    torch.testing.assert_close(total, expected)
    for name, field in (
        ("maximum_color", "maximum_color"),
        ("palette_balance", "palette_balance"),
        ("color_assignment", "color_assignment"),
    ):
        off = {"maximum_color": 0.0, "palette_balance": 0.0, "color_assignment": 0.0} | {field: 2.0}
        torch.testing.assert_close(palette_losses(found, target, pixels, LossWeights(**off))[0], 2 * parts[name])
    none, _ = palette_losses(found, target, pixels, LossWeights(0.0, 0.0, 0.0))
    assert none == 0
    with pytest.raises(ValueError, match="the weight of palette_balance"):
        LossWeights(palette_balance=-1)
