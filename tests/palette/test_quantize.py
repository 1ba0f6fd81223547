"""Quantisation: what median cut, octree and k-means promise, cases done by hand, and Pillow as a second opinion."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from palette.octree import octree
from palette.quantize import kmeans, median_cut, nearest, paint, psnr, used_colours
from tests.palette.images import cifar10, few_colours, noise

METHODS = [median_cut, octree, kmeans]
COLORS = [1, 2, 3, 4, 7, 16, 33, 64, 256]


def error(images: np.ndarray, palettes: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The squared error of each image, a whole number."""
    return ((paint(palettes, indices).astype(np.int64) - images) ** 2).sum(axis=(1, 2, 3))


def row(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array([[colours]], dtype=np.uint8)


def greys(*values: int) -> np.ndarray:
    return row(*((value, value, value) for value in values))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("colors", COLORS)
def test_at_most_k_colours_and_what_is_not_used_is_black(method, colors):
    images = noise(5, 12, 9)
    palettes, indices = method(images, colors)
    assert palettes.shape == (5, colors, 3) and palettes.dtype == np.uint8
    assert indices.shape == (5, 12, 9) and indices.dtype == np.uint8
    used = used_colours(indices, colors)
    assert (used >= 1).all() and (used <= colors).all()
    if method is not octree:
        assert (used == min(colors, 12 * 9)).all()
    if method is not kmeans:  # in the order of the indices, without gaps
        for palette, count in zip(palettes, used, strict=True):
            assert not palette[count:].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("present", "colors"), [(1, 1), (1, 5), (2, 2), (7, 7), (16, 16), (13, 64), (60, 60), (64, 256)]
)
def test_lossless_with_enough_colours(method, present, colors):
    images = few_colours(6, present, seed=colors)
    np.testing.assert_array_equal(paint(*method(images, colors)), images)


