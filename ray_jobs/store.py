"""Where results live: a folder, s3:// or gs://. A file is there in full or not at all."""

import hashlib
import json
import os
import posixpath
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from adq.shards import absolute, file_info, filesystem, is_remote, join, open_file


@dataclass(frozen=True)
class Store:
    """Files under one root, an absolute local path or a remote address. It travels between processes as its root alone."""

    root: str

    @classmethod
    def at(cls, path: str) -> "Store":
        return cls(absolute(path))

    def path(self, name: str) -> str:
        return join(self.root, name)

    def read(self, name: str) -> bytes:
        with open_file(self.path(name)) as stream:
            return stream.read()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        info = file_info(self.path(name))
        return info.size if info.type == pafs.FileType.File else None

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; empty where there is no such folder."""
        fs, inside = filesystem(self.path(folder))
        infos = fs.get_file_info(pafs.FileSelector(inside, allow_not_found=True))
        return sorted(posixpath.basename(i.path) for i in infos if i.type == pafs.FileType.File)

    def read_all(self, names: list[str]) -> list[bytes]:
        """Many small files at once: on an object store each costs a round trip."""
        if not names:
            return []
        with ThreadPoolExecutor(min(16, len(names))) as threads:
            return list(threads.map(self.read, names))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file from memory: a temporary name, fsync and rename locally, one object remotely.

        Raises:
            OSError: the place cannot be written, with its name.
        """
        path = self.path(name)
        if is_remote(path):
            fs, inside = filesystem(path)
            with fs.open_output_stream(inside) as stream:
                stream.write(data)
            return
        folder = posixpath.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def write_json(self, name: str, value: object) -> None:
        self.write(name, canonical_json(value))

    def read_json(self, name: str) -> dict | None:
        """A JSON file's value; None where there is no such file."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            fs, inside = filesystem(self.path(name))
            fs.delete_file(inside)

    def check_writable(self) -> None:
        """Raises OSError that names the place, before any work is done for it."""
        probe = f".probe-{os.getpid()}"
        try:
            self.write(probe, b"tessera")
            self.remove(probe)
        except OSError as error:
            raise OSError(f"{self.root}: cannot be written ({error}); choose another place") from error


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys: the same value, the same bytes."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet, with fixed writer options: the same table, the same bytes."""
    sink = pa.BufferOutputStream()
    options = {"compression": "zstd", "row_group_size": 16384, "version": "2.6", "store_schema": True}
    pq.write_table(table, sink, use_dictionary=False, write_statistics=False, **options)
    return sink.getvalue().to_pybytes()


def parquet_table(data: bytes, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), columns=columns)
