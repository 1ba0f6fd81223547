"""What lies in a store: its stages, finished or not, and the bytes that each takes, of one listing; no file is read."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from adq.shards import filesystem
from ray_jobs.accuracy import as_bytes, markdown
from ray_jobs.cluster import check_paths
from ray_jobs.progress import clock, counted
from ray_jobs.store import Store

HEADINGS = ("stage", "finished", "unfinished", "parts", "bytes", "last written")
FOLDER = re.compile(r"[0-9a-f]{16}")  # of `Stage.folder`
LISTED = 8  # unfinished folders, the latest first
MLFLOW, OTHER = "MLflow", "other files"


@dataclass
class Folder:
    """One stage as far as a listing tells."""

    shards: bool = False  # of which a stage knows, and no stage
    finished: bool = False
    markers: int = 0  # of committed parts
    bytes: int = 0
    written: float = 0.0  # seconds since the epoch, of the newest file


@dataclass
class Contents:
    """The folders of a store by stage and digest, and what else lies there by kind."""

    folders: dict[str, dict[str, Folder]] = field(default_factory=dict)
    rest: dict[str, Folder] = field(default_factory=dict)


def contents(store: Store) -> Contents:
    """List a store. Raises ValueError where there is none."""
    fs, inside = filesystem(store.root)
    if fs.get_file_info(inside).type == pafs.FileType.File:
        raise ValueError(f"{store.root}: is a file; --store is the folder of the stages' results")
    infos = fs.get_file_info(pafs.FileSelector(inside, allow_not_found=True, recursive=True))
    files = [info for info in infos if info.type == pafs.FileType.File]
    if not files:
        raise ValueError(
            f"{store.root}: nothing is there; --store is the folder that the other jobs were given, ./runs by default"
        )
    found = Contents()
    for info in files:
        names = info.path[len(inside) :].strip("/").split("/")
        if len(names) > 2 and FOLDER.fullmatch(names[1]):
            folder = found.folders.setdefault(names[0], {}).setdefault(names[1], Folder())
            folder.shards |= names[2] == ".tessera" or names[2].endswith(".tar")
            folder.finished |= names[2:] == ["manifest.json"]
            folder.markers += len(names) == 4 and names[2] == "parts" and names[3].endswith(".json")
        else:
            folder = found.rest.setdefault(MLFLOW if names[0].startswith("mlflow") else OTHER, Folder())
        folder.bytes += info.size
        folder.written = max(folder.written, info.mtime.timestamp())
    return found


def as_text(store: Store, found: Contents, now: float) -> str:
    """A Markdown table that also reads well on a terminal, the largest first, and the folders of unfinished stages below it."""
    rows = []
    for name, folders in found.folders.items():
        stages = [folder for folder in folders.values() if not folder.shards]
        done = sum(folder.finished for folder in stages)
        counts = [done, len(stages) - done, _sum(stages, "markers")]
        rows.append((name, *(f"{count:,}" if count else "" for count in counts), folders.values()))
    rows += [(kind, "", "", "", [folder]) for kind, folder in found.rest.items()]
    rows.sort(key=lambda row: -_sum(row[-1], "bytes"))
    every = [folder for row in rows for folder in row[-1]]
    lines = [HEADINGS]
    lines += [(*row[:-1], as_bytes(_sum(row[-1], "bytes")), _ago(row[-1], now)) for row in rows]
    lines.append(("all", "", "", "", as_bytes(_sum(every, "bytes")), _ago(every, now)))
    text = f"{store.root}\n\n{markdown(lines, left=1)}"
    unfinished = [
        (folder.written, f"{name}/{digest}", folder)
        for name, folders in found.folders.items()
        for digest, folder in folders.items()
        if not (folder.shards or folder.finished)
    ]
    if not unfinished:
        return text
    unfinished.sort(reverse=True)
    told = [
        f"{place}  {counted(folder.markers, 'part')} committed, last written {_ago([folder], now)}"
        for _, place, folder in unfinished[:LISTED]
    ]
    more = f"\n... and {len(unfinished) - LISTED:,} more" if len(unfinished) > LISTED else ""
    return f"{text}\n\nUnfinished, or at work now; the same command goes on there:\n" + "\n".join(told) + more


def _sum(folders: Iterable[Folder], name: str) -> int:
    return sum(getattr(folder, name) for folder in folders)


def _ago(folders: Iterable[Folder], now: float) -> str:
    return f"{clock(max(0.0, now - max(folder.written for folder in folders)))} ago"


def run(place: str) -> None:
    check_paths(store=place)
    store = Store.at(place)
    print(as_text(store, contents(store), time.time()))
