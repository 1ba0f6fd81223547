"""Images of another size than the network's: what it sees of them, and that it cannot make its base worse."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adq.fill import fill
from adq.mae import MAE, MEAN, STD, fresh, patches_to_mask
from adq.reconstruction import mostly_known, reconstruct
from tests.adq.mae_cases import TINY, lively, masks, pictures

pytestmark = pytest.mark.usefixtures("one_thread")


def stretched(count: int, height: int, width: int) -> Tensor:
    """uint8 [count, height, width, 3]."""
    images = F.interpolate(pictures(count).float(), (height, width), mode="bilinear")
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def dropped(count: int, height: int, width: int, side: int) -> Tensor:
    """bool [count, height, width]: a quarter of the patches of a side is unknown."""
    rows, columns = -(-height // side), -(-width // side)
    kept = masks(count, rows * columns, 0.25).view(count, rows, columns)
    return kept.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)[:, :height, :width].contiguous()


class Spy(MAE):
    """A network that remembers what it sees."""

    def forward(self, images: Tensor, known: Tensor, base: Tensor | None = None) -> Tensor:
        self.seen = known
        return super().forward(images, known, base)


@pytest.mark.parametrize("base", ["none", "harmonic"])
@pytest.mark.parametrize("times", [2, 3, 5])
def test_on_an_aligned_grid_every_kept_patch_is_seen(base, times):
    model, kept, side = Spy(replace(TINY, base=base)), masks(4, ratio=0.25), 16 * times
    reconstruct(model, stretched(4, side, side), patches_to_mask(kept, 4 * times), "cpu")
    assert torch.equal(model.seen, kept)


def test_on_another_grid_about_as_many_patches_are_seen_as_are_kept():
    model, known = Spy(TINY), dropped(40, 27, 36, 8)
    reconstruct(model, stretched(40, 27, 36), known, "cpu")
    assert 0.7 < model.seen.float().mean() < 0.9


def test_a_patch_is_seen_where_half_of_it_is_known():
    known = torch.zeros(1, 8, 12, dtype=torch.bool)
    known[0, :2, :6] = known[0, 4:, 6:] = True
    known[0, 4:, 1:2] = True
    assert mostly_known(known, 2).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (27, 36), (16, 40), (9, 7)])
@pytest.mark.parametrize("base", ["mean", "harmonic"])
def test_a_fresh_network_with_a_base_is_that_fill_at_any_size(base, size):
    images, known = stretched(4, *size), dropped(4, *size, 4)
    assert torch.equal(reconstruct(fresh(replace(TINY, base=base), 0), images, known, "cpu"), fill(images, known, base))


def test_its_picture_of_unseen_patches_is_painted_at_any_size():
    model, color = fresh(TINY, 0), torch.tensor([200.0, 100.0, 50.0])
    with torch.no_grad():
        model.decoder_pred.weight.zero_()
        model.decoder_pred.bias.copy_(((color / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).repeat(16))
    images, kept = torch.full((2, 64, 64, 3), 120, dtype=torch.uint8), masks(2, ratio=0.25)
    got = reconstruct(model, images, patches_to_mask(kept, 16), "cpu")
    inner = F.pad(torch.ones(12, 12, dtype=torch.bool), (2, 2, 2, 2)).repeat(4, 4) & ~patches_to_mask(kept, 16)
    assert (got[inner] == color.to(torch.uint8)).all()


def test_gaps_of_patches_that_are_seen_are_filled_without_the_network():
    model, images = lively(TINY), stretched(2, 32, 32)
    known = torch.ones(2, 32, 32, dtype=torch.bool)
    known[:, 2:5, 2:5] = known[:, 17:20, 18:22] = False
    assert torch.equal(reconstruct(model, images, known, "cpu"), fill(images, known))


def test_an_image_without_known_pixels_is_refused_where_it_must_be_filled():
    known = torch.zeros(1, 32, 32, dtype=torch.bool)
    with pytest.raises(ValueError, match="no known pixel"):
        reconstruct(fresh(TINY, 0), stretched(1, 32, 32), known, "cpu")
