"""compress: ingest, extract, bins, score, sample, write, encode. Each stage is also a job of its own: it runs those before it."""

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from adq.sampling import kept
from adq.shards import absolute, locate
from palette.encodings import ORIGINAL
from ray_jobs import (
    bins,
    decode,
    dynamics,
    encode,
    encoding_cost,
    extract,
    feature_cost,
    ingest,
    saliency,
    sample,
    score,
    weights,
    write,
)  # fmt: skip
from ray_jobs.cluster import check_paths, probe
from ray_jobs.encode import Storage
from ray_jobs.feature_cost import Looked
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.members import check_names
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.seen import extracts
from ray_jobs.stages import Manifest
from ray_jobs.store import canonical_json, sha256

STAGES = ("ingest", "decode", "weights", "extract", "bins", "score", "dynamics", "sample", "write")


@dataclass(frozen=True)
class Compression:
    """Everything that a command asks for."""

    data: Data
    backbone: Backbone
    selection: Selection
    out: str | None = None
    storage: Storage = field(default_factory=Storage)

    def identity(self) -> dict:
        """What makes this another pipeline."""
        root = locate(self.data.data)
        return {
            "root": root.root, "shards": root.shards, "data": asdict(self.data), "backbone": asdict(self.backbone),
            "selection": asdict(self.selection), "out": absolute(self.out) if self.out else None,
            "storage": asdict(self.storage),
        }  # fmt: skip

    def needs(self) -> tuple[str, ...]:
        """The stages that this method needs."""
        needed = sample.needs(self.selection.method)
        features = extracts(self.selection.method, self.backbone)
        asked = {
            "decode": self.data.skip_corrupt and not features, "weights": features or self.storage.needs_network,
            "extract": features, "bins": bool(needed & {"bins", "scores"}),
            "score": "scores" in needed, "dynamics": "dynamics" in needed,
        }  # fmt: skip
        return tuple(name for name in STAGES if asked.get(name, True))


def stages(job: Job, wanted: Compression, last: str = "write") -> Mapping[str, Manifest]:
    """Run the pipeline up to a stage; what is finished is not run again.

    Returns:
        The manifests by stage.
    """
    selection = wanted.selection
    todo = [name for name in STAGES if name in wanted.needs() or name == last]
    todo = todo[: todo.index(last) + 1]
    if "write" in todo:
        write.check(wanted.out)
        probe(job.cluster, [absolute(wanted.out)])
    index = ingest.run(job, wanted.data)
    if "write" in todo:
        encoding = wanted.storage.encoding()
        check_names(index, encoding.extensions, f"--encode {encoding}")
    if "sample" in todo:
        kept(selection.keep, index.images)
    if "bins" in wanted.needs():
        bins.check(index, selection)
    job.run.dataset(
        posixpath.basename(index.data.root) or "data", index.data.root, index.manifest.content, "source", index.images
    )
    done = {"ingest": index.manifest}

    def undecoded() -> tuple[str, ...]:
        return decode.undecoded(done.get("extract") or done["decode"]) if wanted.data.skip_corrupt else ()

    if "decode" in todo:
        done["decode"] = decode.run(job, index)
    if "weights" in todo:
        extractor = weights.run(job, index, wanted.backbone)
        done["weights"] = extractor.manifest
        if "write" in todo and wanted.storage.needs_network:
            saliency.check(extractor, index)
    if "extract" in todo:
        done["extract"] = extract.run(job, index, extractor, wanted.backbone.feature_seed, wanted.data.skip_corrupt)
    if "bins" in todo:
        done["bins"] = bins.run(job, index, done.get("extract"), selection, wanted.backbone.embeddings, undecoded())
    if "score" in todo:
        # The discriminator belongs to the extractor, as in a comparison: the draws of one extractor share it.
        of_extractor = replace(selection, seed=wanted.backbone.feature_seed)
        done["score"] = score.run(job, done["extract"], done["bins"], of_extractor)
    if "dynamics" in todo:
        done["dynamics"] = dynamics.run(job, index, wanted.backbone, wanted.data.skip_corrupt)
    if "sample" in todo:
        own = wanted.backbone.embeddings and "embeddings" in sample.needs(selection.method)
        done["sample"] = sample.run(job, index, sample.Seen(
            done.get("bins"), done.get("score"), done.get("extract"), done.get("dynamics"),
            bins.own_embeddings(wanted.backbone.embeddings, index, undecoded()) if own else None,
            undecoded(),
        ), selection)  # fmt: skip
    if "write" in todo:
        done |= _written(job, index, done["sample"], wanted, extractor if "weights" in todo else None)
    return done


