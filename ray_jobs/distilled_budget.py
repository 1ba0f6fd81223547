"""--bytes-per-class: how many synthetic images a class are distilled for it, and how many of them fit in the end.

What an image takes is known when it is distilled. Before, real images in as many colours say about what it will be; where that was
too little, the last images of every class are left out, so that the budget is kept for sure.
"""

from collections.abc import Sequence

import numpy as np

from adq.extractor import InputTransform
from palette.codec import HEADER, encode, images_in_budget, payload_bytes
from palette.quantize import median_cut
from ray_jobs.distilled_set import DistilledSet, containers, images_in_container
from ray_jobs.ingest import Index
from ray_jobs.loading import open_set

CHECKSUM = 4
MORE = 8  # bytes an image of pure noise takes beyond `payload_bytes`, its label of one or two bytes among them
SAMPLED = 200  # real images, about
# Distilled from real ones, in 4 to 64 colours, images took 0.9 to 1.2 times what real ones take after median cut
# (tests/bench/results/palettes.jsonl).
NOISIER = 1.05


def surely(budget: int, side: int, colors: int, classes: Sequence[str], soft: bool) -> int:
    """Images a class whose containers surely take no more than `budget` bytes a class, names and labels counted.

    Raises:
        ValueError: the budget is too small for one image a class; says what one costs.
    """
    label, frame = _label(classes, soft), _frame(classes)
    count = found = 1
    for _ in range(2):  # the second time with as many frames as the first needs
        found = images_in_budget(max(0, budget - -(-count * frame // len(classes))), side, side, colors, label)
        count = max(1, -(-found * len(classes) // images_in_container(side, colors)))
    if found < 1:
        image = payload_bytes(side, side, colors) + label
        raise ValueError(
            f"--bytes-per-class {budget}: an image of {side} x {side} pixels in {colors} colours takes up to {image} bytes with "
            f"its label, header and class names {frame} bytes of the whole; give at least {image + -(-frame // len(classes))}"
        )
    return found


def probably(
    budget: int, index: Index, transform: InputTransform, colors: int, soft: bool, leave_out: bool = False
) -> int:
    """Images a class that probably fit, never fewer than surely do: by what real images in as many colours take.

    Raises:
        ValueError: as `surely`; images that cannot be decoded.
    """
    classes, side = index.classes, transform.crop
    least = surely(budget, side, colors, classes, soft)
    sampled = min(SAMPLED, index.images, images_in_container(side, colors))
    rows = np.arange(sampled) * index.images // sampled
    held = open_set(index, transform, "decoded", 1, leave_out, rows)
    palettes, indices = median_cut(held.images.images.permute(0, 2, 3, 1).contiguous().numpy(), colors)
    taken = len(encode(palettes, indices, held.labels.astype(np.int64), classes)) - _frame(classes)
    each = NOISIER * taken / len(held.labels) + _label(classes, soft) - MORE
    count = least
    for _ in range(2):  # as in `surely`
        frames = max(1, -(-count * len(classes) // images_in_container(side, colors)))
        count = max(least, int((budget - frames * _frame(classes) / len(classes)) / each))
    return count


def fitting(found: DistilledSet, classes: Sequence[str], budget: int) -> DistilledSet:
    """As many of the first images of every class as containers of `budget` bytes in all hold.

    Raises:
        ValueError: not even one.
    """

    def size(count: int) -> int:
        return sum(len(data) for _, data, _ in containers(found.first(count), classes))

    most = int(np.bincount(found.labels).max())
    if size(most) <= budget:
        return found
    low, high = 0, most  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    if not low:
        raise ValueError(f"one image a class takes {size(1):,} bytes, more than the {budget:,} that there are")
    return found.first(low)


def _label(classes: Sequence[str], soft: bool) -> int:
    return MORE + (2 * len(classes) if soft else 0)


def _frame(classes: Sequence[str]) -> int:
    """Bytes of a container without any image."""
    return HEADER.size + sum(2 + len(name.encode()) for name in classes) + CHECKSUM
