"""Payload: the bytes of a set in one compact container, the unit in which sets are compared, whatever they take as tars."""

import io

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from adq.container import label_bytes, packed_bytes
from adq.shards import read_ranges
from palette.codec import LARGEST, encode
from palette.export import SOFT
from ray_jobs.ingest import Index
from ray_jobs.members import image_members
from ray_jobs.store import Store


def payload_bytes(index: Index, positions: np.ndarray | None = None, soft: bool = False) -> int:
    """The size of images and the labels that are trained on, in the container of `adq.container`.

    A distilled set in few colours, taken whole, has a container of its own, and the size of that.

    Args:
        positions: rows of the index, all by default. soft: its soft labels are counted, not its hard ones.

    Raises:
        ValueError: no rows.
    """
    if positions is None and (size := _palettised(index, soft)) is not None:
        return size
    own, heads, head_bytes, extensions, names = index.stored
    if positions is not None:
        own, heads, extensions = own[positions], heads[positions], extensions[positions]
    found = [names[number] for number in np.unique(extensions)]
    return packed_bytes(own, head_bytes[np.unique(heads)], found, index.classes, soft)


def _palettised(index: Index, soft: bool) -> int | None:
    """The container's size of a set that `distill` wrote in few colours, with the labels that are asked for; else None."""
    there = Store.at(index.data.root).read_json(".tessera/manifest.json") or {}
    summary = there.get("summary", {})
    if there.get("stage") != "distilled" or "colors" not in summary or summary["images"] != index.images:
        return None
    names = pc.struct_field(index.table()["members"].combine_chunks().flatten(), "name")
    learned = pc.any(pc.match_substring_regex(names, rf"(?i)\.{SOFT}$")).as_py()
    classes = len(index.classes)
    return summary["payload_bytes"] + index.images * (label_bytes(classes, soft) - label_bytes(classes, learned))


def palettised_bytes(index: Index, positions: np.ndarray) -> int:
    """The size of images in few colours, indexed PNGs of one size, in the container of `palette.codec`.

    Raises:
        ValueError: images that are no indexed PNGs, or of several sizes.
    """
    found = _indexed(index, positions)
    sizes, labels = {one.size for one in found}, index.table()["label"].to_numpy()[positions].astype(np.int64)
    if len(sizes) != 1 or any(one.mode != "P" for one in found):
        raise ValueError(
            f"{index.data.root}: images of one size in indexed PNGs were expected; found {sorted(sizes)[:3]}, "
            f"{', '.join(sorted({one.mode for one in found}))}"
        )
    indices = np.stack([np.asarray(one) for one in found])
    palettes = np.zeros((len(found), int(indices.max()) + 1, 3), np.uint8)
    for row, one in zip(palettes, found, strict=True):
        colors = np.frombuffer(bytes(one.getpalette("RGB")), np.uint8).reshape(-1, 3)[: len(row)]
        row[: len(colors)] = colors
    (width, height), total = found[0].size, 0
    most = max(1, LARGEST // (height * width + 3 * palettes.shape[1] + 64))
    for start in range(0, len(found), most):
        part = slice(start, start + most)
        total += len(encode(palettes[part], indices[part], labels[part], index.classes))
    return total


def _indexed(index: Index, positions: np.ndarray) -> list[Image.Image]:
    """The images at these rows of the index, in this order, as Pillow opens them."""
    offsets, sizes = image_members(index).offsets[positions], image_members(index).image_bytes[positions]
    shards = index.table()["shard"].to_numpy()[positions]
    found: dict[int, Image.Image] = {}
    for shard in dict.fromkeys(shards):
        rows = np.flatnonzero(shards == shard)
        rows = rows[np.argsort(offsets[rows])]
        files = read_ranges(index.data, shard, [(int(offsets[row]), int(sizes[row])) for row in rows])
        found |= {
            int(row): Image.open(io.BytesIO(data), formats=["PNG"]) for row, data in zip(rows, files, strict=True)
        }
    return [found[row] for row in range(len(positions))]
