"""ingest: what the shards hold. Every shard is read once; what its headers can show to be wrong fails here."""

import json
import posixpath
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adq.index import Labels, ShardScan, scan
from adq.shards import DataSet, absolute, buffered, file_info, fingerprint, join, locate, open_file
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import canonical_json, parquet_table, sha256

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job
    from ray_jobs.options import Data

VERSION = 4
SKIP = "leave them out with --skip-corrupt"
COPY = "make shards without them: encode --encode original --skip-corrupt"  # of a command that leaves out nothing
MEMBER = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())])
SCHEMA = pa.schema([
    ("key", pa.string()), ("label", pa.int32()), ("shard", pa.string()), ("members", pa.list_(MEMBER)),
    ("own", pa.int64()), ("head", pa.string()), ("head_bytes", pa.int32()),  # of the image: adq.index.Parts
])  # fmt: skip


class Stored(NamedTuple):
    """What the images of an index take in a container, and which of its heads and extensions they have."""

    own: np.ndarray  # int64 [N], bytes
    heads: np.ndarray  # int32 [N]
    head_bytes: np.ndarray  # int64 [H]
    extensions: np.ndarray  # int32 [N]
    names: list[str]  # of the E extensions, in lower case
    file_bytes: np.ndarray  # int64 [N]


@dataclass(frozen=True)
class Index:
    """An ingested data set: what later stages hang on."""

    manifest: Manifest
    data: DataSet
    labels: Labels
    image_ext: tuple[str, ...]
    key_prefix: str

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest.summary["class_names"])

    @property
    def images(self) -> int:
        return self.manifest.summary["images"]

    @property
    def side(self) -> int:
        """Median shorter side of the first images of each shard, in pixels."""
        return self.manifest.summary["side"]

    @property
    def image_bytes(self) -> int:
        return self.manifest.summary["image_bytes"]

    @cached_property
    def _table(self) -> pa.Table:
        return self.manifest.table("index")

    def table(self) -> pa.Table:
        """key, label, shard, members, own, head, head_bytes; sorted by key, bytewise."""
        return self._table

    @cached_property
    def stored(self) -> Stored:
        table = self.table()
        heads = table["head"].combine_chunks().dictionary_encode()
        head_bytes = np.zeros(len(heads.dictionary), dtype=np.int64)
        head_bytes[heads.indices.to_numpy()] = table["head_bytes"].to_numpy()
        members = table["members"].combine_chunks().flatten()
        names = pc.utf8_lower(pc.struct_field(members, "name"))
        endings = pc.struct_field(pc.extract_regex(names, r"\.(?P<ending>[^.]*)$"), "ending")
        images = pc.is_in(endings, pa.array(self.image_ext))
        endings = endings.filter(images).dictionary_encode()
        return Stored(
            table["own"].to_numpy(), heads.indices.to_numpy(), head_bytes,
            endings.indices.to_numpy(), endings.dictionary.to_pylist(),
            pc.struct_field(members, "size").filter(images).to_numpy(),
        )  # fmt: skip

    def key(self, shard: str, name: str) -> str:
        """The data set's key of a shard's key."""
        return full_key(shard, name, self.key_prefix)

    def image_member(self, members: list[dict]) -> dict:
        return next(m for m in members if m["name"].rsplit(".", 1)[-1].lower() in self.image_ext)


def full_key(shard: str, key: str, key_prefix: str) -> str:
    return f"{shard.removesuffix('.tar').replace('.', '_')}/{key}" if key_prefix == "shard" else key


def undecodable(errors: list[tuple[str, str, str]], instead: str = SKIP) -> ValueError:
    """What to raise for images that cannot be decoded: (shard, key, reason) of each.

    Args:
        instead: what can be done with them, besides mending them.
    """
    listed = "\n  ".join(f"{shard}: key {key!r}: {why}" for shard, key, why in errors[:20])
    more = f"\n  and {len(errors) - 20} more" if len(errors) > 20 else ""
    count = f"{len(errors)} images" if len(errors) > 1 else "1 image"
    return ValueError(f"{count} cannot be decoded:\n  {listed}{more}\nmend them and run again, or {instead}")


