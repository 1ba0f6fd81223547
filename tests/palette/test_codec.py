"""The container: the same images back, the same bytes always, nothing malformed taken, and little memory whatever is claimed."""

import numpy as np
import pytest

from palette.codec import LARGEST, decode, encode, images_in_budget, payload_bytes
from palette.quantize import kmeans, median_cut
from tests.palette.containers import CLASSES, same, sets
from tests.palette.images import cifar10, noise


@pytest.mark.parametrize("colors", [1, 2, 3, 4, 5, 16, 33, 64, 255, 256])
@pytest.mark.parametrize(("count", "height", "width"), [(1, 1, 1), (1, 16, 16), (7, 3, 10), (40, 8, 8), (3, 1, 70)])
def test_the_same_images_come_back(count, height, width, colors):
    palettes, indices = sets(count, colors, height, width)
    labels = np.arange(count) % 3
    data = encode(palettes, indices, labels, CLASSES)
    same(data, palettes, indices)
    found, places, numbers, classes = decode(data)
    assert numbers.dtype == np.int64 and numbers.tolist() == labels.tolist() and classes == CLASSES
    assert encode(found, places, numbers, classes) == data


def test_unused_and_repeated_colours_are_cut_and_the_rest_is_in_order():
    palettes = np.array([[[9, 9, 9], [200, 5, 0], [1, 2, 3], [200, 5, 0], [0, 5, 7]]], dtype=np.uint8)
    indices = np.array([[[1, 3, 4], [0, 0, 1]]], dtype=np.uint8)
    found, places, _, _ = decode(encode(palettes, indices, [0], ["a"]))
    assert found[0].tolist() == [[0, 5, 7], [200, 5, 0], [9, 9, 9], [0, 0, 0], [0, 0, 0]]  # by green, red, blue
    assert places.tolist() == [[[1, 1, 0], [2, 2, 1]]]


def test_the_bytes_do_not_depend_on_the_order_of_the_palettes():
    palettes, indices = sets(9, 12)
    expected = encode(palettes, indices, np.zeros(9, dtype=int), ["a"])
    rng = np.random.default_rng(1)
    for _ in range(5):
        order = rng.permuted(np.tile(np.arange(12), (9, 1)), axis=1)
        moved = np.argsort(order, axis=1).astype(np.uint8)[np.arange(9)[:, None, None], indices]
        shuffled = np.take_along_axis(palettes, order[:, :, None], axis=1)
        assert encode(shuffled, moved, np.zeros(9, dtype=np.uint8), ("a",)) == expected


