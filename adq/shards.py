"""WebDataset shards: find, open, read and write them. Everything that is read comes through `open_file`.

Shards are data from elsewhere: nothing in them is unpickled, no URL is handed to another library, and `pipe:` is refused.
"""

import fnmatch
import io
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import braceexpand
import pyarrow.fs as pafs

REMOTE = ("s3://", "gs://")
NEAR = 1 << 17  # bytes between two ranges that are read along
LONGEST_READ = 1 << 23
READERS = 8  # requests at once to an object store


@dataclass(frozen=True)
class DataSet:
    """Shards under one root: an absolute local path or an s3:// or gs:// address."""

    root: str
    shards: tuple[str, ...]  # relative to the root, sorted


def is_remote(path: str) -> bool:
    return path.startswith(REMOTE)


def absolute(path: str) -> str:
    """A local path made absolute, a remote one as it is. Raises ValueError for any scheme but s3, gs and file."""
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if path.startswith("pipe:"):
        raise ValueError(f"{path}: 'pipe:' would run a program and is refused; give a path, s3:// or gs://")
    if not is_remote(path) and "://" in path:
        raise ValueError(f"{path}: only local paths, s3:// and gs:// are read; copy or mount the data there")
    return path.rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path))


@lru_cache(maxsize=32)
def _remote_filesystem(scheme: str, bucket: str, endpoint: str | None) -> pafs.FileSystem:
    if scheme == "s3" and endpoint:
        return pafs.S3FileSystem(endpoint_override=endpoint, region=os.environ.get("AWS_REGION", "us-east-1"))
    return pafs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of an absolute path or address, and the path inside it.

    S3-compatible stores are reached through AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, as with Amazon's own tools.
    """
    if not is_remote(path):
        return pafs.LocalFileSystem(), path
    scheme, _, rest = path.partition("://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _remote_filesystem(scheme, rest.split("/", 1)[0], endpoint), rest


def join(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


def open_file(path: str):
    """An open, seekable binary stream of a local or remote file (a pyarrow NativeFile). Raises FileNotFoundError."""
    fs, inside = filesystem(path)
    return fs.open_input_file(inside)


def file_info(path: str) -> pafs.FileInfo:
    fs, inside = filesystem(path)
    return fs.get_file_info([inside])[0]


def _children(folder: str, kind: pafs.FileType = pafs.FileType.File) -> list[str]:
    """Addresses of the files, or folders, in a folder; empty where there is no such folder."""
    fs, inside = filesystem(folder)
    infos = fs.get_file_info(pafs.FileSelector(inside, allow_not_found=True))
    return sorted(join(folder, posixpath.basename(i.path)) for i in infos if i.type == kind)


def locate(patterns: Sequence[str], ending: str = ".tar") -> DataSet:
    """Every shard, or file of another ending, that the patterns name: brace patterns, globs, folders or files; local, s3:// or gs://.

    Raises:
        FileNotFoundError: a pattern that matches nothing, or a shard of a brace pattern that is missing.
        ValueError: no pattern at all, or a scheme that is not read.
    """
    if not patterns:
        raise ValueError("no shards given: name them with --data, e.g. --data 'train-{000000..000009}.tar'")
    found: set[str] = set()
    missing: list[str] = []
    for pattern in patterns:
        for name in braceexpand.braceexpand(pattern):
            matches = _match(absolute(name), ending)
            found.update(matches)
            if not matches:
                missing.append(name)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise FileNotFoundError(f"missing shards: {shown}; check the pattern, or copy them there")
    folders = [posixpath.dirname(path) for path in found]
    places = sorted({"/".join(path.split("/", 3)[:3]) if is_remote(path) else "local files" for path in found})
    if len(places) > 1:
        raise ValueError(
            f"--data mixes {' and '.join(places)}: one data set has one root; copy the shards to one place"
        )
    root = os.path.commonpath(folders) if not is_remote(folders[0]) else _common_address(folders)
    return DataSet(root, tuple(sorted(path[len(root) :].lstrip("/") for path in found)))


def _common_address(folders: list[str]) -> str:
    scheme, _, _ = folders[0].partition("://")
    return f"{scheme}://" + posixpath.commonpath([folder.partition("://")[2] for folder in folders])


def _match(path: str, ending: str) -> list[str]:
    info = file_info(path)  # first: a folder's own name may hold * ? or [
    if info.type == pafs.FileType.Directory:
        return [p for p in _children(path) if p.endswith(ending)]
    if info.type == pafs.FileType.File:
        if not path.endswith(ending):
            raise ValueError(f"{path}: a file that ends in {ending} is expected; rename it if it is one")
        return [path]
    return [found for found in _globbed(path, pafs.FileType.File) if found.endswith(ending)]


def _globbed(path: str, kind: pafs.FileType) -> list[str]:
    """What a path with wildcards names, in any of its components; not that path itself, where it has none."""
    folder, name = posixpath.split(path)
    if not any(c in path for c in "*?[") or folder in ("", path):
        return []
    above = [folder] if file_info(folder).type == pafs.FileType.Directory else _globbed(folder, pafs.FileType.Directory)
    return [
        found
        for parent in above
        for found in _children(parent, kind)
        if fnmatch.fnmatchcase(posixpath.basename(found), name)
    ]


def fingerprint(data: DataSet) -> list[tuple[str, int, str]]:
    """(name, bytes, modification time in ns) of every shard: enough to see that a shard has changed."""
    out = []
    for start in range(0, len(data.shards), 1000):
        names = data.shards[start : start + 1000]
        fs, inside = filesystem(data.root)
        for name, info in zip(names, fs.get_file_info([join(inside, name) for name in names]), strict=True):
            if info.type != pafs.FileType.File:
                raise FileNotFoundError(f"{join(data.root, name)}: the shard is gone")
            out.append((name, info.size, str(info.mtime_ns)))
    return out


def read_samples(data: DataSet, shard: str, wanted: Sequence[str] | None = None) -> Iterator[dict]:
    """The samples of a shard in its own order, read as a stream by webdataset's tar reader, nothing decoded.

    Args:
        wanted: extensions to read, without the dot; all by default.

    Yields:
        {"__key__": str, "jpg": bytes, "cls": bytes, ...}
    """
    from webdataset.tariterators import (  # loads torch: seconds that ingest need not spend
        group_by_keys,
        tar_file_expander,
    )

    suffixes = "" if wanted is None else tuple(f".{ext}" for ext in wanted)

    def select(name: str) -> bool:  # without macOS's ._NAME, as in adq.index
        return name.lower().endswith(suffixes) and not posixpath.basename(name).startswith("._")

    with open_file(join(data.root, shard)) as stream:
        source = [{"url": shard, "stream": io.BufferedReader(_Raw(stream), 1 << 20)}]
        yield from group_by_keys(tar_file_expander(source, select_files=select))


def chunks(items: Iterator, size: int) -> Iterator[list]:
    """The items in lists of `size`, the last of which may be shorter."""
    while chunk := list(islice(items, size)):
        yield chunk


def ahead(items: Iterator) -> Iterator:
    """The same items, none of which is None; while one is used, a thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, items, None)
            yield item


