"""A masked autoencoder's training: masks, the loss of hidden patches, any world, resumed to the same bits."""

import io
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from torch import Tensor

from adq import collectives, mae_training
from adq.batches import TensorImages, epoch_batches
from adq.fill import fill
from adq.mae import (
    MAE,
    fresh,
    patches_to_mask,
)
from adq.mae_training import MAERecipe, masked_error, train
from adq.reconstruction import psnr, reconstruct
from adq.shards import tar_bytes
from tests.adq.mae_cases import TINY, masks, pictures, saved
from tests.bench import mae as benchmark

RECIPE = MAERecipe(steps=6, batch_size=8, lr=3e-3, warmup_steps=2, mask_ratio=0.25)


def run(model: MAE, recipe: MAERecipe, images: Tensor, seed: int = 0, **rest) -> MAE:
    held = TensorImages(images, torch.zeros(len(images), dtype=torch.int64).numpy())
    train(model, partial(epoch_batches, held, recipe, seed), recipe, seed, "cpu", **rest)
    return model


def test_masks_hide_the_same_share_of_every_image_elsewhere():
    known = masks(4000, 16, 0.25)
    assert ((~known).sum(dim=1) == 4).all()
    assert ((~known).float().mean(dim=0) - 0.25).abs().max() < 0.04
    assert len(known.unique(dim=0)) > 1500
    for ratio, hidden in ((0.01, 1), (0.99, 15), (0.75, 12)):
        assert ((~masks(3, 16, ratio)).sum(dim=1) == hidden).all()


def test_the_loss_is_the_error_of_hidden_patches_alone():
    model, images = fresh(TINY, 0), pictures(3)
    with torch.no_grad():
        model.decoder_pred.weight.zero_()
    known = patches_to_mask(masks(3), 4)
    values = TINY.transform.normalise(images).permute(0, 2, 3, 1)
    want = torch.stack([values[i][~known[i]].square().mean() for i in range(3)])
    torch.testing.assert_close(masked_error(model, images, known), want)


def test_attention_is_trained_so_that_its_gradient_repeats_on_a_gpu(monkeypatch):
    asked, passes = [], []

    @contextmanager
    def watched(device):
        asked.append(device)
        yield
        asked.append("out")

    monkeypatch.setattr(mae_training, "repeatable_attention", watched)
    model = fresh(TINY, 0)
    model.register_forward_pre_hook(lambda *_: passes.append(asked[-1]))
    run(model, replace(RECIPE, steps=2), pictures(8))
    assert passes == ["cpu"] * 2


def test_a_block_hides_patches_of_use():
    seen = []

    class Spy(MAE):
        def forward(self, images, known, base=None):
            seen.append(known)
            return super().forward(images, known, base)

    run(Spy(TINY), replace(RECIPE, steps=1, block=8), pictures(8))
    cells = seen[0].view(8, 2, 2, 2, 2).transpose(2, 3).flatten(3)
    assert (cells.all(dim=3) | ~cells.any(dim=3)).all() and ((~seen[0]).sum(dim=1) == 4).all()
    for block in (6, 16):
        with pytest.raises(ValueError, match=f"block {block}"):
            run(fresh(TINY, 0), replace(RECIPE, block=block), pictures(8))


@pytest.mark.parametrize("augment", ["flip", "crop-flip"])
def test_a_resumed_training_ends_with_the_same_bits(augment):
    images, recipe, states, losses = pictures(20), replace(RECIPE, augment=augment), [], []
    config = replace(TINY, base="harmonic")
    straight = run(
        fresh(config, 0),
        recipe,
        images,
        save=lambda _, checkpoint: states.append(checkpoint()),
        on_step=lambda *x: losses.append(x),
    )
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    places = [(state["step"], state["epoch"], state["batches"]) for state in states]
    assert places == [(1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 1, 1), (5, 1, 2), (6, 1, 3)]
    for state in states[1:4]:  # within an epoch, at its end, in the next
        kept = torch.load(io.BytesIO(saved(state)), weights_only=True)
        torch.rand(7)  # the global generator is somewhere else
        again = run(fresh(config, 9), recipe, images, start=kept)
        for name, tensor in straight.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(straight.norm.weight, run(fresh(config, 0), recipe, images, seed=1).norm.weight)
    with pytest.raises(ValueError, match="another run: it differs in recipe, seed"):
        run(fresh(config, 0), replace(recipe, steps=7), images, seed=1, start=kept)


