"""pack: a set as the compact file, or files, whose size is its payload; `unpack` makes shards of them again.

`ray_jobs.containers` says which image goes into which container, here and for `payload_bytes`. One of any images (`adq.container`)
holds their files byte for byte and their extensions in lower case; one of indexed PNGs of one size (`palette.codec`), where that
is smaller, their pixels. Both hold one label an image (hard, or soft as float16) and the class names, images in the order of the
index, which is that of the keys, but no keys and no other members. A set that takes several containers (of both kinds, or of more
than 2 GiB of files) becomes NAME-000000.EXT, NAME-000001.EXT, ... Memory: about four times the bytes of one container.
"""

import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from adq import container
from adq.shards import absolute, file_info, locate
from palette.export import SOFT, soft_label
from ray_jobs import ingest
from ray_jobs.accuracy import as_bytes
from ray_jobs.containers import Container, cut, palette_container
from ray_jobs.ingest import Index
from ray_jobs.job import opened
from ray_jobs.members import read_members
from ray_jobs.options import Compute, Data, Place, option
from ray_jobs.payload import manifest_of
from ray_jobs.shard_reader import has_soft_labels
from ray_jobs.stages import Part, Stage
from ray_jobs.store import Store, parquet_table, sha256

VERSION = 1
READERS = 8  # shards that are read at once: on an object store each image costs a round trip
HARD = "hard"
ELSEWHERE = {  # stages whose folders, taken whole, have another payload than their images
    "fill": "the payload of a filled set is that of its patches; pack the shards that were filled",
    "distilled": "the payload of this set is that of the containers that `distill` wrote there; take distilled*.tessera",
}


@dataclass(frozen=True)
class Packing:
    """What a container holds."""

    labels: str = option(
        HARD,
        f"soft: the .{SOFT} members, in float16, in place of hard labels, which then are the likeliest classes.",
        (HARD, "soft"),
    )


@dataclass(frozen=True)
class Packed(Stage):
    """Containers lie where the user wants them; the store has the list of them."""

    target: Store = field(kw_only=True)

    def there(self, parts: tuple[Part, ...]) -> bool:
        if not super().there(parts):
            return False
        listed = parquet_table(self.read(parts[0])).to_pylist()
        return all(self.target.size(one["file"]) == one["bytes"] for one in listed)

    def put(self, name: str, data: bytes) -> None:
        """Write a container. Raises ValueError where its file holds something else."""
        if self.target.size(name) is None:
            self.target.write(name, data)
        elif self.target.size(name) != len(data) or self.target.read(name) != data:
            raise ValueError(
                f"--to {self.target.path(name)}: holds something else already; choose another name, or remove it first"
            )


def run(to: str, packing: Packing, data: Data, compute: Compute, place: Place) -> None:
    """The command: write a set as a container, or as many as it needs.

    Raises:
        ValueError: the file holds something else; soft labels that are asked for and missing; a folder of `fill`, or of `distill`
            in few colours.
        OSError: a place that cannot be read or written.
    """
    if file_info(absolute(to)).type == pafs.FileType.Directory:
        raise ValueError(f"--to {to}: is a folder; name the file to write, such as {posixpath.join(to, 'set.tessera')}")
    folder, name = posixpath.split(absolute(to))
    target, soft = Store(folder), packing.labels != HARD
    target.check_writable()
    identity = ["pack", locate(data.data).root, asdict(data), absolute(to), asdict(packing)]
    with opened(place, compute, f"pack {name}", identity) as job:
        index = ingest.run(job, data, require_all_classes=False)
        refuse_told(index)
        if soft and not has_soft_labels(index):
            raise ValueError(f"--labels soft: the samples of {index.data.root} have no .{SOFT} members")
        _warn_of_losses(index, soft)
        job.run.params({"to": absolute(to)} | asdict(packing))
        config = asdict(packing) | {"to": absolute(to), "image_ext": index.image_ext}
        stage = Packed(job.store, "pack", VERSION, {"index": index.manifest.content}, config, target=target)

        def work(stage: Packed) -> tuple[list[Part], dict]:
            parts, rows = cut(index, np.arange(index.images), soft), []
            for file, part in zip(file_names(name, len(parts)), parts, strict=True):
                packed = made(index, part, soft)
                stage.put(file, packed)
                rows.append({"file": file, "images": len(part.rows), "bytes": len(packed), "sha256": sha256(packed)})
            summary = {
                "images": index.images, "files": len(rows), "payload_bytes": sum(row["bytes"] for row in rows),
                "source_tar_bytes": index.manifest.summary["tar_bytes"],
            }  # fmt: skip
            return [stage.commit_table("files", pa.Table.from_pylist(rows))], summary

        done = job.stage(stage, work)
        s = done.summary
        job.run.metrics(s)
        job.run.dataset("packed", absolute(to), done.content, "subset", s["images"])
        first, *more = done.table("files")["file"].to_pylist()
        last = f" to {more[-1]}" if more else ""
        job.report(f"{told(s, s['source_tar_bytes'])}\nfile     {target.path(first)}{last}")


