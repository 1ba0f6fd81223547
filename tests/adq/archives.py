"""Data sets as they are downloaded, small: files, zips, tars, and what a source reads of them."""

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from adq.sources import Source

IDS = ["n01440764", "n02102040", "n02979186"]  # sorted


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read(source: Source) -> dict[str, tuple[str, bytes, int]]:
    """The samples by key, with what holds for every source checked on the way."""
    records = list(source.samples)
    assert source.count in (None, len(records))
    assert all("." not in record.key and record.ext == record.ext.lower() for record in records)
    assert {record.label for record in records} == set(range(len(source.classes)))
    found = {record.key: record[1:] for record in records}
    assert len(found) == len(records)
    return found


def raises(error: type[Exception], *words: object):
    """The error whose message has these words in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(str(word)) for word in words))