class _Raw(io.RawIOBase):
    """A pyarrow stream as a raw Python one, so that BufferedReader can read ahead."""

    def __init__(self, stream):
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def buffered(stream, size: int = 8 << 20) -> io.BufferedReader:
    """A pyarrow stream read ahead in blocks of `size` bytes: one request per block on an object store."""
    return io.BufferedReader(_Raw(stream), size)


def read_ranges(data: DataSet, shard: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at (offset, size) of a shard, in the order of the ranges; those that lie near one another are read together.

    Raises:
        ValueError: the file is shorter.
    """
    path = join(data.root, shard)
    reads = _together(ranges)
    with open_file(path) as stream:

        def read(found: "_Read") -> bytes:
            return stream.read_at(found.end - found.start, found.start)

        if is_remote(path) and len(reads) > 1:
            with ThreadPoolExecutor(READERS) as pool:
                blocks = list(pool.map(read, reads))
        else:
            blocks = [read(found) for found in reads]
    parts = [b""] * len(ranges)
    for found, block in zip(reads, blocks, strict=True):
        for number in found.ranges:
            offset, size = ranges[number]
            parts[number] = block[offset - found.start : offset - found.start + size]
            if len(parts[number]) != size:
                raise ValueError(f"{path}: ends before byte {offset + size}; it changed since ingest")
    return parts


@dataclass
class _Read:
    """One request, and the ranges that it answers, by number."""

    start: int
    end: int
    ranges: list[int]


def _together(ranges: Sequence[tuple[int, int]]) -> list[_Read]:
    """What is asked of a shard for these ranges: a request takes an object store as long as many bytes do."""
    found: list[_Read] = []
    for number in sorted(range(len(ranges)), key=ranges.__getitem__):
        start, size = ranges[number]
        last = found[-1] if found else None
        if last and start - last.end <= NEAR and start + size - last.start <= LONGEST_READ:
            last.end = max(last.end, start + size)
            last.ranges.append(number)
        else:
            found.append(_Read(start, start + size, [number]))
    return found


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of (name, bytes) members whose own bytes depend on them alone: time, owner and mode are fixed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
