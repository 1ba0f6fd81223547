"""Small data sets of drawn images, as shards with their index, without Ray."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from adq.index import Labels, scan
from adq.shards import DataSet, open_file, tar_bytes
from adq.synthetic import encoded
from ray_jobs.ingest import SCHEMA, Index
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
    """Write shards of (key, image bytes, label), or with a soft label's bytes, and index them.

    A twin is the same data set under another digest.
    """
    folder.mkdir(parents=True)
    labels, rows = Labels("cls", classes), []
    for name, samples in shards.items():
        members = []
        for key, image, label, *soft in samples:
            members += [(f"{key}.png", image), (f"{key}.cls", str(label).encode())]
            members += [(f"{key}.npy", data) for data in soft]
        (folder / name).write_bytes(tar_bytes(members))
        with open_file(str(folder / name)) as stream:
            found = scan(stream, stream.size(), name, labels)
        rows += [(s.key, s.label, name, [m._asdict() for m in s.members]) for s in found.samples]
    columns = zip(*sorted(rows), strict=True)
    table = pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)
    counts = [table["label"].to_pylist().count(label) for label in range(len(classes))]
    size = sum(len(image) for samples in shards.values() for _, image, *_ in samples)
    summary = {
        "images": len(rows), "class_names": list(classes), "class_counts": counts, "side": 32, "image_bytes": size,
    }  # fmt: skip
    stage = Stage(Store(str(folder / "store")), "ingest", 1)
    more = [stage.commit("twin", b"", 0, "txt")] if twin else []
    manifest = stage.finish([stage.commit_table("index", table), *more], summary)
    return Index(manifest, DataSet(str(folder), tuple(sorted(shards))), labels, ("png",), "none")
