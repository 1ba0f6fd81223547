"""CIFAR-10 and CIFAR-100 from their binary archives: raw bytes, read by numpy; the pickled archives are refused.

Format: https://www.cs.toronto.edu/~kriz/cifar.html. A record is the label (CIFAR-100: the coarse, then the fine label)
in one byte each, then 3 x 32 x 32 bytes of red, green and blue. The images have no file, so they become PNG: lossless.
"""

import gzip
import hashlib
import http.client
import io
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from adq.sources import Record, Source

SIDE = 32
PIXELS = 3 * SIDE * SIDE
RECORDS_AT_ONCE = 1000


@dataclass(frozen=True)
class _Layout:
    archive: str
    md5: str  # as published beside the archive
    folder: str
    names: str  # the file of class names, one a line
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int  # the last of them is the label


_LAYOUTS = {
    "cifar10": _Layout(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        names="batches.meta.txt",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        label_bytes=1,
    ),
    "cifar100": _Layout(
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        names="fine_label_names.txt",
        train=("train.bin",),
        test=("test.bin",),
        label_bytes=2,
    ),
}


def cifar(path: str | Path, kind: str, split: str) -> Source:
    """CIFAR-10, or CIFAR-100 by its fine labels, in the archive's order.

    Args:
        path: the binary archive, the folder that it unpacks to, or a folder that holds one of the two.
        kind: "cifar10" or "cifar100".
        split: "train" or "test".

    Returns:
        Samples with keys SPLIT_00000, SPLIT_00001, ... and PNG images of 32 x 32 RGB pixels.

    Raises:
        FileNotFoundError: neither archive nor folder is there.
        ValueError: the archive is unreadable, another version or incomplete, or a label lies outside the classes.
    """
    layout = _layout(kind)
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r}: CIFAR has 'train' and 'test'.")
    place = _place(Path(path), layout)
    files = layout.train if split == "train" else layout.test
    record = layout.label_bytes + PIXELS
    with _opened(place, layout, (layout.names, *files)) as opened:
        classes = tuple(opened[layout.names][0].read().decode().split())
        sizes = {name: opened[name][1] for name in files}
    for name, size in sizes.items():
        if not size or size % record:
            raise ValueError(
                f"{place}: {name} has {size} bytes, which is no multiple of a {kind} record ({record} bytes): it is "
                f"truncated, or not {kind}. Take {layout.archive} again from {_url(layout)}."
            )
    read = tuple(place / name for name in (layout.names, *files)) if place.is_dir() else (place,)
    return Source(classes, _samples(place, layout, files, split, len(classes)), sum(sizes.values()) // record, read)


def download_cifar(kind: str, folder: str | Path, url: str | None = None) -> Path:
    """Download the binary archive of `kind` into `folder`, unless it is there; its MD5 is checked either way.

    Raises:
        FileNotFoundError: the network does not give it; the message says where to put a copy.
        ValueError: the file there, or the one that came, is not the published one.
    """
    layout = _layout(kind)
    url = url or _url(layout)
    target = Path(folder) / layout.archive
    if target.exists():
        with target.open("rb") as file:
            _check_md5(hashlib.file_digest(file, "md5").hexdigest(), layout, target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as file:
            while block := answer.read(1 << 20):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        _check_md5(digest.hexdigest(), layout, url)
        partial.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{url}: cannot be downloaded from here ({error}). Fetch it elsewhere, and put it at {target}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _samples(place: Path, layout: _Layout, files: tuple[str, ...], split: str, classes: int) -> Iterator[Record]:
    record = layout.label_bytes + PIXELS
    position = 0
    with _opened(place, layout, files) as opened:
        for name in files:
            stream = opened[name][0]
            while block := stream.read(record * RECORDS_AT_ONCE):
                rows = np.frombuffer(block, dtype=np.uint8).reshape(-1, record)
                images = rows[:, layout.label_bytes :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
                for label, image in zip(rows[:, layout.label_bytes - 1].tolist(), images, strict=True):
                    if label >= classes:
                        raise ValueError(
                            f"{place}: {split} record {position} ({name}) has label {label}, but {layout.names} names "
                            f"{classes} classes. Take the archive again from {_url(layout)}."
                        )
                    yield Record(f"{split}_{position:05d}", "png", _png(image), label)
                    position += 1


def _png(image: np.ndarray) -> bytes:
    """uint8 [32, 32, 3] as a PNG: the same bytes for one Pillow and zlib."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _layout(kind: str) -> _Layout:
    if kind not in _LAYOUTS:
        raise ValueError(f"kind {kind!r}: give one of {', '.join(_LAYOUTS)}.")
    return _LAYOUTS[kind]


def _url(layout: _Layout) -> str:
    return f"https://www.cs.toronto.edu/~kriz/{layout.archive}"


def _place(path: Path, layout: _Layout) -> Path:
    """The archive or the unpacked folder that `path` means."""
    if path.is_file() or (path / layout.train[0]).is_file():
        return path
    found = next((place for place in (path / layout.folder, path / layout.archive) if place.exists()), None)
    if found is None:
        _refuse_pickled({entry.name for entry in path.iterdir()} if path.is_dir() else set(), path, layout)
        raise FileNotFoundError(
            f"{path}: neither {layout.archive} nor its folder {layout.folder} is here. Download it from {_url(layout)}."
        )
    return found


@contextmanager
def _opened(place: Path, layout: _Layout, names: tuple[str, ...]) -> Iterator[dict[str, tuple[IO[bytes], int]]]:
    """The files `names` of a folder or an archive, as {name: (stream, size in bytes)}."""
    if place.is_dir():
        present = {entry.name: entry for entry in place.iterdir()}
        _check_complete(set(present), names, place, layout)
        streams = {name: present[name].open("rb") for name in names}
        try:
            yield {name: (stream, present[name].stat().st_size) for name, stream in streams.items()}
        finally:
            for stream in streams.values():
                stream.close()
        return
    try:
        with tarfile.open(place) as archive:
            members = {member.name.rpartition("/")[2]: member for member in archive if member.isfile()}
            _check_complete(set(members), names, place, layout)
            yield {name: (archive.extractfile(members[name]), members[name].size) for name in names}
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{place}: not a readable {layout.archive} ({error}). Download it again.") from error


def _check_complete(present: set[str], names: tuple[str, ...], place: Path, layout: _Layout) -> None:
    missing = sorted(set(names) - present)
    if missing:
        _refuse_pickled(present, place, layout)
        raise ValueError(f"{place}: {', '.join(missing)} missing. Take {layout.archive} again from {_url(layout)}.")


def _refuse_pickled(present: set[str], place: Path, layout: _Layout) -> None:
    pickled = {"data_batch_1", "meta", "cifar-10-batches-py", "cifar-100-python"} & present
    if pickled or any(name.endswith((".mat", "-python.tar.gz", "-matlab.tar.gz")) for name in present):
        raise ValueError(
            f"{place}: this is CIFAR's Python or Matlab version; nothing is unpickled here. Use the binary version, "
            f"{layout.archive} from {_url(layout)}."
        )


def _check_md5(md5: str, layout: _Layout, what: str | Path) -> None:
    if md5 != layout.md5:
        raise ValueError(f"{what}: MD5 {md5}, but {layout.archive} has {layout.md5}. Remove it and download it again.")
