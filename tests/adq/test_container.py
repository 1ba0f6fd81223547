"""The container of images: every file back byte for byte, what repeats stored once, its size known from sizes alone."""

import struct
import tarfile
import zlib

import numpy as np
import pytest

from adq.container import HEADER, pack, packed_bytes, unpack
from adq.file_heads import join, split
from adq.images import decode
from tests.adq.image_files import CLASSES, EVERY, KINDS, sealed
from tests.conftest import cifar10_shard


@pytest.fixture(scope="module")
def real() -> tuple[list[bytes], list[int]]:
    """The first 300 images of a shard with their labels."""
    files, labels = [], []
    with tarfile.open(cifar10_shard(0)) as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name.endswith(".jpg"):
                files.append(data)
            else:
                labels.append(int(data))
            if len(files) == len(labels) == 300:
                break
    return files, labels


@pytest.mark.parametrize("kind", EVERY)
def test_a_file_is_its_head_and_its_own_bytes(kind):
    made = [EVERY[kind](seed) for seed in range(6)]
    parts = [split(data) for data in made]
    assert [join(*part) for part in parts] == made
    if kind in KINDS:
        assert len({head for head, _ in parts}) == 1 and parts[0][0]
        assert len({own for _, own in parts}) == 6
    if kind in ("webp with alpha", "gif", "bmp", "tiff", "no image", "nothing"):
        assert all(head == b"" for head, _ in parts)


def test_a_jpeg_s_own_bytes_are_its_scan():
    data = KINDS["jpeg"](0)
    start = data.index(b"\xff\xda") + 2 + 12
    assert split(data) == (data[:start] + b"\xff\xd9", data[start:-2])
    assert split(data[:-9]) == (data[:start], data[start:-9]), "truncated"
    assert split(data + b"more") == (data[:start], data[start:] + b"more")
    assert split(data[:start]) == (data[:start], b"")
    assert split(data[: start - 20]) == (b"", data[: start - 20])


@pytest.mark.parametrize("size", [20, 21])
def test_a_webp_s_sizes_and_padding_are_made_anew(size):
    body = bytes(range(size))
    padded = body + bytes(size % 2)
    data = b"RIFF" + struct.pack("<I", 12 + len(padded)) + b"WEBPVP8 " + struct.pack("<I", size) + padded
    assert split(data) == (b"RIFFWEBPVP8 " + body[3:10], body[:3] + body[10:])
    lossless = data.replace(b"VP8 ", b"VP8L")
    assert split(lossless) == (b"RIFFWEBPVP8L" + body[:5], body[5:])
    for other in (
        data + b"\0",
        data[:-1],
        data.replace(b"VP8 ", b"VP8X"),
        data[:30],
        data[:12],
        data[:4] + b"\1" + data[5:],
    ):
        assert split(other) == (b"", other)
    if size % 2:
        assert split(data[:-1] + b"\1") == (b"", data[:-1] + b"\1"), "a padding byte that is not zero"


def test_a_png_s_lengths_and_checksums_are_made_anew():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    signature, header = b"\x89PNG\r\n\x1a\n", bytes(range(13))
    front, colours = signature + chunk(b"IHDR", header), bytes(range(200))
    data = front + chunk(b"PLTE", colours) + chunk(b"IDAT", b"pixels") + chunk(b"IEND", b"")
    assert split(data) == (signature + header + b"PLTEIDAT", b"\xc8\x01" + colours + b"pixels")
    assert split(front + chunk(b"IEND", b"")) == (signature + header, b"")
    wrong = data.replace(b"pixels", b"pixelz")  # its checksum does not fit
    for other in (wrong, data[:-1], data + b"\0", front, data.replace(b"IHDR", b"IHDX"), front + chunk(b"IEND", b"x")):
        assert split(other) == (b"", other)


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "webp", "lossless webp", "palette png"])
def test_damaged_files_come_back_too(kind):
    data = EVERY[kind](0)
    for at in range(len(data)):
        assert join(*split(data[:at])) == data[:at]
        for change in (1, 0x80, 0xFF):
            other = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
            assert join(*split(other)) == other


