"""Small data sets of drawn images, as shards with their index, without Ray."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from adq.images import EXTENSIONS
from adq.index import Labels, scan
from adq.patches import is_patches
from adq.shards import DataSet, open_file, tar_bytes
from adq.synthetic import encoded
from ray_jobs.ingest import Index, as_table
from ray_jobs.stages import Stage
from ray_jobs.store import Store

CLASSES = ("zero", "one", "two")


def drawn(start: int, stop: int, split: str = "train") -> list[tuple[str, bytes, int]]:
    """(key, PNG bytes, label) of images `start` to `stop`, of three classes in turn."""
    return [(f"image{i:04d}", encoded(i % 3, i, split=split, ext="png"), i % 3) for i in range(start, stop)]


def index_of(
    shards: Mapping[str, list[tuple]],
    folder: Path,
    classes: tuple[str, ...] = CLASSES,
    twin: bool = False,
) -> Index:
    """Write shards of (key, bytes of a PNG, JPEG, WebP or patches, label), or with a soft label's bytes, and index them.

    A twin is the same data set under another digest.
    """
    folder.mkdir(parents=True)
    labels, tables = Labels("cls", classes), []
    for name, samples in shards.items():
        members = []
        for key, image, label, *soft in samples:
            kinds = {
                "patches": is_patches(image),
                "jpg": image[:2] == b"\xff\xd8",
                "webp": image[:4] == b"RIFF",
                "png": True,
            }
            extension = next(kind for kind, so in kinds.items() if so)
            members += [(f"{key}.{extension}", image), (f"{key}.cls", str(label).encode())]
            members += [(f"{key}.npy", data) for data in soft]
        (folder / name).write_bytes(tar_bytes(members))
        with open_file(str(folder / name)) as stream:
            tables.append(as_table(scan(stream, stream.size(), name, labels), name, "none"))
    table = pa.concat_tables(tables).sort_by("key").combine_chunks()
    counts = [table["label"].to_pylist().count(label) for label in range(len(classes))]
    size = sum(len(image) for samples in shards.values() for _, image, *_ in samples)
    summary = {
        "images": table.num_rows, "class_names": list(classes), "class_counts": counts, "side": 32, "image_bytes": size,
    }  # fmt: skip
    stage = Stage(Store(str(folder / "store")), "ingest", 1)
    more = [stage.commit("twin", b"", 0, "txt")] if twin else []
    manifest = stage.finish([stage.commit_table("index", table), *more], summary)
    return Index(manifest, DataSet(str(folder), tuple(sorted(shards))), labels, EXTENSIONS, "none")
