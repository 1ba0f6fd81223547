"""Shards from the layouts that data sets come in. Images keep their bytes; each shard is mixed, whatever order the source has."""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from adq.cifar import cifar, download_cifar
from adq.imagenet import imagenet
from adq.index import class_texts
from adq.randomness import key_order, seed_of
from adq.shards import absolute, is_remote, tar_bytes
from adq.sources import Record, Source, image_folder, tiny_imagenet
from ray_jobs.cluster import check_paths
from ray_jobs.options import option
from ray_jobs.progress import Progress, counted
from ray_jobs.store import Store, canonical_json, sha256

KINDS = ("cifar10", "cifar100", "imagefolder", "tiny-imagenet", "imagenet")
SUBSETS = ("nette", "woof", "fruit", "meow", "squawk", "yellow")
IMAGES_PER_SHARD = 1000
MAX_SHARDS = 1000
BUFFER_BYTES = 512 << 10
STATS = 16  # files that are looked at together: on a network file system each costs a round trip


@dataclass(frozen=True)
class Conversion:
    """Where the images come from, and where the shards go."""

    source: str | None = option(None, "Make shards first, from this layout.", KINDS)
    from_path: str | None = option(
        None, "Folder or archive of the source; CIFAR is downloaded there if missing.", metavar="PATH"
    )
    split: str = option("train", "Which part of the source.", ("train", "val"))
    subset: str | None = option(None, "Ten classes of ImageNet.", SUBSETS)
    val_labels: str | None = option(None, "Labels of ImageNet's validation images: text or CSV.", metavar="FILE")
    shards: int = option(0, f"Shards to make; 0: one per {IMAGES_PER_SHARD:,} images, at most {MAX_SHARDS:,}.")
    out: str | None = option(None, "Folder, s3:// or gs:// for the shards.", metavar="PLACE")

    def __post_init__(self):
        if self.source is None:
            idle = [f for f in fields(self) if getattr(self, f.name) != f.default]
            if idle:
                name = {"from_path": "from"}.get(idle[0].name, idle[0].name.replace("_", "-"))
                raise ValueError(f"--{name}: belongs to --source, which says the layout to make shards of")
            return
        if self.source not in KINDS:
            raise ValueError(f"--source {self.source}: expected one of {', '.join(KINDS)}")
        if not self.from_path or not self.out:
            raise ValueError(f"--source {self.source}: --from and --out are needed too")
        if (self.subset or self.val_labels) and self.source != "imagenet":
            raise ValueError("--subset and --val-labels belong to --source imagenet")
        if self.shards < 0:
            raise ValueError(f"--shards {self.shards}: expected 1 or more, or 0 for a number that fits the images")


def open_source(wanted: Conversion) -> Source:
    """The samples of a source layout."""
    path = Path(absolute(wanted.from_path))
    if wanted.source in ("cifar10", "cifar100"):
        split = "test" if wanted.split == "val" else "train"
        try:
            return cifar(path, wanted.source, split)
        except FileNotFoundError:
            if path.is_file():
                raise
            return cifar(download_cifar(wanted.source, path), wanted.source, split)
    if wanted.source == "imagefolder":
        return image_folder(path)
    if wanted.source == "tiny-imagenet":
        return tiny_imagenet(path, wanted.split)
    return imagenet(path, wanted.split, wanted.val_labels, wanted.subset)


def convert(wanted: Conversion) -> list[str]:
    """Make shards; a finished conversion is found done.

    Samples go to shards by a hash of their key, through files on local disk, so the source is read once, as a stream.

    Returns:
        Patterns for --data.
    """
    check_paths(**{"from": wanted.from_path, "out": wanted.out, "val_labels": wanted.val_labels})
    source = open_source(wanted)
    out = Store.at(wanted.out)
    out.check_writable()
    count = wanted.shards or min(MAX_SHARDS, -(-(source.count or MAX_SHARDS * IMAGES_PER_SHARD) // IMAGES_PER_SHARD))
    identity = {k: v for k, v in wanted.__dict__.items() if k != "out"} | {
        "from_path": absolute(wanted.from_path),
        "classes": list(source.classes),
        "images": source.count,
        "files": _digest(source.files),
        "count": count,
    }
    known = out.read_json("source.json")
    mine = known is not None and known["identity"] == identity
    if mine and known["images"] is not None:
        print(f"{'convert':<13} done before   {known['images']:,} images")
        return known["patterns"]
    if not mine and (known is not None or any(name.endswith(".tar") for name in out.names(""))):
        when = ", or those of this source before it changed" if known else ""
        raise ValueError(f"--out {out.root}: holds other shards already{when}; choose an empty folder")
    patterns = [f"{out.root}/{wanted.split}-*.tar"]
    # Begun, not finished: after a kill, the same command may write over these shards (with the same bytes).
    out.write_json("source.json", {"identity": identity, "images": None, "patterns": patterns})
    if not is_remote(out.root):
        for left in Path(out.root).glob(".spool-*"):
            shutil.rmtree(left)
    texts = class_texts(source.classes)
    progress = Progress("convert", source.count)
    folder = Path(tempfile.mkdtemp(prefix=".spool-", dir=None if is_remote(out.root) else out.root))
    try:
        images = _spool(source, folder, count, progress)
        names = [f"{wanted.split}-{n:06d}.tar" for n in range(count)]
        for n, name in enumerate(names):
            records = sorted(_read_spool(folder / str(n)), key=lambda record: record.key)
            order = key_order([record.key for record in records], 0, "convert")
            members = [m for i in order for m in _members(records[i], texts)]
            if members:
                out.write(name, tar_bytes(members))
    finally:
        shutil.rmtree(folder)
    out.write("classes.txt", "".join(f"{name}\n" for name in source.classes).encode())
    out.write_json("source.json", {"identity": identity, "images": images, "patterns": patterns})
    progress.close(f"{images:,} images in {counted(count, 'shard')}")
    return patterns


def _digest(files: Sequence[Path]) -> str:
    """Of the names, sizes and times of files: enough to see that one has changed."""
    with ThreadPoolExecutor(STATS) as pool:
        found = pool.map(os.stat, files)
        return sha256(canonical_json([[str(f), s.st_size, s.st_mtime_ns] for f, s in zip(files, found, strict=True)]))


def _members(record: Record, texts: list[str]) -> list[tuple[str, bytes]]:
    return [(f"{record.key}.{record.ext}", record.image), (f"{record.key}.cls", texts[record.label].encode())]


def _spool(source: Source, folder: Path, count: int, progress: Progress) -> int:
    buffers: list[list[bytes]] = [[] for _ in range(count)]
    sizes, images = [0] * count, 0

    def flush(n: int) -> None:
        with open(folder / str(n), "ab") as file:
            file.writelines(buffers[n])
        buffers[n], sizes[n] = [], 0

    for record in source.samples:
        n = seed_of(0, "shard", record.key) % count
        header = json.dumps([record.key, record.ext, record.label, len(record.image)]).encode()
        buffers[n] += [struct.pack("<I", len(header)), header, record.image]
        sizes[n] += len(record.image)
        images += 1
        progress.add()
        if sizes[n] >= BUFFER_BYTES:
            flush(n)
    for n in range(count):
        flush(n)
    return images


def _read_spool(path: Path) -> Iterator[Record]:
    with open(path, "rb") as file:
        while size := file.read(4):
            key, ext, label, length = json.loads(file.read(struct.unpack("<I", size)[0]))
            yield Record(key, ext, file.read(length), label)
