"""extract: the features of every image. A task is a shard; each image is decoded once, while others pass the network."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
import torch

from adq.extractor import FeatureExtractor, InputTransform
from adq.features import Features, View, features, load
from adq.images import UndecodableImage
from adq.process import settle
from adq.shards import DataSet, ahead, chunks
from ray_jobs.actors import map_actors, pool_size
from ray_jobs.decode import encoded_images, errors
from ray_jobs.frozen import network, shared_weights
from ray_jobs.ingest import SKIP, Index, undecodable
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job
    from ray_jobs.weights import Extractor

VERSION = 1
VIEW = View()
PATCH = 32


@dataclass(frozen=True)
class Plan:
    """What an actor must know to turn a shard into features."""

    stage: Stage
    index: Stage  # the finished ingest, for keys and labels
    data: DataSet
    image_ext: tuple[str, ...]
    key_prefix: str
    arch: str
    image_size: int
    transform: InputTransform
    device: str
    batch_size: int
    threads: int
    decoders: int
    seed: int


class FeatureActor:
    """An actor with the backbone on its device."""

    def __init__(self, plan: Plan):
        settle(plan.threads)
        self.plan = plan
        self.extractor = None
        self.threads = ThreadPoolExecutor(max(1, plan.decoders))
        self.where = torch.cuda.get_device_name() if plan.device == "cuda" else "cpu"

    def ready(self, weights: list[ray.ObjectRef]) -> None:
        """Load the weights, once an actor."""
        if self.extractor is not None:
            return
        plan = self.plan
        model = network(weights, plan.arch, plan.image_size)
        self.extractor = FeatureExtractor(model, plan.arch).to(plan.device).eval()

    def work(self, weights: list[ray.ObjectRef], shard: str, known: list[tuple[str, int]]) -> tuple[Part, int, str]:
        """The committed part of a shard, how many images could not be decoded, and the device's name."""
        self.ready(weights)
        labels = dict(known)
        rows: list[tuple] = []
        failed: list[tuple[str, int, str]] = []
        for keys, images in ahead(self._decoded(shard)):
            good = [i for i, image in enumerate(images) if isinstance(image, torch.Tensor)]
            failed += [(keys[i], labels[keys[i]], images[i]) for i in range(len(keys)) if i not in set(good)]
            if not good:
                continue
            blank = torch.zeros_like(images[good[0]])
            filled = torch.stack([image if isinstance(image, torch.Tensor) else blank for image in images])
            out = features(self.extractor, filled, keys, self.plan.transform, VIEW, self.plan.seed, PATCH)
            rows += [(keys[i], labels[keys[i]], *(column[i] for column in out)) for i in good]
        if len(rows) + len(failed) != len(labels):
            raise ValueError(
                f"{self.plan.data.root}/{shard}: changed since ingest ({len(rows) + len(failed)} of {len(labels)} images)"
            )
        table = _table(rows, failed).replace_schema_metadata({"device": self.where})
        return self.plan.stage.commit_table(shard, table), len(failed), self.where

    def _decoded(self, shard: str) -> Iterator[tuple[list[str], list[torch.Tensor | str]]]:
        """Batches of a shard: keys, and images or why they cannot be decoded. They are cut at fixed positions of the shard, so that
        these images leave a gap, not a shift."""
        plan = self.plan
        for batch in chunks(encoded_images(plan.data, shard, plan.image_ext, plan.key_prefix), plan.batch_size):
            yield [key for key, _ in batch], list(self.threads.map(self._load, (data for _, data in batch)))

    def _load(self, data: bytes) -> torch.Tensor | str:
        try:
            return load(data, self.plan.transform)
        except UndecodableImage as error:
            return str(error)


def _table(rows: list[tuple], failed: list[tuple[str, int, str]]) -> pa.Table:
    """Features of a shard, sorted by key; images that could not be decoded have a reason and nothing else."""
    everything = sorted(
        [(*row, None) for row in rows] + [(k, y, *[None] * len(Features._fields), why) for k, y, why in failed]
    )
    key, label, *columns, error = zip(*everything, strict=True)
    arrays = [pa.array(key, pa.string()), pa.array(label, pa.int32())]
    types = {"embedding": pa.float32(), "texture": pa.float32()}
    for name, column in zip(Features._fields, columns, strict=True):
        kind = types.get(name, pa.float16())
        if name == "texture":
            arrays.append(pa.array(column, kind))
            continue
        there = [v for v in column if v is not None]
        values = np.concatenate(there) if there else np.empty(0, dtype=kind.to_pandas_dtype())
        offsets = np.concatenate([[0], np.cumsum([0 if v is None else len(v) for v in column])])
        missing = pa.array([v is None for v in column])
        arrays.append(
            pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind), mask=missing)
        )
    return pa.table([*arrays, pa.array(error, pa.string())], names=["key", "label", *Features._fields, "error"])


def run(job: "Job", index: Index, extractor: "Extractor", seed: int, skip_corrupt: bool) -> Manifest:
    """Extract features, or find it done.

    Raises:
        ValueError: images that could not be decoded, all of them listed, unless skip_corrupt.
    """
    compute = job.compute
    stage = Stage(
        job.store, "extract", VERSION,
        inputs={"index": index.manifest.content, "weights": extractor.manifest.content},
        config={
            "arch": extractor.arch, "transform": asdict(extractor.transform), "view": asdict(VIEW), "patch": PATCH, "seed": seed,
            "batch_size": compute.batch_size, "threads": compute.threads, "device": job.device,
        },
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        missing = [shard for shard in index.data.shards if shard not in parts]
        progress = Progress("extract", index.images)
        progress.add(sum(part.rows for part in parts.values()))
        plan = Plan(
            stage, index.manifest.stage, index.data, index.image_ext, index.key_prefix, extractor.arch, extractor.image_size,
            extractor.transform, job.device, compute.batch_size, compute.threads, job.decoders, seed,
        )  # fmt: skip
        devices: set[str] = set()

        def on_done(result: tuple[Part, int, str]) -> None:
            part, _, where = result
            parts[part.name] = part
            devices.add(where)
            progress.add(part.rows)

        if missing:
            known = _known(index)
            state = shared_weights(extractor)
            size = pool_size(job.cluster, compute, job.device, len(missing))
            tasks = [(shard, known[shard]) for shard in missing]
            map_actors(FeatureActor, (plan,), tasks, size, compute, job.device, on_done, state)
        if len(devices) > 1:
            print(
                f"warning: features come from different devices ({', '.join(sorted(devices))}); bytes will not repeat"
            )
        done = [parts[shard] for shard in index.data.shards]
        return done, {"images": index.images, "undecodable": len(errors(stage, done))}

    manifest = job.stage(stage, work)
    if manifest.summary["undecodable"] and not skip_corrupt:
        raise undecodable(errors(manifest.stage, manifest.parts), f"{SKIP} (nothing is extracted again)")
    return manifest


def _known(index: Index) -> dict[str, list[tuple[str, int]]]:
    table = index.table()
    out: dict[str, list[tuple[str, int]]] = {shard: [] for shard in index.data.shards}
    for key, label, shard in zip(*(table[c].to_pylist() for c in ("key", "label", "shard")), strict=True):
        out[shard].append((key, label))
    return out