@pytest.mark.parametrize(
    ("head", "own"),
    [(b"GIF89a", b""), (b"\xff", b""), (b"RIFFWEBP", b"own"), (b"RIFFWEBPVP8 1234567", b"ab"), (b"RIFFWEBPVP8X12345", b"own"),
     (b"RIFFWEBPVP8 12345678", b"own"), (b"\x89PNG\r\n\x1a\n", b""), (b"\x89PNG\r\n\x1a\n" + bytes(13), b"own"),
     (b"\x89PNG\r\n\x1a\n" + bytes(13) + b"IDA", b""), (b"\x89PNG\r\n\x1a\n" + bytes(13) + b"PLTEIDAT", b"\x05four"),
     (b"\x89PNG\r\n\x1a\n" + bytes(13) + b"PLTEIDAT", b"\xff" * 9)],
)  # fmt: skip
def test_what_no_file_was_split_into_is_not_joined(head, own):
    with pytest.raises(ValueError, match=r"head|bytes"):
        join(head, own)


def test_the_bytes_are_as_they_are_described():
    jpeg = b"\xff\xd8\xff\xdb\0\3q\xff\xda\0\4hsSCAN\xff\xd9"
    data = pack([b"GIF", jpeg, b""], ["gif", "jpg", "gif"], np.array([2, 0, 1]), CLASSES)
    assert data == sealed(
        b"\x89TEI\r\n\x1a\n" + b"\1" + b"\0" + b"\3\0" + b"\3\0\0\0" + b"\2" + b"\2\0\0\0"
        + b"\3\0cat" + b"\x09\0" + "kůň 馬".encode() + b"\0\0" + b"\3gif" + b"\3jpg"
        + b"\0" + b"\x0f\xff\xd8\xff\xdb\0\3q\xff\xda\0\4hs\xff\xd9"
        + b"\2\0\1" + b"\0\1\0" + b"\0\1\0" + b"\3\4\0" + b"GIF" + b"SCAN"
    )  # fmt: skip
    one = pack([jpeg], ["jpg"], np.array([[0.5, -2.0]]), ["a", "b"])
    assert one == sealed(
        b"\x89TEI\r\n\x1a\n" + b"\1" + b"\1" + b"\2\0" + b"\1\0\0\0" + b"\1" + b"\1\0\0\0" + b"\1\0a" + b"\1\0b" + b"\3jpg"
        + b"\x0f\xff\xd8\xff\xdb\0\3q\xff\xda\0\4hs\xff\xd9" + b"\0\x38\0\xc0" + b"\4" + b"SCAN"
    )  # fmt: skip


def size_by_parts(files: list[bytes], extensions: list[str], classes: list[str], soft: bool = False) -> int:
    parts = [split(data) for data in files]
    heads = [len(head) for head in {head for head, _ in parts}]
    return packed_bytes(np.array([len(own) for _, own in parts]), heads, sorted(set(extensions)), classes, soft)


def test_real_images_cost_what_is_their_own(real):
    files, labels = real
    classes = [str(n) for n in range(10)]
    data = pack(files, ["jpg"] * 300, np.array(labels), classes)
    found, extensions, numbers, names = unpack(data)
    assert found == files and extensions == ["jpg"] * 300 and names == classes
    assert numbers.dtype == np.int64 and numbers.tolist() == labels
    assert len(data) == size_by_parts(files, ["jpg"], classes)
    # All have one head of 625 bytes, and lengths of two bytes.
    assert len(data) == sum(map(len, files)) - 299 * 625 + 300 * (1 + 2) + 2 + 10 * 3 + 4 + HEADER.size + 4
    assert len(data) < 0.36 * sum(map(len, files))


