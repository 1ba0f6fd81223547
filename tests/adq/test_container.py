"""The container of images: every file back byte for byte, what repeats stored once, its size known from sizes alone."""

import io
import struct
import tarfile
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from adq import container, file_heads
from adq.container import HEADER, MAGIC, pack, packed_bytes, unpack
from adq.file_heads import join, split
from adq.images import decode
from tests.conftest import cifar10_shard

CLASSES = ["cat", "kůň 馬", ""]


def noise(seed: int, height: int = 12, width: int = 10, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8), mode
    )


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of_few_colours(seed: int) -> Image.Image:
    return noise(seed).quantize(7)


# By name: an image file of a seed. Of KINDS, all have one head; of OTHERS, each has its own or none.
KINDS = {
    "jpeg": lambda s: saved(noise(s), "JPEG", quality=75),
    "grey jpeg": lambda s: saved(noise(s, mode="L"), "JPEG"),
    "cmyk jpeg": lambda s: saved(noise(s, mode="CMYK"), "JPEG"),
    "commented jpeg": lambda s: saved(noise(s), "JPEG", comment=b"the same \xff\xda in each", icc_profile=bytes(300)),
    "webp": lambda s: saved(noise(s), "WEBP", quality=50),
    "lossless webp": lambda s: saved(noise(s), "WEBP", lossless=True),
    "png": lambda s: saved(noise(s), "PNG"),
    "palette png": lambda s: saved(of_few_colours(s), "PNG", transparency=bytes([s % 256] * 3)),
    "png of many chunks": lambda s: saved(noise(s, 180, 180), "PNG"),
}
OTHERS = {
    "optimised jpeg": lambda s: saved(noise(s), "JPEG", optimize=True),
    "progressive jpeg": lambda s: saved(noise(s), "JPEG", progressive=True),
    "webp with alpha": lambda s: saved(noise(s, mode="RGBA"), "WEBP"),
    "gif": lambda s: saved(of_few_colours(s), "GIF"),
    "bmp": lambda s: saved(noise(s), "BMP"),
    "tiff": lambda s: saved(noise(s), "TIFF"),
    "no image": lambda s: b"no image at all",
    "nothing": lambda s: b"",
}
EVERY = KINDS | OTHERS


def sealed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


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
