"""Adaptive numbers of colours: each image, or each class, gets its own K, all under one budget of bytes.

The future work of AutoPalette (Yuan et al., NeurIPS 2024): what each image costs and loses in each number of colours, the
allocation of the bytes by both (`palette.allocation`), and the container that comes of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from palette.allocation import allocate, least_rate
from palette.codec import check_set, encode
from palette.entropy import BITS, STRENGTH, Model
from palette.prediction import RANK_CONTEXTS, canonical, write_indices, write_palettes
from palette.quantize import check_images, kmeans, paint

Quantiser = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # an image does not see its batch
Quantised = tuple[np.ndarray, np.ndarray]  # palettes uint8 [N, K, 3], indices uint8 [N, H, W]
Written = tuple[int, np.ndarray]  # the bytes of a container, and the choices in it

COLORS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
STATE = 3.0  # bytes of a lane's state that say nothing: it begins at 2^16, and ends on average 8 bits short of full
NO_LESS = 1 / 12  # a squared error a sample, that of rounding to 8 bits: the PSNR of an image that is exact
CLOSE = 1e-3  # a search ends with this share of the budget left, or less
TRIES = 16  # containers that a search writes at most


def rates_and_distortions(
    images: np.ndarray, colors: Sequence[int], quantiser: Quantiser = kmeans, mix: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What each image costs, and loses, in each number of colours.

    The images of a container share models that learn from all of them, so that an image has no size of its own. Its rate is the
    ideal length of its symbols under such models: without `mix`, those of a container of all images in the same number of
    colours; with it, those that the images chosen there teach, a lesson whose bytes all images share alike. A container has
    `overhead` bytes more than the rates of its images. On CIFAR-10 a mixed container is 1 to 3 % above the rates without `mix`,
    and within 0.3 % of those with it (tests.bench.adaptive_colors).

    Args:
        images: uint8 [N, H, W, 3].
        colors: M numbers of colours, from 1 to 256.
        mix: int [N], places in `colors`: an allocation close to the one that is looked for.

    Returns:
        rates float64 [N, M], bytes; distortions float64 [N, M], squared error in RGB summed over pixels and channels.

    Raises:
        ValueError: images or colours that the quantiser does not take, no colours, or a mix of another shape or beyond them.
    """
    images, variants = np.asarray(images), _variants(images, colors, quantiser)
    if mix is not None:
        mix = np.asarray(mix)
        if mix.dtype.kind not in "iu" or mix.shape != (len(images),) or mix.min() < 0 or mix.max() >= len(colors):
            raise ValueError(
                f"mix is {mix.dtype} {list(mix.shape)}; expected places in {len(colors)} colours [{len(images)}]"
            )
    return _rates(variants, mix), _distortions(images, variants)


def palettize(images: np.ndarray, colors_of: np.ndarray, quantiser: Quantiser = kmeans) -> Quantised:
    """Images in different numbers of colours, as `palette.codec.encode` takes them: it stores no colour that is not used.

    Args:
        images: uint8 [N, H, W, 3].
        colors_of: int [N], each image's number of colours, from 1 to 256.

    Returns:
        palettes uint8 [N, the largest number, 3], zeros after an image's own colours; indices uint8 [N, H, W].

    Raises:
        ValueError: images or colours that the quantiser does not take, or not one number for each image.
    """
    check_images(images)
    images, colors_of = np.asarray(images), np.asarray(colors_of)
    if colors_of.dtype.kind not in "iu" or colors_of.shape != (len(images),):
        raise ValueError(
            f"numbers of colours are {colors_of.dtype} {list(colors_of.shape)}; expected integers [{len(images)}]"
        )
    each = ((k, np.flatnonzero(colors_of == k)) for k in np.unique(colors_of).tolist())
    return _joined(len(images), ((rows, quantiser(images[rows], k)) for k, rows in each))


