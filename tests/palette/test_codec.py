"""The container: the same images back, the same bytes always, nothing malformed taken, and little memory whatever is claimed."""

import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from palette.codec import HEADER, LARGEST, MAGIC, decode, encode, images_in_budget, payload_bytes
from palette.quantize import kmeans, median_cut, paint
from tests.palette.images import cifar10, few_colours, noise

CLASSES = ["cat", "kůň 馬", ""]
PAGE = (Path(__file__).resolve().parents[2] / "palette" / "FORMAT.md").read_text()


def sets(count: int, colors: int, height: int = 8, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Palettes and indices of noise, some of whose colours are not used or come twice."""
    rng = np.random.default_rng(seed)
    palettes = rng.integers(0, 256, (count, colors, 3), dtype=np.uint8)
    palettes[:, -1] = palettes[:, 0]
    return palettes, rng.integers(0, rng.integers(1, colors + 1), (count, height, width)).astype(np.uint8)


def small() -> bytes:
    palettes, indices = median_cut(np.concatenate([noise(2, 4, 5), few_colours(1, 1, 4, 5)]), 5)
    return encode(palettes, indices, np.array([2, 0, 1]), CLASSES)


def sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


def header(height=4, width=5, colors=5, classes=1, count=3, version=1, soft=0, magic=MAGIC) -> bytes:
    return HEADER.pack(magic, version, soft, height, width, colors, classes, count)


def same(data: bytes, palettes: np.ndarray, indices: np.ndarray) -> None:
    found, places, _, _ = decode(data)
    assert found.shape == palettes.shape and found.dtype == places.dtype == np.uint8
    np.testing.assert_array_equal(paint(found, places), paint(palettes, indices))


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


# --- damage


def test_every_changed_byte_is_an_error():
    data = small()
    for at in range(len(data)):
        for change in (1, 0x80, 0xFF):
            with pytest.raises(ValueError):
                decode(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])


def test_every_truncation_and_every_tail_is_an_error():
    data = small()
    for end in range(len(data)):
        with pytest.raises(ValueError):
            decode(data[:end])
    for tail in (b"\0", b"\0\0", b"\n", bytes(100), data):
        with pytest.raises(ValueError, match="checksum"):
            decode(data + tail)


@pytest.mark.parametrize("soft", [False, True])
def test_what_is_accepted_in_spite_of_damage_is_a_container_of_its_own(soft):
    """Damage with a checksum that is right: a ValueError, or images whose only encoding is these bytes."""
    palettes, indices = median_cut(noise(3, 4, 4), 4)
    labels = np.eye(3) if soft else [0, 1, 2]
    data = encode(palettes, indices, labels, CLASSES)[:-4]
    rng, accepted, refused = np.random.default_rng(0), 0, 0
    for _ in range(3000):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] ^= 1 << rng.integers(8)
        if rng.random() < 0.2:
            damaged = damaged[: rng.integers(len(damaged))]
        if rng.random() < 0.2:
            damaged += rng.bytes(rng.integers(1, 5))
        try:
            found = decode(sealed(bytes(damaged)))
            accepted += 1
        except ValueError:
            refused += 1
            continue
        assert encode(*found) == sealed(bytes(damaged))
    assert accepted and refused > 1000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "begins otherwise, or is cut short"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "begins otherwise"),
        (header(version=2), "version 2"),
        (header(soft=2), "flags 2"),
        (header(count=0), "at least one image"),
        (header(height=0), "sides from 1"),
        (header(width=1025), "sides from 1 to 1024"),
        (header(colors=0), "1 to 256 colours"),
        (header(colors=257), "1 to 256 colours"),
        (header(classes=0), "0 classes"),
        (header(count=2**32 - 1), "more than one container holds"),
        (header(1024, 1024, 1, 1, 64), "more than one container holds"),
        (header(), "class names"),
        (header(classes=65_535) + b"\1\0a", "class names"),
        (header() + b"\xff\xffabc", "class names"),
        (header() + b"\2\0\xc3\x28" + bytes(99), "not UTF-8"),
        (header() + b"\1\0a" + b"\0\0", "labels"),
        (header() + b"\1\0a" + b"\0\1\0" + bytes(99), "a label is 1"),
        (header(classes=2, soft=1) + b"\1\0a\1\0b" + bytes(11), "labels"),
        (header(classes=1, soft=1) + b"\1\0a" + b"\0\0\0\0\0\x7c", "not finite"),
        (header() + b"\1\0a" + bytes(3) + bytes(11), "at least 12"),
        (header() + b"\1\0a" + bytes(3) + bytes(13), "even number"),
        (header() + b"\1\0a" + bytes(3) + bytes(12), "below 2"),
        (header() + b"\1\0a" + bytes(3) + b"\0\0\1\0" * 3, "too early"),
        (header() + b"\1\0a" + bytes(3) + b"\xff" * 12 + bytes(2000), "."),
    ],
)
def test_hostile_headers_are_named(content, reason):
    with pytest.raises(ValueError, match=reason):
        decode(sealed(content))


def test_an_index_beyond_the_palette_is_refused(monkeypatch):
    """Written by an encoder that takes the size of the palettes one too small, or their order upside down."""
    palettes, indices = median_cut(noise(2, 4, 4), 4)

    def altered(change):
        import palette.codec as codec

        real = codec.canonical
        with monkeypatch.context() as patch:
            patch.setattr(codec, "canonical", lambda *given: change(*real(*given)))
            return encode(palettes, indices, [0, 0], ["a"])

    with pytest.raises(ValueError, match="an index lies beyond its palette"):
        decode(altered(lambda p, i, sizes: (p, i, sizes - 1)))
    with pytest.raises(ValueError, match="not in order"):
        decode(altered(lambda p, i, sizes: (p[:, ::-1], 3 - i, sizes)))
    with pytest.raises(ValueError, match="does not use"):
        decode(altered(lambda p, i, sizes: (p, np.zeros_like(i), sizes)))


@pytest.mark.parametrize(
    ("height", "width", "colors"), [(1, 1, 1), (1, 1, 256), (1, 1024, 1), (1024, 1, 1), (1024, 1024, 1), (32, 32, 64)]
)
def test_memory_stays_below_the_stated_bound(height, width, colors):
    """The largest claims that pass the limits, with states that are right and nothing after them."""
    count = LARGEST // (height * width + 3 * colors + 64)
    states = np.random.default_rng(0).integers(1 << 16, 1 << 32, count).astype("<u4").tobytes()
    data = sealed(header(height, width, colors, 1, count) + b"\1\0a" + bytes(count) + states)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"early|order|beyond"):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 30


def test_memory_stays_below_the_bound_when_palettes_are_full(monkeypatch):
    """A sixteenth of the largest claim of 256 colours for one pixel, found out only at the end: a sixteenth of the bound."""
    count = LARGEST // (1 + 3 * 256 + 64) // 16
    rng = np.random.default_rng(0)
    codes = np.sort(rng.integers(0, 1 << 23, (count, 256)), axis=1) + np.arange(256)
    palettes = np.stack([codes >> 8 & 255, codes >> 16, codes & 255], axis=2).astype(np.uint8)
    monkeypatch.setattr("palette.codec.canonical", lambda palettes, indices: (palettes, indices, np.full(count, 256)))
    data = encode(palettes, np.zeros((count, 1, 1), np.uint8), np.zeros(count, np.uint8), ["a"])
    tracemalloc.start()
    with pytest.raises(ValueError, match="does not use"):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1 << 30) // 16


def test_nothing_is_cheaper_than_one_colour_and_memory_follows_the_claim():
    count = 5000
    data = encode(
        np.zeros((count, 1, 3), np.uint8), np.zeros((count, 32, 32), np.uint8), np.zeros(count, np.uint8), ["a"]
    )
    assert len(data) < 6 * count
    tracemalloc.start()
    _, indices, _, _ = decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert indices.shape == (count, 32, 32) and peak < 4 * indices.nbytes


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


# --- the page


def test_the_example_of_the_page_is_what_the_code_writes():
    block = re.search(r"```hex\n(.*?)```", PAGE, re.DOTALL)[1]
    data = bytes.fromhex(" ".join(line.split("#")[0] for line in block.splitlines()))
    palettes, indices = np.zeros((2, 4, 3), dtype=np.uint8), np.zeros((2, 2, 3), dtype=np.uint8)
    palettes[0, :3] = [(16, 8, 0), (200, 40, 40), (0, 80, 160)]
    palettes[1, 0] = 90
    indices[0] = [[0, 0, 1], [0, 2, 1]]
    assert encode(palettes, indices, [1, 0], ["cat", "kůň"]) == data
    found = decode(data)
    np.testing.assert_array_equal(found[0], palettes)
    np.testing.assert_array_equal(found[1], indices)
    assert found[2].tolist() == [1, 0] and found[3] == ["cat", "kůň"]


def page_reader():
    page: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], page)
    return page["read"]


def test_the_reader_of_the_page_reads_what_the_code_writes():
    read, rng = page_reader(), np.random.default_rng(0)
    for colors, count, height, width in ((1, 1, 2, 2), (2, 2, 5, 3), (7, 5, 6, 6), (64, 3, 9, 8), (256, 1, 17, 16)):
        palettes, indices = sets(count, colors, height, width, seed=colors)
        indices = np.minimum(indices, np.maximum.accumulate(indices, axis=1))  # some smoothness
        soft = rng.normal(size=(count, 3))
        for labels in (rng.integers(0, 3, count), soft):
            data = encode(palettes, indices, labels, CLASSES)
            found, places, numbers, classes = decode(data)
            tables, lists, flat, names = read(data)
            assert [table + [(0, 0, 0)] * (colors - len(table)) for table in tables] == [
                [tuple(colour) for colour in table] for table in found.tolist()
            ]
            assert lists == places.reshape(count, -1).tolist()
            assert list(flat) == numbers.flatten().tolist() and names == classes


def test_the_reader_of_the_page_halves_its_counts_as_the_code_does(monkeypatch):
    # Images of one row, all in one context, that grow restless to the right.
    indices = (np.random.default_rng(0).random((500, 1, 140)) < np.linspace(0, 0.5, 140)).astype(np.uint8)
    palettes = np.tile(np.array([[[0, 0, 0], [9, 99, 9]]], dtype=np.uint8), (500, 1, 1))
    data = encode(palettes, indices, np.zeros(500, dtype=int), ["a"])
    assert page_reader()(data)[1] == decode(data)[1].reshape(500, -1).tolist()
    monkeypatch.setattr("palette.entropy.RENEWAL", 1 << 40)
    assert len(encode(palettes, indices, np.zeros(500, dtype=int), ["a"])) != len(data)