@pytest.mark.parametrize("method", METHODS)
def test_one_colour_is_the_rounded_mean(method):
    images = np.concatenate([greys(0, 1, 4), greys(0, 0, 1), greys(0, 1, 1)])  # means 5/3, 1/3, 2/3
    palettes, _ = method(images, 1)
    assert palettes[:, 0, 0].tolist() == [2, 0, 1]
    assert method(greys(0, 1), 1)[0].tolist() == [[[1, 1, 1]]]  # 1/2: up


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("colors", [3, 16])
def test_an_image_does_not_see_its_batch(method, colors):
    images = np.concatenate([noise(4), few_colours(3, 2), few_colours(2, 9), noise(1) // 2])
    together = method(images, colors)
    for number, image in enumerate(images):
        for whole, alone in zip(together, method(image[None], colors), strict=True):
            np.testing.assert_array_equal(whole[number], alone[0])


@pytest.mark.parametrize("method", METHODS)
def test_tensors_and_arrays_give_the_same_and_get_their_own_kind_back(method):
    images = noise(3)
    arrays, tensors = method(images, 8), method(torch.from_numpy(images), 8)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, tensor.numpy())
    indices = nearest(torch.from_numpy(images), tensors[0])
    painted = paint(tensors[0], indices)
    assert all(
        isinstance(x, torch.Tensor) for x in (indices, painted, psnr(painted, painted), used_colours(indices, 8))
    )
    np.testing.assert_array_equal(painted.numpy(), paint(arrays[0], nearest(images, arrays[0])))


@pytest.mark.parametrize("method", METHODS)
def test_a_view_that_is_not_contiguous_is_taken(method):
    images = noise(2, 8, 10)
    np.testing.assert_array_equal(method(images[:, ::2, ::-1], 4)[1], method(images[:, ::2, ::-1].copy(), 4)[1])
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    np.testing.assert_array_equal(method(channels_first.permute(0, 2, 3, 1), 4)[1].numpy(), method(images, 4)[1])


# --- median cut


def test_the_first_cut_is_at_the_median_of_the_widest_channel():
    # Green runs over 100, red over 10: green is cut, three pixels on either side.
    images = row((0, 0, 5), (10, 10, 5), (0, 20, 5), (10, 80, 5), (0, 90, 5), (10, 100, 5))
    palettes, indices = median_cut(images, 2)
    assert indices.tolist() == [[[0, 0, 0, 1, 1, 1]]]
    assert palettes.tolist() == [[[3, 10, 5], [7, 90, 5]]]


def test_equal_values_are_never_parted_and_the_cut_is_nearest_to_the_middle():
    assert median_cut(greys(0, 0, 0, 0, 9), 2)[1].tolist() == [[[0, 0, 0, 0, 1]]]
    assert median_cut(greys(0, 9, 9, 9, 9), 2)[1].tolist() == [[[0, 1, 1, 1, 1]]]
    assert median_cut(greys(0, 5, 5, 5, 9), 2)[1].tolist() == [[[0, 1, 1, 1, 1]]]  # of two, the lower
    assert median_cut(greys(1, 2, 2, 3, 4, 5), 2)[1].tolist() == [[[0, 0, 0, 1, 1, 1]]]


def test_the_second_cut_is_where_population_times_range_is_largest():
    # After the cut between 40 and 100: four pixels over 40 (160) against four over 30 (120).
    assert median_cut(greys(0, 10, 30, 40, 100, 110, 120, 130), 3)[1].tolist() == [[[0, 0, 2, 2, 1, 1, 1, 1]]]
    # Two pixels over 20 (40) against four over 12 (48): the narrower box, for it holds more.
    assert median_cut(greys(0, 20, 100, 100, 100, 112), 3)[1].tolist() == [[[0, 0, 1, 1, 1, 2]]]


def test_a_box_is_the_mean_of_its_pixels():
    images = noise(3, 16, 16)
    palettes, indices = median_cut(images, 11)
    for image, palette, index in zip(images, palettes, indices, strict=True):
        for colour in range(11):
            np.testing.assert_array_equal(palette[colour], np.floor(image[index == colour].mean(axis=0) + 0.5))


# --- octree


def test_octree_merges_the_lowest_node_first_then_the_emptiest():
    # 0 and 1 part at the last bit, 128 and 130 one before it, 255 far away: five greys to four, three, two.
    images = greys(0, 1, 128, 130, 255, 255)
    assert octree(images, 4)[1].tolist() == [[[0, 0, 1, 2, 3, 3]]]
    assert octree(images, 3)[1].tolist() == [[[0, 0, 1, 1, 2, 2]]]
    assert octree(images, 2)[1].tolist() == [[[0, 0, 1, 1, 1, 1]]]
    # Two nodes of the lowest level: the one of two pixels is merged, not the one of three.
    assert octree(greys(0, 0, 1, 100, 101), 3)[1].tolist() == [[[0, 0, 1, 2, 2]]]
    # Of equal ones, the darker.
    assert octree(greys(0, 1, 100, 101), 3)[1].tolist() == [[[0, 0, 1, 2]]]


def test_octree_takes_all_leaves_of_a_node_at_once():
    corners = [(r, g, b) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
    _, indices = octree(row(*corners, (255, 255, 255)), 8)
    assert indices.tolist() == [[[0] * 8 + [1]]]


# --- k-means


@pytest.mark.parametrize("colors", [2, 5, 16, 40])
def test_kmeans_never_does_worse_than_its_start_or_than_one_step_less(colors):
    images = np.concatenate([noise(3), few_colours(3, 30)])
    errors = [error(images, *median_cut(images, colors))]
    errors += [error(images, *kmeans(images, colors, iterations=steps)) for steps in range(6)]
    for before, after in pairwise(errors):
        assert (after <= before).all()
    assert (errors[-1] < errors[0]).any()


def test_kmeans_finds_two_clusters_that_median_cut_parts_wrongly():
    images = greys(0, 0, 0, 0, 10, 200)
    assert error(images, *median_cut(images, 2)).item() > 0
    palettes, indices = kmeans(greys(0, 1, 2, 3, 4, 5, 6, 200), 2)
    assert sorted(palettes[0, :, 0].tolist()) == [3, 200] and (indices[0, 0, :7] == indices[0, 0, 0]).all()


def test_an_idle_colour_moves_to_the_pixel_that_is_worst_off(monkeypatch):
    # A start whose second colour attracts nothing: the step must spend it on 90.
    start = np.array([[[10, 10, 10], [255, 0, 0]]], dtype=np.uint8)
    images = greys(0, 10, 10, 10, 10, 20, 90)
    monkeypatch.setattr("palette.quantize.median_cut", lambda *_: (start, None))
    palettes, _ = kmeans(images, 2, iterations=1)
    assert palettes[0].tolist() == [[21, 21, 21], [90, 90, 90]]
    assert sorted(kmeans(images, 2)[0][0, :, 0].tolist()) == [10, 90]


# --- nearest, paint, psnr


def test_nearest_is_brute_force_with_ties_to_the_lowest_index():
    images, palettes = noise(4), noise(4, 1, 9, seed=1)[:, 0]
    palettes[:, 5] = palettes[:, 2]
    palettes[0, 3:5] = (images[0, 0, 0] + [1, 0, 0], images[0, 0, 0] - [1, 0, 0])  # the same distance on both sides
    distances = ((images[:, :, :, None].astype(int) - palettes[:, None, None].astype(int)) ** 2).sum(axis=4)
    found = nearest(images, palettes)
    np.testing.assert_array_equal(found, distances.argmin(axis=3))
    assert not (found == 5).any()


def test_nearest_is_exact_at_the_far_corners():
    images = np.array([[[[255, 255, 255], [255, 255, 254], [0, 0, 0], [127, 128, 127]]]], dtype=np.uint8)
    palettes = np.array([[[0, 0, 0], [255, 255, 255], [254, 255, 255]]], dtype=np.uint8)
    assert nearest(images, palettes).tolist() == [[[1, 1, 0, 0]]]


def test_large_batches_go_in_parts_with_the_same_result(monkeypatch):
    images, palettes = noise(7), noise(7, 1, 6, seed=2)[:, 0]
    whole = nearest(images, palettes)
    held, product = [], torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **k: held.append((out := product(*a, **k)).numel()) or out)
    for pixels in (2 * 64, 25):  # some images, and parts of one
        monkeypatch.setattr("palette.quantize.LARGEST", 6 * pixels)
        np.testing.assert_array_equal(nearest(images, palettes), whole)
        assert max(held) == 6 * pixels
        held.clear()


def test_psnr_by_hand():
    a = np.zeros((3, 2, 2, 3), dtype=np.uint8)
    b = a.copy()
    b[1], b[2, 0, 0, 0] = 255, 12  # errors 255^2 and 144 / 12
    assert psnr(a, b).tolist() == pytest.approx([np.inf, 0, 10 * np.log10(255**2 / 12)])


def test_used_colours_by_hand():
    assert used_colours(np.array([[[0, 0, 2]], [[1, 1, 1]]], dtype=np.uint8), 3).tolist() == [2, 1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("images", "colors", "reason"),
    [
        (noise(2).astype(np.float32), 4, "uint8"),
        (torch.zeros(1, 4, 4, 3), 4, "uint8"),
        (noise(2).tolist(), 4, "uint8"),
        (noise(2)[0], 4, r"\[B, H, W, 3\]"),
        (noise(2).transpose(0, 3, 1, 2), 4, r"\[B, H, W, 3\]"),
        (noise(0), 4, r"\[B, H, W, 3\]"),
        (noise(2, 0, 4), 4, r"\[B, H, W, 3\]"),
        (noise(2), 0, "1 to 256"),
        (noise(2), 257, "1 to 256"),
        (noise(2), 4.0, "1 to 256"),
    ],
)
def test_bad_input_is_named(method, images, colors, reason):
    with pytest.raises(ValueError, match=reason):
        method(images, colors)


def test_bad_input_of_the_others_is_named():
    palettes, indices = median_cut(noise(2), 4)
    with pytest.raises(ValueError, match="iterations"):
        kmeans(noise(2), 4, iterations=-1)
    with pytest.raises(ValueError, match=r"expected \[2, K, 3\]"):
        nearest(noise(2), palettes[:1])
    with pytest.raises(ValueError, match="an index is 3"):
        paint(palettes[:, :3], np.full_like(indices, 3))
    with pytest.raises(ValueError, match="an index is 9"):
        used_colours(np.full_like(indices, 9), 4)
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(noise(2), noise(2, 4, 4))


# --- real images


@pytest.mark.data
def test_error_falls_with_k_on_real_images():
    images = cifar10(60)
    for method in METHODS:
        means = [error(images, *method(images, colors)).mean() for colors in (2, 4, 8, 16, 32, 64, 128, 256)]
        assert all(after < before for before, after in pairwise(means)), method


@pytest.mark.data
@pytest.mark.parametrize("colors", [4, 16, 64])
def test_as_good_as_pillow_on_real_images(colors):
    """Mean PSNR against Pillow's quantisers, all with each pixel at its nearest colour, as Pillow has it.

    Never more than 0.1 dB below its median cut and k-means, nor 0.5 dB below its octree, which merges another way.
    """
    images = cifar10(100)

    def ours(method) -> float:
        palettes, _ = method(images, colors)
        return mean_psnr(paint(palettes, nearest(images, palettes)))

    def pillow(method: Image.Quantize, steps: int = 0) -> float:
        found = [Image.fromarray(i).quantize(colors, method, steps, dither=Image.Dither.NONE) for i in images]
        return mean_psnr(np.stack([np.asarray(image.convert("RGB")) for image in found]))

    def mean_psnr(painted: np.ndarray) -> float:
        return 10 * np.log10(255**2 / ((painted.astype(float) - images) ** 2).mean(axis=(1, 2, 3))).mean()

    assert ours(median_cut) > pillow(Image.Quantize.MEDIANCUT) - 0.1
    assert ours(kmeans) > pillow(Image.Quantize.MEDIANCUT, colors) - 0.1
    assert ours(octree) > pillow(Image.Quantize.FASTOCTREE) - 0.5