def test_hard_labels_of_many_classes_and_soft_labels():
    palettes, indices = sets(4, 3)
    names = [f"class {number}" for number in range(1000)]
    labels = np.array([0, 999, 256, 3], dtype=np.int32)
    assert decode(encode(palettes, indices, labels, names))[2].tolist() == labels.tolist()
    soft = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    hard = encode(palettes, indices, [0, 1, 2, 0], CLASSES)
    data = encode(palettes, indices, soft, CLASSES)
    assert len(data) == len(hard) - 4 + soft.size * 2  # their bytes count
    found = decode(data)[2]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, soft.astype(np.float16))
    assert encode(*decode(data)) == data


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"palettes": np.zeros((2, 4, 3), dtype=np.int64)}, "uint8"),
        ({"palettes": np.zeros((2, 4, 4), dtype=np.uint8)}, r"\[N, K, 3\]"),
        ({"palettes": np.zeros((2, 257, 3), dtype=np.uint8)}, "256 colours"),
        ({"palettes": np.zeros((2, 0, 3), dtype=np.uint8)}, "256 colours"),
        ({"palettes": np.zeros((3, 4, 3), dtype=np.uint8)}, "indices"),
        ({"indices": np.zeros((2, 8), dtype=np.uint8)}, "indices"),
        ({"indices": np.full((2, 8, 8), 4, dtype=np.uint8)}, "an index is 4"),
        ({"indices": np.zeros((2, 0, 8), dtype=np.uint8)}, "sides from 1"),
        ({"indices": np.zeros((2, 1025, 1), dtype=np.uint8)}, "sides from 1 to 1024"),
        ({"palettes": np.zeros((0, 4, 3), np.uint8), "indices": np.zeros((0, 8, 8), np.uint8), "labels": []}, "at least one image"),
        ({"labels": [0, 3]}, "labels run from 0 to 3"),
        ({"labels": [-1, 0]}, "labels run from -1"),
        ({"labels": [0.0, 1.0]}, "expected integers"),
        ({"labels": [0]}, r"expected integers \[2\]"),
        ({"labels": np.array([[0, 1, np.nan]] * 2)}, "finite"),
        ({"labels": np.array([[0, 1, 1e6]] * 2)}, "finite"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["a", "b", "c" * 70_000]}, "65,535 bytes"),
        ({"classes": ["a", "b", "\ud800"]}, "surrogates"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_named(change, reason):
    palettes, indices = sets(2, 4)
    given = {"palettes": palettes, "indices": indices, "labels": [0, 1], "classes": CLASSES} | change
    with pytest.raises(ValueError, match=reason):
        encode(**given)


def test_more_than_one_container_holds_is_refused():
    count = LARGEST // (1 + 3 + 64) + 1
    with pytest.raises(ValueError, match="split the set"):
        encode(np.zeros((count, 1, 3), np.uint8), np.zeros((count, 1, 1), np.uint8), np.zeros(count, np.uint8), ["a"])


# --- bytes


@pytest.mark.parametrize(
    ("side", "colors", "expected"),
    [(32, 16, 560), (64, 16, 2096), (128, 16, 8240), (32, 32, 736), (64, 32, 2656), (128, 32, 10336),
     (32, 64, 960), (64, 64, 3264), (128, 64, 12480), (32, 1, 3), (32, 2, 134), (32, 3, 265), (1, 256, 769)],
)  # fmt: skip
def test_payload_bytes_are_the_specification_s(side, colors, expected):
    assert payload_bytes(side, side, colors) == expected


def test_images_in_the_bytes_of_one_raw_image():
    assert [images_in_budget(3 * 32 * 32, 32, 32, colors) for colors in (16, 32, 64)] == [5, 4, 3]
    assert images_in_budget(959, 32, 32, 64) == 0 and images_in_budget(960, 32, 32, 64) == 1
    assert images_in_budget(9 * 980, 32, 32, 64, label_bytes=20) == 9
    for wrong in ((-1, 32, 32, 64), (1, 0, 32, 64), (1, 32, 32, 0), (1, 32, 32, 257), (1, 32, 32, 64, -1)):
        with pytest.raises(ValueError):
            images_in_budget(*wrong)


def test_noise_costs_at_most_eight_bytes_an_image_more_than_the_plain_formula():
    for colors in (1, 2, 4, 16, 64, 256):
        palettes, indices = (
            noise(100, 1, colors)[:, 0],
            np.asarray(noise(100)[..., 0] % np.int64(colors), np.uint8),
        )
        coded = len(encode(palettes, indices, np.zeros(100, dtype=int), ["a"]))
        assert coded <= 100 * (payload_bytes(8, 8, colors) + 8)


@pytest.mark.data
@pytest.mark.parametrize(("colors", "share"), [(4, 0.55), (16, 0.63), (32, 0.66), (64, 0.68)])
@pytest.mark.parametrize("method", [median_cut, kmeans])
def test_real_images_take_about_two_thirds_of_their_plain_bytes(method, colors, share):
    palettes, indices = method(cifar10(200), colors)
    data = encode(palettes, indices, np.arange(200) % 10, [str(number) for number in range(10)])
    same(data, palettes, indices)
    assert len(data) <= share * 200 * payload_bytes(32, 32, colors)