@pytest.mark.parametrize("world", [2, 3])
def test_the_gradient_is_the_same_for_any_world(world, monkeypatch):
    images, recipe = pictures(7), replace(RECIPE, augment="crop-flip")
    whole = fresh(TINY, 0)
    loss = mae_training._gradients(whole, (images, None, 7), recipe, (0, 4), "cpu", 0, 1)
    monkeypatch.setattr(collectives, "exchange", lambda *_: None)
    workers = [fresh(TINY, 0) for _ in range(world)]
    losses = [
        mae_training._gradients(worker, (images[rank::world], None, 7), recipe, (0, 4), "cpu", rank, world)
        for rank, worker in enumerate(workers)
    ]
    assert sum(losses) == pytest.approx(loss, rel=1e-5)
    for parameter, *shares in zip(whole.parameters(), *(w.parameters() for w in workers), strict=True):
        torch.testing.assert_close(sum(share.grad for share in shares), parameter.grad, atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="got 7 images of a global batch of 7, expected 4"):
        mae_training._gradients(whole, (images, None, 7), recipe, (0, 4), "cpu", 0, 2)


def test_it_learns_what_no_fill_can_know():
    images = pictures(400)
    recipe = MAERecipe(steps=50, batch_size=20, lr=5e-3, warmup_steps=10)
    model = run(fresh(replace(TINY, base="harmonic"), 0), recipe, images[:300])
    pixels, known = images[300:].permute(0, 2, 3, 1), patches_to_mask(masks(100, ratio=0.25), 4)
    painted = psnr(reconstruct(model, pixels, known, "cpu"), pixels, ~known)
    assert painted > 3 + max(psnr(fill(pixels, known, filler), pixels, ~known) for filler in ("mean", "harmonic"))
    losses: list[float] = []
    run(fresh(TINY, 0), recipe, images[:300], on_step=lambda _, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_wrong_options_say_so():
    for wrong, message in (
        ({"steps": 0}, "steps and batch_size"),
        ({"lr": 0.0}, "lr > 0"),
        ({"mask_ratio": 1.0}, r"mask_ratio 1\.0"),
        ({"augment": "spin"}, "augment is one of"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(RECIPE, **wrong)
    for wrong, message in (
        ({"patch_size": 5}, "no multiple"),
        ({"heads": 5}, "multiple of the heads"),
        ({"depth": 0}, "depth of a MAE"),
        ({"base": "nearest"}, "base is one of"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **wrong)
    with pytest.raises(ValueError, match="has no batches"):
        run(fresh(TINY, 0), RECIPE, pictures(1)[:0])
    with pytest.raises(FloatingPointError, match="step 1 with lr"):
        broken = fresh(TINY, 0)
        broken.decoder_pred.bias.data.fill_(math.nan)
        run(broken, RECIPE, pictures(8))


def test_the_benchmark_resizes_images_to_the_side_of_the_network(tmp_path):
    images = pictures(4, 48)
    members = []
    for i, image in enumerate(images):
        with io.BytesIO() as file:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
            members += [(f"{i}.png", file.getvalue()), (f"{i}.cls", b"0")]
    (tmp_path / "x-val-000000.tar").write_bytes(tar_bytes(members))
    assert torch.equal(benchmark.load(tmp_path, "val", 48), images.permute(0, 2, 3, 1))
    small = benchmark.load(tmp_path, "val", 12)
    assert small.shape == (4, 12, 12, 3) and small.dtype == torch.uint8 and small.is_contiguous()
    assert (small.float().mean(dim=(1, 2)) - images.float().mean(dim=(2, 3))).abs().max() < 3
