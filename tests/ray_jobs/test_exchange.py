"""Selections in others' formats: there and back, and every mistake by its name."""

import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ray_jobs import __main__ as cli
from ray_jobs import compress
from ray_jobs.commands import exchange as commands
from ray_jobs.exchange import FORMATS, decode, encode
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.selections import Exchange, chosen_keys, run_export, run_import
from ray_jobs.selections import listing as listing_of
from ray_jobs.store import Store
from ray_jobs.write import Output
from tests.ray_jobs.conftest import members, tars
from tests.ray_jobs.images import drawn, index_of
from tests.ray_jobs.listings import a_listing, cifar, digest, imagenet, npy, photos

LISTINGS = {"cifar": cifar, "imagenet": imagenet, "photos": photos}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", LISTINGS)
def test_there_and_back(name, kind):
    listing = LISTINGS[name]()
    for chosen in ([0], [5, 1, 3], range(len(listing.keys))):
        data = encode(listing, chosen, kind)
        np.testing.assert_array_equal(decode(data, listing, kind), sorted(chosen))
    data = encode(listing, [1, 2], kind, delimiter="\t")
    assert b"\t" in data or kind != "keys"
    np.testing.assert_array_equal(decode(b"\xef\xbb\xbf" * (kind != "dq") + data, listing, kind), [1, 2])


def test_a_key_whose_image_differs_is_named():
    listing = cifar()
    other = replace(listing, sha256=(*listing.sha256[:7], digest("another"), *listing.sha256[8:]))
    with pytest.raises(ValueError, match="FILE: key 'train_00007': the image's sha256 is another one"):
        decode(encode(listing, range(20), "keys"), other, "keys", where="FILE")


def test_the_keys_are_csv_that_others_can_read_and_write():
    listing = photos()
    rows = list(csv.DictReader(io.StringIO(encode(listing, range(8), "keys").decode())))
    assert [row["key"] for row in rows] == list(listing.keys)
    assert rows[0]["class"] == "cat" and rows[0]["sha256"] == listing.sha256[0]
    by_hand = f'SHA256 ,score,Key\r\n{digest("cat/x,y").upper()},0.5,"cat/x,y"\r\n'
    assert decode(by_hand.encode(), listing, "keys").tolist() == [listing.positions["cat/x,y"]]


def test_indices_may_be_plain():
    for text in ("[3, 1, 2]", "3\n1\n2\n", "3 1,2", '{"indices": [3, 1, 2]}'):
        assert decode(text.encode(), cifar(), "torchvision").tolist() == [1, 2, 3]


def test_indices_written_here_belong_to_one_data_set():
    data = encode(cifar(), [1, 2], "torchvision")
    value = json.loads(data)
    assert value["keys"] == ["train_00001", "train_00002"] and value["indices"] == [1, 2]
    sha256 = hashlib.sha256(b"".join(b"train_%05d\n" % n for n in range(40))).hexdigest()
    assert value["keys_sha256"] == sha256
    with pytest.raises(ValueError, match="a data set of 40 images; this one has 41"):
        decode(data, cifar(41), "torchvision")
    with pytest.raises(ValueError, match="keys_sha256 differs"):
        decode(data, cifar(split="test"), "torchvision")
    with pytest.raises(ValueError, match="keys are not those at its indices"):
        decode(json.dumps(value | {"indices": [1, 3]}).encode(), cifar(), "torchvision")


@pytest.mark.parametrize(
    "line",
    ["n01440764/n01440764_10026.JPEG", "./train/n01440764/n01440764_10026.jpg", "/data/n01440764_10026.JPEG 17",
     "n01440764_10026", "n01440764_10026.jpeg\r", "", "train/n01440764/images/n01440764_10026.JPEG"],
)  # fmt: skip
def test_file_lists_as_they_are_written_elsewhere(line):
    found = decode(f"{line}\nn02102040/n02102040_2.JPEG".encode(), imagenet(), "filelist")
    assert [imagenet().keys[n] for n in found] == ["n01440764_10026"] * bool(line.strip()) + ["n02102040_2"]


