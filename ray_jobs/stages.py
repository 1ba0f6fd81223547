"""Content-addressed stages: a folder named by what goes in, parts committed one by one, a manifest last.

A part is written under a name that contains its sha256, then a marker commits it. The manifest lists the parts, the
inputs' digests and the configuration. A rerun takes every part that has its marker; a stage without a manifest is unfinished.
Time, host and versions go to run.json, which is never hashed.
"""

import json
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as installed

import pyarrow as pa

from ray_jobs.store import Store, canonical_json, parquet_bytes, parquet_table, sha256


@dataclass(frozen=True)
class Part:
    """A committed part of a stage: where it lies and what it must be."""

    name: str
    path: str  # relative to the store
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A finished stage. `content` is the digest of its parts alone: what later stages hang on."""

    stage: "Stage"
    parts: tuple[Part, ...]
    summary: Mapping  # figures that depend on the inputs alone
    content: str

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return parquet_table(self.stage.read(self.part(name)), columns)

    def tables(self, columns: list[str] | None = None) -> pa.Table:
        """All Parquet parts, one below the other, in the order of the manifest."""
        parts = [p for p in self.parts if p.path.endswith(".parquet")]
        return pa.concat_tables(parquet_table(self.stage.read(part), columns) for part in parts)

    def bytes(self, name: str) -> bytes:
        return self.stage.read(self.part(name))


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline, addressed by its inputs' contents, its configuration and its version."""

    store: Store
    name: str
    version: int  # raised when the stage's results change
    inputs: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return sha256(canonical_json([self.name, self.version, dict(self.inputs), dict(self.config)]))

    @property
    def folder(self) -> str:
        return f"{self.name}/{self.digest[:16]}"

    def commit(self, name: str, data: bytes, rows: int, suffix: str) -> Part:
        """Write a part, then its marker. Two writers of the same part do no harm."""
        digest = sha256(data)
        part = Part(name, self.part_path(name, digest, suffix), len(data), rows, digest)
        self.store.write(part.path, data)
        self.store.write_json(f"{self.folder}/parts/{_safe(name)}.json", part.__dict__)
        return part

    def part_path(self, name: str, digest: str, suffix: str) -> str:
        return f"{self.folder}/parts/{_safe(name)}-{digest[:16]}.{suffix}"

    def commit_table(self, name: str, table: pa.Table) -> Part:
        return self.commit(name, parquet_bytes(table), table.num_rows, "parquet")

    def committed(self) -> dict[str, Part]:
        """Parts that have their marker and their file, by name."""
        files = self.store.names(f"{self.folder}/parts")
        markers = self.store.read_all([f"{self.folder}/parts/{f}" for f in files if f.endswith(".json")])
        parts = [Part(**json.loads(marker)) for marker in markers]
        return {part.name: part for part in parts if self.store.size(part.path) == part.bytes}

    def read(self, part: Part) -> bytes:
        """The bytes of a part, checked. Raises ValueError where they are not what was committed."""
        data = self.store.read(part.path)
        if sha256(data) != part.sha256:
            raise ValueError(
                f"{self.store.path(part.path)}: is not what {self.name} wrote (sha256 differs); "
                f"remove {self.store.path(self.folder)} and run again"
            )
        return data

    def finish(self, parts: list[Part], summary: Mapping, run: Mapping | None = None) -> Manifest:
        """Write run.json and, last, the manifest."""
        parts = sorted(parts, key=lambda part: part.name.encode())
        content = sha256(canonical_json([[part.name, part.sha256] for part in parts]))
        host = {"host": socket.gethostname(), "python": platform.python_version(), "versions": _versions()}
        self.store.write_json(f"{self.folder}/run.json", host | dict(run or {}))
        value = {
            "stage": self.name, "version": self.version, "digest": self.digest, "inputs": dict(self.inputs),
            "config": dict(self.config), "parts": [part.__dict__ for part in parts], "summary": dict(summary), "content": content,
        }  # fmt: skip
        self.store.write_json(f"{self.folder}/manifest.json", value)
        return Manifest(self, tuple(parts), summary, content)

    def manifest(self) -> Manifest | None:
        """The finished stage; None where it is not finished, or a part of it is gone."""
        value = self.store.read_json(f"{self.folder}/manifest.json")
        if value is None:
            return None
        parts = tuple(Part(**part) for part in value["parts"])
        if value["digest"] != self.digest or not self.there(parts):
            return None
        return Manifest(self, parts, value["summary"], value["content"])

    def there(self, parts: tuple[Part, ...]) -> bool:
        """Whether every part's file is there; one listing, not a request a part."""
        names = {f"{self.folder}/parts/{name}" for name in self.store.names(f"{self.folder}/parts")}
        return all(part.path in names for part in parts)

    def run_facts(self) -> dict:
        """run.json: time, host, versions; empty where there is none."""
        return self.store.read_json(f"{self.folder}/run.json") or {}


def _safe(name: str) -> str:
    """A part's name as a file name; different names stay different."""
    return name.replace("%", "%25").replace("/", "%2F")


def _versions() -> dict[str, str]:
    return {name: installed(name) for name in ("tessera-compress", "torch", "torchvision", "ray", "pyarrow", "numpy")}
