"""Containers: which of them the images of a set go into, and what each takes; payload is the sum, `pack` writes them.

One rule for every command. Images and labels go into containers of `adq.container`, files byte for byte, cut where one is full;
indexed PNGs of one size, where they take less there, into those of `palette.codec`, pixel for pixel. Only of indexed PNGs are files
read: of others, the index says what they take.
"""

import io
import struct
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from adq.container import containers, label_bytes, packed_bytes
from adq.file_heads import PNG, PNG_HEAD, split
from adq.images import UndecodableImage
from adq.varints import varint_bytes
from palette.codec import LARGEST, encode
from ray_jobs.ingest import Index
from ray_jobs.members import image_files
from ray_jobs.store import sha256

# Pixels of an indexed PNG: a container takes a tenth of a millisecond a pixel, however many images it holds.
LARGEST_SIDE = 256
INDEXED = 3  # PNG's colour type
COLORS = 256  # that it can have
_coded: dict[tuple[str, str], tuple[int, ...]] = {}  # by data set and rows: a command asks for the same ones many times


class Container(NamedTuple):
    """Rows of an index that are stored together."""

    palette: bool  # in the container of `palette.codec`, else in that of `adq.container`
    rows: np.ndarray  # int64 [n], ascending
    bytes: int


def cut(index: Index, positions: np.ndarray, soft: bool = False) -> list[Container]:
    """The containers of some images, in the order of their first rows; every row is in one of them.

    Args:
        positions: rows of the index, in any order. soft: containers hold soft labels, not hard ones.

    Raises:
        ValueError: no rows.
    """
    positions = np.sort(positions)
    own, hard = index.stored.own[positions], label_bytes(len(index.classes))
    more = label_bytes(len(index.classes), soft) - hard
    rest, found = np.ones(len(positions), bool), []
    for sides, group in _of_one_size(index, positions).items():
        parts = _palettised(index, positions[group], sides)
        in_compact = int((own[group] + varint_bytes(own[group])).sum()) + len(group) * hard
        if parts and sum(part.bytes for part in parts) < in_compact:
            rest[group] = False
            found += [part._replace(bytes=part.bytes + len(part.rows) * more) for part in parts]
    compact = cut_compact(index, positions, soft)
    if found:
        found += cut_compact(index, positions[rest], soft) if rest.any() else []
        # The frame of a container more, class names above all, can be more than its images save.
        if sum(one.bytes for one in found) < sum(one.bytes for one in compact):
            return sorted(found, key=lambda one: one.rows[0])
    return compact


def cut_compact(index: Index, positions: np.ndarray, soft: bool = False) -> list[Container]:
    """The same in containers of `adq.container` alone: nothing is read for it. Raises ValueError: no rows."""
    if not len(positions):
        raise ValueError("0 images; a container holds at least one")
    positions = np.sort(positions)
    own, heads, head_bytes, extensions, names, file_bytes = index.stored
    found = []
    for part in containers(file_bytes[positions]):
        rows = positions[part]
        kinds = [names[number] for number in np.unique(extensions[rows])]
        size = packed_bytes(own[rows], head_bytes[np.unique(heads[rows])], kinds, index.classes, soft)
        found.append(Container(False, rows, size))
    return found


def palette_container(files: Sequence[bytes], labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """Indexed PNGs of one size in the container of `palette.codec`.

    Args:
        labels: int64 [N], or logits, float [N, C].

    Raises:
        UndecodableImage: one of them cannot be decoded.
    """
    palettes, indices = zip(*map(_indexed, files), strict=True)
    indices = np.stack(indices)
    return encode(np.stack(palettes)[:, : int(indices.max()) + 1], indices, labels, classes)


def _of_one_size(index: Index, positions: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Which of these rows are indexed PNGs, as places in `positions`, by width and height."""
    heads, extensions = index.stored.heads[positions], index.stored.extensions[positions]
    known = index.stored.head_bytes[heads] > 0
    png = np.flatnonzero(known & np.array([name == "png" for name in index.stored.names])[extensions])
    if not len(png):
        return {}
    kinds, first = np.unique(heads[png], return_index=True)
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    # Files of one head have the same size, type and chunks: one of them is read.
    for kind, data in zip(kinds, image_files(index, positions[png[first]]), strict=True):
        head = split(data)[0]
        if not head.startswith(PNG):
            continue
        width, height, _, colour = struct.unpack_from(">IIBB", head, len(PNG))
        # Transparency and rotation are chunks of their own: a container of colours has neither.
        plain = head[PNG_HEAD:] == b"PLTEIDAT"
        if colour == INDEXED and plain and max(width, height) <= LARGEST_SIDE:
            found[width, height].append(kind)
    return {size: png[np.isin(heads[png], group)] for size, group in found.items()}


def _palettised(index: Index, positions: np.ndarray, sides: tuple[int, int]) -> list[Container]:
    """Indexed PNGs of one size in containers of `palette.codec`, with hard labels; none where one of them cannot be decoded.

    Args:
        positions: rows of the index, ascending.
    """
    key = (index.manifest.content, sha256(positions.astype("<i8").tobytes()))
    most = LARGEST // (sides[0] * sides[1] + 3 * COLORS + 64)
    parts = [positions[start : start + most] for start in range(0, len(positions), most)]
    if key not in _coded:
        labels = index.table()["label"].to_numpy().astype(np.int64)
        try:
            _coded[key] = tuple(
                len(palette_container(image_files(index, part), labels[part], index.classes)) for part in parts
            )
        except UndecodableImage:  # whoever decodes it to use it tells its key
            _coded[key] = ()
    found = _coded[key]
    return [Container(True, part, size) for part, size in zip(parts, found, strict=True)] if found else []


def _indexed(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The palette of an indexed PNG, uint8 [256, 3], black where it has no more colours, and its indices, uint8 [H, W]."""
    palette = np.zeros((COLORS, 3), np.uint8)
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        indices = np.asarray(image)
        colors = np.frombuffer(bytes(image.getpalette("RGB")), np.uint8).reshape(-1, 3)
    except Exception as error:  # Pillow's plugins raise whatever their parsers do
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    palette[: len(colors)] = colors
    return palette, indices