def test_the_same_file_name_in_several_classes():
    found = decode(b"photos/dog/a.jpg\nv1.0/a.jpg\ncat/sub/z.jpg\n", photos(), "filelist")
    assert [photos().keys[n] for n in found] == ["cat/sub/z", "dog/a", "v1_0/a"]
    with pytest.raises(ValueError, match=r"file 'a\.jpg' not in the data set"):
        decode(b"a.jpg", photos(), "filelist")


HEADER = b"key,class,sha256\n"
MISTAKES = [
    ("keys", HEADER + b"train_99999,a," + b"0" * 64, "key 'train_99999' not in the data set"),
    ("keys", b"train_00001,class1\n", "expected a header line with the columns key and sha256"),
    ("keys", b"", "chooses no image"),
    ("keys", HEADER, "chooses no image"),
    ("keys", HEADER + b"train_00001,a\n", "line 2 has 2 fields; expected 3"),
    (
        "keys",
        encode(cifar(), [1], "keys") + encode(cifar(), [1], "keys")[len(HEADER) :],
        "'train_00001' more than once",
    ),
    ("keys", npy(np.arange(3)), "is no text in UTF-8; see --format"),
    ("torchvision", b"[40]", "index 40 outside 0 to 39"),
    ("torchvision", b"-1 3", "index -1 outside"),
    ("torchvision", b"[1, 1]", "image 'train_00001' more than once"),
    ("torchvision", b"[true]", "expected integers"),
    ("torchvision", b"1.5", "expected integers"),
    ("torchvision", b"1" * 5000, "expected integers"),
    ("torchvision", b"{}", "expected integers"),
    ("torchvision", b"[1, 2", "is no JSON"),
    ("torchvision", b"[" * 100_000, "is no JSON"),
    ("torchvision", b"[]", "chooses no image"),
    ("torchvision", b'{"indices": [1], "order": ["x"]}', "expected one of"),
    ("filelist", b"class0/train_00000.png\nclass0/none.png", r"file 'class0/none\.png' not in the data set"),
    ("filelist", b"class1/train_00000.png", "line 1: .*'train_00000' is of class0"),
    ("filelist", b"class0/train_00000.jpg", r"'train_00000' is a \.png"),
    ("filelist", b"train_00000\ntrain_00000.png", "more than once"),
    ("filelist", b"\n\n", "chooses no image"),
    ("dq", npy(np.arange(6).reshape(2, 3)), r"shape \(2, 3\); expected integers of shape \[n\]"),
    ("dq", npy(np.array([1.0])), "expected integers"),
    ("dq", npy(np.array([True])), "expected integers"),
    ("dq", npy(np.array([{}], dtype=object)), "expected integers"),
    ("dq", npy(np.array([2, 2])), "'train_00002' more than once"),
    ("dq", npy(np.array([40, 1])), "index 40 outside 0 to 39"),
    ("dq", npy(np.array([-1])), "index -1 outside"),
    ("dq", npy(np.array([2**64 - 1], dtype=np.uint64)), "outside 0 to 39"),
    ("dq", npy(np.array([], dtype=np.int64)), "chooses no image"),
    ("dq", npy(np.arange(9))[:-1], "is truncated"),
    ("dq", re.sub(rb"\(9,\), \}   ", rb"(9999999999,), }", npy(np.arange(9)))[:-1], "is no|is truncated"),
    ("dq", b"1 2 3", r"is no \.npy file"),
    ("dq", b"", r"is no \.npy file"),
    ("pickle", b"", "--format pickle: expected one of keys, torchvision, filelist, dq"),
]


@pytest.mark.parametrize(("kind", "data", "message"), MISTAKES, ids=[f"{m[0]}-{n}" for n, m in enumerate(MISTAKES)])
def test_a_mistake_is_named(kind, data, message):
    with pytest.raises(ValueError, match=message):
        decode(data, cifar(), kind, where="FILE")


def test_what_a_format_cannot_tell_apart_is_an_error_of_the_export():
    twins = a_listing({"a/x": "a", "x": "a"})
    for chosen in ([0, 1], [1]):
        with pytest.raises(ValueError, match="--format filelist cannot tell some of these images apart"):
            encode(twins, chosen, "filelist")
    assert decode(encode(twins, [0, 1], "keys"), twins, "keys").tolist() == [0, 1]
    with pytest.raises(ValueError, match="the selection is empty"):
        encode(twins, [], "keys")


