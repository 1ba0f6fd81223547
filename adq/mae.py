"""The masked autoencoder of ADQ's pixel stage: a ViT that sees known patches alone, and a light decoder that paints the rest.

He et al., CVPR 2022, arXiv 2111.06377. Tensors are named as in the published checkpoints.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adq.extractor import InputTransform
from adq.fill import fill
from adq.randomness import global_draws

# ImageNet's, for networks of every size: those of the published weights.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
BASES = ("none", "mean", "harmonic")
EPS = 1e-6  # of the norms, as published
TOKEN_STD = 0.02


@dataclass(frozen=True)
class MAEConfig:
    """Sizes of a masked autoencoder.

    `base`: none, as published, or a fill of the gaps (`adq.fill`), which the decoder sees beside its mask tokens, and to which its
    output is added: a small network need only learn the error of the fill.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    base: str = "none"

    def __post_init__(self):
        sizes = {name: value for name, value in self.__dict__.items() if name != "base"}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} of a MAE is {value!r}; expected a whole number of at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % heads or width % 4:
                raise ValueError(f"a width of {width} with {heads} heads: it must be a multiple of the heads, and of 4")
        if self.base not in BASES:
            raise ValueError(f"base is one of {', '.join(BASES)}, not {self.base!r}")

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def patch_values(self) -> int:
        return 3 * self.patch_size**2

    @property
    def values(self) -> int:
        """Numbers in all tensors."""

        def blocks(depth: int, width: int) -> int:
            return depth * (12 * width**2 + 13 * width)

        width, decoder = self.width, self.decoder_width
        encoder = (self.patch_values + self.patches + 5) * width + blocks(self.depth, width)
        decoder_base = 0 if self.base == "none" else (self.patch_values + 1) * decoder
        ends = (width + self.patches + self.patch_values + 5) * decoder + self.patch_values
        return encoder + ends + blocks(self.decoder_depth, decoder) + decoder_base

    @property
    def transform(self) -> InputTransform:
        return InputTransform(self.image_size, self.image_size, MEAN, STD)


PRESETS = {
    "vit-large": MAEConfig(224, 16, 1024, 24, 16, 512, 8, 16),
    "small-224": MAEConfig(224, 16, 384, 6, 6, 256, 6, 8, "harmonic"),
    "small-64": MAEConfig(64, 8, 128, 4, 4, 128, 4, 4, "harmonic"),
    "small-32": MAEConfig(32, 8, 128, 3, 4, 128, 3, 4, "harmonic"),
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if q.dtype == torch.bfloat16 and x.device.type == "cpu":  # whose backward pass in bfloat16 takes most of a step
            with torch.autocast("cpu", enabled=False):
                out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=seen)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.proj(out.transpose(1, 2).reshape(b, n, width))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block; `seen` bool [B, 1, 1, n]: the tokens that are attended to, all where it is None."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


