"""The store: a file is there in full or not at all, in a folder and behind a real S3 API; equal values are equal bytes."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_jobs import store as store_module
from ray_jobs.store import Store, canonical_json, parquet_bytes, parquet_table, sha256


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty place of either kind."""
    if request.param == "local":
        return Store.at(str(tmp_path / "store"))
    return Store.at(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_is_written_is_read(store):
    data = os.urandom(100_000)
    store.write("a/b/c.bin", data)
    store.write("a/empty", b"")
    assert store.read("a/b/c.bin") == data and store.size("a/b/c.bin") == len(data)
    assert store.read("a/empty") == b"" and store.size("a/empty") == 0


def test_a_later_write_replaces_the_whole_file(store):
    store.write("a", b"long" * 100)
    store.write("a", b"short")
    assert store.read("a") == b"short"


def test_names_are_the_files_of_one_folder_sorted(store):
    for name in ("f/b", "f/a", "f/sub/c", "other/d"):
        store.write(name, b"x")
    assert store.names("f") == ["a", "b"]
    assert store.names("none") == [] and store.names("f/none") == []


def test_a_missing_file(store):
    store.write("there", b"x")
    assert store.size("none") is None and store.size("none/deep") is None
    assert store.read_json("none.json") is None
    with pytest.raises(FileNotFoundError):
        store.read("none")


def test_remove(store):
    store.write("f/a", b"x")
    store.write("f/b", b"x")
    store.remove("f/a")
    store.remove("f/a")
    assert store.names("f") == ["b"] and store.size("f/a") is None


def test_json_there_and_back(store):
    value = {"name": "kůň", "list": [1, 2.5, None], "deep": {"b": 1, "a": 2}}
    store.write_json("v.json", value)
    assert store.read_json("v.json") == value


def test_many_small_files_at_once_keep_their_order(store):
    names = [f"m/{n:02d}" for n in range(40)]
    for name in names:
        store.write(name, name.encode())
    assert store.read_all(names[::-1]) == [name.encode() for name in names[::-1]]
    assert store.read_all([]) == []


def test_check_writable_leaves_nothing(store):
    store.write("a", b"x")
    store.check_writable()
    assert store.names("") == ["a"]


def test_a_bucket_that_is_not_there_cannot_be_written(s3):
    with pytest.raises(OSError, match="s3://no-such-bucket/x: cannot be written"):
        Store.at("s3://no-such-bucket/x").check_writable()


def test_a_place_under_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file/store: cannot be written"):
        Store.at(str(tmp_path / "file" / "store")).check_writable()


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    store = Store.at(str(tmp_path))
    store.write("f/old", b"before")

    def fail(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, step, fail)
    for name in ("f/old", "f/new"):
        with pytest.raises(OSError, match="No space left"):
            store.write(name, b"after" * 1000)
    assert files(tmp_path) == ["f/old"] and store.read("f/old") == b"before"


def test_an_interrupt_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Store.at(str(tmp_path)).write("f/new", b"x")
    assert files(tmp_path) == []


def test_a_file_has_its_name_only_when_its_bytes_are_on_disk(tmp_path, monkeypatch):
    seen = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(store_module.os, "fsync", lambda fd: (seen.append(os.fstat(fd).st_size), real_fsync(fd)))
    monkeypatch.setattr(store_module.os, "replace", lambda a, b: (seen.append("named"), real_replace(a, b)))
    Store.at(str(tmp_path)).write("a", bytes(1234))
    assert seen == [1234, "named"]


def test_other_users_can_read_what_is_written(tmp_path):
    Store.at(str(tmp_path)).write("a", b"x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_store_travels_between_processes(store):
    store.write("a", b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store and copy.read("a") == b"x"


def test_a_relative_place_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store.at("./runs").root == str(tmp_path / "runs")
    assert Store.at("s3://bucket/runs/").path("a") == "s3://bucket/runs/a"


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    value = {"b": {"y": 1, "x": [1, 2]}, "a": "ů"}
    turned = {"a": "ů", "b": {"x": [1, 2], "y": 1}}
    assert canonical_json(value) == canonical_json(turned) != canonical_json({"b": {"y": 1, "x": [2, 1]}, "a": "ů"})
    assert json.loads(canonical_json(value)) == value


def table(rows: int = 50_000) -> pa.Table:
    rng = np.random.default_rng(0)
    keys = [f"key-{n:06d}" for n in range(rows)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(rows * 4, dtype=np.float32)), 4)
    return pa.table({"key": keys, "label": rng.integers(0, 9, rows), "embedding": vectors})


def test_parquet_is_the_same_bytes_for_the_same_table():
    whole = table()
    once = parquet_bytes(whole)
    # Chunks are how a table came to be, not what it is.
    chunked = pa.concat_tables([whole.slice(0, 777), whole.slice(777, 30_000), whole.slice(30_777)])
    assert sha256(parquet_bytes(table())) == sha256(parquet_bytes(chunked)) == sha256(once)
    assert parquet_table(once).equals(whole)
    assert parquet_bytes(whole.slice(0, 49_999)) != once


def test_columns_of_parquet():
    out = parquet_table(parquet_bytes(table(10)), ["label", "key"])
    assert sorted(out.column_names) == ["key", "label"] and out.num_rows == 10
