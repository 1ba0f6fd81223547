"""Sets of images in a budget of bytes: what WebP, JPEG and palettes cost in one compact container, and how many images fit.

Everything is counted as in palette.codec's container: its header, class names and checksum, a label an image. Lossy images are
stored at their best: what their files have in common (JPEG's tables and headers; WebP's RIFF, chunk and frame headers) once, and
two bytes an image for its length.
"""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adq.images import decode
from palette.codec import HEADER, encode
from palette.octree import octree
from palette.quantize import kmeans, median_cut, paint

if TYPE_CHECKING:
    from tests.bench.palettes import Bench

QUANTISERS = {"median_cut": median_cut, "kmeans": kmeans, "octree": octree}
QUALITIES = (5, 10, 20, 35, 50, 65, 80, 90, 95)
MORE = (1, 2, 3, 4, 6)  # times as many images, in none+webp@bytes
LENGTH, CHECKSUM = 2, 4  # bytes
WEBP_SHARED = 27  # RIFF and chunk headers, 20; start code and sides in the frame header, 7


def at_equal_bytes(bench: "Bench", source: str, kind: str, rule: str, colors: int) -> tuple[Tensor, int, dict]:
    """Images of the runs that get the payload bytes of "direct" in K colours, their bytes, and what else is to be told."""
    budget = bench.budget(colors)
    if kind in QUANTISERS and source == "random":

        def payload(count: int) -> int:
            return quantised(bench, source, kind, colors, count)[1]

        images, used = quantised(bench, source, kind, colors, max(1, most_that_fit(payload, bench.most, budget)))
        extra = {}
    elif kind not in ("webp", "jpeg") or (rule and source != "none"):
        raise ValueError("@bytes goes with random+median_cut, random+kmeans, random+octree, none+webp and none+jpeg")
    elif source == "random":
        images, used, extra = _real_images(bench, kind, budget)
    else:
        images, used, extra = _distilled_images(bench, kind, budget, MORE if rule else (1,))
    if used > budget or not len(images):
        raise ValueError(f"not one image a class as {kind} fits in {budget:,} bytes")
    return images, used, {"budget": budget} | extra


def quantised(bench: "Bench", source: str, kind: str, colors: int, count: int) -> tuple[Tensor, int]:
    """Real or distilled images, `count` a class, after a quantiser, and their bytes."""
    palettes, indices = QUANTISERS[kind](bench.plain(source, count), colors)
    return paint(palettes, indices), palette_bytes(palettes, indices, bench.classes)


def _real_images(bench: "Bench", kind: str, budget: int) -> tuple[Tensor, int, dict]:
    """As many as fit, of the best quality. Images that judge the qualities train no candidate."""
    train = ~bench.judges
    among = bench.start(int(bench.labels[train].bincount()[bench.classes].min()), train)
    candidates = [(lossy(among, kind, quality, bench.classes, budget)[0], quality) for quality in QUALITIES]
    candidates = [candidate for candidate in candidates if len(candidate[0])]
    quality = bench.best(candidates) if candidates else QUALITIES[0]
    return *lossy(bench.start(bench.most), kind, quality, bench.classes, budget), {"quality": quality}


def _distilled_images(bench: "Bench", kind: str, budget: int, times: Sequence[int]) -> tuple[Tensor, int, dict]:
    """The best quality at which all fit, of the lowest as many as fit; of several numbers of images, the best."""
    found = {}
    for factor in times:
        given = bench.full_colour(factor * bench.wanted.images_per_class)
        for quality in reversed(QUALITIES):
            images, used = lossy(given, kind, quality, bench.classes, budget)
            if len(images) == len(given):
                break
        if found and len(images) < len(given):
            break
        found[factor] = images, used, {"quality": quality}
    chosen = bench.best([(images, factor) for factor, (images, _, _) in found.items()]) if len(found) > 1 else times[0]
    return found[chosen]


def compressed(image: np.ndarray, kind: str, quality: int) -> tuple[np.ndarray, int]:
    """An image after a lossy codec, and the bytes that are its own, without `shared_bytes`."""
    file = _file(image, kind, quality)
    if kind == "webp":
        if file[12:16] != b"VP8 " or file[23:26] != b"\x9d\x01\x2a":
            raise ValueError("no simple WebP file: what all files share is not known")
        return np.asarray(decode(file)), len(file) - WEBP_SHARED + LENGTH
    scan = len(file) - _head(file) - 2  # without the end marker
    return np.asarray(decode(_jpeg_tables(quality)[:-2] + file[2:])), scan + LENGTH


def shared_bytes(kind: str, quality: int) -> int:
    """What all images of a kind, quality and size have in common."""
    if kind == "webp":
        return WEBP_SHARED
    # The tables are a file between a start and an end marker of two bytes each.
    return len(_jpeg_tables(quality)) - 4 + _head(_file(np.zeros((8, 8, 3), np.uint8), kind, quality))


def around(count: int, classes: Sequence[int]) -> int:
    """The bytes of a container around the images: header, class names, labels, checksum."""
    labels = count * (1 if len(classes) <= 256 else 2)
    return HEADER.size + sum(2 + len(str(label)) for label in classes) + labels + CHECKSUM


def palette_bytes(palettes: Tensor, indices: Tensor, classes: Sequence[int]) -> int:
    """The container of images in the order of their classes, the same number of each."""
    labels = np.repeat(np.arange(len(classes)), len(indices) // len(classes))
    return len(encode(palettes.numpy(), indices.numpy(), labels, [str(label) for label in classes]))


def lossy(images: Tensor, kind: str, quality: int, classes: Sequence[int], budget: int) -> tuple[Tensor, int]:
    """Images after a lossy codec, as many as fit: of every class the same number, the first ones.

    Args:
        images: uint8 [C * n, S, S, 3], class by class.

    Returns:
        Images [C * m, S, S, 3] with m at most n, and perhaps 0, and their bytes.
    """
    rounds = images.unflatten(0, (len(classes), -1)).transpose(0, 1).numpy()
    kept, used = [], around(0, classes) + shared_bytes(kind, quality)
    labels = around(len(classes), classes) - around(0, classes)
    for one_each in rounds:
        parts = [compressed(image, kind, quality) for image in one_each]
        more = labels + sum(size for _, size in parts)
        if used + more > budget:
            break
        kept.append(np.stack([image for image, _ in parts]))
        used += more
    if not kept:
        return images[:0], used
    return torch.from_numpy(np.stack(kept, axis=1)).flatten(0, 1), used


def most_that_fit(bytes_of: Callable[[int], int], most: int, budget: int) -> int:
    """The largest count up to `most` whose bytes, which grow with it, are within the budget; 0 where there is none."""
    low, high = 0, 1
    while high <= most and bytes_of(high) <= budget:
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bytes_of(middle) <= budget else (low, middle)
    return low


def _file(image: np.ndarray, kind: str, quality: int) -> bytes:
    out = io.BytesIO()
    if kind == "webp":
        Image.fromarray(image).save(out, "WEBP", quality=quality, method=6)
    else:
        Image.fromarray(image).save(out, "JPEG", quality=quality, streamtype=2)
    return out.getvalue()


def _jpeg_tables(quality: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", quality=quality, streamtype=1)
    return out.getvalue()


def _head(file: bytes) -> int:
    """Where the scan of a JPEG file begins."""
    at = 2
    while file[at + 1] != 0xDA:
        at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(file[at + 2 : at + 4], "big")