def as_table(found: ShardScan, shard: str, key_prefix: str) -> pa.Table:
    """The rows of the index that a shard gives, sorted by key."""
    rows = sorted(
        (full_key(shard, one.key, key_prefix), one.label, shard, [m._asdict() for m in one.members], *one.image)
        for one in found.samples
    )
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)


class Scanner:
    """An actor that reads shards front to back and commits what they hold."""

    def __init__(self, stage: Stage, data: DataSet, labels: Labels, image_ext: tuple[str, ...], key_prefix: str):
        self.stage, self.data, self.labels, self.image_ext, self.key_prefix = stage, data, labels, image_ext, key_prefix

    def ready(self, _shared: list) -> None:
        """Nothing to load."""

    def work(self, _shared: list, shard: str) -> Part | str:
        """The committed part, or what is wrong with the shard."""
        where = join(self.data.root, shard)
        try:
            with open_file(where) as stream:
                found = scan(buffered(stream), stream.size(), where, self.labels, self.image_ext)
        except (ValueError, OSError) as error:
            return str(error)
        table = as_table(found, shard, self.key_prefix).replace_schema_metadata({"sides": json.dumps(found.sides)})
        return self.stage.commit_table(f"shard/{shard}", table)


def class_file(data: "Data", shards: DataSet) -> tuple[str, ...] | None:
    """Class names: --classes, else classes.txt beside the shards, else None (labels are numbers)."""
    if data.classes:
        path = absolute(data.classes)
    else:
        folders = {posixpath.dirname(join(shards.root, shard)) for shard in shards.shards[:1]} | {shards.root}
        paths = [join(folder, "classes.txt") for folder in sorted(folders, reverse=True)]
        path = next((p for p in paths if file_info(p).is_file), None)
        if path is None:
            return None
    if not file_info(path).is_file:
        raise FileNotFoundError(f"--classes {path}: no such file; expected class names, one a line, in label order")
    with open_file(path) as stream:
        names = tuple(line.strip() for line in stream.read().decode("utf-8-sig").splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{path}: expected different class names, one a line, in label order")
    return names


def run(job: "Job", data: "Data", require_all_classes: bool = True, context: str = "source") -> Index:
    """Ingest a data set, or find it done.

    Args:
        require_all_classes: a class without images is an error (a subset may lack one).
        context: what the data set is to this pipeline: source, train or test; for MLflow.

    Raises:
        ValueError: everything that the shards' headers can show to be wrong, with file and key.
    """
    shards = locate(data.data)
    names = class_file(data, shards)
    labels = Labels(data.label, names)
    marks = fingerprint(shards)
    stage = Stage(
        job.store, "ingest", VERSION,
        inputs={"fingerprint": sha256(canonical_json([shards.root, marks])), "classes": sha256(canonical_json(names))},
        config={"image_ext": data.image_ext, "label": data.label, "key_prefix": data.key_prefix, "shards": len(marks)},
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        missing = [shard for shard in shards.shards if f"shard/{shard}" not in parts]
        places = {name: n for n, name in enumerate(names or ())}
        if any(places.get(str(n), n) != n for n in range(len(places))):
            print(
                "warning: class names are numbers, in an order of their own: labels are read as these names, not as positions",
                flush=True,
            )
        progress = Progress("ingest", len(shards.shards), "shards")
        progress.add(len(shards.shards) - len(missing))
        errors: list[str] = []

        def on_done(result: Part | str) -> None:
            if isinstance(result, str):
                errors.append(result)
            else:
                parts[result.name] = result
            progress.add()

        if missing:
            arguments = (stage, shards, labels, data.image_extensions, data.key_prefix)
            size = pool_size(job.cluster, job.compute, "cpu", len(missing))
            map_actors(Scanner, arguments, [(shard,) for shard in missing], size, job.compute, "cpu", on_done)
        if errors:
            raise ValueError(_listed(errors))
        scans = [parts[f"shard/{shard}"] for shard in shards.shards]
        tables = [parquet_table(stage.read(part)) for part in scans]
        table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables]).combine_chunks()
        table = table.take(pc.sort_indices(table["key"]))
        _check_duplicates(table, shards)
        summary = _summary(table, tables, names, data.image_extensions, sum(size for _, size, _ in marks))
        classes = "".join(f"{name}\n" for name in summary["class_names"]).encode()  # what follows hangs on them, too
        table = table.replace_schema_metadata({"images": json.dumps(_endings(table, data.image_extensions))})
        return [
            *scans,
            stage.commit_table("index", table),
            stage.commit("classes", classes, summary["classes"], "txt"),
        ], summary

    def log(run, manifest: Manifest) -> None:
        digest, where = manifest.content, shards.root
        run.dataset(posixpath.basename(where) or "data", where, digest, context, manifest.summary["images"])

    index = Index(job.stage(stage, work, log=log), shards, labels, data.image_extensions, data.key_prefix)
    if require_all_classes:
        empty = [name for name, n in zip(index.classes, index.manifest.summary["class_counts"], strict=True) if not n]
        if empty:
            raise ValueError(
                f"{shards.root}: no images of class {', '.join(empty[:5])}; mend the classes file or the data"
            )
    return index


