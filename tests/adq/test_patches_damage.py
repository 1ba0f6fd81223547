"""The container of patches: damage and claims are refused with a reason."""

import tracemalloc
from itertools import product

import numpy as np
import pytest

from adq.patches import decode, encode, grid, is_patches
from adq.randomness import numpy_generator
from tests.adq.patch_cases import container, random_mask, saved, sealed, smooth


def test_damage_of_any_byte_and_truncation_anywhere_are_noticed():
    made = encode(saved(smooth(32, 32)), random_mask(32, 32))
    assert is_patches(made) and not is_patches(made[1:])
    for length in range(len(made)):
        with pytest.raises(ValueError):
            decode(made[:length])
    for at, change in product(range(len(made)), (1, 0x80)):
        with pytest.raises(ValueError):
            decode(made[:at] + bytes([made[at] ^ change]) + made[at + 1 :])
    with pytest.raises(ValueError, match="followed by other bytes"):
        decode(made + b"\0")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (container(version=2), "version 2"), (container(height=0), "0 x 16 pixels"), (container(width=16385), "pixels: expected"),
        (container(height=9000, width=9000), "pixels: expected"), (container(side=16), "patches of 16 pixels"),
        (container(kind=5), "kind 5"), (container(kind=8), "kind 8"), (container(kind=20), "kind 20"),
        (container(quality=101), "quality 101"), (container(kind=0, quality=1), "kind 0, quality 1"),
        (container(mask=b"\0"), "no patch"), (container(mask=b"\xf8"), "outside the image"),
        (container(mask=b"", body=b""), "ends inside"),
        (container(body=b"\0"), "1 bytes of a JPEG of 16 x 16"), (container(body=b"\xff\xd9" * 20), "marker"),
        (container(body=bytes(40) + b"\xff"), "marker"), (container(kind=12, body=b"\xff" * 99), "0 bytes of a JPEG"),
        (container(kind=12, body=(b"\3" + bytes(15) + b"\0\1\2") * 4 + bytes(40)), "the picture"),
        (container(kind=0, quality=0, body=bytes(range(99))), "the picture"),
    ],
)  # fmt: skip
def test_sealed_nonsense_is_refused_with_a_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode(data)


@pytest.mark.parametrize("kind", ["4:2:0", "own tables", "webp"])
def test_sealed_damage_gives_an_image_or_a_reason_and_no_other_error(kind):
    options = {"4:2:0": {}, "own tables": {"qtables": [[20] * 64], "mode": "L"}, "webp": {"kind": "PNG"}}[kind]
    made = encode(saved(smooth(64, 64), **options), random_mask(64, 64))
    rng = numpy_generator(0, "damage", kind)
    refused = 0
    for _ in range(200):
        damaged = bytearray(made[:-2])
        for at in rng.integers(4, len(damaged) if rng.random() < 0.5 else min(40, len(damaged)), rng.integers(1, 4)):
            damaged[at] = rng.choice([0, 255, rng.integers(256)])
        try:
            found = decode(sealed(bytes(damaged)))
            assert found.pixels.shape[:2] == found.known.shape
        except ValueError:
            refused += 1
    assert 0 < refused < 200


def test_a_claim_of_millions_of_pixels_costs_nothing_before_it_is_refused():
    place = grid(8192, 8192)
    mask = np.packbits(np.ones(place.rows * place.columns, bool)).tobytes()
    tracemalloc.start()
    for kind, quality, reason in ((4, 75, "bytes of a JPEG"), (2, 0, "bytes of a JPEG"), (0, 0, "the picture")):
        with pytest.raises(ValueError, match=reason):
            decode(container(8192, 8192, place.side, kind, quality, mask, bytes(1000)))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
