"""Payload: the bytes of a set in compact containers, the unit in which sets are compared, whatever it takes as tars.

`ray_jobs.containers` says which image goes into which container, here and for `pack`, which writes them.
"""

import numpy as np
import pyarrow.compute as pc

from adq.container import label_bytes
from adq.index import BLOCK
from palette.export import SOFT
from ray_jobs.containers import cut, cut_compact
from ray_jobs.ingest import Index
from ray_jobs.store import Store

RECORD = 20 * BLOCK  # a tar ends in two empty blocks and is filled up to a multiple of this


def payload_bytes(index: Index, positions: np.ndarray | None = None, soft: bool = False) -> int:
    """The size of images and the labels that are trained on.

    A distilled set in few colours, taken whole, costs what `distill` wrote; a filled set, taken whole, its patches.

    Args:
        positions: rows of the index, all by default, in any order. soft: its soft labels are counted, not its hard ones.

    Raises:
        ValueError: no rows.
    """
    if positions is None:
        if (told := manifest_of(index)) is not None:
            return _told(index, told, soft)
        positions = np.arange(index.images)
    return sum(one.bytes for one in cut(index, positions, soft))


def compact_bytes(index: Index, positions: np.ndarray, soft: bool = False) -> int:
    """The size in containers of `adq.container` alone: nothing is read for it. Raises ValueError: no rows."""
    return sum(one.bytes for one in cut_compact(index, positions, soft))


def tar_bytes(index: Index, positions: np.ndarray | None = None) -> int:
    """The bytes of samples with all their members as one tar, of names up to 100 ASCII characters."""
    members = index.table()["members"].combine_chunks()
    sizes = pc.struct_field(members.flatten(), "size").to_numpy()
    rows = pc.list_parent_indices(members).to_numpy()
    each = np.bincount(rows, BLOCK + -(-sizes // BLOCK) * BLOCK, len(members)).astype(np.int64)
    total = int(each.sum() if positions is None else each[positions].sum())
    return -(-(total + 2 * BLOCK) // RECORD) * RECORD


def manifest_of(index: Index) -> dict | None:
    """The manifest in the data's folder where it tells the payload of the whole set: of `fill`, or `distill` in few colours."""
    there = Store.at(index.data.root).read_json(".tessera/manifest.json") or {}
    stage, summary = there.get("stage"), there.get("summary", {})
    tells = stage == "fill" or (stage == "distilled" and "colors" in summary)
    return there if tells and summary["images"] == index.images else None


def _told(index: Index, manifest: dict, soft: bool) -> int:
    """What the stage that wrote a whole folder says of it, with the labels that are asked for."""
    names = pc.struct_field(index.table()["members"].combine_chunks().flatten(), "name")
    learned = manifest["stage"] == "distilled" and pc.any(pc.match_substring_regex(names, rf"(?i)\.{SOFT}$")).as_py()
    each = label_bytes(len(index.classes), soft) - label_bytes(len(index.classes), learned)
    return manifest["summary"]["payload_bytes"] + index.images * each
