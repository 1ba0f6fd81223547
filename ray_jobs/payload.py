"""Payload: the bytes of a set in compact containers, the unit in which sets are compared, whatever it takes as tars.

One rule for every command. Images and labels go into one container of `adq.container`; indexed PNGs of one size, where they take
less there, into one of `palette.codec`. Only of indexed PNGs are files read: of others, the index says what they take.
"""

import io
import struct
from collections import defaultdict

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from adq.container import label_bytes, packed_bytes
from adq.file_heads import PNG, PNG_HEAD, split
from adq.images import UndecodableImage
from adq.index import BLOCK
from adq.shards import read_ranges
from adq.varints import varint_bytes
from palette.codec import LARGEST, encode
from palette.export import SOFT
from ray_jobs.ingest import Index
from ray_jobs.members import image_members
from ray_jobs.store import Store, sha256

LARGEST_SIDE = (
    256  # pixels of an indexed PNG: a container takes a tenth of a millisecond a pixel, however many images it holds
)
INDEXED = 3  # PNG's colour type
COLORS = 256  # that it can have
RECORD = 20 * BLOCK  # a tar ends in two empty blocks and is filled up to a multiple of this
_coded: dict[tuple[str, str], int | None] = {}  # by data set and rows: a command asks for the same ones many times


def payload_bytes(index: Index, positions: np.ndarray | None = None, soft: bool = False) -> int:
    """The size of images and the labels that are trained on.

    A distilled set in few colours, taken whole, costs what `distill` wrote; a filled set, taken whole, its patches.

    Args:
        positions: rows of the index, all by default, in any order. soft: its soft labels are counted, not its hard ones.

    Raises:
        ValueError: no rows.
    """
    if positions is None:
        if (told := _told(index, soft)) is not None:
            return told
        positions = np.arange(index.images)
    positions = np.sort(positions)
    own, hard = index.stored.own[positions], label_bytes(len(index.classes))
    rest, coded = np.ones(len(positions), bool), 0
    for sides, group in _of_one_size(index, positions).items():
        size = _palettised(index, positions[group], sides)
        in_compact = int((own[group] + varint_bytes(own[group])).sum()) + len(group) * hard
        if size is not None and size < in_compact:
            rest[group] = False
            coded += size + len(group) * (label_bytes(len(index.classes), soft) - hard)
    compact = compact_bytes(index, positions, soft)
    return min(compact, coded + (compact_bytes(index, positions[rest], soft) if rest.any() else 0))


def compact_bytes(index: Index, positions: np.ndarray, soft: bool = False) -> int:
    """The size in the container of `adq.container` alone: nothing is read for it. Raises ValueError: no rows."""
    own, heads, head_bytes, extensions, names = index.stored
    found = [names[number] for number in np.unique(extensions[positions])]
    return packed_bytes(own[positions], head_bytes[np.unique(heads[positions])], found, index.classes, soft)


def tar_bytes(index: Index, positions: np.ndarray | None = None) -> int:
    """The bytes of samples with all their members as one tar, of names up to 100 ASCII characters."""
    members = index.table()["members"].combine_chunks()
    sizes = pc.struct_field(members.flatten(), "size").to_numpy()
    rows = pc.list_parent_indices(members).to_numpy()
    each = np.bincount(rows, BLOCK + -(-sizes // BLOCK) * BLOCK, len(members)).astype(np.int64)
    total = int(each.sum() if positions is None else each[positions].sum())
    return -(-(total + 2 * BLOCK) // RECORD) * RECORD


def _told(index: Index, soft: bool) -> int | None:
    """What the stage that wrote a whole folder says of it, with the labels that are asked for; else None."""
    there = Store.at(index.data.root).read_json(".tessera/manifest.json") or {}
    stage, summary = there.get("stage"), there.get("summary", {})
    if not (stage == "fill" or (stage == "distilled" and "colors" in summary)) or summary["images"] != index.images:
        return None
    names = pc.struct_field(index.table()["members"].combine_chunks().flatten(), "name")
    learned = stage == "distilled" and pc.any(pc.match_substring_regex(names, rf"(?i)\.{SOFT}$")).as_py()
    classes = len(index.classes)
    return summary["payload_bytes"] + index.images * (label_bytes(classes, soft) - label_bytes(classes, learned))


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
    for kind, data in zip(kinds, _files(index, positions[png[first]]), strict=True):
        head = split(data)[0]
        if not head.startswith(PNG):
            continue
        width, height, _, colour = struct.unpack_from(">IIBB", head, len(PNG))
        # Transparency and rotation are chunks of their own: a container of colours has neither.
        plain = head[PNG_HEAD:] == b"PLTEIDAT"
        if colour == INDEXED and plain and max(width, height) <= LARGEST_SIDE:
            found[width, height].append(kind)
    return {size: png[np.isin(heads[png], group)] for size, group in found.items()}


def _palettised(index: Index, positions: np.ndarray, size: tuple[int, int]) -> int | None:
    """The size of indexed PNGs of one size in containers of `palette.codec`; None: one of them cannot be decoded.

    Args:
        positions: rows of the index, in order.
    """
    key = (index.manifest.content, sha256(positions.astype("<i8").tobytes()))
    if key not in _coded:
        most = LARGEST // (size[0] * size[1] + 3 * COLORS + 64)
        parts = [positions[start : start + most] for start in range(0, len(positions), most)]
        try:
            _coded[key] = sum(len(_container(index, part)) for part in parts)
        except UndecodableImage:  # whoever decodes it to use it tells its key
            _coded[key] = None
    return _coded[key]


def _container(index: Index, positions: np.ndarray) -> bytes:
    """Indexed PNGs of one size as a container. Raises UndecodableImage."""
    palettes, indices = zip(*map(_indexed, _files(index, positions)), strict=True)
    indices, labels = np.stack(indices), index.table()["label"].to_numpy()[positions].astype(np.int64)
    return encode(np.stack(palettes)[:, : int(indices.max()) + 1], indices, labels, index.classes)


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


def _files(index: Index, positions: np.ndarray) -> list[bytes]:
    """The image files at these rows of the index, in this order."""
    offsets, sizes = (values[positions] for values in image_members(index))
    shards = index.table()["shard"].to_numpy()[positions]
    found: dict[int, bytes] = {}
    for shard in dict.fromkeys(shards):
        rows = np.flatnonzero(shards == shard)
        rows = rows[np.argsort(offsets[rows])]
        files = read_ranges(index.data, shard, [(int(offsets[row]), int(sizes[row])) for row in rows])
        found |= dict(zip(rows.tolist(), files, strict=True))
    return [found[row] for row in range(len(positions))]