@pytest.mark.parametrize("soft", [False, True])
def test_files_of_every_kind_come_back_from_one_container(soft):
    names = [name for name in EVERY for _ in range(3)]
    files = [EVERY[name](seed) for seed, name in enumerate(names)]
    extensions = [name.split()[-1] for name in names]
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(len(files), 3)).astype(np.float16) if soft else rng.integers(0, 3, len(files))
    data = pack(files, extensions, labels, CLASSES)
    found, kinds, numbers, classes = unpack(data)
    assert found == files and kinds == extensions and classes == CLASSES
    assert numbers.dtype == (np.float16 if soft else np.int64) and np.array_equal(numbers, labels)
    assert len(data) == size_by_parts(files, extensions, CLASSES, soft)
    assert decode(found[0]).size == (10, 12)


@pytest.mark.parametrize(("heads", "width"), [(1, 0), (2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_the_number_of_a_head_takes_what_it_needs(heads, width):
    files = [b"\xff\xd8\xff\xda\0\6" + struct.pack("<I", n % heads) + b"scan" for n in range(max(3, heads))]
    data = pack(files, ["jpg"] * len(files), np.zeros(len(files), int), ["a"])
    assert len(data) == size_by_parts(files, ["jpg"], ["a"])
    assert len(data) == HEADER.size + 3 + 4 + heads * 11 + len(files) * (1 + width + 1 + 4) + 4
    if heads < 300 or width == 4:
        assert unpack(data)[0] == files


@pytest.mark.parametrize(("classes", "bytes_each"), [(1, 1), (256, 1), (257, 2), (65535, 2)])
def test_a_label_takes_one_byte_or_two(classes, bytes_each):
    names, labels = [str(n) for n in range(classes)], np.array([classes - 1, 0, classes // 2])
    data = pack([b"a", b"b", b"c"], ["x"] * 3, labels, names)
    assert len(data) == size_by_parts([b"a", b"b", b"c"], ["x"], names)
    assert len(data) == HEADER.size + sum(2 + len(name) for name in names) + 2 + 1 + 3 * (bytes_each + 1 + 1) + 4
    assert unpack(data)[2].tolist() == labels.tolist()


def test_lengths_at_the_borders_of_their_bytes():
    files = [bytes(n) for n in (0, 1, 127, 128, 16383, 16384, (1 << 21) - 1, 1 << 21)]
    data = pack(files, ["x"] * 8, np.zeros(8, int), ["a"])
    assert unpack(data)[0] == files
    assert len(data) == size_by_parts(files, ["x"], ["a"])
    assert packed_bytes(np.array([1 << 40]), [0], ["x"], ["a"]) - packed_bytes([0], [0], ["x"], ["a"]) == (1 << 40) + 5


@pytest.mark.parametrize(
    ("files", "extensions", "labels", "classes", "message"),
    [
        ([], [], [], ["a"], "at least one"),
        ([b"x"], ["a", "b"], [0], ["a"], "2 extensions of 1 files"),
        ([b"x"], ["a/b"], [0], ["a"], "extension 'a/b'"),
        ([b"x"], [""], [0], ["a"], "extension ''"),
        ([b"x"] * 256, [f"e{n}" for n in range(256)], [0] * 256, ["a"], "256 different extensions"),
        ([b"x"], ["a"], [1], ["a"], "run from 1 to 1"),
        ([b"x"], ["a"], [-1], ["a"], "run from -1 to -1"),
        ([b"x"], ["a"], [0.0], ["a", "b"], r"labels are float64 \[1\]"),
        ([b"x"], ["a"], [[0.0, 1e6]], ["a", "b"], "not finite"),
        ([b"x"], ["a"], [0], [], "0 classes"),
        ([b"x"], ["a"], [0], ["a"] * 65536, "65536 classes"),
        ([b"x"], ["a"], [0], ["a" * 65536], "longer than 65,535"),
    ],
)
def test_what_cannot_be_packed_is_said(files, extensions, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        pack(files, extensions, np.array(labels), classes)


def test_nothing_has_no_size():
    with pytest.raises(ValueError, match="0 images"):
        packed_bytes(np.array([]), [1], ["x"], ["a"])
