"""fill: images of which patches were dropped, made whole once: shards that hold every pixel. A task is a shard.

Every reader fills gaps by itself, by `adq.fill.DEFAULT_FILLER`. This job is for the other fillers, and for a masked autoencoder,
which runs in batches on the device; its result is a cache to train on, and its payload that of the patches.
"""

import io
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray
import torch
from PIL import Image

from adq import patches
from adq.fill import FILLERS, fill
from adq.mae import MAE
from adq.mae_weights import from_bytes
from adq.patches import Patches
from adq.process import settle
from adq.reconstruction import reconstruct
from adq.shards import DataSet, absolute, chunks, file_info, join, open_file, read_samples, tar_bytes
from ray_jobs import ingest, write
from ray_jobs.accuracy import as_bytes
from ray_jobs.actors import cpus_each, map_actors, pool_size
from ray_jobs.cluster import check_paths, probe
from ray_jobs.ingest import COPY, Index, full_key, undecodable
from ray_jobs.job import opened
from ray_jobs.members import check_names
from ray_jobs.options import Compute, Data, Place, option
from ray_jobs.payload import payload_bytes
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import Store, sha256
from ray_jobs.write import Output

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job

VERSION = 2
WITH_NETWORK = "mae"


@dataclass(frozen=True)
class Filling:
    """How gaps are filled."""

    filler: str = option(WITH_NETWORK, "What fills the gaps.", (WITH_NETWORK, *FILLERS))
    mae: str | None = option(
        None, "With --filler mae: its weights, of the job mae or the published ones.", metavar="FILE"
    )

    def __post_init__(self):
        if (self.filler == WITH_NETWORK) != (self.mae is not None):
            raise ValueError("--mae FILE goes with --filler mae, and --filler mae needs it")


@dataclass(frozen=True)
class Plan:
    """What an actor must know."""

    stage: Stage
    data: DataSet
    key_prefix: str
    filler: str
    device: str
    batch_size: int
    threads: int
    decoders: int  # threads that read and write images beside the network, which decide no result


