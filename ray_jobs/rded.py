"""rded: distilled images without optimisation: mosaics of the crops that a trained network finds realistic. A task is a class."""

import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
import torch
from PIL import Image

from adq.extractor import InputTransform
from adq.features import load
from adq.images import UndecodableImage
from adq.index import class_texts
from adq.randomness import numpy_generator
from adq.rded import candidate_images, class_mosaics, published_factor
from adq.shards import DataSet, absolute, read_ranges, tar_bytes
from palette.encodings import Encoding, encode
from palette.export import SOFT, members
from ray_jobs import ingest, weights, write
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.cluster import probe
from ray_jobs.frozen import Frozen, shared_weights
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.options import Backbone, Compute, Data, Place, option
from ray_jobs.payload import payload_bytes
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import Store, canonical_json, sha256
from ray_jobs.write import Output, cut

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.weights import Extractor

VERSION = 4
MOSAICS_VERSION = 5  # of the shards
Row = tuple[str, int, int]  # shard, offset and size of the image


@dataclass(frozen=True)
class Mosaics:
    """What is made."""

    images_per_class: int = option(10, "Mosaics a class.")
    factor: int = option(0, "Crops a side of a mosaic; 0, as published: 1 where images are seen below 96 px, else 2.")
    crops: int = option(5, "Random crops of an image, of which the most realistic counts.")
    candidates: int = option(300, "Images of a class that are looked at.")
    encode: str = option(
        "webp:90", "How mosaics are stored: jpeg:QUALITY, webp:QUALITY, palette:COLOURS.", metavar="CODEC"
    )
    soft_labels: bool = option(False, "Store the observer's logits, too: evaluate --labels soft.")
    seed: int = option(0, "Seed of the draws.")

    def __post_init__(self):
        if self.factor < 0:
            raise ValueError(f"--factor {self.factor}: expected 0 or more")
        for name in ("images_per_class", "crops", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if self.encoding().patches or self.encoding().resize or not self.encoding().codec:
            raise ValueError(
                f"--encode {self.encode}: mosaics are stored as jpeg:QUALITY, webp:QUALITY or palette:COLOURS"
            )

    def encoding(self) -> Encoding:
        return Encoding.parse(self.encode)


@dataclass(frozen=True)
class Plan:
    """What an actor must know."""

    stage: Stage
    data: DataSet
    arch: str
    transform: InputTransform
    wanted: Mosaics
    device: str
    threads: int
    decoders: int


class Observer(Frozen):
    """Makes the mosaics of a class."""

    def work(self, weights: list[ray.ObjectRef], label: int, rows: list[Row]) -> Part:
        """The mosaics of a class, encoded, with their soft labels if wanted."""
        self.ready(weights)
        plan, wanted = self.plan, self.plan.wanted
        seed = int(numpy_generator(wanted.seed, "rded class", label).integers(1 << 31))
        rows = sorted(rows)
        images, places = candidate_images(
            lambda places: self.pool.map(self._load, self._files([rows[place] for place in places])),
            len(rows), label, max(wanted.candidates, wanted.images_per_class * wanted.factor**2), seed,
        )  # fmt: skip
        made = class_mosaics(
            images, places, label, self.model, plan.transform, wanted.images_per_class, wanted.factor, wanted.crops, seed,
            plan.device,
        )  # fmt: skip
        columns: dict[str, list] = {"label": [label] * len(made), "extension": [], "image": []}
        for one in encode([("png", _png(image)) for image in made], wanted.encoding()):
            columns["extension"].append(one.extension)
            columns["image"].append(one.data)
        if wanted.soft_labels:
            columns[SOFT] = self.soft_labels(made)
        return plan.stage.commit_table(f"class-{label:05d}", pa.table(columns))

    def _files(self, rows: list[Row]) -> Iterator[bytes]:
        by_shard = defaultdict(list)
        for shard, offset, size in rows:
            by_shard[shard].append((offset, size))
        for shard, ranges in sorted(by_shard.items()):
            yield from read_ranges(self.plan.data, shard, sorted(ranges))

    def _load(self, data: bytes) -> torch.Tensor | None:
        try:
            return load(data, self.plan.transform)
        except UndecodableImage:
            return None  # a mosaic can do without it


def _png(image: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def make(job: Job, index: Index, observer: "Extractor", wanted: Mosaics) -> Manifest:
    """The mosaics of every class, or those that are done."""
    compute = job.compute
    wanted = replace(wanted, factor=wanted.factor or published_factor(observer.transform.crop))
    stage = Stage(
        job.store, "rded", VERSION,
        inputs={"index": index.manifest.content, "weights": observer.manifest.content},
        config=asdict(wanted) | {
            "arch": observer.arch, "transform": asdict(observer.transform), "threads": compute.threads, "device": job.device,
        },
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        rows = _rows(index)
        few = {
            label: len(found)
            for label, found in rows.items()
            if len(found) < wanted.images_per_class * wanted.factor**2
        }
        if few:
            label, count = next(iter(few.items()))
            raise ValueError(
                f"class {index.classes[label]} has {count} images; {wanted.images_per_class} mosaics of {wanted.factor} x "
                f"{wanted.factor} crops take {wanted.images_per_class * wanted.factor**2}: lower --images-per-class or --factor"
            )
        progress = Progress("rded", len(rows), "classes")
        missing = [label for label in rows if f"class-{label:05d}" not in parts]
        progress.add(len(rows) - len(missing))

        def on_done(part: Part) -> None:
            parts[part.name] = part
            progress.add()

        if missing:
            state = shared_weights(observer, index)
            plan = Plan(
                stage, index.data, observer.arch, observer.transform, wanted, job.device, compute.threads,
                job.decoders,
            )  # fmt: skip
            size = pool_size(job.cluster, compute, job.device, len(missing))
            map_actors(Observer, (plan,), [(n, rows[n]) for n in missing], size, compute, job.device, on_done, state)
        return [parts[f"class-{label:05d}"] for label in rows], {"images": len(rows) * wanted.images_per_class}

    return job.stage(stage, work)


def _rows(index: Index) -> dict[int, list[Row]]:
    """Where the images of each class that has some lie, in the order of their keys."""
    rows: dict[int, list[Row]] = defaultdict(list)
    for row in index.table().select(["label", "shard", "members"]).to_pylist():
        member = index.image_member(row["members"])
        rows[row["label"]].append((row["shard"], member["offset"], member["size"]))
    return dict(sorted(rows.items()))


def store_shards(job: Job, index: Index, made: Manifest, out: str) -> Manifest:
    """Write the mosaics as shards that `evaluate` reads, or find them there."""
    inputs = {"rded": made.content, "classes": sha256(canonical_json(index.classes))}
    stage = Output(Store.at(out), "mosaics", MOSAICS_VERSION, inputs, {})
    stage.claim()

    def work(stage: Stage) -> tuple[list[Part], dict]:
        rows = made.tables().to_pylist()
        texts = class_texts(index.classes)
        samples = [(f"rded_{n:06d}", _sample(row, texts)) for n, row in enumerate(rows)]
        shards = [
            stage.commit(f"train-{n:06d}", tar_bytes(members(part)), len(part), "tar")
            for n, part in enumerate(cut(samples))
        ]
        names = "".join(f"{name}\n" for name in index.classes).encode()
        classes = stage.commit("classes", names, len(index.classes), "txt")
        found = ingest.run(job, Data((stage.store.root,)), False, "distilled")
        soft = SOFT in rows[0]
        summary = {
            "images": len(rows), "payload_bytes": payload_bytes(found), "tar_bytes": sum(part.bytes for part in shards),
        } | ({"soft_payload_bytes": payload_bytes(found, soft=True)} if soft else {})  # fmt: skip
        return [*shards, classes], summary

    return job.stage(stage, work)


def _sample(row: dict, texts: list[str]) -> dict[str, bytes]:
    sample = {row["extension"]: row["image"], "cls": texts[row["label"]].encode()}
    return sample | ({SOFT: row[SOFT]} if SOFT in row else {})


def run(wanted: Mosaics, data: Data, backbone: Backbone, compute: Compute, place: Place, out: str) -> None:
    """The command: train or load the observer, make the mosaics, write them."""
    identity = ["rded", asdict(wanted), asdict(data), asdict(backbone), absolute(out)]
    with opened(place, compute, f"rded {wanted.images_per_class} a class", identity) as job:
        write.check(out)
        probe(job.cluster, [absolute(out)])
        index = ingest.run(job, data)
        job.run.params(asdict(wanted) | {k: v for k, v in asdict(backbone).items() if v is not None})
        made = make(job, index, weights.run(job, index, backbone), wanted)
        written = store_shards(job, index, made, out)
        s = written.summary
        job.run.metrics({k: v for k, v in s.items() if isinstance(v, int | float)})
        job.run.dataset("distilled", absolute(out), written.content, "subset", s["images"])
        job.report(
            f"{s['images']:,} mosaics, {wanted.images_per_class} a class, {s['payload_bytes']:,} bytes payload, "
            f"{s['tar_bytes']:,} as tars\n"
            f"shards   {absolute(out)}"
        )
