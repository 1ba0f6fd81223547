"""Tars as shards: written alike every time, read by others, streamed, the next one made while one is used."""

import io
import os
import tarfile
import threading
from collections.abc import Iterator

import pytest
import webdataset

from adq.shards import (
    ahead,
    buffered,
    open_file,
    tar_bytes,
)
from tests.adq.samples import MEMBERS, SAMPLES, plain


def test_a_tar_depends_on_its_members_alone(monkeypatch):
    first = tar_bytes(MEMBERS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("os.getuid", lambda: 4242)
    assert tar_bytes(iter(MEMBERS)) == first
    assert tar_bytes(MEMBERS[::-1]) != first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in tar} == {(0, 0, 0, "", "", 0o644)}


def test_a_tar_is_read_by_tarfile_and_by_webdataset(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes(MEMBERS))
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(i.name, tar.extractfile(i).read()) for i in tar] == MEMBERS
    theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert plain(theirs) == SAMPLES


def test_a_tar_ends_with_its_closing_blocks():
    for members in ([], MEMBERS[:2]):
        data = tar_bytes(members)
        assert len(data) % 512 == 0 and not any(data[-1024:])


def test_a_buffered_stream_reads_and_seeks_like_the_file(tmp_path):
    data = os.urandom(10_000)
    (tmp_path / "a").write_bytes(data)
    with open_file(str(tmp_path / "a")) as raw:
        stream = buffered(raw, 1000)
        assert stream.read(2500) == data[:2500]
        stream.seek(7)
        assert stream.read(10) == data[7:17] and stream.tell() == 17
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == data[-5:]


def test_the_next_item_is_made_while_one_is_used():
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in (found := ahead(items())):
        assert number == 3 or made[number + 1].wait(10), "made before it is asked for"
    assert list(found) == [] == list(ahead(iter(())))


def test_what_making_an_item_raises_is_raised_where_it_is_used():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("truncated")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="truncated"):
        next(found)
