"""Shards: found by every kind of pattern, read as they were written, locally and through a real S3 API."""

import hashlib
import itertools
import os
from pathlib import Path

import boto3
import pytest

from adq import shards
from adq.shards import (
    DataSet,
    absolute,
    buffered,
    file_info,
    fingerprint,
    join,
    locate,
    open_file,
    read_ranges,
    read_samples,
    tar_bytes,
)
from tests.adq.samples import MEMBERS, SAMPLES, plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train-0 to train-3, val-0, a sub-folder, and a file that is no shard."""
    (tmp_path / "more").mkdir()
    for name in ("train-0.tar", "train-1.tar", "train-2.tar", "train-3.tar", "val-0.tar", "more/train-9.tar"):
        (tmp_path / name).write_bytes(tar_bytes([(f"{name[:-4]}.cls", b"0")]))
    (tmp_path / "classes.txt").write_text("a\n")
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["train-{0..2}.tar"], ["train-0.tar", "train-1.tar", "train-2.tar"]),
        (["train-{1,3}.tar"], ["train-1.tar", "train-3.tar"]),
        (["train-*.tar"], ["train-0.tar", "train-1.tar", "train-2.tar", "train-3.tar"]),
        (["*-0.tar"], ["train-0.tar", "val-0.tar"]),
        (["train-[12].tar"], ["train-1.tar", "train-2.tar"]),
        (["train-?.tar"], ["train-0.tar", "train-1.tar", "train-2.tar", "train-3.tar"]),
        ([""], ["train-0.tar", "train-1.tar", "train-2.tar", "train-3.tar", "val-0.tar"]),
        (["train-2.tar"], ["train-2.tar"]),
        (["{train,val}-0.tar"], ["train-0.tar", "val-0.tar"]),
        (["train-1.tar", "train-*.tar", "train-{0..3}.tar"], [f"train-{n}.tar" for n in range(4)]),
        (["train-0.tar", "more"], ["more/train-9.tar", "train-0.tar"]),
        (["m*/train-*.tar"], ["train-9.tar"]),
        (["mor[e-f]/train-9.tar", "val-?.tar"], ["more/train-9.tar", "val-0.tar"]),
        (["*/*"], ["train-9.tar"]),
        (["*"], ["train-0.tar", "train-1.tar", "train-2.tar", "train-3.tar", "val-0.tar"]),
    ],
)
def test_every_kind_of_pattern(folder, patterns, expected):
    found = locate([f"{folder}/{pattern}" for pattern in patterns])
    assert found.root == str(folder) + ("/more" if expected == ["train-9.tar"] else "")
    assert found.shards == tuple(expected)


def test_a_file_that_is_no_tar_is_refused(folder):
    (folder / "train.wds").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.wds: a file that ends in \.tar is expected; rename it"):
        locate([f"{folder}/train.wds"])


def test_the_shards_do_not_depend_on_the_order_of_the_patterns(folder):
    patterns = [f"{folder}/val-0.tar", f"{folder}/more", f"{folder}/train-{{0..1}}.tar"]
    assert len({locate(order) for order in itertools.permutations(patterns)}) == 1


def test_relative_and_file_addresses_are_the_same_data(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert locate(["train-0.tar"]) == locate([f"file://{folder}/train-0.tar"]) == locate([f"{folder}/train-0.tar"])
    assert os.path.isabs(locate(["train-0.tar"]).root)


@pytest.mark.parametrize("name", ["with [brackets]", "with * star", "with ? mark", "with space"])
@pytest.mark.parametrize("pattern", ["{name}/part-*.tar", "{name}", "{name}/part-0.tar", "{name}/part-{{0,1}}.tar"])
def test_a_folder_may_be_named_like_a_pattern(tmp_path, name, pattern):
    (tmp_path / name).mkdir()
    for n in range(2):
        (tmp_path / name / f"part-{n}.tar").write_bytes(tar_bytes([]))
    found = locate([str(tmp_path / pattern.format(name=name))])
    assert found.root == str(tmp_path / name)
    assert found.shards == (("part-0.tar",) if pattern.endswith("part-0.tar") else ("part-0.tar", "part-1.tar"))


def test_missing_shards_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"train-4\.tar, .*train-5\.tar;"):
        locate([f"{folder}/train-{{0..5}}.tar"])
    with pytest.raises(FileNotFoundError, match=r"and 95 more"):
        locate([f"{folder}/none-{{00..99}}.tar"])
    for pattern in ("none-*.tar", "none", "none.tar", "none/*.tar"):
        with pytest.raises(FileNotFoundError, match="none"):
            locate([f"{folder}/train-0.tar", f"{folder}/{pattern}"])


def test_a_folder_without_shards_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        locate([str(tmp_path)])


@pytest.mark.parametrize("address", ["pipe:touch {}/ran", "pipe:touch {}/ran |", "http://host/a.tar", "https://host/a.tar",
                                     "hdfs://host/a.tar", "ftp://host/a.tar"])  # fmt: skip
def test_only_files_s3_and_gs_are_read(tmp_path, address):
    with pytest.raises(ValueError, match=r"give a path, s3:// or gs://|only local paths, s3:// and gs://"):
        locate([address.format(tmp_path)])
    assert not (tmp_path / "ran").exists()


def test_no_pattern_is_an_error_that_names_the_option():
    with pytest.raises(ValueError, match="--data"):
        locate([])


def test_a_fingerprint_shows_a_changed_and_a_vanished_shard(folder):
    data = locate([f"{folder}/train-*.tar"])
    before = fingerprint(data)
    assert [(name, size) for name, size, _ in before] == [(n, (folder / n).stat().st_size) for n in data.shards]
    os.utime(folder / "train-1.tar", ns=(1, 1))
    changed = [old != new for old, new in zip(before, fingerprint(data), strict=True)]
    assert changed == [False, True, False, False]
    (folder / "train-2.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-2\.tar"):
        fingerprint(data)


def test_samples_are_what_was_written(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes(MEMBERS))
    data = locate([str(tmp_path)])
    assert plain(read_samples(data, "a.tar")) == SAMPLES


def test_only_the_wanted_members_are_read(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes([*MEMBERS, ("last.JPG", b"upper")]))
    data = locate([str(tmp_path)])
    wanted = [{k: v for k, v in sample.items() if k in ("__key__", "jpg")} for sample in SAMPLES]
    assert plain(read_samples(data, "a.tar", ["jpg"])) == [*wanted, {"__key__": "last", "jpg": b"upper"}]


def test_what_the_index_leaves_out_is_no_sample_either(tmp_path):
    # macOS adds ._NAME beside each file of a folder; the index leaves them out, and so must the reader.
    members = [("f/._a.jpg", b"resource fork"), ("f/a.jpg", b"image"), ("f/a.cls", b"0"), ("__meta__/b.jpg", b"meta")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    expected = [{"__key__": "f/a", "jpg": b"image", "cls": b"0"}]
    assert plain(read_samples(locate([str(tmp_path)]), "a.tar")) == expected


def test_nothing_is_decoded_or_unpickled(tmp_path):
    payload = b"cposix\nsystem\n(S'touch %s/ran'\ntR." % str(tmp_path).encode()
    members = [("a.pkl", payload), ("a.pyd", payload), ("a.pth", payload), ("a.json", b"{broken"), ("a.cls", b"x")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    (sample,) = plain(read_samples(locate([str(tmp_path)]), "a.tar"))
    assert sample == {"__key__": "a", **{name.partition(".")[2]: data for name, data in members}}
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        open_file(str(tmp_path / "none.tar"))


def test_ranges_are_the_exact_bytes(tmp_path):
    data = os.urandom(5000)
    (tmp_path / "a.tar").write_bytes(data)
    ranges = [(4000, 1000), (0, 1), (17, 0), (100, 3000), (100, 3000)]
    found = read_ranges(DataSet(str(tmp_path), ("a.tar",)), "a.tar", ranges)
    assert found == [data[start : start + size] for start, size in ranges]


def test_ranges_that_lie_near_one_another_are_one_request(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "NEAR", 10)
    monkeypatch.setattr(shards, "LONGEST_READ", 60)
    data = os.urandom(1000)
    (tmp_path / "a.tar").write_bytes(data)
    ranges = [(200, 30), (0, 20), (30, 20), (61, 0), (195, 2), (500, 100), (600, 1), (505, 5), (48, 4)]
    asked = [(found.start, found.end, found.ranges) for found in shards._together(ranges)]
    assert asked == [(0, 52, [1, 2, 8]), (61, 61, [3]), (195, 230, [4, 0]), (500, 600, [5, 7]), (600, 601, [6])]
    found = read_ranges(DataSet(str(tmp_path), ("a.tar",)), "a.tar", ranges)
    assert found == [data[start : start + size] for start, size in ranges]


@pytest.mark.parametrize(("offset", "size"), [(90, 20), (100, 1), (200, 5)])
def test_a_range_beyond_the_end_is_an_error_with_the_file(tmp_path, offset, size):
    (tmp_path / "a.tar").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"a\.tar"):
        read_ranges(DataSet(str(tmp_path), ("a.tar",)), "a.tar", [(0, 5), (offset, size)])


@pytest.fixture(scope="module")
def bucket(s3: str) -> str:
    """train-0 to train-2 and a classes file under a prefix of the bucket."""
    client = boto3.client("s3")
    for n in range(3):
        client.put_object(Bucket="tessera-test", Key=f"shards/in/train-{n}.tar", Body=tar_bytes(MEMBERS[2 * n :]))
    client.put_object(Bucket="tessera-test", Key="shards/in/classes.txt", Body=b"a\n")
    return f"{s3}/shards"


@pytest.mark.parametrize("pattern", ["in/train-{0..2}.tar", "in/*.tar", "in", "in/"])
def test_patterns_on_s3(bucket, pattern):
    assert locate([f"{bucket}/{pattern}"]) == DataSet(f"{bucket}/in", tuple(f"train-{n}.tar" for n in range(3)))


def test_a_missing_shard_on_s3_is_named(bucket):
    with pytest.raises(FileNotFoundError, match=r"s3://tessera-test/shards/in/train-3\.tar"):
        locate([f"{bucket}/in/train-{{0..3}}.tar"])
    with pytest.raises(FileNotFoundError):
        open_file(f"{bucket}/in/train-3.tar")


def test_reading_on_s3(bucket, monkeypatch):
    data = locate([f"{bucket}/in/train-{{0,1}}.tar"])
    assert plain(read_samples(data, "train-0.tar")) == SAMPLES
    body = tar_bytes(MEMBERS[2:])
    ranges = [(512, 100), (0, 0), (len(body) - 7, 7)]
    assert read_ranges(data, "train-1.tar", ranges) == [body[start : start + size] for start, size in ranges]
    monkeypatch.setattr(shards, "NEAR", 0)  # many requests at once
    ranges = [(start, 9) for start in range(len(body) - 9, -1, -97)]
    assert read_ranges(data, "train-1.tar", ranges) == [body[start : start + size] for start, size in ranges]
    with pytest.raises(ValueError, match=r"train-1\.tar"):
        read_ranges(data, "train-1.tar", [(len(body) - 7, 8)])
    with open_file(join(data.root, "train-0.tar")) as stream:
        assert hashlib.sha256(buffered(stream, 1000).read()).digest() == hashlib.sha256(tar_bytes(MEMBERS)).digest()


def test_a_fingerprint_on_s3_shows_a_changed_shard(bucket):
    client = boto3.client("s3")
    client.put_object(Bucket="tessera-test", Key="shards/other/a.tar", Body=bytes(1024))
    before = fingerprint(locate([f"{bucket}/other"]))
    assert before[0][:2] == ("a.tar", 1024)
    assert fingerprint(locate([f"{bucket}/other"])) == before
    client.put_object(Bucket="tessera-test", Key="shards/other/a.tar", Body=bytes(2048))
    assert fingerprint(locate([f"{bucket}/other"])) != before
    client.delete_object(Bucket="tessera-test", Key="shards/other/a.tar")
    with pytest.raises(FileNotFoundError, match=r"a\.tar"):
        fingerprint(DataSet(f"{bucket}/other", ("a.tar",)))


def test_one_data_set_has_one_root(bucket, folder):
    with pytest.raises(ValueError, match="one root"):
        locate([f"{folder}/train-0.tar", f"{bucket}/in/train-0.tar"])
    boto3.client("s3").create_bucket(Bucket="tessera-second")
    boto3.client("s3").put_object(Bucket="tessera-second", Key="train-0.tar", Body=tar_bytes([]))
    with pytest.raises(ValueError, match="one root"):
        locate(["s3://tessera-second/train-0.tar", f"{bucket}/in/train-0.tar"])


def test_folders_of_one_bucket_share_their_root(bucket):
    client = boto3.client("s3")
    client.put_object(Bucket="tessera-test", Key="shards/also/x.tar", Body=tar_bytes([]))
    for patterns in itertools.permutations([f"{bucket}/also", f"{bucket}/in/train-1.tar"]):
        assert locate(patterns) == DataSet(bucket, ("also/x.tar", "in/train-1.tar"))


def test_an_address_is_kept_and_a_path_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("s3://bucket/a/") == "s3://bucket/a"
    assert absolute("a/../b") == str(tmp_path / "b")
    assert not file_info(str(tmp_path / "none")).is_file
