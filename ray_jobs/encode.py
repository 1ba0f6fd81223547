"""encode: the images of shards stored in another way, shard by shard: what `--encode` asks for. Labels and keys stay."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from adq.shards import absolute, join
from palette.encodings import ORIGINAL, Encoding
from ray_jobs import ingest, saliency, weights, write
from ray_jobs.accuracy import as_bytes
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.cluster import probe
from ray_jobs.encoder import ENCODED, Encoder, How, Plan
from ray_jobs.ingest import Index, undecodable
from ray_jobs.job import Job, opened
from ray_jobs.members import check_names
from ray_jobs.options import Backbone, Compute, Data, Place, option
from ray_jobs.payload import payload_bytes
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import Store, parquet_table
from ray_jobs.write import Output

VERSION = 5
SALIENCY = ("grad-cam", "fill-error", "random")


@dataclass(frozen=True)
class Storage:
    """How images are stored."""

    encode: str = option(
        "original",
        "How images are stored: original, or steps joined by +: resize:SIDE, patches:PERCENT (patches alone: 25), then "
        "jpeg:QUALITY, webp:QUALITY or palette:COLOURS.",
        metavar="STEP+STEP",
    )
    saliency: str = option(
        "grad-cam",
        "Patches are dropped in which grad-cam finds least of the class, or that the others tell best (fill-error); random is "
        "the control.",
        SALIENCY,
    )

    def __post_init__(self):
        self.encoding()
        if self.saliency not in SALIENCY:
            raise ValueError(f"--saliency {self.saliency}: expected one of {', '.join(SALIENCY)}")

    def encoding(self) -> Encoding:
        return Encoding.parse(self.encode)

    @property
    def needs_network(self) -> bool:
        """Whether a network must have ranked the patches."""
        return self.encoding().patches > 0 and self.saliency == "grad-cam"


def run(
    job: Job, index: Index, storage: Storage, out: str, scores: Manifest | None = None, seed: int = 0,
    skip_corrupt: bool = False,
) -> Manifest:  # fmt: skip
    """Encode every image of an index, or find it done: shards of the same names in a folder.

    Args:
        scores: of `ray_jobs.saliency`, where `Storage.needs_network`.
        seed: of random saliency.
        skip_corrupt: leave out images that cannot be decoded. Without it, `original` decodes none, and copies them.

    Raises:
        ValueError: the folder holds something else; the source changed since ingest; images that cannot be decoded; members
            beside images that have the names of files to be made.
        OSError: the folder cannot be written.
    """
    encoding = storage.encoding()
    check_names(index, encoding.extensions, f"--encode {encoding}")
    config = {"encode": str(encoding)} | ({"saliency": storage.saliency, "seed": seed} if encoding.patches else {})
    if encoding == ORIGINAL and skip_corrupt:  # any other finds them in either case
        config["decoded"] = True
    inputs = {"index": index.manifest.content} | ({"saliency": scores.content} if scores else {})
    stage = Output(Store.at(out), "encode", VERSION, inputs, config)
    stage.claim()

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        labels = _labels(index)
        # The table of a shard is its last part.
        missing = [shard for shard in labels if ENCODED + shard.removesuffix(".tar") not in parts]
        progress = Progress("encode", index.images)
        progress.add(index.images - sum(len(labels[shard]) for shard in missing))

        def on_done(made: list[Part]) -> None:
            parts.update({part.name: part for part in made})
            progress.add(made[-1].rows)

        if missing:
            ranked = saliency.by_key(scores) if scores else {}
            tasks = [
                (shard, labels[shard], {key: ranked[key] for key in labels[shard]} if ranked else {})
                for shard in missing
            ]
            how = How(encoding, storage.saliency, seed, skip_corrupt)
            plan = Plan(stage, index.data, index.image_ext, index.key_prefix, index.classes, how, skip_corrupt)
            size = pool_size(job.cluster, job.compute, "cpu", len(missing))
            map_actors(Encoder, (plan,), tasks, size, job.compute, "cpu", on_done)
        names = [shard.removesuffix(".tar") for shard in labels]
        shards, tables = [parts[name] for name in names if name in parts], [parts[ENCODED + name] for name in names]
        if not shards:
            raise ValueError(f"{index.data.root}: none of its {index.images:,} images can be decoded")
        classes = "".join(f"{name}\n" for name in index.classes).encode()
        done = [*shards, *tables, stage.commit("classes", classes, len(index.classes), "txt")]
        return done, _summary(job, index, encoding, stage, shards, tables)

    def log(run, manifest: Manifest) -> None:
        run.dataset("encoded", stage.store.root, manifest.content, "subset", manifest.summary["images"])

    manifest = job.stage(stage, work, log=log)
    if manifest.summary["undecodable"] and not skip_corrupt:
        parts = [part for part in manifest.parts if part.name.startswith(ENCODED)]
        raise undecodable([
            (f"{part.name.removeprefix(ENCODED)}.tar", row["key"], row["error"])
            for part in parts for row in parquet_table(stage.read(part)).to_pylist() if row["error"]
        ])  # fmt: skip
    return manifest


def _summary(job: Job, index: Index, encoding: Encoding, stage: Stage, shards: list[Part], tables: list[Part]) -> dict:
    """Figures of the output; those of an encoding in few colours have the palettised container as their payload."""
    table = pa.concat_tables(parquet_table(stage.read(part)) for part in tables)
    kinds = Counter(table["extension"].drop_null().to_pylist())
    made = encoded_index(job, index, encoding, stage.store.root, shards)
    kept = table["kept_side"].drop_null().to_pylist()
    return {
        "images": sum(kinds.values()), "undecodable": table.num_rows - sum(kinds.values()),
        "payload_bytes": payload_bytes(made), "source_payload_bytes": payload_bytes(index),
        "tar_bytes": sum(part.bytes for part in shards), "source_tar_bytes": index.manifest.summary["tar_bytes"],
        "kept": len(kept), "kept_side": statistics.median_low(kept) if kept else 0,
        **{f"images_{kind}": count for kind, count in sorted(kinds.items())},
    }  # fmt: skip


def encoded_index(job: Job, index: Index, encoding: Encoding, out: str, parts: Sequence[Part]) -> Index:
    """The encoded shards, ingested: the same keys and labels. Of a shard without any image that can be decoded there is no part."""
    made = {part.name for part in parts}
    shards = [shard for shard in index.data.shards if shard.removesuffix(".tar") in made]
    return read_back(job, index, out, shards, "encoded", index.key_prefix, encoding.extensions)


def read_back(
    job: Job, index: Index, out: str, shards: Sequence[str], context: str, key_prefix: str = "none", made: Sequence[str] = ()
) -> Index:  # fmt: skip
    """Shards that were made of those of an index, with the classes beside them, ingested.

    Args:
        made: extensions of images, besides those of the index.
    """
    places = tuple(join(absolute(out), shard) for shard in shards)
    image_ext = ",".join(dict.fromkeys((*index.image_ext, *made)))
    data = Data(places, image_ext, index.labels.source, join(absolute(out), "classes.txt"), key_prefix)
    return ingest.run(job, data, False, context)


def _labels(index: Index) -> dict[str, dict[str, int]]:
    """The labels of each shard's keys."""
    table = index.table()
    found: dict[str, dict[str, int]] = {shard: {} for shard in index.data.shards}
    for key, label, shard in zip(*(table[name].to_pylist() for name in ("key", "label", "shard")), strict=True):
        found[shard][key] = label
    return found


