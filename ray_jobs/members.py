"""What an index says of the members of its samples: where images lie, how large they are, which samples have others; and the
members of some samples, read without the rest of their shards.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adq.shards import DataSet, read_ranges
from ray_jobs.ingest import Index
from ray_jobs.store import sha256

Row = tuple[str, str, list[dict]]  # key, shard, and its members as the index has them


class Members(NamedTuple):
    """Of every row of an index, int64 [N]."""

    offsets: np.ndarray  # of the image, in its shard
    image_bytes: np.ndarray


def image_members(index: Index) -> Members:
    """Where the images of an index lie, and how large they are."""
    inner, parents = _flat(index)
    is_image = _with_extension(inner, *index.image_ext)
    rows = parents.filter(is_image).to_numpy()
    found = Members(*(np.zeros(index.table().num_rows, dtype=np.int64) for _ in Members._fields))
    found.offsets[rows] = pc.struct_field(inner, "offset").filter(is_image).to_numpy()
    found.image_bytes[rows] = pc.struct_field(inner, "size").filter(is_image).to_numpy()
    return found


def image_digests(index: Index) -> pa.Array:
    """sha256 of every image file, in hexadecimal; not in the order of the rows."""
    inner, _ = _flat(index)
    return pc.struct_field(inner, "sha256").filter(_with_extension(inner, *index.image_ext))


def member_bytes(index: Index, extension: str) -> np.ndarray:
    """Bytes of every row's member with an extension, int64 [N]; 0 where there is none."""
    inner, parents = _flat(index)
    wanted = _with_extension(inner, extension)
    found = np.zeros(index.table().num_rows, dtype=np.int64)
    found[parents.filter(wanted).to_numpy()] = pc.struct_field(inner, "size").filter(wanted).to_numpy()
    return found


def check_names(index: Index, made: Sequence[str], what: str) -> None:
    """Refuse images with new extensions where a sample has a member of such a name beside its image already.

    Raises:
        ValueError: names the first member of such a name.
    """
    if not (
        new := sorted(set(made) - set(index.image_ext))
    ):  # of those in image_ext, a sample has one member: its image
        return
    inner, _ = _flat(index)
    if clash := pc.struct_field(inner, "name").filter(_with_extension(inner, *new)).to_pylist():
        raise ValueError(
            f"{what} makes images with the extension {' or '.join(new)}, but {clash[0]} stands beside an image already; "
            "rename such members, or leave them out"
        )


def _flat(index: Index) -> tuple[pa.StructArray, pa.Array]:
    """All members of an index, and the row of each."""
    members = index.table()["members"].combine_chunks()
    return members.flatten(), pc.list_parent_indices(members)


def _with_extension(members: pa.StructArray, *extensions: str) -> pa.BooleanArray:
    return pc.match_substring_regex(pc.struct_field(members, "name"), f"(?i)\\.({'|'.join(extensions)})$")


def read_members(data: DataSet, rows: Sequence[Row]) -> dict[tuple[str, str], bytes]:
    """The members of these rows, by key and name: of their shards, only their byte ranges are read.

    Raises:
        ValueError: one changed since ingest.
    """
    wanted = defaultdict(list)
    for key, shard, members in rows:
        wanted[shard] += [(m["offset"], m["size"], key, m) for m in members]
    found: dict[tuple[str, str], bytes] = {}
    for shard, ranges in sorted(wanted.items()):
        ranges.sort(key=lambda r: r[0])
        parts = read_ranges(data, shard, [(offset, size) for offset, size, _, _ in ranges])
        for part, (_, _, key, member) in zip(parts, ranges, strict=True):
            if sha256(part) != member["sha256"]:
                raise ValueError(f"{data.root}/{shard}: member {member['name']} changed since ingest; run ingest again")
            found[key, member["name"]] = part
    return found


def image_files(index: Index, positions: np.ndarray) -> list[bytes]:
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