class MAE(nn.Module):
    """A masked autoencoder with fresh weights; see `fresh` for repeatable ones, `load` for a file's."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.config = c = config
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, c.width, c.patch_size, c.patch_size)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, c.width) * TOKEN_STD)
        self.register_buffer("pos_embed", sine_cosine(c.width, c.grid))
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width, EPS)
        self.decoder_embed = nn.Linear(c.width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, c.decoder_width) * TOKEN_STD)
        if c.base != "none":
            self.decoder_base = nn.Linear(c.patch_values, c.decoder_width)
        self.register_buffer("decoder_pos_embed", sine_cosine(c.decoder_width, c.grid))
        self.decoder_blocks = nn.ModuleList(Block(c.decoder_width, c.decoder_heads) for _ in range(c.decoder_depth))
        self.decoder_norm = nn.LayerNorm(c.decoder_width, EPS)
        self.decoder_pred = nn.Linear(c.decoder_width, c.patch_values)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                nn.init.zeros_(module.bias)
        if c.base != "none":
            nn.init.zeros_(self.decoder_pred.weight)  # so it starts as the fill

    def forward(self, images: Tensor, known: Tensor, base: Tensor | None = None) -> Tensor:
        """Predict the normalised pixels of every patch; unknown patches of the images are not looked at.

        An image's result does not depend on the others of its batch, up to rounding, however many patches each has.

        Args:
            images: float32 [B, 3, S, S], normalised.
            known: bool [B, n], the patches that are seen, row by row; any number of them.
            base: of `normalised_base`.

        Returns:
            float [B, n, 3 p^2], each patch as (row, column, channel).
        """
        if images.shape[1:] != (3, self.config.image_size, self.config.image_size):
            raise ValueError(
                f"images are {tuple(images.shape)}; this MAE takes [B, 3, S, S], S = {self.config.image_size}"
            )
        if known.shape != (len(images), self.config.patches) or known.dtype != torch.bool:
            raise ValueError(
                f"known is {known.dtype} {tuple(known.shape)}; expected bool {[len(images), self.config.patches]}"
            )
        if (base is None) != (self.config.base == "none"):
            raise ValueError(f"this MAE's base is {self.config.base}: give forward what normalised_base makes of it")
        tokens = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        counts = known.sum(dim=1)
        most = int(counts.amax()) if len(counts) else 0
        filled = torch.arange(most, device=known.device) < counts[:, None]
        x = tokens.new_zeros(len(images), most, tokens.shape[2])
        x[filled] = tokens[known]
        first = (self.cls_token + self.pos_embed[:, :1]).to(x.dtype).expand(len(images), -1, -1)
        x = torch.cat([first, x], dim=1)
        seen = None
        if not bool(filled.all()):
            seen = F.pad(filled, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, seen)
        x = self.decoder_embed(self.norm(x))
        hidden = self.mask_token if base is None else self.mask_token + self.decoder_base(base)
        places = hidden.to(x.dtype).expand(len(images), known.shape[1], -1).clone()
        places[known] = x[:, 1:][filled]
        x = torch.cat([x[:, :1], places], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        return predicted if base is None else predicted.float() + base


def fresh(config: MAEConfig, seed: int) -> MAE:
    """A network whose weights are drawn from the seed alone."""
    with global_draws(seed, "initial weights", "mae"):
        return MAE(config)


def sine_cosine(width: int, grid: int) -> Tensor:
    """Fixed position embeddings [1, 1 + grid^2, width]: zeros for the class token, then the patches row by row.

    A quarter of the width each: sines and cosines of the column, then of the row, at frequencies 10,000^(-4i / width).
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = line[None].expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    places = torch.cat([columns, rows], dim=2).reshape(grid * grid, width)
    return F.pad(places, (0, 0, 1, 0))[None].float()


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, 3, S, S] to [B, n, 3 p^2]: patches row by row, each as (row, column, channel)."""
    b, channels, height, width = images.shape
    cells = images.reshape(b, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify` for square images of three channels."""
    grid = math.isqrt(patches.shape[1])
    cells = patches.reshape(len(patches), grid, grid, patch, patch, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, grid * patch, grid * patch)


def mask_to_patches(known: Tensor, patch: int) -> Tensor:
    """bool [B, H, W] of known pixels to bool [B, n]: a patch is known where all its pixels are; patches row by row.

    Raises:
        ValueError: not bool [B, H, W], or sides that are no multiples of `patch`.
    """
    if known.dtype != torch.bool or known.dim() != 3 or known.shape[1] % patch or known.shape[2] % patch:
        raise ValueError(
            f"known is {known.dtype} {tuple(known.shape)}; expected bool [B, H, W], H and W multiples of {patch}"
        )
    b, height, width = known.shape
    return known.view(b, height // patch, patch, width // patch, patch).all(dim=4).all(dim=2).flatten(1)


def patches_to_mask(known: Tensor, patch: int) -> Tensor:
    """bool [B, n] of the patches of a square grid to bool [B, H, W] of their pixels."""
    grid = math.isqrt(known.shape[1])
    return known.view(-1, grid, grid).repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)


def normalised_base(config: MAEConfig, pixels: Tensor, known: Tensor) -> Tensor | None:
    """The fill that a network starts from: uint8 [B, S, S, 3] and known bool [B, S, S] to float32 [B, n, 3 p^2]."""
    if config.base == "none":
        return None
    filled = fill(pixels, known, config.base)
    return patchify(config.transform.normalise(filled.permute(0, 3, 1, 2)), config.patch_size)
