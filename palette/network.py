"""The palette network, and synthetic images that are trained in the few colours in which they are stored.

A synthetic image has a float latent x, normalised like every network's input. What a matching network sees is its stored
form q: K colours of 8 bits, one index a pixel. q has no useful derivative, so the gradient of q is given to x unchanged
(the identity path). Differentiating through the means of the colours instead (`buckets`, and `soft` as in the paper) takes
the contrast inside a colour away from the gradient.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from adq.extractor import NATIVE_MEAN, NATIVE_STD
from adq.randomness import global_draws
from palette.quantize import kmeans

MODES = ("network", "direct", "soft", "buckets", "none")
WITH_NETWORK = ("network", "soft")
WITH_PALETTES = ("direct", "buckets")
HIDDEN = 256
EPS = 1e-8
CACHED_PIXELS = 2048


class Painted(NamedTuple):
    """Synthetic images of one step: what matching sees, what is stored, and what the losses of the network see."""

    images: Tensor  # float [B, 3, H, W], normalised; but for mode "soft", exactly the stored images
    palettes: Tensor  # uint8 [B, K, 3]; colours without a pixel are zero in the modes with a network
    indices: Tensor  # uint8 [B, H, W]
    maps: Tensor | None  # float [B, K, H * W], of detached images, in the modes with a network


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W], as `adq.extractor` normalises for networks without weights of their own."""
    images = images.permute(0, 3, 1, 2).float()
    return images.sub_(_level(NATIVE_MEAN, images)).div_(_level(NATIVE_STD, images))


