"""One compact container for the images of a data set, whatever files they came in: the unit in which sets are compared.

A 32-px JPEG of 920 bytes has 620 bytes of headers and tables that are the same in every file of its kind. Here they are stored
once, so that a set costs what its images cost. All files come back byte for byte. Keys are not stored: a container holds what
training needs.

Format, version 1. Numbers are little endian; varints are those of `adq.varints`.

    magic         8 bytes      89 54 45 49 0D 0A 1A 0A
    version       1 byte       1
    soft          1 byte       1 where labels are soft, else 0
    C             2 bytes      classes, from 1
    N             4 bytes      images, from 1
    E             1 byte       different extensions, from 1
    H             4 bytes      different heads, from 1
    classes       C times      length (2 bytes), the name in UTF-8
    extensions    E times      length (1 byte), ASCII letters, digits, _ and -
    heads         H times      length (varint), the head; extensions and heads in the order of their first image, each once
    labels        N times      1 byte where C is at most 256, else 2; soft labels: C numbers as float16
    extension ids N bytes      only where E > 1
    head ids      N times      1 byte where H is at most 256, 2 where it is at most 65,536, else 4; only where H > 1
    lengths       N varints    of the own bytes of each image
    own bytes     N times      one after the other
    CRC-32        4 bytes      of everything before it, as in zlib

A file is put together from its head and its own bytes as `adq.file_heads` says.
"""

import re
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from adq.file_heads import LARGEST, join, split
from adq.varints import Reader, varint, varint_bytes

MAGIC = b"\x89TEI\r\n\x1a\n"  # as PNG's: shows a transfer that took it for text
VERSION = 1
HEADER = struct.Struct("<8sBBHIBI")  # magic, version, soft labels, classes, N, extensions, heads
CHECKSUM = 4
OVERHEAD = 64  # of a file in memory, that counts for LARGEST
EXTENSION = re.compile(r"[\w-]{1,255}", re.ASCII)


def pack(files: Sequence[bytes], extensions: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """A data set as bytes, images in the order given.

    Args:
        files: N image files, at least one. extensions: of each, without the dot.
        labels: whole numbers [N] below the number of classes, or float [N, C]: soft labels, stored as float16.
        classes: C names, 1 to 65,535 of them, each of at most 65,535 bytes in UTF-8.

    Raises:
        ValueError: lengths that differ, a label out of range or not finite in float16, an extension that is none, more than
            255 different ones, or files of more than `LARGEST` bytes together.
    """
    labels = _checked_labels(np.asarray(labels), len(files), len(classes))
    if len(extensions) != len(files):
        raise ValueError(f"{len(extensions)} extensions of {len(files)} files; expected as many")
    if wrong := [extension for extension in set(extensions) if not EXTENSION.fullmatch(extension)]:
        raise ValueError(f"extension {wrong[0]!r}: expected 1 to 255 letters, digits, _ or -")
    if sum(map(len, files)) + OVERHEAD * len(files) > LARGEST:
        raise ValueError(f"the files are more than one container holds ({LARGEST:,} bytes); split the set")
    heads, owns = zip(*map(split, files), strict=True)
    kinds, sorts = ({value: n for n, value in enumerate(dict.fromkeys(values))} for values in (extensions, heads))
    if len(kinds) > 255:
        raise ValueError(f"{len(kinds)} different extensions; expected at most 255")
    names = [name.encode() for name in classes]
    if max(map(len, names)) > 0xFFFF:
        raise ValueError("a class name is longer than 65,535 bytes")
    parts = [HEADER.pack(MAGIC, VERSION, labels.ndim == 2, len(names), len(files), len(kinds), len(sorts))]
    parts += [struct.pack("<H", len(name)) + name for name in names]
    parts += [bytes([len(kind)]) + kind.encode() for kind in kinds]
    parts += [varint(len(head)) + head for head in sorts]
    parts.append(labels.tobytes())
    for number, values in ((kinds, extensions), (sorts, heads)):
        if width := _id_bytes(len(number)):
            parts.append(np.array([number[value] for value in values], dtype=f"<u{width}").tobytes())
    parts += [varint(len(own)) for own in owns]
    content = b"".join([*parts, *owns])
    return content + struct.pack("<I", zlib.crc32(content))


def containers(file_bytes: np.ndarray) -> list[slice]:
    """Which images go into which container, where a set is more than one holds: as many of the next ones as it does.

    Args:
        file_bytes: int [N]: of each image, in the order of the set.
    """
    ends = np.cumsum(np.asarray(file_bytes, dtype=np.int64) + OVERHEAD)
    cuts, start, before = [], 0, 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, before + LARGEST, side="right")))
        cuts.append(slice(start, stop))
        start, before = stop, int(ends[stop - 1])
    return cuts


