"""Images to palettes and indices, and back: median cut, k-means, nearest colours. The octree is in palette/octree.py.

All arithmetic is on whole numbers, exact on any device, and no image sees its neighbours: the same result for a batch at once
and one by one. Tensors and NumPy arrays are taken alike; the result is of the kind of the first argument, on its device.
"""

import numpy as np
import torch

Array = np.ndarray | torch.Tensor
LARGEST = 1 << 24  # distances of pixels to colours that are held at once: 64 MB


def median_cut(images: Array, colors: int) -> tuple[Array, Array]:
    """Heckbert's median cut in RGB (Color image quantization for frame buffer display, SIGGRAPH 1982).

    Among the boxes of an image, the one of the largest population * range (its widest channel's; ties: the older box) is cut at
    the median of that channel (ties: red, then green), colors - 1 times. A box's colour is the mean of its pixels. The cut lies
    between two values, whichever side of the median leaves the halves closer in number.

    Args:
        images: uint8 [B, H, W, 3].
        colors: K, from 1 to 256.

    Returns:
        palettes uint8 [B, K, 3], zeros after the last colour used, and indices uint8 [B, H, W]. Lossless for an image of at most K
        colours.

    Raises:
        ValueError: images of another type or shape, or colors outside 1 to 256.
    """
    check_images(images, colors)
    pixels = as_tensor(images).reshape(len(images), -1, 3)
    count, size = pixels.shape[:2]
    boxes = torch.zeros(count, size, dtype=torch.int16, device=pixels.device)
    every = torch.arange(count, device=pixels.device)
    population = torch.zeros(count, colors, dtype=torch.int64, device=pixels.device)
    spread = torch.zeros(count, colors, 3, dtype=torch.int64, device=pixels.device)
    population[:, 0] = size
    spread[:, 0] = pixels.amax(dim=1).long() - pixels.amin(dim=1).long()
    for new in range(1, colors):
        range_, channel = first_max(spread)
        worth, box = first_max(population * range_)
        if not worth.any():
            break
        chosen = torch.where(worth > 0, box, colors).to(boxes.dtype)
        image, pixel = (boxes == chosen[:, None]).nonzero().T
        values = pixels[image, pixel]
        along = values.gather(1, channel[every, box][image, None])[:, 0].long()
        upper = along > _median(along, image, count)[image]
        boxes[image[upper], pixel[upper]] = new
        cut = worth > 0
        _measure(values, image, upper, cut, (population, spread), torch.stack([box, torch.full_like(box, new)], dim=1))
    palettes, indices = mean_colours(pixels, boxes, colors), boxes.to(torch.uint8).reshape(images.shape[:3])
    return like(palettes, images), like(indices, images)


def _median(values: torch.Tensor, image: torch.Tensor, count: int) -> torch.Tensor:
    """[count], the last value of the lower half, for pixels with these values (not all equal) in these images."""
    below = torch.bincount(image * 256 + values, minlength=count * 256).reshape(count, 256).cumsum(dim=1)
    total = below[:, -1:]
    # Both halves must hold something; of all other cuts, the one nearest to the middle, the lowest of two.
    distance = torch.where((below > 0) & (below < total), (2 * below - total).abs(), 1 << 40)
    return first_max(-distance)[1]


def _measure(values, image, upper, cut, boxes, numbers) -> None:
    """Population and range of the two halves of a cut, written to their `numbers` [B, 2] in the tables of all boxes."""
    count = len(cut)
    half = image * 2 + upper
    size = torch.bincount(half, minlength=2 * count).reshape(count, 2)
    where, values = half[:, None].expand(-1, 3), values.long()
    empty = torch.zeros(2 * count, 3, dtype=torch.int64, device=values.device)
    low = empty.scatter_reduce(0, where, values, "amin", include_self=False)
    high = empty.scatter_reduce(0, where, values, "amax", include_self=False)
    rows = cut.nonzero()[:, 0, None]
    population, spread = boxes
    population[rows, numbers[cut]] = size[cut]
    spread[rows, numbers[cut]] = (high - low).reshape(count, 2, 3)[cut]


