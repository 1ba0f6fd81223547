"""write: the subset as WebDataset shards. Members keep their bytes and names; of the source, only their byte ranges are read."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adq.images import UndecodableImage, decode
from adq.randomness import key_order
from adq.shards import DataSet, join, read_ranges, tar_bytes
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.ingest import Index
from ray_jobs.members import Row, read_members
from ray_jobs.payload import payload_bytes
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import Store

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job

VERSION = 3
SHARD_IMAGES = 5000
SHARD_BYTES = 128 << 20
GRID_IMAGES = 10  # a bin, in the picture of the chosen images

Sample = tuple[str, dict[str, bytes]]  # a key, and its members by extension


@dataclass(frozen=True)
class Output(Stage):
    """The stage that a user sees: its folder is --out, its parts have plain names, and their markers lie in .tessera."""

    @property
    def folder(self) -> str:
        return ".tessera"

    def part_path(self, name: str, digest: str, suffix: str) -> str:
        return f"{name}.{suffix}"

    def there(self, parts: tuple[Part, ...]) -> bool:
        return all(self.store.size(part.path) == part.bytes for part in parts)

    def claim(self) -> None:
        """Raises ValueError where the folder belongs to another data set."""
        owner = self.store.read_json(".tessera/owner.json")
        if owner is None:
            self.store.write_json(".tessera/owner.json", {"digest": self.digest})
        elif owner["digest"] != self.digest:
            raise ValueError(
                f"--out {self.store.root}: holds the result of another command; choose another folder, or remove this one first"
            )


def check(out: str) -> None:
    """What can be known of --out before hours are spent.

    Raises:
        OSError: it cannot be written.
        ValueError: it holds shards that Tessera did not write.
    """
    store = Store.at(out)
    store.check_writable()
    taken = [name for name in store.names("") if name.endswith(".tar")]
    if taken and store.size(".tessera/owner.json") is None:
        raise ValueError(f"--out {store.root}: holds other shards already ({taken[0]}); choose an empty folder")


def told(made: Manifest) -> str:
    """The line of a report that says where the shards of an `Output` are, as --data takes it: a folder gives those in it alone."""
    folders = {posixpath.dirname(part.path) for part in made.parts if part.path.endswith(".tar")}
    return f"shards   {' '.join(join(made.stage.store.root, folder) for folder in sorted(folders))}"


class Writer:
    """An actor that copies the chosen members of a shard-to-be."""

    def __init__(self, stage: Output, data: DataSet, rename: bool):
        self.stage, self.data, self.rename = stage, data, rename

    def ready(self, _shared: list) -> None:
        """Nothing to load."""

    def work(self, _shared: list, name: str, rows: list[Row]) -> Part:
        """Args: rows: in the order in which they are written."""
        found = read_members(self.data, rows)
        members = [
            (member_name(key, m["name"], self.rename), found[key, m["name"]]) for key, _, members in rows for m in members
        ]  # fmt: skip
        return self.stage.commit(name, tar_bytes(members), len(rows), "tar")


def member_name(key: str, name: str, rename: bool) -> str:
    """The name that a member is written under. With --key-prefix shard (`rename`), its own is unique in its shard only."""
    return f"{key}.{name.rsplit('.', 1)[-1]}" if rename else name


def plan(subset: pa.Table, seed: int) -> list[tuple[str, list[Row]]]:
    """Shards of the subset: images in the order of a seeded hash, so that each shard is mixed, cut by count and bytes."""
    rows = subset.select(["key", "shard", "members"]).to_pylist()
    shards, current, size = [], [], 0
    for i in key_order([row["key"] for row in rows], seed, "write"):
        row = rows[i]
        bytes_here = sum(member["size"] for member in row["members"])
        if current and (len(current) == SHARD_IMAGES or size + bytes_here > SHARD_BYTES):
            shards.append(current)
            current, size = [], 0
        current.append((row["key"], row["shard"], row["members"]))
        size += bytes_here
    shards.append(current)
    return [(f"train-{n:06d}", rows) for n, rows in enumerate(shards)]


def cut(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Shards of samples that are in memory, by count and bytes."""
    shard: list[Sample] = []
    size = 0
    for key, sample in samples:
        here = sum(map(len, sample.values()))
        if shard and (len(shard) == SHARD_IMAGES or size + here > SHARD_BYTES):
            yield shard
            shard, size = [], 0
        shard.append((key, sample))
        size += here
    yield shard


def run(job: "Job", index: Index, sample: Manifest, out: str, seed: int) -> Manifest:
    """Write the subset to a folder, or find it there.

    Raises:
        ValueError: the folder holds something else; the source changed since ingest.
        OSError: the folder cannot be written.
    """
    stage = Output(
        Store.at(out), "write", VERSION, {"sample": sample.content, "index": index.manifest.content},
        {"seed": seed, "shard_images": SHARD_IMAGES, "shard_bytes": SHARD_BYTES},
    )  # fmt: skip
    stage.claim()

    def work(stage: Stage) -> tuple[list[Part], dict]:
        subset = sample.table("subset")
        shards = plan(subset, seed)
        parts = stage.committed()
        progress = Progress("write", subset.num_rows)
        missing = [task for task in shards if task[0] not in parts]
        progress.add(subset.num_rows - sum(len(rows) for _, rows in missing))

        def on_done(part: Part) -> None:
            parts[part.name] = part
            progress.add(part.rows)

        if missing:
            size = pool_size(job.cluster, job.compute, "cpu", len(missing))
            arguments = (stage, index.data, index.key_prefix == "shard")
            map_actors(Writer, arguments, missing, size, job.compute, "cpu", on_done)
        done = [parts[name] for name, _ in shards]
        classes = stage.commit(
            "classes", "".join(f"{name}\n" for name in index.classes).encode(), len(index.classes), "txt"
        )
        listing = stage.commit_table("subset", subset.select(["key", "label", "bin", "shard"]))
        positions = pc.index_in(subset["key"], value_set=index.table()["key"].combine_chunks()).to_numpy()
        summary = {
            "images": subset.num_rows, "payload_bytes": payload_bytes(index, positions),
            "tar_bytes": sum(part.bytes for part in done), "source_payload_bytes": payload_bytes(index),
            "source_tar_bytes": index.manifest.summary["tar_bytes"],
        }  # fmt: skip
        return [*done, classes, listing], summary

    def log(run, manifest: Manifest) -> None:
        from ray_jobs import figures

        run.dataset("subset", stage.store.root, manifest.content, "subset", manifest.summary["images"])
        run.figure(figures.bin_grid(_grid(index, sample.table("subset"), seed)), "figures/images.png")

    return job.stage(stage, work, log=log)


def _grid(index: Index, subset: pa.Table, seed: int) -> dict[int, list[np.ndarray]]:
    """A few chosen images of every bin."""
    rows = subset.to_pylist()
    grid: dict[int, list[np.ndarray]] = defaultdict(list)
    for i in key_order([row["key"] for row in rows], seed, "grid"):
        row = rows[i]
        if len(grid[row["bin"]]) < GRID_IMAGES:
            member = index.image_member(row["members"])
            (data,) = read_ranges(index.data, row["shard"], [(member["offset"], member["size"])])
            try:
                image = decode(data)
            except UndecodableImage:  # `random` decodes nothing
                continue
            image.thumbnail((128, 128))
            grid[row["bin"]].append(np.asarray(image))
    return dict(grid)