def test_the_listing_has_the_digests_of_the_images(tmp_path):
    images = drawn(0, 9)
    found = listing_of(index_of({"a.tar": images[:4], "b.tar": images[4:]}, tmp_path / "data"))
    assert found.keys == tuple(key for key, _, _ in images) and found.labels == tuple(label for *_, label in images)
    assert found.sha256 == tuple(hashlib.sha256(data).hexdigest() for _, data, _ in images)
    assert found.members[0] == "image0000.png" and found.extension(0) == "png"


def test_a_selection_belongs_to_its_data_set(tmp_path):
    index, other = (index_of({"a.tar": drawn(0, n)}, tmp_path / str(n)) for n in (6, 7))
    with pytest.raises(ValueError, match=f"--selection {tmp_path}/6: no finished selection"):
        chosen_keys(f"{tmp_path}/6", index)
    out = Output(Store.at(f"{tmp_path}/out"), "write", 1, {"index": index.manifest.content})
    out.finish([out.commit_table("subset", index.table().select(["key", "label"]).slice(2, 3))], {})
    assert chosen_keys(f"{tmp_path}/out", index) == ["image0002", "image0003", "image0004"]
    with pytest.raises(ValueError, match=f"{tmp_path}/out: was made from other shards than {tmp_path}/7"):
        chosen_keys(f"{tmp_path}/out", other)
    (tmp_path / "out" / "subset.parquet").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"subset\.parquet: is not what was written"):
        chosen_keys(f"{tmp_path}/out", index)


def test_the_commands(monkeypatch):
    asked = []
    for name in ("run_export", "run_import"):
        monkeypatch.setattr(commands, name, lambda *given: asked.append(given))
    places = ["--data", "/a.tar", "/b.tar", "--format", "dq", "--order", "cifar"]
    for arguments in (["export", "--selection", "/s", "--to", "/f.npy"], ["import", "--from", "/f.npy", "--out", "/o"]):
        done = CliRunner().invoke(cli.main, cli.several_values([*arguments, *places]))
        assert done.exit_code == 0, done.output
        first, second, exchange, data, *_ = asked.pop()
        assert (
            [first, second] == arguments[2::2]
            and exchange == Exchange("dq", "cifar")
            and data.data == ("/a.tar", "/b.tar")
        )
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for option in ("--selection", "--to"):
        given = ["export", "--selection", "/s", "--to", "/f", "--data", "/a.tar", "--store", "/r", option, "here"]
        with pytest.raises(ValueError, match=f"{option} here: a relative path in a submitted job"):
            CliRunner().invoke(cli.main, given, catch_exceptions=False)


def test_out_and_in_again_are_the_same_images(cluster, shards, tmp_path, capsys):
    place, compute, data = Place(store=str(tmp_path / "store")), Compute(actors=1), Data(data=(str(shards),))
    own, out = tmp_path / "own", tmp_path / "out"
    compress.run(compress.Compression(data, Backbone(), Selection(method="random"), str(own)), compute, place)
    for kind in FORMATS:
        exchange = Exchange(kind, "imagefolder")
        run_export(str(own), str(tmp_path / kind), exchange, data, compute, place)
        run_import(str(tmp_path / kind), str(out), exchange, data, compute, place)
    # The first of them wrote the shards; the others found the same images there.
    said = capsys.readouterr().out
    assert said.count("write         done before") == len(FORMATS) - 1
    assert said.count(f" MB payload, {tars(out) / 1e6:.2f} MB as tars\n") == len(FORMATS)
    assert len(members(out)) == 2 * 80 and members(out) == members(own)
    assert (out / "classes.txt").read_bytes() == (shards / "classes.txt").read_bytes()

    def again(selection: Path, file: str, kind: str = "keys") -> None:
        run_export(str(selection), str(tmp_path / file), Exchange(kind), data, compute, place)

    again(out, "again.tsv")
    rows = (tmp_path / "again.tsv").read_text().replace("\t", ",")
    assert rows == (tmp_path / "keys").read_text(), "an imported selection is one like any other"
    again(out, "again.tsv")
    with pytest.raises(ValueError, match=r"again\.tsv: holds something else already"):
        again(out, "again.tsv", "filelist")