def told(s: Mapping, tar_bytes: int) -> str:
    """The figures of containers in a line."""
    return (
        f"{s['images']:,} images, {s['payload_bytes']:,} bytes in {s['files']:,} file{'s' * (s['files'] > 1)} "
        f"({as_bytes(s['payload_bytes'])}; as tars {as_bytes(tar_bytes)})"
    )


def refuse_told(index: Index) -> None:
    """Raises ValueError: a whole folder whose payload the stage that wrote it tells, which is not that of its images."""
    if (manifest := manifest_of(index)) is not None:
        raise ValueError(f"--data {index.data.root}: {ELSEWHERE[manifest['stage']]}")


def file_names(name: str, count: int) -> list[str]:
    """The files of so many containers."""
    stem, ending = posixpath.splitext(name)
    return [name] if count == 1 else [f"{stem}-{n:06d}{ending}" for n in range(count)]


def made(index: Index, part: Container, soft: bool) -> bytes:
    """A container, of as many bytes as `part` says. Raises ValueError: a soft label that is none, a member that changed."""
    files, labels = _read(index, part.rows, index.image_ext), _labels(index, part.rows, soft)
    if part.palette:
        return palette_container(files, labels, index.classes)
    extensions = [index.stored.names[number] for number in index.stored.extensions[part.rows]]
    return container.pack(files, extensions, labels, index.classes)


def _labels(index: Index, rows: np.ndarray, soft: bool) -> np.ndarray:
    """int64 [n], or logits, float32 [n, C]. Raises ValueError for a soft label that is none."""
    labels = index.table()["label"].to_numpy()[rows].astype(np.int64)
    if not soft:
        return labels
    logits = np.empty((len(labels), len(index.classes)), np.float32)
    for n, data in enumerate(_read(index, rows, (SOFT,))):
        try:
            logits[n] = soft_label(data, len(index.classes))
        except ValueError as error:
            key = index.table()["key"][int(rows[n])].as_py()
            raise ValueError(f"{index.data.root}: key {key!r}: {error}; see --labels") from error
    if changed := int((logits.argmax(axis=1) != labels).sum()):
        print(f"warning: {changed:,} images have another likeliest class than their hard label, which is not packed")
    return logits


def _read(index: Index, positions: np.ndarray, extensions: Sequence[str]) -> list[bytes]:
    """The member with one of these extensions of each of some rows of an index, in their order. Raises as `read_members`."""
    table = index.table().select(["key", "shard", "members"]).take(pa.array(positions))
    shards = table["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    files = [b""] * table.num_rows

    def read_shard(rows: np.ndarray) -> None:
        wanted = [
            (one["key"], one["shard"], [m for m in one["members"] if _extension(m["name"]) in extensions])
            for one in table.take(pa.array(rows)).to_pylist()
        ]
        found = read_members(index.data, wanted)
        for row, (key, _, (member,)) in zip(rows.tolist(), wanted, strict=True):
            files[row] = found[key, member["name"]]

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read_shard, np.split(np.argsort(shards, kind="stable"), np.cumsum(np.bincount(shards))[:-1])))
    return files


def _extension(name: str) -> str:
    return name.rsplit(".", 1)[-1].lower()


def _warn_of_losses(index: Index, soft: bool) -> None:
    names = pc.utf8_lower(pc.struct_field(index.table()["members"].combine_chunks().flatten(), "name"))
    endings = pc.struct_field(pc.extract_regex(names, r"\.(?P<ending>[^.]*)$"), "ending")
    kept = {*index.image_ext, index.labels.extension, *([SOFT] if soft else [])}
    lost = {one["values"]: one["counts"] for one in pc.value_counts(endings).to_pylist() if one["values"] not in kept}
    for ending, count in sorted(lost.items()):
        instead = "; --labels soft packs them in place of hard labels" if ending == SOFT else ""
        print(f"warning: {count:,} .{ending} members are left out: a container holds images and labels{instead}")
