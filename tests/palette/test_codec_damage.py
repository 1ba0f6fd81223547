"""The container of palettes: nothing malformed is taken, and little memory whatever is claimed."""

import tracemalloc

import numpy as np
import pytest

from palette.codec import LARGEST, decode, encode
from palette.quantize import median_cut
from tests.palette.containers import CLASSES, header, sealed, small
from tests.palette.images import noise

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