def _written(
    job: Job, index: Index, chosen: Manifest, wanted: Compression, extractor: weights.Extractor | None
) -> dict[str, Manifest]:
    """The subset in --out; where it is encoded, its own files stay in the store."""
    seed, storage = wanted.selection.seed, wanted.storage
    if storage.encoding() == ORIGINAL:
        return {"write": write.run(job, index, chosen, wanted.out, seed)}
    digest = sha256(canonical_json([write.VERSION, chosen.content, index.manifest.content, seed]))
    written = write.run(job, index, chosen, job.store.path(f"subsets/{digest[:16]}"), seed)
    shards = [part.path for part in written.parts if part.path.endswith(".tar")]
    subset = encode.read_back(job, index, written.stage.store.root, shards, "subset")
    ranked = saliency.run(job, subset, extractor, storage.encoding().resize) if storage.needs_network else None
    return {
        "write": written,
        "encode": encode.run(job, subset, storage, wanted.out, ranked, seed, wanted.data.skip_corrupt),
    }


def run(wanted: Compression, compute: Compute, place: Place, last: str = "write") -> Mapping[str, Manifest]:
    """A command: connect, run the pipeline up to a stage, say what came out."""
    with _opened(wanted, compute, place, last) as job:
        done = stages(job, wanted, last)
        if last == "write":
            _report(job, done, wanted)
        return done


@contextlib.contextmanager
def _opened(wanted: Compression, compute: Compute, place: Place, last: str) -> Iterator[Job]:
    check_paths(weights=_file_of(wanted.backbone.weights))
    selection = wanted.selection
    name = f"{selection.method} keep {selection.keep:g}" if last == "write" else last
    with opened(place, compute, name, ["compress", last, wanted.identity()]) as job:
        options = asdict(wanted.data) | asdict(wanted.backbone) | asdict(selection) | asdict(wanted.storage)
        job.run.params({k: v for k, v in options.items() if v is not None} | {"batch_size": compute.batch_size})
        yield job


def tell_cost(wanted: Compression, compute: Compute, place: Place, budget: int = 0) -> None:
    """A command: read the shards, and say what compressing them will take, and to how many bytes.

    Args:
        budget: in bytes, in the place of the keep ratio; everything is encoded then.
    """
    storage, method = wanted.storage, wanted.selection.method
    with _opened(wanted, compute, place, "ingest") as job:
        index = ingest.run(job, wanted.data)
        encoded = index.images if budget else kept(wanted.selection.keep, index.images)
        found = {storage: encoding_cost.sampled(index, storage, wanted.data.skip_corrupt)}
        print(encoding_cost.told(job, index, found, encoded, [budget] if budget else []), flush=True)
        ranked = encoded if storage.needs_network else 0
        print(feature_cost.estimate(Looked(job, index, wanted.backbone, [method], ranked)), flush=True)


def _file_of(weights: str | None) -> str | None:
    """--weights where it is a file, not torchvision's name or train:EPOCHS."""
    return weights if weights and ("/" in weights or "." in weights) else None


def _report(job: Job, done: Mapping[str, Manifest], wanted: Compression) -> None:
    last = done.get("encode", done["write"])
    s = last.summary | {name: done["write"].summary[name] for name in ("source_payload_bytes", "source_tar_bytes")}
    share = s["payload_bytes"] / max(s["source_payload_bytes"], 1)
    job.run.metrics({k: v for k, v in s.items() if isinstance(v, int | float)})
    job.run.metrics({"moved": done["sample"].summary["moved"]})
    job.run.dataset("subset", absolute(wanted.out), last.content, "subset", s["images"])
    job.report(
        f"{s['images']:,} of {done['ingest'].summary['images']:,} images, {s['payload_bytes'] / 1e6:.2f} MB payload "
        f"({share:.1%} of the source), {s['tar_bytes'] / 1e6:.2f} MB as tars\n"
        f"shards   {absolute(wanted.out)}"
    )