def adaptive(
    images: np.ndarray,
    budget_bytes: int,
    labels: np.ndarray,
    classes: Sequence[str],
    quantiser: Quantiser = kmeans,
    colors: Sequence[int] = COLORS,
    by: str = "image",
    goal: str = "error",
) -> tuple[np.ndarray, np.ndarray, int]:
    """The images in as many colours each as makes a container of at most `budget_bytes` the best.

    The bytes are those of `palette.codec.encode`, written as often as it takes to come close: at most a thousandth of the budget
    is left, or less than a step costs, unless all images have their best. Never worse than one number of colours for all.

    Args:
        images: uint8 [N, H, W, 3].
        labels, classes: as `encode` takes them; they are part of the bytes.
        colors: the numbers of colours to choose from.
        by: "image", or "class": one number for all images of a class (of soft labels, the likeliest).
        goal: "error", the least squared error of all images together, which spends bytes where there is most to gain; or "psnr",
            the largest mean of their PSNR, which counts a decibel of an easy image as much as one of a hard one.

    Returns:
        palettes uint8 [N, Kmax, 3], indices uint8 [N, H, W], and the bytes of their container.

    Raises:
        ValueError: what `encode` or the quantiser does not take, an unknown `by` or `goal`, or a budget that the smallest choice
            exceeds: says what it needs.
    """
    if by not in ("image", "class") or goal not in ("error", "psnr"):
        raise ValueError(f"by {by!r}, goal {goal!r}: expected by image or class, for error or psnr")
    check_images(images)
    images, blank = np.asarray(images), np.zeros((len(images), max(colors, default=0), 3), np.uint8)
    _, _, labels = check_set(blank, np.zeros(images.shape[:3], np.uint8), labels, classes)
    variants = _variants(images, colors, quantiser)
    room = budget_bytes - overhead(labels, classes)
    groups = None if by == "image" else labels if labels.ndim == 1 else labels.argmax(axis=1)
    distortions = _distortions(images, variants)
    if goal == "psnr":
        distortions = 10 * np.log10(np.maximum(distortions / images[0].size, NO_LESS))
    rates = _rates(variants)
    rates = _rates(variants, allocate(rates, distortions, max(room, least_rate(rates, groups)), groups))

    def container(budget: float) -> Written:
        choice = allocate(rates, distortions, budget, groups)
        return len(encode(*_chosen(variants, choice), labels, classes)), choice

    used, choice = _fill(container, budget_bytes, least_rate(rates, groups), rates.max(axis=1).sum() + 1, room)
    every = np.arange(len(images))
    # Where groups are few, and steps large, one number for all may be better.
    for place in rates.sum(axis=0).argsort(kind="stable"):
        if distortions[:, place].sum() < distortions[every, choice].sum():
            size = len(encode(*variants[place], labels, classes))
            if size > budget_bytes:
                break
            used, choice = size, np.full_like(choice, place)
    return *_chosen(variants, choice), used


def overhead(labels: np.ndarray, classes: Sequence[str]) -> int:
    """The bytes of a container that belong to no image: header, names, labels, checksum. Raises ValueError as `encode`."""
    palettes, indices = np.zeros((len(labels), 1, 3), np.uint8), np.zeros((len(labels), 1, 1), np.uint8)
    return len(encode(palettes, indices, labels, classes)) - 4 * len(labels)


def _fill(container: Callable[[float], Written], limit: int, least: float, most: float, guess: float) -> Written:
    """The best container within `limit` bytes that is found for budgets in [least, most].

    A container is about as far from its prediction as the one before it: the next budget makes up for that, or halves the
    interval where that leads out of it.
    """
    best, low, high, failed = None, least, most, False
    for _ in range(TRIES):
        guess = min(max(guess, low), high)
        used, choice = container(guess)
        if used <= limit:
            best, low = (used, choice), guess
            if limit - used <= CLOSE * limit or guess == most:
                break
        else:
            high, failed = guess, True
        if high - low < 1 or (best is None and guess == least):
            break
        guess += limit - used
        if (best is not None and guess <= low) or (failed and guess >= high):
            guess = (low + high) / 2
    best = best or container(least)
    if best[0] > limit:
        raise ValueError(
            f"the images take {best[0]:,} bytes in the fewest colours, more than {limit:,}: raise the budget, give fewer "
            "colours to choose from, or take fewer images"
        )
    return best


