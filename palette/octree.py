"""The octree quantiser (Gervautz and Purgathofer, A simple method for color quantization, 1988), vectorised over images."""

import torch

from palette.quantize import Array, as_tensor, check_images, like, mean_colours


def octree(images: Array, colors: int) -> tuple[Array, Array]:
    """Colours that agree in their leading bits are merged until at most K are left.

    The tree halves red, green and blue at each of its 8 levels. The lowest nodes are merged first, and of a level those of
    the fewest pixels (ties: the darker). A node takes all its leaves at once, up to eight, so that an image often has fewer
    than K colours.

    Args:
        images: uint8 [B, H, W, 3].
        colors: K, from 1 to 256.

    Returns:
        palettes uint8 [B, K, 3], the means of the merged pixels in the tree's order, zeros after the last one used, and
        indices uint8 [B, H, W]. Lossless for an image of at most K colours.

    Raises:
        ValueError: images of another type or shape, or colors outside 1 to 256.
    """
    check_images(images, colors)
    pixels = as_tensor(images).reshape(len(images), -1, 3)
    count, size = pixels.shape[:2]
    places = (torch.arange(count, device=pixels.device)[:, None] << 24) + _places(pixels)
    leaves, leaf_of_pixel, population = places.flatten().unique(return_inverse=True, return_counts=True)
    for level in range(7, -1, -1):  # of the nodes: those of level 7 halve each channel 7 times
        leaves, leaf = _merge(leaves, population, 24 - 3 * level, count, colors)
        leaf_of_pixel = leaf[leaf_of_pixel]
        population = torch.zeros_like(leaves).scatter_add_(0, leaf, population)
    first = torch.searchsorted(leaves, torch.arange(count, device=pixels.device) << 24)
    indices = (leaf_of_pixel.reshape(count, size) - first[:, None]).to(torch.uint8)
    palettes = mean_colours(pixels, indices, colors)
    return like(palettes, images), like(indices.reshape(images.shape[:3]), images)


def _places(pixels: torch.Tensor) -> torch.Tensor:
    """The bits of red, green and blue in turn, the leading ones first: int64 [B, P], 24 bits."""
    values, places = pixels.long(), 0
    for bit in range(8):
        for channel in range(3):
            places = places | (values[:, :, channel] >> bit & 1) << (3 * bit + 2 - channel)
    return places


def _merge(leaves, population, shift: int, count: int, colors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge nodes of one level while an image has too many leaves: the leaves that are left, and where each old one went."""
    image = leaves >> 24
    surplus = torch.bincount(image, minlength=count) - colors
    nodes, node_of_leaf, children = (leaves >> shift).unique_consecutive(return_inverse=True, return_counts=True)
    pixels = torch.zeros_like(nodes).scatter_add_(0, node_of_leaf, population)
    owner = nodes >> (24 - shift)
    order = pixels.argsort(stable=True)
    order = order[owner[order].argsort(stable=True)]  # by image, then pixels, then place
    saved = (children - 1)[order].cumsum(dim=0) - (children - 1)[order]  # by the nodes before, of all images
    before = torch.searchsorted(owner[order], torch.arange(count, device=leaves.device))
    saved = saved - saved[before.clamp(max=len(saved) - 1)][owner[order]]
    merged = torch.zeros(len(nodes), dtype=torch.bool, device=leaves.device)
    merged[order] = saved < surplus[owner[order]]
    kept = torch.where(merged[node_of_leaf], nodes[node_of_leaf] << shift, leaves)
    return kept.unique_consecutive(return_inverse=True)
