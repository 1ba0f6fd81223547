"""The masked autoencoder: the published network by its equations, any number of known patches, files, and what training does."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adq.fill import fill
from adq.mae import (
    MEAN,
    PRESETS,
    STD,
    MAEConfig,
    fresh,
    mask_to_patches,
    patches_to_mask,
    patchify,
    sine_cosine,
    unpatchify,
)
from adq.randomness import torch_generator
from adq.reconstruction import psnr, reconstruct
from tests.adq.mae_cases import TINY, lively, masks, pictures

pytestmark = pytest.mark.usefixtures("one_thread")


def as_published(state: dict[str, Tensor], config: MAEConfig, images: Tensor, known: Tensor) -> Tensor:
    """One image at a time, as the paper says: keep some patches, encode them, put mask tokens in the gaps, decode."""

    def block(x: Tensor, name: str, heads: int) -> Tensor:
        width = x.shape[1]
        y = F.layer_norm(x, (width,), state[f"{name}.norm1.weight"], state[f"{name}.norm1.bias"], 1e-6)
        y = y @ state[f"{name}.attn.qkv.weight"].T + state[f"{name}.attn.qkv.bias"]
        q, k, v = (part.view(len(x), heads, -1).transpose(0, 1) for part in y.split(width, dim=1))
        weights = (q @ k.transpose(1, 2) / math.sqrt(width / heads)).softmax(dim=2)
        y = (weights @ v).transpose(0, 1).reshape(len(x), width)
        x = x + y @ state[f"{name}.attn.proj.weight"].T + state[f"{name}.attn.proj.bias"]
        y = F.layer_norm(x, (width,), state[f"{name}.norm2.weight"], state[f"{name}.norm2.bias"], 1e-6)
        y = y @ state[f"{name}.mlp.fc1.weight"].T + state[f"{name}.mlp.fc1.bias"]
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        return x + y @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]

    out, p = [], config.patch_size
    for image, mask in zip(images, known, strict=True):
        tokens = [state["cls_token"][0, 0] + state["pos_embed"][0, 0]]
        places = [state["mask_token"][0, 0]] * config.patches
        kept = mask.nonzero()[:, 0].tolist()
        for i in kept:
            top, left = i // config.grid * p, i % config.grid * p
            patch = image[:, top : top + p, left : left + p]
            embedded = (state["patch_embed.proj.weight"] * patch).sum(dim=(1, 2, 3)) + state["patch_embed.proj.bias"]
            tokens.append(embedded + state["pos_embed"][0, 1 + i])
        x = torch.stack(tokens)
        for n in range(config.depth):
            x = block(x, f"blocks.{n}", config.heads)
        x = F.layer_norm(x, (config.width,), state["norm.weight"], state["norm.bias"], 1e-6)
        x = x @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
        for place, token in zip(kept, x[1:], strict=True):
            places[place] = token
        x = torch.stack([x[0], *places]) + state["decoder_pos_embed"][0]
        for n in range(config.decoder_depth):
            x = block(x, f"decoder_blocks.{n}", config.decoder_heads)
        x = F.layer_norm(x, (config.decoder_width,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6)
        out.append((x @ state["decoder_pred.weight"].T + state["decoder_pred.bias"])[1:])
    return torch.stack(out)


def test_it_is_the_published_network_for_any_number_of_known_patches():
    model = lively(TINY)
    images = torch.randn(5, 3, 16, 16, generator=torch_generator(0, "images"))
    known = torch.arange(16).expand(5, 16) < torch.tensor([0, 1, 7, 12, 16])[:, None]
    known = known[:, torch.randperm(16, generator=torch_generator(0, "places"))]
    with torch.no_grad():
        together = model(images, known)
        alone = torch.cat([model(images[i : i + 1], known[i : i + 1]) for i in range(5)])
    want = as_published(model.state_dict(), TINY, images, known)
    torch.testing.assert_close(together, want, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_published_tensors_have_their_names_and_shapes():
    large = PRESETS["vit-large"]
    assert (large.depth, large.heads, large.decoder_depth, large.decoder_heads, large.base) == (24, 16, 8, 16, "none")
    model = fresh(replace(large, depth=2, decoder_depth=1), 0)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    linear = {"norm1": (1024,), "attn.qkv": (3072, 1024), "attn.proj": (1024, 1024), "norm2": (1024,)} | {
        "mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096),
    }  # fmt: skip
    for prefix, depth, by in (("blocks", 2, 1), ("decoder_blocks", 1, 2)):
        for n in range(depth):
            for name, shape in linear.items():
                small = tuple(size // by for size in shape)
                assert found.pop(f"{prefix}.{n}.{name}.weight") == small
                assert found.pop(f"{prefix}.{n}.{name}.bias") == small[:1]
    assert found == {
        "cls_token": (1, 1, 1024), "pos_embed": (1, 197, 1024), "mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512),
        "patch_embed.proj.weight": (1024, 3, 16, 16), "patch_embed.proj.bias": (1024,), "norm.weight": (1024,),
        "norm.bias": (1024,), "decoder_embed.weight": (512, 1024), "decoder_embed.bias": (512,), "decoder_norm.weight": (512,),
        "decoder_norm.bias": (512,), "decoder_pred.weight": (768, 512), "decoder_pred.bias": (768,),
    }  # fmt: skip


def test_the_presets_are_for_their_images():
    assert {name: config.image_size for name, config in PRESETS.items()} == {
        "vit-large": 224, "small-224": 224, "small-64": 64, "small-32": 32,
    }  # fmt: skip
    assert PRESETS["vit-large"].base == "none"
    for config in PRESETS.values():
        assert (16 if config.image_size == 224 else 8) % config.patch_size == 0, "ADQ's patches are whole ones"


def test_position_embeddings_by_hand():
    got = sine_cosine(8, 3)
    assert got.shape == (1, 10, 8) and (got[0, 0] == 0).all()
    row, column = 1, 2
    angles = [column, column / 100, row, row / 100]
    (a, b, c, d), sin, cos = angles, math.sin, math.cos
    want = [sin(a), sin(b), cos(a), cos(b), sin(c), sin(d), cos(c), cos(d)]
    torch.testing.assert_close(got[0, 1 + row * 3 + column], torch.tensor(want))


def test_patches_go_row_by_row_and_back():
    images = torch.arange(3 * 8 * 8).view(1, 3, 8, 8).expand(2, -1, -1, -1)
    patches = patchify(images, 4)
    assert patches.shape == (2, 4, 48)
    assert patches[1, 2, :6].tolist() == [32, 96, 160, 33, 97, 161], (
        "patch 2 begins at row 4; channels of a pixel together"
    )
    assert torch.equal(unpatchify(patches, 4), images)


def test_a_patch_is_known_where_all_its_pixels_are():
    known = torch.ones(1, 8, 12, dtype=torch.bool)
    known[0, 3, 4] = False
    assert mask_to_patches(known, 4).tolist() == [[True, False, True, True, True, True]]
    assert mask_to_patches(known, 2).sum() == 23
    grid = masks(7)
    assert torch.equal(mask_to_patches(patches_to_mask(grid, 4), 4), grid)
    with pytest.raises(ValueError, match="multiples of 5"):
        mask_to_patches(known, 5)


@pytest.mark.parametrize("size", [(16, 16), (40, 24)])
@pytest.mark.parametrize("base", ["none", "harmonic"])
def test_unknown_pixels_are_not_looked_at_and_known_ones_stay(size, base):
    model = lively(replace(TINY, base=base))
    images = F.interpolate(pictures(3).float(), size, mode="bilinear").to(torch.uint8).permute(0, 2, 3, 1)
    known = torch.ones(3, *size, dtype=torch.bool)
    known[:, size[0] // 2 :, : size[1] // 2] = False
    known[0, 1, 2] = False
    got = reconstruct(model, images, known, "cpu", batch_size=2)
    assert got.dtype == torch.uint8 and got.shape == images.shape
    assert torch.equal(got[known], images[known])
    noise = torch.randint(0, 256, images.shape, generator=torch_generator(0, "noise"), dtype=torch.uint8)
    other = torch.where(known[..., None], images, noise)
    assert torch.equal(reconstruct(model, other, known, "cpu"), got)
    changed = torch.where(known[..., None], 255 - images, images)
    assert not torch.equal(reconstruct(model, changed, known, "cpu")[~known], got[~known])


def test_what_the_decoder_says_is_painted_in_the_colours_of_the_input():
    model = fresh(TINY, 0)
    color = torch.tensor([200.0, 100.0, 50.0])
    with torch.no_grad():
        model.decoder_pred.weight.zero_()
        model.decoder_pred.bias.copy_(((color / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).repeat(16))
    images = pictures(2).permute(0, 2, 3, 1)
    known = patches_to_mask(masks(2), 4)
    got = reconstruct(model, images, known, "cpu")
    assert (got[~known] == color.to(torch.uint8)).all()


def test_the_numbers_of_a_network_are_counted():
    for config in (TINY, replace(TINY, base="mean"), PRESETS["small-32"]):
        assert config.values == sum(tensor.numel() for tensor in fresh(config, 0).state_dict().values())


def test_a_fresh_network_with_a_base_is_that_fill():
    images, known = pictures(4).permute(0, 2, 3, 1), patches_to_mask(masks(4), 4)
    for base in ("mean", "harmonic"):
        model = fresh(replace(TINY, base=base), 0)
        assert torch.equal(reconstruct(model, images, known, "cpu"), fill(images, known, base))
        with pytest.raises(ValueError, match=f"base is {base}: give forward"):
            model(torch.zeros(1, 3, 16, 16), torch.ones(1, 16, dtype=torch.bool))


def test_reconstruct_says_what_it_takes():
    model, images, known = fresh(TINY, 0), pictures(2).permute(0, 2, 3, 1), patches_to_mask(masks(2), 4)
    with pytest.raises(ValueError, match=r"expected uint8 \[B, H, W, 3\]"):
        reconstruct(model, images.float(), known, "cpu")
    with pytest.raises(ValueError, match="expected bool"):
        reconstruct(model, images, known[:1], "cpu")
    assert reconstruct(model, images[:0], known[:0], "cpu").shape == (0, 16, 16, 3)
    with pytest.raises(ValueError, match=r"this MAE takes \[B, 3, S, S\], S = 16"):
        model(torch.zeros(1, 3, 8, 8), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected bool"):
        model(torch.zeros(1, 3, 16, 16), torch.ones(1, 4, dtype=torch.bool))


def test_psnr_by_hand():
    a = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    b = a.clone()
    b[0, 0, 0] = 255
    b[1, 1, 1] = 10
    where = torch.zeros(2, 2, 2, dtype=torch.bool)
    where[1, 1] = True
    assert psnr(a, b, where) == pytest.approx(10 * math.log10(255**2 / 50))
    assert psnr(b, b, where) == math.inf
    with pytest.raises(ValueError, match="some true"):
        psnr(a, b, where & False)