def _variants(images: np.ndarray, colors: Sequence[int], quantiser: Quantiser) -> list[Quantised]:
    """All images in each number of colours."""
    if not len(colors):
        raise ValueError("no numbers of colours to choose from")
    return [quantiser(images, k) for k in colors]


def _chosen(variants: Sequence[Quantised], choice: np.ndarray) -> Quantised:
    each = ((np.flatnonzero(choice == place), variants[place]) for place in np.unique(choice))
    return _joined(len(choice), ((rows, (palettes[rows], indices[rows])) for rows, (palettes, indices) in each))


def _joined(images: int, parts: Iterable[tuple[np.ndarray, Quantised]]) -> Quantised:
    """One set of parts that are quantised apart, each with the rows int [n] of its images."""
    parts = list(parts)
    most, (_, (_, first)) = max(palettes.shape[1] for _, (palettes, _) in parts), parts[0]
    together = np.zeros((images, most, 3), np.uint8), np.empty((images, *first.shape[1:]), np.uint8)
    for rows, (palettes, indices) in parts:
        together[0][rows, : palettes.shape[1]], together[1][rows] = palettes, indices
    return together


def _distortions(images: np.ndarray, variants: Sequence[Quantised]) -> np.ndarray:
    given = images.astype(np.int32)
    errors = [((paint(*variant) - given) ** 2).sum(axis=(1, 2, 3), dtype=np.int64) for variant in variants]
    return np.stack(errors, axis=1).astype(np.float64)


def _rates(variants: Sequence[Quantised], mix: np.ndarray | None = None) -> np.ndarray:
    """As rates_and_distortions."""
    if mix is None:
        return np.stack([_metered(variant).bits for variant in variants], axis=1) / 8 + STATE
    taught = _metered(_chosen(variants, mix))
    most = max(palettes.shape[1] for palettes, _ in variants)
    prices = {len(n): _prices(n, most if len(n) == RANK_CONTEXTS else n.shape[1]) for n in taught.counts.values()}
    teaching = taught.bits.sum() - sum((n * prices[len(n)][:, : n.shape[1]]).sum() for n in taught.counts.values())
    bits = np.stack([_metered(variant, prices).bits for variant in variants], axis=1)
    return (bits + teaching / len(mix)) / 8 + STATE


class _Meter:
    """In place of an Encoder: the lengths of what is put, instead of bytes.

    Args:
        lanes: images. prices: by the contexts that a model has, bits [contexts, alphabet]; none: those of the model as it learns.
    """

    def __init__(self, lanes: int, prices: Mapping[int, np.ndarray] | None):
        self.bits, self.prices = np.zeros(lanes), prices
        self.counts: dict[
            int, np.ndarray
        ] = {}  # by contexts, of each symbol in each; the models' own are halved at times

    def put(self, model: Model, lanes: np.ndarray, contexts: np.ndarray, symbols: np.ndarray) -> None:
        size, shape = len(model.counts), model.counts.shape
        if self.prices is not None:
            self.bits[lanes] += self.prices[size][contexts, symbols]
            return
        self.bits[lanes] += BITS - np.log2(model.frequencies()[0][contexts, symbols])
        seen = np.bincount(contexts * model.alphabet + symbols, minlength=model.counts.size).reshape(shape)
        self.counts[size] = self.counts.get(size, 0) + seen
        model.learn(contexts, symbols)


def _metered(quantised: Quantised, prices: Mapping[int, np.ndarray] | None = None) -> _Meter:
    palettes, indices, sizes = canonical(*quantised)
    meter = _Meter(len(palettes), prices)
    write_palettes(meter, palettes, sizes)
    write_indices(meter, palettes, indices, sizes)
    return meter


def _prices(counts: np.ndarray, alphabet: int) -> np.ndarray:
    """Bits of each symbol, float64 [contexts, alphabet], under a model (see palette.entropy) that has seen `counts`."""
    counts = np.pad(counts, ((0, 0), (0, alphabet - counts.shape[1])))
    every = Model(len(counts), alphabet).prior + counts.sum(axis=0)
    shares = (counts + STRENGTH * every / every.sum()) / (counts.sum(axis=1, keepdims=True) + STRENGTH)
    return BITS - np.log2(1 + shares * ((1 << BITS) - alphabet))