def _endings(table: pa.Table, image_ext: Sequence[str]) -> list[str]:
    """The extensions of the members that are the images: each sample has one of them, so they say which member it is."""
    names = pc.utf8_lower(pc.struct_field(table["members"].combine_chunks().flatten(), "name"))
    found = pc.unique(pc.struct_field(pc.extract_regex(names, r"\.(?P<ending>[^.]*)$"), "ending")).to_pylist()
    return sorted(set(found) & set(image_ext))


def _check_duplicates(table: pa.Table, shards: DataSet) -> None:
    keys = table["key"].combine_chunks()
    same = pc.indices_nonzero(pc.equal(keys[:-1], keys[1:])) if len(keys) > 1 else []
    if len(same):
        at = same[0].as_py()
        one, two = (join(shards.root, table["shard"][at + i].as_py()) for i in (0, 1))
        raise ValueError(
            f"key {keys[at].as_py()!r} comes twice: in {one} and in {two} ({len(same):,} keys do); keys are unique in a data set: "
            "where they are unique per shard only, use --key-prefix shard"
        )


def _summary(table: pa.Table, tables: list[pa.Table], names: tuple[str, ...] | None, image_ext, tar_bytes: int) -> dict:
    highest = pc.max(table["label"]).as_py()
    counts = [0] * (len(names) if names else highest + 1)
    for item in pc.value_counts(table["label"]).to_pylist():
        counts[item["values"]] = item["counts"]
    members = table["members"].combine_chunks().flatten()
    name, size = pc.struct_field(members, "name"), pc.struct_field(members, "size")
    is_image = pc.match_substring_regex(name, f"(?i)\\.({'|'.join(image_ext)})$")
    sides = [side for t in tables for side in json.loads(t.schema.metadata[b"sides"])]
    return {
        "images": table.num_rows, "classes": len(counts), "class_counts": counts,
        "class_names": list(names or map(str, range(len(counts)))), "side": statistics.median_low(sides) if sides else 0,
        "image_bytes": pc.sum(pc.filter(size, is_image)).as_py(), "tar_bytes": tar_bytes,
    }  # fmt: skip


def _listed(errors: list[str]) -> str:
    shown = "\n  ".join(sorted(errors)[:10])
    more = f"\n  and {len(errors) - 10} more" if len(errors) > 10 else ""
    return shown + more if len(errors) == 1 else f"{len(errors)} shards cannot be used:\n  {shown}{more}"
