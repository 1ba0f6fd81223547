"""The container of a palettised data set: few colours an image, coded in few bytes, read back pixel for pixel. See FORMAT.md.

The bytes are canonical: what decodes, encodes to the same bytes again, whatever the order of colours in the palettes was.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from adq.container import checked_labels
from palette.entropy import Decoder, Encoder
from palette.prediction import canonical, read_indices, read_palettes, used, write_indices, write_palettes

MAGIC = b"\x89TES\r\n\x1a\n"  # as PNG's: shows a transfer that took it for text
VERSION = 1
HEADER = struct.Struct("<8sBBHHHHI")  # magic, version, soft labels, H, W, K, classes, N
LARGEST_SIDE = 1024
LARGEST = 1 << 26  # N (H W + 3 K + 64): with it, memory stays below 1 GiB


def payload_bytes(height: int, width: int, colors: int) -> int:
    """The bytes of an image of K colours before entropy coding: ceil(H W ceil(log2 K) / 8) + 3 K.

    Raises:
        ValueError: a side below 1, or colors outside 1 to 256.
    """
    if height < 1 or width < 1 or not 1 <= colors <= 256:
        raise ValueError(f"{height} x {width} pixels in {colors} colours; expected sides from 1 and 1 to 256 colours")
    return -(-height * width * (colors - 1).bit_length() // 8) + 3 * colors


def images_in_budget(budget: int, height: int, width: int, colors: int, label_bytes: int = 0) -> int:
    """How many images of K colours fit `budget` bytes, by `payload_bytes`; for images per class, give a class's bytes.

    The rule is on the safe side for photographs, of which the container needs about two thirds of it at 32 px and half at
    128 px. Pure noise cannot be coded in less, and takes up to 8 bytes an image more, of which the label is one or two.

    Args:
        budget: bytes. label_bytes: of one image's label, 2 C for soft labels of C classes.

    Raises:
        ValueError: as payload_bytes, or negative bytes.
    """
    if budget < 0 or label_bytes < 0:
        raise ValueError(f"a budget of {budget} bytes and labels of {label_bytes}; expected 0 or more")
    return budget // (payload_bytes(height, width, colors) + label_bytes)


def encode(palettes: np.ndarray, indices: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """A palettised data set as bytes.

    Args:
        palettes: uint8 [N, K, 3], N at least 1, K from 1 to 256. Colours that an image does not use are not stored.
        indices: uint8 [N, H, W], sides up to 1,024 pixels, below K.
        labels: whole numbers [N] below the number of classes, or float [N, C]: soft labels (logits), stored as float16.
        classes: C names, 1 to 65,535 of them, each of at most 65,535 bytes in UTF-8.

    Returns:
        The container: it depends on the images, K, labels and classes, not on the order of the palettes.

    Raises:
        ValueError: another type or shape, an index or label out of range, a soft label that float16 cannot hold, or more data than
            one container takes: N (H W + 3 K + 64) above 2^26.
    """
    palettes, indices, labels = check_set(palettes, indices, labels, classes)
    names = [name.encode() for name in classes]
    if max(map(len, names)) > 0xFFFF:
        raise ValueError("a class name is longer than 65,535 bytes")
    (count, colors), (height, width) = palettes.shape[:2], indices.shape[1:]
    soft = labels.ndim == 2
    header = HEADER.pack(MAGIC, VERSION, soft, height, width, colors, len(names), count)
    table = b"".join(struct.pack("<H", len(name)) + name for name in names)
    palettes, indices, sizes = canonical(palettes, indices)
    coder = Encoder(count)
    write_palettes(coder, palettes, sizes)
    write_indices(coder, palettes, indices, sizes)
    content = b"".join([header, table, labels.astype(_label_type(len(names), soft)).tobytes(), coder.finish()])
    return content + struct.pack("<I", zlib.crc32(content))


def decode(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """What `encode` was given, as (palettes, indices, labels, classes): the same images.

    Memory stays below 1 GiB whatever the bytes say, besides the bytes themselves; the time is that of at most 1,024 x 1,024
    steps, one for each pixel of an image (minutes).

    Returns:
        palettes uint8 [N, K, 3], each image's own colours in the order of green, red, blue, then zeros; indices uint8 [N, H, W];
        labels int64 [N] or float16 [N, C]; classes, a list of names.

    Raises:
        ValueError: bytes that `encode` does not write: truncated, altered, too long, or claiming too much.
    """
    view = memoryview(data)
    if len(view) < HEADER.size + 4 or bytes(view[: len(MAGIC)]) != MAGIC:
        raise ValueError("no Tessera container: it begins otherwise, or is cut short")
    if zlib.crc32(view[:-4]) != int.from_bytes(view[-4:], "little"):
        raise ValueError("the container is damaged, truncated or followed by other bytes: its checksum differs")
    _, version, soft, height, width, colors, number, count = HEADER.unpack_from(view)
    if version != VERSION or soft > 1:
        raise ValueError(f"the container has version {version}, flags {soft}; this reader knows version {VERSION}")
    _check_sizes(count, height, width, colors, number)
    classes, rest = _read_classes(view[HEADER.size : -4], number)
    labels, rest = _read_labels(rest, count, number, bool(soft))
    coder = Decoder(rest, count)
    palettes, sizes = read_palettes(coder, count, colors)
    indices = read_indices(coder, palettes, sizes, height, width)
    coder.finish()
    if (used(indices, colors).sum(axis=1) != sizes).any():
        raise ValueError("a palette holds a colour that its image does not use")
    return palettes, indices, labels, classes


def check_set(
    palettes: np.ndarray, indices: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of a palettised set as `encode` takes them, soft labels as float16. Raises ValueError."""
    palettes, indices, labels = np.asarray(palettes), np.asarray(indices), np.asarray(labels)
    if palettes.dtype != np.uint8 or palettes.ndim != 3 or palettes.shape[2] != 3:
        raise ValueError(f"palettes are {palettes.dtype} {list(palettes.shape)}; expected uint8 [N, K, 3]")
    if indices.dtype != np.uint8 or indices.ndim != 3 or len(indices) != len(palettes):
        raise ValueError(f"indices are {indices.dtype} {list(indices.shape)}; expected uint8 [{len(palettes)}, H, W]")
    (count, colors), number = palettes.shape[:2], len(classes)
    _check_sizes(count, *indices.shape[1:], colors, number)
    if indices.max() >= colors:
        raise ValueError(f"an index is {indices.max()}, but the palettes have {colors} colours")
    return palettes, indices, checked_labels(labels, count, number)