def command(storage: Storage, data: Data, backbone: Backbone, compute: Compute, place: Place, out: str) -> None:
    """The command: encode every image of some shards."""
    identity = ["encode", asdict(storage), asdict(data), asdict(backbone), absolute(out)]
    with opened(place, compute, f"encode {storage.encode}", identity) as job:
        write.check(out)
        probe(job.cluster, [absolute(out)])
        index = ingest.run(job, data, require_all_classes=False)
        check_names(index, storage.encoding().extensions, f"--encode {storage.encoding()}")
        job.run.params(asdict(storage))
        ranked = None
        if storage.needs_network:
            ranked = saliency.run(job, index, weights.run(job, index, backbone), storage.encoding().resize)
        made = run(job, index, storage, out, ranked, skip_corrupt=data.skip_corrupt)
        s = made.summary
        job.run.metrics(s)
        anew = f"{s['images'] - s['kept']:,} of {s['images']:,} images are stored anew"
        if storage.encoding() == ORIGINAL:
            anew = "all as they were"
        elif s["kept"]:
            anew += f"; {s['kept']:,} gain nothing and stay as they were (median side {s['kept_side']:,} px)"
        if s["undecodable"]:
            anew += f"; {s['undecodable']:,} that cannot be decoded are left out"
        job.report(
            f"{s['images']:,} images, {as_bytes(s['payload_bytes'])} payload "
            f"({s['payload_bytes'] / s['source_payload_bytes']:.1%} of the source), {as_bytes(s['tar_bytes'])} as tars\n"
            f"{anew}\n{write.told(made)}"
        )
