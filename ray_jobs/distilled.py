"""distilled: what a distillation leaves: the container, shards that `evaluate` reads, PNGs that any viewer opens, pictures."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from adq.container import pack
from adq.extractor import InputTransform
from adq.features import load
from adq.images import UndecodableImage
from adq.shards import read_ranges, tar_bytes
from palette.codec import LARGEST_SIDE
from palette.export import class_folders, hard_labels, members, samples
from palette.quantize import used_colours
from ray_jobs.distilled_budget import fitting
from ray_jobs.distilled_set import DistilledSet, containers, read_set
from ray_jobs.ingest import Index
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import Store, canonical_json, sha256
from ray_jobs.write import SHARD_BYTES, SHARD_IMAGES, Output, cut

if TYPE_CHECKING:  # what only the driver needs is not loaded by the workers
    from matplotlib.figure import Figure

    from ray_jobs.job import Job
    from ray_jobs.mlflow_run import Run

VERSION = 3
UPLOADS = 16  # files written at once: on an object store each costs a round trip

Samples = list[tuple[str, dict[str, bytes]]]


def output(out: str, distill: Stage, classes: Sequence[str], content: str, budget: int) -> Output:
    config = {"distill": distill.digest, "shard_images": SHARD_IMAGES, "shard_bytes": SHARD_BYTES, "budget": budget}
    inputs = {"distill": content, "classes": sha256(canonical_json(list(classes)))}
    return Output(Store.at(out), "distilled", VERSION, inputs, config)


def check_owner(out: str, distill: Stage) -> None:
    """Raises ValueError where --out holds another result, before steps are spent for it."""
    there = Store.at(out).read_json(".tessera/manifest.json")
    if there is not None and there["config"].get("distill") != distill.digest:
        raise ValueError(
            f"--out {out}: holds the result of another command; choose another folder, or remove this one first"
        )


def run(job: "Job", index: Index, distill: Manifest, transform: InputTransform, out: str, budget: int = 0) -> Manifest:
    """Write a distilled set to a folder, or find it there.

    Args:
        transform: how the real images were seen.
        budget: bytes that the containers may take, 0 for any: the last images of every class are left out where they are too many.

    Raises:
        ValueError: the folder holds something else.
        OSError: the folder cannot be written.
    """
    stage = output(out, distill.stage, index.classes, distill.content, budget)
    stage.claim()

    def work(stage: Stage) -> tuple[list[Part], dict]:
        whole = read_set(distill)
        found = fitting(whole, index.classes, budget) if budget else whole
        files = list(_samples(found, index.classes))
        labels = hard_labels(found.labels if found.soft_labels is None else found.soft_labels)
        folders = class_folders(index.classes)
        pngs = [f"png/{folders[label]}/{key}.png" for label, (key, _) in zip(labels, files, strict=True)]
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(stage.store.write, pngs, (sample["png"] for _, sample in files)))
        shards = [
            stage.commit(f"train-{n:06d}", tar_bytes(members(shard)), len(shard), "tar")
            for n, shard in enumerate(cut(files))
        ]
        stored = [stage.commit(name, data, rows, "tessera") for name, data, rows in containers(found, index.classes)]
        names = "".join(f"{name}\n" for name in index.classes)
        parts = [stage.commit("classes", names.encode(), len(index.classes), "txt")]
        parts.append(stage.commit_table("images", _listing(found, files, labels, pngs)))
        for name, figure in _figures(found, distill, index, transform).items():
            stage.store.write(f"pictures/{name}.png", _png(figure))
        summary = _summary(found, files, index.classes, shards, stored) | {"distilled_images": len(whole.labels)}
        return [*shards, *stored, *parts], summary

    def log(run: "Run", manifest: Manifest) -> None:
        run.dataset("distilled", stage.store.root, manifest.content, "subset", manifest.summary["images"])
        for name in stage.store.names("pictures"):
            run.artifact_bytes(stage.store.read(f"pictures/{name}"), f"figures/{name}")

    return job.stage(stage, work, log=log)


def _samples(found: DistilledSet, classes: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """As `palette.export.samples`, also in full colour."""
    labels = found.labels if found.soft_labels is None else found.soft_labels
    if found.palettes is not None:
        yield from samples(found.palettes, found.indices, labels, classes)
        return
    # Keys and labels do not depend on the pixels.
    blank = samples(np.zeros((len(labels), 1, 3), np.uint8), np.zeros((len(labels), 1, 1), np.uint8), labels, classes)
    for (key, sample), image in zip(blank, found.images, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
        yield key, sample | {"png": buffer.getvalue()}


def _colors_used(found: DistilledSet) -> list[int]:
    """Of each image; in full colour, too."""
    if found.palettes is None:
        return [len(np.unique(image.reshape(-1, 3), axis=0)) for image in found.images]
    return used_colours(torch.from_numpy(found.indices), found.palettes.shape[1]).tolist()


def _listing(found: DistilledSet, files: Samples, labels: list[int], pngs: list[str]) -> pa.Table:
    return pa.table({
        "key": [key for key, _ in files], "label": pa.array(labels, pa.int32()), "png": pngs,
        "bytes": [len(s["png"]) for _, s in files], "sha256": [sha256(s["png"]) for _, s in files],
        "colors_used": _colors_used(found),
    })  # fmt: skip


def _summary(
    found: DistilledSet, files: Samples, classes: Sequence[str], shards: list[Part], stored: list[Part]
) -> dict:
    """Figures of the output; in full colour, the payload is that of PNGs and labels in the container of any images."""
    pngs, labels = (
        [sample["png"] for _, sample in files],
        found.labels if found.soft_labels is None else found.soft_labels,
    )
    count, png_bytes = len(pngs), sum(map(len, pngs))
    payload = sum(part.bytes for part in stored) or len(pack(pngs, ["png"] * count, labels, classes))
    colors = {} if found.palettes is None else {"colors": found.palettes.shape[1]}
    return colors | {
        "images": count, "images_per_class": count // len(classes), "payload_bytes": payload, "png_bytes": png_bytes,
        "tar_bytes": sum(part.bytes for part in shards), "bytes_per_image": round(payload / count, 2),
        "mean_colors_used": round(float(np.mean(_colors_used(found))), 2),
    }  # fmt: skip


def _figures(found: DistilledSet, distill: Manifest, index: Index, transform: InputTransform) -> dict[str, "Figure"]:
    from ray_jobs import palette_figures

    table = distill.table("history").to_pydict()
    steps = table.pop("step")
    mean, least = (table.pop(name, None) for name in ("colors_used", "least_colors_used"))
    figures = {
        "distilled": palette_figures.distilled_grid(
            found.images, found.palettes, found.indices, found.labels, index.classes
        ),
        "losses": palette_figures.losses(table, steps),
    }
    if mean is not None:
        figures["colors"] = palette_figures.colors_in_use(steps, mean, least, found.palettes.shape[1])
    image = _first_image(index, transform) if transform.crop <= LARGEST_SIDE else None
    return figures | ({"bits": palette_figures.bit_depths(image)} if image is not None else {})


def _first_image(index: Index, transform: InputTransform, tries: int = 10) -> np.ndarray | None:
    """uint8 [S, S, 3]: the first real image that can be decoded."""
    for row in index.table().slice(0, tries).to_pylist():
        member = index.image_member(row["members"])
        (data,) = read_ranges(index.data, row["shard"], [(member["offset"], member["size"])])
        try:
            return load(data, transform).permute(1, 2, 0).numpy()
        except UndecodableImage:
            continue
    return None


def _png(figure: "Figure") -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