def _check_sizes(count: int, height: int, width: int, colors: int, classes: int) -> None:
    if not (count and 1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE and 1 <= colors <= 256):
        raise ValueError(
            f"{count} images of {height} x {width} pixels in {colors} colours; expected at least one image, sides from "
            f"1 to {LARGEST_SIDE} and 1 to 256 colours"
        )
    if not 1 <= classes <= 0xFFFF:
        raise ValueError(f"{classes} classes; expected 1 to 65,535")
    if count * (height * width + 3 * colors + 64) > LARGEST:
        raise ValueError(
            f"{count} images of {height} x {width} pixels in {colors} colours are more than one container holds; "
            "split the set: N (H W + 3 K + 64) is at most 2^26"
        )


def _label_type(classes: int, soft: bool) -> np.dtype:
    return np.dtype("<f2" if soft else "<u1" if classes <= 256 else "<u2")


def _read_classes(rest: memoryview, number: int) -> tuple[list[str], memoryview]:
    classes = []
    for _ in range(number):
        size = int.from_bytes(rest[:2], "little")
        if len(rest) < 2 + size:
            raise ValueError("the container ends inside the class names")
        try:
            classes.append(str(rest[2 : 2 + size], "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"the name of class {len(classes)} is not UTF-8") from error
        rest = rest[2 + size :]
    return classes, rest


def _read_labels(rest: memoryview, count: int, classes: int, soft: bool) -> tuple[np.ndarray, memoryview]:
    kind, number = _label_type(classes, soft), count * classes if soft else count
    if len(rest) < number * kind.itemsize:
        raise ValueError("the container ends inside the labels")
    values, rest = np.frombuffer(rest, kind, number), rest[number * kind.itemsize :]
    if soft and not np.isfinite(values).all():
        raise ValueError("a soft label is not finite")
    if not soft and values.max() >= classes:
        raise ValueError(f"a label is {values.max()}, but there are {classes} classes")
    return (values.reshape(count, classes).astype(np.float16) if soft else values.astype(np.int64)), rest