def packed_bytes(
    own_bytes: np.ndarray,
    head_bytes: Sequence[int],
    extensions: Sequence[str],
    classes: Sequence[str],
    soft: bool = False,
) -> int:
    """The size of what `pack` returns, from sizes alone; of a set beyond `LARGEST`, as if one container held it.

    Args:
        own_bytes: int [N]: of each image, as `split` gives them. head_bytes: of the different heads, an empty one counted.
        extensions: the different ones. soft: whether labels are soft.

    Raises:
        ValueError: no images, heads or extensions.
    """
    own_bytes, head_bytes = np.asarray(own_bytes, dtype=np.int64), np.asarray(head_bytes, dtype=np.int64)
    if not (len(own_bytes) and len(head_bytes) and len(extensions)):
        raise ValueError(
            f"{len(own_bytes)} images, {len(head_bytes)} heads, {len(extensions)} extensions; expected one or more"
        )
    frame = HEADER.size + CHECKSUM + sum(2 + len(name.encode()) for name in classes)
    kinds = sum(1 + len(extension) for extension in extensions)
    image = label_bytes(len(classes), soft) + _id_bytes(len(extensions)) + _id_bytes(len(head_bytes))
    stored = sum(int((sizes + varint_bytes(sizes)).sum()) for sizes in (own_bytes, head_bytes))
    return frame + kinds + len(own_bytes) * image + stored


def label_bytes(classes: int, soft: bool = False) -> int:
    """Bytes of an image's label in a container, as in that of `palette.codec`."""
    return 2 * classes if soft else 1 if classes <= 256 else 2


def unpack(data: bytes) -> tuple[list[bytes], list[str], np.ndarray, list[str]]:
    """What `pack` was given: the same files.

    Memory stays within a few times the bytes themselves and, whatever they say, `LARGEST`.

    Returns:
        (files, extensions, labels, classes): labels are int64 [N] or float16 [N, C].

    Raises:
        ValueError: bytes that `pack` does not write: truncated, altered, too long, or claiming too much.
    """
    if len(data) < HEADER.size + CHECKSUM or data[: len(MAGIC)] != MAGIC:
        raise ValueError("no container of images: it begins otherwise, or is cut short")
    if zlib.crc32(memoryview(data)[:-CHECKSUM]) != int.from_bytes(data[-CHECKSUM:], "little"):
        raise ValueError("the container is damaged, truncated or followed by other bytes: its checksum differs")
    _, version, soft, number, count, kinds, sorts = HEADER.unpack_from(data)
    if version != VERSION or soft > 1:
        raise ValueError(f"the container has version {version}, flags {soft}; this reader knows version {VERSION}")
    if not (number and count and kinds and sorts):
        raise ValueError(f"{number} classes, {count} images, {kinds} extensions, {sorts} heads; expected one or more")
    if count * OVERHEAD > LARGEST:
        raise ValueError(f"the container claims {count:,} images; expected at most {LARGEST // OVERHEAD:,}")
    reader = Reader(data, HEADER.size, len(data) - CHECKSUM)
    classes = [reader.text(2) for _ in range(number)]
    names = [reader.text(1) for _ in range(kinds)]
    heads = [reader.take(reader.varint()) for _ in range(sorts)]
    kind = _label_type(number, bool(soft))
    labels = np.frombuffer(reader.take(count * kind.itemsize * (number if soft else 1)), kind)
    labels = labels.reshape(count, number).astype(np.float16) if soft else labels.astype(np.int64)
    extensions = [names[i] for i in _ids(reader, count, kinds)]
    heads = [heads[i] for i in _ids(reader, count, sorts)]
    lengths = [reader.varint() for _ in range(count)]
    files, room = [], LARGEST
    for head, length in zip(heads, lengths, strict=True):
        files.append(join(head, reader.take(length)))
        room -= len(files[-1]) + OVERHEAD
        if room < 0:
            raise ValueError(f"the container claims files of more than {LARGEST:,} bytes")
    if pack(files, extensions, labels, classes) != data:
        raise ValueError("the container holds what this writer writes otherwise: unused, repeated or misplaced parts")
    return files, extensions, labels, classes


def _checked_labels(labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Labels as they are stored."""
    if not count:
        raise ValueError("no files; a container holds at least one image")
    if not 1 <= classes <= 0xFFFF:
        raise ValueError(f"{classes} classes; expected 1 to 65,535")
    labels = checked_labels(labels, count, classes)
    return labels.astype(_label_type(classes, labels.dtype.kind == "f"))


def checked_labels(labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Hard labels, integers [N], as they are, or soft ones, floats [N, C], as float16.

    Raises:
        ValueError: labels that are neither, that are none of the classes, or that float16 cannot hold.
    """
    if labels.dtype.kind == "f" and labels.shape == (count, classes):
        with np.errstate(over="ignore"):
            labels = labels.astype(np.float16)
        if not np.isfinite(labels).all():
            raise ValueError("a soft label is not finite in float16")
    elif labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}; expected integers [{count}] or floats [{count}, {classes}]"
        )
    elif labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes")
    return labels


def _label_type(classes: int, soft: bool) -> np.dtype:
    return np.dtype("<f2" if soft else f"<u{label_bytes(classes)}")


def _id_bytes(number: int) -> int:
    """Of a number that says which of so many."""
    return 0 if number == 1 else 1 if number <= 1 << 8 else 2 if number <= 1 << 16 else 4


def _ids(reader: Reader, count: int, number: int) -> list[int]:
    """Of each image, which of so many; of one, none are stored."""
    width = _id_bytes(number)
    found = np.frombuffer(reader.take(count * width), f"<u{width}") if width else np.zeros(count, np.int64)
    if found.max() >= number:
        raise ValueError(f"an image has number {found.max()} of {number} extensions or heads")
    return found.tolist()