class Filler:
    """An actor that fills the gaps of a shard's images."""

    def __init__(self, plan: Plan):
        settle(plan.threads)
        self.plan, self.threads = plan, ThreadPoolExecutor(plan.decoders)
        self.model: MAE | None = None

    def ready(self, weights: list) -> None:
        """Load the network, once an actor."""
        if weights and self.model is None:
            self.model = from_bytes(ray.get(weights[0]), "--mae").to(self.plan.device).eval()

    def work(self, weights: list, shard: str, images: int) -> Part:
        """The shard with whole images.

        Args:
            images: how many the index has of it.

        Raises:
            ValueError: containers of patches that cannot be read; the shard changed since ingest.
        """
        self.ready(weights)
        members: list[tuple[str, bytes]] = []
        errors: list[tuple[str, str, str]] = []
        count = 0
        for batch in chunks(read_samples(self.plan.data, shard), self.plan.batch_size):
            kept = list(self.threads.map(_kept, (sample.get("patches") for sample in batch)))
            errors += [
                (shard, full_key(shard, sample["__key__"], self.plan.key_prefix), str(one))
                for sample, one in zip(batch, kept, strict=True) if isinstance(one, ValueError)
            ]  # fmt: skip
            if errors:  # the rest of the shard is looked at for more, and not filled
                continue
            for sample, made in zip(batch, self._whole(kept), strict=True):
                rest = {e: d for e, d in sample.items() if not e.startswith("__") and (e != "patches" or not made)}
                rest = ({"png": made} if made else {}) | rest
                members += [(f"{sample['__key__']}.{extension}", data) for extension, data in rest.items()]
                count += 1
        if errors:
            raise undecodable(errors, COPY)
        if count != images:
            raise ValueError(f"{join(self.plan.data.root, shard)}: changed since ingest; run again to ingest it anew")
        return self.plan.stage.commit(shard.removesuffix(".tar"), tar_bytes(members), count, "tar")

    def _whole(self, kept: list[Patches | None]) -> list[bytes]:
        """PNGs of those that are patches, images of one size together; b"" for others."""
        out = [b""] * len(kept)
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i, one in enumerate(kept):
            if one is not None:
                groups[one.pixels.shape].append(i)
        for members in groups.values():
            pixels = torch.from_numpy(np.stack([kept[i].pixels for i in members]))
            known = torch.from_numpy(np.stack([kept[i].known for i in members]))
            whole = self._filled(pixels, known).numpy()
            for i, made in zip(members, self.threads.map(_png, whole), strict=True):
                out[i] = made
        return out

    def _filled(self, pixels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        if self.model is not None:
            return reconstruct(self.model, pixels, known, self.plan.device)
        return fill(pixels, known, self.plan.filler)


def _kept(data: bytes | None) -> Patches | ValueError | None:
    """The kept patches of a container, or what is wrong with it; None where there is none."""
    try:
        return None if data is None else patches.decode(data)
    except ValueError as error:
        return error


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def make(job: "Job", index: Index, filling: Filling, out: str) -> Manifest:
    """Fill the gaps of every image, or find it done. Images without gaps are copied as they are, and so is a set of only such.

    Raises:
        ValueError: the folder holds something else; a container or weights that are none; PNGs that are no images beside images.
        OSError: the folder cannot be written.
    """
    check_names(index, ("png",), "fill")
    weights = b""
    if filling.mae:
        with open_file(absolute(filling.mae)) as stream:
            weights = stream.read()
        from_bytes(weights, f"--mae {filling.mae}")
    compute, device = job.compute, job.device if filling.mae else "cpu"  # where no network works, no GPU is reserved
    config = {
        "filler": filling.filler,
        "device": device,
        "batch_size": compute.batch_size,
        "threads": compute.threads,
    }
    inputs = {"index": index.manifest.content} | ({"mae": sha256(weights)} if weights else {})
    stage = Output(Store.at(out), "fill", VERSION, inputs, config)
    stage.claim()

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        counts = Counter(index.table()["shard"].to_pylist())
        missing = [shard for shard in counts if shard.removesuffix(".tar") not in parts]
        progress = Progress("fill", index.images)
        progress.add(index.images - sum(counts[shard] for shard in missing))

        def on_done(part: Part) -> None:
            parts[part.name] = part
            progress.add(part.rows)

        if missing:
            decoders = max(1, int(cpus_each(compute, device, job.cluster.sizes)))
            plan = Plan(
                stage, index.data, index.key_prefix, filling.filler, device, compute.batch_size, compute.threads, decoders
            )  # fmt: skip
            size = pool_size(job.cluster, compute, device, len(missing))
            tasks = [(shard, counts[shard]) for shard in missing]
            map_actors(Filler, (plan,), tasks, size, compute, device, on_done, weights or None)
        shards = [parts[shard.removesuffix(".tar")] for shard in counts]
        classes = stage.commit("classes", "".join(f"{n}\n" for n in index.classes).encode(), len(index.classes), "txt")
        # What it costs is what is stored: the patches, not this cache of them.
        summary = {
            "images": index.images, "payload_bytes": payload_bytes(index), "tar_bytes": sum(part.bytes for part in shards),
        }  # fmt: skip
        return [*shards, classes], summary

    return job.stage(stage, work)


def run(filling: Filling, data: Data, compute: Compute, place: Place, out: str) -> None:
    """The command."""
    check_paths(mae=filling.mae)
    with opened(
        place, compute, f"fill {filling.filler}", ["fill", asdict(filling), asdict(data), absolute(out)]
    ) as job:
        write.check(out)
        probe(job.cluster, [absolute(out)])
        if filling.mae and not file_info(absolute(filling.mae)).is_file:
            raise FileNotFoundError(f"--mae {filling.mae}: no such file; give the weights that the job mae wrote")
        index = ingest.run(job, data, require_all_classes=False)
        job.run.params(asdict(filling))
        made = make(job, index, filling, out)
        job.run.metrics(made.summary)
        s = made.summary
        job.report(
            f"{s['images']:,} images, {as_bytes(s['payload_bytes'])} payload, of the patches, {as_bytes(s['tar_bytes'])} as tars\n"
            f"{write.told(made)}"
        )