def kmeans(images: Array, colors: int, iterations: int = 10) -> tuple[Array, Array]:
    """Lloyd's k-means in RGB from the palette of median cut, with whole numbers as colours.

    A colour without pixels moves to the pixel that is worst off. The error never grows: the rounded mean is the
    best whole colour of a cluster.

    Args:
        images: uint8 [B, H, W, 3].
        colors: K, from 1 to 256.
        iterations: Lloyd steps, each an assignment and a new palette; with 0, median cut with every pixel at its nearest colour.

    Returns:
        palettes uint8 [B, K, 3] and indices uint8 [B, H, W] of the nearest colours.

    Raises:
        ValueError: images of another type or shape, colors outside 1 to 256, or iterations below 0.
    """
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; expected 0 or more")
    palettes = as_tensor(median_cut(images, colors)[0])
    pixels = as_tensor(images)
    for _ in range(iterations):
        before, indices = palettes, nearest(pixels, palettes)
        palettes = _lloyd(pixels, palettes, indices)
        if torch.equal(before, palettes):
            break
    return like(palettes, images), like(nearest(pixels, palettes), images)


def _lloyd(images: torch.Tensor, palettes: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    flat, pixels = indices.reshape(len(images), -1), images.reshape(len(images), -1, 3)
    means = mean_colours(pixels, flat, palettes.shape[1])
    idle = histogram(flat, palettes.shape[1]) == 0
    if not idle.any():
        return means
    errors = (paint(palettes, indices).reshape(pixels.shape).int() - pixels.int()).square().sum(dim=2)
    errors, worst = errors.sort(dim=1, descending=True, stable=True)
    turn = (idle.cumsum(dim=1) - 1).clamp(min=0, max=pixels.shape[1] - 1)  # the first idle colour, the worst pixel
    move = idle & (errors.gather(1, turn) > 0)
    there = pixels.gather(1, worst.gather(1, turn)[:, :, None].expand(-1, -1, 3))
    return torch.where(move[:, :, None], there, torch.where(idle[:, :, None], palettes, means))


def nearest(images: Array, palettes: Array) -> Array:
    """The nearest colour of each pixel in RGB, exactly; ties go to the lowest index.

    Args:
        images: uint8 [B, H, W, 3].
        palettes: uint8 [B, K, 3].

    Returns:
        indices uint8 [B, H, W].

    Raises:
        ValueError: another type or shape.
    """
    check_images(images)
    check_palettes(palettes, len(images))
    pixels, table = as_tensor(images).reshape(len(images), -1, 3), as_tensor(palettes).to(as_tensor(images).device)
    out = torch.empty(pixels.shape[:2], dtype=torch.uint8, device=pixels.device)
    count = max(1, LARGEST // table.shape[1])  # pixels, of some images or of a part of a large one
    rows = max(1, count // pixels.shape[1])
    for start in range(0, len(pixels), rows):
        some = slice(start, start + rows)
        colours = table[some].float()
        # |p|^2 - 2 x p: whole numbers below 2^24, which float32 (and TF32's products of 9 bits) holds exactly.
        squares = colours.square().sum(dim=2)[:, None]
        for first in range(0, pixels.shape[1], count):
            part = pixels[some, first : first + count].float()
            distances = torch.baddbmm(squares, part, colours.transpose(1, 2), alpha=-2)
            out[some, first : first + count] = distances.argmin(dim=2).to(torch.uint8)
    return like(out.reshape(images.shape[:3]), images)


def paint(palettes: Array, indices: Array) -> Array:
    """The images uint8 [B, H, W, 3] of palettes uint8 [B, K, 3] and indices uint8 [B, H, W].

    Raises:
        ValueError: another type or shape, or an index beyond the palette.
    """
    check_indices(indices)
    check_palettes(palettes, len(indices))
    table, where = as_tensor(palettes), as_tensor(indices).long()
    if where.numel() and int(where.max()) >= table.shape[1]:
        raise ValueError(f"an index is {int(where.max())}, but the palettes have {table.shape[1]} colours")
    rows = torch.arange(len(table), device=table.device)[:, None, None]
    return like(table[rows, where.to(table.device)], palettes)


def used_colours(indices: Array, colors: int) -> Array:
    """How many of `colors` colours each image uses: int64 [B] of indices uint8 [B, H, W].

    Raises:
        ValueError: another type or shape, colors outside 1 to 256, or an index beyond them.
    """
    check_indices(indices)
    check_colors(colors)
    flat = as_tensor(indices).reshape(len(indices), -1)
    if flat.numel() and int(flat.max()) >= colors:
        raise ValueError(f"an index is {int(flat.max())}, but there are {colors} colours")
    return like((histogram(flat, colors) > 0).sum(dim=1), indices)


def psnr(a: Array, b: Array) -> Array:
    """Peak signal-to-noise ratio of each image in dB, float64 [B], infinite for equal images.

    Args:
        a, b: uint8 [B, H, W, 3].

    Raises:
        ValueError: another type, or shapes that differ.
    """
    check_images(a)
    check_images(b)
    if a.shape != b.shape:
        raise ValueError(f"images of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
    difference = as_tensor(a).long() - as_tensor(b).to(as_tensor(a).device).long()
    error = difference.square().sum(dim=(1, 2, 3)).double() / difference[0].numel()
    return like(10 * torch.log10(255**2 / error), a)


def check_colors(colors: int) -> None:
    if not isinstance(colors, int | np.integer) or not 1 <= colors <= 256:
        raise ValueError(f"colors is {colors!r}; expected a whole number from 1 to 256")


def check_images(images: Array, colors: int = 1) -> None:
    _check(images, "images", "[B, H, W, 3]", 4)
    if images.shape[3] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected [B, H, W, 3], the channels last")
    check_colors(colors)


def check_indices(indices: Array) -> None:
    _check(indices, "indices", "[B, H, W]", 3)


def check_palettes(palettes: Array, count: int) -> None:
    _check(palettes, "palettes", "[B, K, 3]", 3)
    if palettes.shape[2] != 3 or len(palettes) != count or palettes.shape[1] > 256:
        raise ValueError(f"palettes have shape {tuple(palettes.shape)}; expected [{count}, K, 3] with K from 1 to 256")


def _check(array: Array, name: str, shape: str, axes: int) -> None:
    if not isinstance(array, np.ndarray | torch.Tensor) or str(array.dtype).removeprefix("torch.") != "uint8":
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name} are {kind}; expected a uint8 tensor or NumPy array {shape}")
    if array.ndim != axes or 0 in array.shape:
        raise ValueError(f"{name} have shape {tuple(array.shape)}; expected {shape}, none of them 0")


def first_max(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest along the last dimension, and the first place where it is."""
    return values.amax(dim=-1), values.argmax(dim=-1)


def histogram(flat: torch.Tensor, colors: int) -> torch.Tensor:
    """Pixels of each colour: int64 [B, K] of indices uint8 [B, P]."""
    rows = torch.arange(len(flat), device=flat.device)[:, None] * colors
    return torch.bincount((rows + flat.long()).flatten(), minlength=len(flat) * colors).reshape(len(flat), colors)


def mean_colours(pixels: torch.Tensor, flat: torch.Tensor, colors: int) -> torch.Tensor:
    """The mean of the pixels of each colour, rounded half up: uint8 [B, K, 3]; zeros where there are none.

    Args:
        pixels: uint8 [B, P, 3]. flat: indices uint8 [B, P].
    """
    rows = torch.arange(len(flat), device=flat.device)[:, None] * colors
    sums = torch.zeros(len(flat) * colors, 3, dtype=torch.int64, device=flat.device)
    sums.index_add_(0, (rows + flat.long()).flatten(), pixels.reshape(-1, 3).long())
    sizes = histogram(flat, colors).reshape(-1, 1)
    means = torch.div(2 * sums + sizes, (2 * sizes).clamp(min=1), rounding_mode="floor")
    return means.to(torch.uint8).reshape(len(flat), colors, 3)


def as_tensor(array: Array) -> torch.Tensor:
    """A tensor of an array or a tensor; `like` goes back."""
    return torch.from_numpy(np.require(array, requirements="CW")) if isinstance(array, np.ndarray) else array


def like(result: torch.Tensor, given: Array) -> Array:
    """`result` as an array where `given` is one."""
    return result.numpy() if isinstance(given, np.ndarray) else result
