"""Adaptive numbers of colours: the allocation against brute force, rates against real containers, and budgets that are kept."""

import numpy as np
import pytest

from palette.adaptive import COLORS, NO_LESS, adaptive, overhead, palettize, rates_and_distortions
from palette.allocation import allocate
from palette.codec import decode, encode
from palette.quantize import kmeans, median_cut, paint, used_colours
from tests.palette.images import cifar10, few_colours, noise

CLASSES = ["plain", "rough"]


def centres(count: int) -> np.ndarray:
    """Real images, 16 pixels a side."""
    return np.ascontiguousarray(cifar10(count)[:, 8:24, 8:24])


def mixed_set() -> tuple[np.ndarray, np.ndarray]:
    """Images that gain nothing beyond 3 colours, and smooth ones that gain from each; their labels."""
    ramp = np.linspace(0, 255, 10)
    smooth = np.stack([np.stack(np.meshgrid(ramp, ramp[::-1]), axis=-1) * s for s in (0.6, 0.8, 0.9, 1.0)])
    smooth = np.concatenate([smooth, np.full((4, 10, 10, 1), 90.0)], axis=3).astype(np.uint8)
    return np.concatenate([few_colours(4, 3, 10, 10), smooth, noise(4, 10, 10) // 3]), np.array([0] * 4 + [1] * 8)


# --- rates and distortions


def test_distortions_are_squared_errors_and_an_exact_image_has_none():
    images, _ = mixed_set()
    _, distortions = rates_and_distortions(images, (2, 5), median_cut)
    for place, colors in enumerate((2, 5)):
        difference = paint(*median_cut(images, colors)).astype(float) - images
        np.testing.assert_array_equal(distortions[:, place], (difference**2).sum(axis=(1, 2, 3)))
    assert (distortions[:4, 1] == 0).all() and (distortions[4:] > 0).all()


@pytest.mark.parametrize("colors", [2, 8, 64])
def test_the_rates_of_one_number_of_colours_add_up_to_its_container(colors):
    images = np.concatenate([mixed_set()[0], noise(28, 10, 10, seed=3)])
    rates, _ = rates_and_distortions(images, (3, colors), median_cut)
    labels = np.zeros(len(images), int)
    found = len(encode(*median_cut(images, colors), labels, CLASSES))
    # The state of an image's lane ends anywhere between 0 and 2 bytes short of full.
    assert found == pytest.approx(rates[:, 1].sum() + overhead(labels, CLASSES), abs=0.3 * len(images))


def test_rates_do_not_depend_on_the_order_of_the_images():
    images, _ = mixed_set()
    mix = np.arange(12) % 3
    order = np.random.default_rng(0).permutation(12)
    for given, moved in ((None, None), (mix, mix[order])):
        rates, _ = rates_and_distortions(images, (2, 4, 9), median_cut, given)
        np.testing.assert_allclose(rates_and_distortions(images[order], (2, 4, 9), median_cut, moved)[0], rates[order])


@pytest.mark.data
def test_rates_with_the_mix_predict_real_containers():
    images = centres(100)
    labels, colors = np.zeros(100, int), (3, 6, 12, 24)
    around = overhead(labels, CLASSES)
    plain, distortions = rates_and_distortions(images, colors, median_cut)
    budget = plain[:, 2].sum()
    mix = allocate(plain, distortions, budget)
    rates, _ = rates_and_distortions(images, colors, median_cut, mix)
    choice = allocate(rates, distortions, budget)
    assert len(set(choice.tolist())) > 2
    used = len(encode(*palettize(images, np.array(colors)[choice], median_cut), labels, CLASSES))
    with_mix, without = (float(table[np.arange(len(choice)), choice].sum()) + around for table in (rates, plain))
    assert abs(used / with_mix - 1) < 0.005 and abs(used - with_mix) < 0.5 * abs(used - without)


@pytest.mark.parametrize("mix", [[0, 1], [0] * 12 + [1], [0.0] * 12, [0] * 11 + [2], [0] * 11 + [-1]])
def test_a_mix_that_is_none_is_named(mix):
    with pytest.raises(ValueError, match="expected places in 2 colours"):
        rates_and_distortions(mixed_set()[0], (2, 3), median_cut, mix)


def test_no_colours_are_an_error():
    with pytest.raises(ValueError, match="no numbers of colours"):
        rates_and_distortions(mixed_set()[0], (), median_cut)


# --- images


def test_each_image_is_as_it_is_alone_and_the_container_holds_it():
    images, labels = mixed_set()
    colors_of = np.array([3, 9, 2, 3, 16, 5, 5, 1, 2, 9, 33, 4])
    palettes, indices = palettize(images, colors_of, median_cut)
    assert palettes.shape == (12, 33, 3) and palettes.dtype == indices.dtype == np.uint8
    painted = paint(palettes, indices)
    for image, colors, found in zip(images, colors_of, painted, strict=True):
        np.testing.assert_array_equal(found, paint(*median_cut(image[None], int(colors)))[0])
    assert (used_colours(indices, 33) <= colors_of).all()
    data = encode(palettes, indices, labels, CLASSES)
    np.testing.assert_array_equal(paint(*decode(data)[:2]), painted)


@pytest.mark.parametrize("colors_of", [[3] * 11, [3.0] * 12, 3])
def test_not_one_number_an_image_is_an_error(colors_of):
    with pytest.raises(ValueError, match=r"expected integers \[12\]"):
        palettize(mixed_set()[0], colors_of, median_cut)


# --- all of it


def mean_errors(images: np.ndarray, palettes: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return ((paint(palettes, indices).astype(float) - images) ** 2).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("by", ["image", "class"])
@pytest.mark.parametrize("goal", ["error", "psnr"])
def test_the_container_is_within_the_budget_and_more_budget_is_used(by, goal):
    images, labels = mixed_set()
    least = len(encode(*median_cut(images, 2), labels, CLASSES))
    most = len(encode(*median_cut(images, 32), labels, CLASSES))
    sizes = []
    for budget in (least, (least + most) // 2, most, 2 * most):
        palettes, indices, used = adaptive(images, budget, labels, CLASSES, median_cut, (2, 4, 8, 16, 32), by, goal)
        assert used == len(encode(palettes, indices, labels, CLASSES)) <= budget
        sizes.append(used)
    assert sizes[0] == least and sizes == sorted(sizes) and sizes[-1] > sizes[0]
    np.testing.assert_array_equal(paint(palettes, indices), paint(*median_cut(images, 32)))  # enough for all


@pytest.mark.parametrize("state", [-15.0, 20.0])
def test_the_budget_is_filled_though_the_predictions_are_off(monkeypatch, state):
    images, labels = mixed_set()
    least, most = (len(encode(*median_cut(images, k), labels, CLASSES)) for k in (2, 32))
    monkeypatch.setattr("palette.adaptive.STATE", state)
    for budget in ((2 * least + most) // 3, (least + 2 * most) // 3):
        assert 0 <= budget - adaptive(images, budget, labels, CLASSES, median_cut, (2, 4, 8, 16, 32))[2] < 40


def test_one_number_for_all_where_the_steps_of_classes_end_below_it():
    """A class of one image and one of eleven: the small one takes its steps first, and the large one's then fits no more."""
    images, labels = noise(12, 10, 10), np.array([1] * 11 + [0])
    for colors in (3, 5, 16):
        one = median_cut(images, colors)
        budget, plain = len(encode(*one, labels, CLASSES)), mean_errors(images, *one).mean()
        palettes, indices, used = adaptive(images, budget, labels, CLASSES, median_cut, (2, 3, 5, 8, 16, 32), "class")
        assert used <= budget and mean_errors(images, palettes, indices).mean() <= plain


def test_images_that_need_few_colours_leave_the_bytes_to_those_that_need_many():
    images, labels = mixed_set()
    budget = len(encode(*median_cut(images, 8), labels, CLASSES))
    palettes, indices, _ = adaptive(images, budget, labels, CLASSES, median_cut, (2, 3, 4, 8, 16, 32))
    used = used_colours(indices, palettes.shape[1])
    assert (used[:4] <= 3).all() and used[4:].max() > 8


def test_too_small_a_budget_says_what_is_needed():
    images, labels = mixed_set()
    least = len(encode(*median_cut(images, 2), labels, CLASSES))
    for by in ("image", "class"):
        with pytest.raises(
            ValueError, match=f"the images take {least:,} bytes in the fewest colours, more than {least - 1:,}"
        ):
            adaptive(images, least - 1, labels, CLASSES, median_cut, (2, 4), by)
    with pytest.raises(ValueError, match="more than -5"):
        adaptive(images, -5, labels, CLASSES, median_cut, (2, 4))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"by": "set"}, "expected by image or class"),
        ({"goal": "ssim"}, "for error or psnr"),
        ({"labels": [0, 2] * 6}, "labels run from 0 to 2"),
        ({"labels": [0]}, r"expected integers \[12\]"),
        ({"colors": ()}, "colours"),
        ({"colors": (2, 300)}, "1 to 256 colours"),
        ({"images": np.zeros((12, 4, 4, 3))}, "uint8"),
    ],
)
def test_bad_input_is_named(change, reason):
    images, labels = mixed_set()
    given = {"images": images, "budget_bytes": 9_999, "labels": labels, "classes": CLASSES, "colors": (2, 4)} | change
    with pytest.raises(ValueError, match=reason):
        adaptive(**given)


@pytest.mark.data
def test_real_images_are_better_than_one_number_of_colours_in_no_more_bytes():
    images = cifar10(60)
    labels, colors = np.arange(60) % 2, (2, 4, 8, 16, 32)
    one = median_cut(images, 8)
    budget, plain = len(encode(*one, labels, CLASSES)), mean_errors(images, *one)
    found = {}
    for goal in ("error", "psnr"):
        palettes, indices, used = adaptive(images, budget, labels, CLASSES, median_cut, colors, "image", goal)
        assert 0.99 * budget < used <= budget
        found[goal] = np.maximum(mean_errors(images, palettes, indices), NO_LESS)
    assert found["error"].mean() < 0.98 * plain.mean()
    assert 10 * np.log10(plain / found["psnr"]).mean() > 0.1
    assert found["error"].mean() < found["psnr"].mean() and np.log(found["psnr"]).mean() < np.log(found["error"]).mean()


@pytest.mark.data
def test_a_class_has_one_number_of_colours():
    images = centres(30)
    labels = np.tile([[3.0, 1, 0], [1, 2, 0], [5, 1, -4]], (10, 1))  # soft: the likeliest is the class
    colors, names = (2, 4, 8, 16), ["a", "b", "c"]
    budget = sum(len(encode(*median_cut(images, k), labels, names)) for k in (4, 8)) // 2
    palettes, indices, used = adaptive(images, budget, labels, names, median_cut, colors, "class")
    painted, numbers = paint(palettes, indices), []
    for members in (np.arange(30) % 3 != 1, np.arange(30) % 3 == 1):
        fitting = [k for k in colors if (painted[members] == paint(*median_cut(images[members], k))).all()]
        assert len(fitting) == 1
        numbers += fitting
    assert used <= budget and numbers[0] != numbers[1]


@pytest.mark.data
def test_the_colours_that_are_the_default_work_with_kmeans():
    images = centres(12)
    palettes, indices, used = adaptive(images, 2_000, np.zeros(12, int), ["a"])
    assert used <= 2_000 and set(used_colours(indices, palettes.shape[1]).tolist()) <= set(COLORS)
    each = [paint(*kmeans(images, k)) for k in COLORS]
    assert all(any((image == made[n]).all() for made in each) for n, image in enumerate(paint(palettes, indices)))