def to_uint8(images: Tensor) -> Tensor:
    """Normalised float [B, 3, H, W] to the nearest uint8 [B, H, W, 3]; inverse of `normalise`."""
    levels = images.detach() * _level(NATIVE_STD, images) + _level(NATIVE_MEAN, images)
    return levels.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _level(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(1, 3, 1, 1) * 255


class PaletteNetwork(nn.Module):
    """Two 1x1 convolutions, 3 -> 256 -> K, whose softmax assigns each pixel one of K colours.

    With `relative`, it sees each channel minus its mean over its standard deviation in the image, so that one assignment
    for all images still cuts each image's own range of colours; without, the colours themselves, as published.
    """

    def __init__(self, colors: int, relative: bool = True, seed: int = 0):
        super().__init__()
        self.relative = relative
        with global_draws(seed, "palette network"):
            self.hidden = nn.Conv2d(3, HIDDEN, 1)
            self.assign = nn.Conv2d(HIDDEN, colors, 1, bias=False)
        self.register_buffer("prior", torch.zeros(colors, 3, 1, 1))
        self.register_buffer("prior_bias", torch.zeros(colors))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to soft maps [B, K, H * W], which sum to 1 over the colours."""
        # On a CPU the hidden maps of a few images fit the cache; those of all cost more time than the arithmetic.
        few = len(images) if images.is_cuda else max(1, CACHED_PIXELS // images[0, 0].numel())
        return torch.cat([self._maps(part) for part in images.split(max(few, 1))])

    def _maps(self, images: Tensor) -> Tensor:
        seen = self.features(images)
        logits = self.assign(F.relu(self.hidden(seen))) + F.conv2d(seen, self.prior, self.prior_bias)
        return F.softmax(logits, dim=1).flatten(2)

    def features(self, images: Tensor) -> Tensor:
        if not self.relative:
            return images
        centred = images - images.mean(dim=(2, 3), keepdim=True)
        return centred / (centred.square().mean(dim=(2, 3), keepdim=True) + 1e-4).sqrt()

    @torch.no_grad()
    def start_from_kmeans(self, images: Tensor, sharpness: float = 1.0) -> None:
        """Start at the nearest of K global k-means colours, since fresh weights use about 5 of 64.

        The negative squared distance to a colour c is 2 x.c - |c|^2 up to a term that all colours share: a linear map, added
        to the logits and not trained, beside the convolutions, which start at zero and learn what to change.

        Args:
            images: uint8 [M, H, W, 3], real ones; about 50,000 of their pixels are looked at.
            sharpness: of the softmax; 1 divides squared distances by their mean to the nearest colour.
        """
        features = self.features(normalise(images)).permute(0, 2, 3, 1).reshape(-1, 3)
        features = features[:: max(1, len(features) // 50_000)]
        # On a scale of 32 levels a standard deviation, k-means in whole numbers is exact on every device.
        levels = (features * 32 + 128).clamp(0, 255).round().to(torch.uint8)
        palettes, indices = kmeans(levels[None, :, None], self.assign.out_channels, iterations=30)
        colors = (palettes[0].float() - 128) / 32
        spread = (features - colors[indices.flatten().long()]).square().sum(dim=1).mean()
        scale = sharpness / spread.clamp(min=EPS)
        self.prior.copy_(2 * scale * colors[:, :, None, None])
        self.prior_bias.copy_(-scale * colors.square().sum(dim=1))
        self.assign.weight.zero_()


class _StandIn(torch.autograd.Function):
    """A value, bit by bit, whose gradient goes to other tensors of its shape instead."""

    @staticmethod
    def forward(ctx, value: Tensor, *carriers: Tensor) -> Tensor:
        ctx.count = len(carriers)
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient] * ctx.count


def full_colour(latents: Tensor) -> Tensor:
    """Mode "none": the 8-bit images of latents [B, 3, H, W], normalised, with the identity path."""
    return _StandIn.apply(normalise(to_uint8(latents)), latents)


def by_palette(latents: Tensor, palettes: Tensor, buckets: bool = False) -> Painted:
    """Mode "direct": indices by the nearest colour, then the palette by one Lloyd step; the gradient to x unchanged.

    A colour without a pixel moves to the pixel that is farthest from its own colour.

    Args:
        latents: [B, 3, H, W], normalised.
        palettes: uint8 [B, K, 3] of the step before.
        buckets: the gradient through the means of the colours instead; an ablation.
    """
    pixels, table = _pixels(latents.detach()), _pixels(normalise(palettes[:, :, None]))
    distances = torch.baddbmm(table.square().sum(dim=2)[:, None], pixels, table.transpose(1, 2), alpha=-2)
    nearest, indices = distances.min(dim=2)
    one_hot = F.one_hot(indices, table.shape[1]).to(pixels.dtype)
    means, counts = _means(pixels, one_hot)
    far = (nearest + pixels.square().sum(dim=2)).topk(min(table.shape[1], pixels.shape[1]), dim=1).indices
    turn = ((counts == 0).cumsum(dim=1) - 1).clamp(0, far.shape[1] - 1)
    spare = pixels.gather(1, far.gather(1, turn)[:, :, None].expand(-1, -1, 3))
    stored = _stored_palettes(torch.where(counts[:, :, None] > 0, means, spare))
    carrier = latents
    if buckets:
        carrier = _images(_means(_pixels(latents), one_hot)[0].gather(1, _triples(indices)), latents)
    return _painted(stored, indices, [carrier], None)


def by_network(latents: Tensor, network: PaletteNetwork, task_weight: float, soft: bool = False) -> Painted:
    """Mode "network": indices by the network's arg max, each colour the mean of its pixels.

    The gradient reaches the latents unchanged, and through the soft image sum_k m_k p_k, times `task_weight`, the network.

    Args:
        latents: [B, 3, H, W], normalised.
        soft: the paper's form instead: the soft image itself is seen, and carries the gradient to both.
    """
    maps = network(latents.detach())
    indices = maps.argmax(dim=1)
    one_hot = F.one_hot(indices, maps.shape[1]).to(maps.dtype)
    means, counts = _means(_pixels(latents.detach()), one_hot)
    stored = _stored_palettes(means) * (counts > 0)[:, :, None]
    to_network = task_weight * soft_image(latents.detach(), maps)
    if soft:
        frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
        to_latents = soft_image(latents, functional_call(network, frozen, (latents,)))
        image = _StandIn.apply(to_latents.detach(), to_latents, to_network)
        return Painted(image, stored, indices.to(torch.uint8).view(len(latents), *latents.shape[2:]), maps)
    return _painted(stored, indices, [latents, to_network], maps)


def soft_image(images: Tensor, maps: Tensor) -> Tensor:
    """sum_k m_k p_k with p_k = sum_ij x m_k / (sum_ij m_k + eps): images [B, 3, H, W] and maps [B, K, H * W]."""
    palettes = maps @ _pixels(images) / (maps.sum(dim=2, keepdim=True) + EPS)
    return _images(maps.transpose(1, 2) @ palettes, images)


def _pixels(images: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, H * W, 3]."""
    return images.flatten(2).transpose(1, 2)


def _images(pixels: Tensor, like: Tensor) -> Tensor:
    return pixels.transpose(1, 2).reshape(like.shape)


def _triples(indices: Tensor) -> Tensor:
    return indices[:, :, None].expand(-1, -1, 3)


def _means(pixels: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Mean colours [B, K, 3] and pixel counts [B, K] of pixels [B, N, 3] assigned by [B, N, K]."""
    counts = one_hot.sum(dim=1)
    return one_hot.transpose(1, 2) @ pixels / counts.clamp(min=1)[:, :, None], counts


def _stored_palettes(colors: Tensor) -> Tensor:
    """Normalised [B, K, 3] to uint8 [B, K, 3]."""
    return to_uint8(colors.transpose(1, 2)[..., None])[:, :, 0]


def _painted(palettes: Tensor, indices: Tensor, carriers: list[Tensor], maps: Tensor | None) -> Painted:
    """The stored images of palettes uint8 [B, K, 3] and indices int64 [B, H * W], with the gradient to the carriers."""
    colors = normalise(palettes[:, :, None])[..., 0]  # [B, 3, K]
    images = colors.gather(2, indices[:, None].expand(-1, 3, -1)).view_as(carriers[0])
    side = carriers[0].shape[2:]
    return Painted(_StandIn.apply(images, *carriers), palettes, indices.to(torch.uint8).view(len(indices), *side), maps)
