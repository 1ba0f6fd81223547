"""The container of images: what is altered, cut or claimed is refused, and costs no memory."""

import tracemalloc

import numpy as np
import pytest

from adq import container, file_heads
from adq.container import HEADER, MAGIC, pack, unpack
from adq.file_heads import split
from tests.adq.image_files import CLASSES, KINDS, sealed


def small() -> bytes:
    files = [KINDS["jpeg"](0), KINDS["palette png"](1), b"GIF", KINDS["webp"](2)]
    return pack(files, ["jpg", "png", "gif", "webp"], np.array([0, 1, 2, 1]), CLASSES)


def test_altered_and_truncated_containers_are_refused():
    data = small()
    for at in range(0, len(data), 3):
        for other in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            with pytest.raises(ValueError, match="container"):
                unpack(other)
    with pytest.raises(ValueError, match="checksum"):
        unpack(data + b"\0")


def test_bytes_with_a_right_checksum_are_what_is_written_or_refused():
    content, rng = small()[:-4], np.random.default_rng(0)
    refused = 0
    for at in [*range(len(content) - 200), *rng.integers(0, len(content), 100)]:
        other = sealed(content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :])
        try:
            assert pack(*unpack(other)) == other
        except ValueError:
            refused += 1
    assert refused > 40
    for cut in range(len(content)):
        with pytest.raises(ValueError):
            unpack(sealed(content[:cut]))


def test_there_is_one_way_to_write_a_set():
    start = HEADER.pack(MAGIC, 1, 0, 1, 2, 1, 2) + b"\1\0a" + b"\1x"
    end = b"\0\0" + b"\0\1" + b"\1\2" + b"abc"
    jpeg = b"\xff\xd8\xff\xda\0\2"
    assert unpack(sealed(start + b"\0" + b"\6" + jpeg + end))[0] == [b"a", jpeg + b"bc"]
    for heads, rest in (
        (b"\6" + jpeg + b"\0", b"\0\0" + b"\1\0" + b"\1\2" + b"abc"),  # not in the order of the images
        (b"\0" + b"\0", end),  # twice the same
        (b"\0" + b"\6" + jpeg, b"\0\0" + b"\0\0" + b"\1\2" + b"abc"),  # one that no image has
        (b"\0" + b"\6" + jpeg, b"\0\0" + b"\0\1" + b"\x81\0\2" + b"abc"),  # a length in more bytes than it needs
        (b"\0" + b"\2\xff\xd8", end),  # a head that no file has
        (b"\0" + b"\6" + jpeg, end + b"d"),
    ):
        with pytest.raises(ValueError, match="otherwise"):
            unpack(sealed(start + heads + rest))


@pytest.mark.parametrize(
    "content",
    [HEADER.pack(MAGIC, 1, 0, 1, 0xFFFFFFFF, 1, 1) + bytes(50), HEADER.pack(MAGIC, 1, 1, 0xFFFF, 1 << 24, 1, 1) + bytes(200_000),
     HEADER.pack(MAGIC, 1, 0, 1, 1, 255, 0xFFFFFFFF) + bytes(1000), HEADER.pack(MAGIC, 1, 0, 0xFFFF, 1, 1, 1) + b"\xff" * 99,
     HEADER.pack(MAGIC, 1, 0, 1, 1, 1, 1) + b"\1\0a\1x" + b"\0" + b"\0" + b"\xff\xff\xff\xff\x7f",
     HEADER.pack(MAGIC, 1, 0, 0, 0, 0, 0), HEADER.pack(MAGIC, 2, 0, 1, 1, 1, 1), HEADER.pack(MAGIC, 1, 2, 1, 1, 1, 1),
     HEADER.pack(MAGIC, 1, 0, 1, 1, 1, 1) + b"\1\0\xff" + b"\1x" + b"\0" + b"\0" + b"\1a",  # a class that is not UTF-8
     HEADER.pack(MAGIC, 1, 0, 1, 1, 1, 1) + b"\1\0a" + b"\4../x" + b"\0" + b"\0" + b"\1a",  # no extension
     HEADER.pack(MAGIC, 1, 1, 1, 1, 1, 1) + b"\1\0a" + b"\1x" + b"\0" + b"\0\x7c" + b"\1a"],  # infinite
)  # fmt: skip
def test_claims_cost_no_memory(content):
    tracemalloc.start()
    with pytest.raises(ValueError):
        unpack(sealed(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_head_that_many_images_share_is_not_unpacked_without_end(monkeypatch):
    files = [b"\xff\xd8\xff\xda\0\4hs" + bytes(1000)] * 2
    large = b"\xff\xd8\xff\xdb\xff\xff" + bytes(65533) + b"\xff\xda\0\2"
    data = pack([large] * 100, ["jpg"] * 100, np.zeros(100, int), ["a"])
    assert len(data) < 70_000 and len(unpack(data)[0]) == 100
    for module in (container, file_heads):
        monkeypatch.setattr(module, "LARGEST", 1 << 20)
    with pytest.raises(ValueError, match="claims files of more than 1,048,576 bytes"):
        unpack(data)
    with pytest.raises(ValueError, match="split the set"):
        pack([large] * 100, ["jpg"] * 100, np.zeros(100, int), ["a"])
    for module in (container, file_heads):
        monkeypatch.setattr(module, "LARGEST", 1000)
    assert split(files[0]) == (b"", files[0])
    with pytest.raises(ValueError, match="split the set"):
        pack(files, ["jpg"] * 2, np.zeros(2, int), ["a"])
