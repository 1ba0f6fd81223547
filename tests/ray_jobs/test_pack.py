"""Compact files: their size is the payload, what they hold comes back, and every mistake is named."""

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from adq import container
from palette import codec
from palette.encodings import Encoding, encode
from palette.export import samples, soft_bytes
from palette.quantize import median_cut
from ray_jobs import __main__ as cli
from ray_jobs import containers
from ray_jobs.containers import cut
from ray_jobs.ingest import Index
from ray_jobs.pack import file_names, made, refuse_told
from ray_jobs.payload import compact_bytes, payload_bytes
from ray_jobs.store import Store
from ray_jobs.unpack import _samples, checked, read
from tests.ray_jobs.conftest import CLASSES, members, real_samples
from tests.ray_jobs.images import index_of

ENCODINGS = ("original", "webp:30", "palette:8", "patches:50")
LOGITS = np.random.default_rng(0).normal(size=(80, 10)).astype(np.float16)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """80 real images as jpg, webp, png and patches in turn, with soft labels, in shards whose keys are not in order."""
    rows = []
    for n, (key, image, label) in enumerate(sorted(real_samples(80))):
        (made,) = encode([("jpg", image)], Encoding.parse(ENCODINGS[n % 4]), [np.arange(16.0).reshape(4, 4)])
        rows.append((key, made.data, label, soft_bytes(LOGITS[n])))
    folder = tmp_path_factory.mktemp("mixed") / "data"
    index = index_of({"b.tar": rows[1::2], "a.tar": rows[::2]}, folder, CLASSES)
    assert set(index.stored.names) == {"jpg", "webp", "png", "patches"}
    return index, [row[1] for row in rows], [row[2] for row in rows]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def packed(index: Index, soft: bool = False) -> list[bytes]:
    return [made(index, part, soft) for part in cut(index, np.arange(index.images), soft)]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_the_size_of_the_files_is_the_payload(mixed, monkeypatch, tmp_path, soft, small):
    """In one container of each kind, or in several; and that of the same images chosen of a larger set."""
    if small:
        monkeypatch.setattr(container, "LARGEST", 20_000)
        monkeypatch.setattr(containers, "LARGEST", 7 * (32 * 32 + 3 * 256 + 64))
        monkeypatch.setattr(containers, "_coded", {})
    index, files, hard = mixed
    parts, found = cut(index, np.arange(80), soft), packed(index, soft)
    assert [len(part.rows) for part in parts if part.palette] == ([7, 7, 6] if small else [20])
    assert len(parts) - 3 > 1 if small else len(parts) == 2
    assert [part.bytes for part in parts] == [*map(len, found)]
    size = sum(map(len, found))
    assert size == payload_bytes(index, soft=soft) < compact_bytes(index, np.arange(80), soft)
    assert size == payload_bytes(index, np.random.default_rng(0).permutation(80), soft)
    assert sorted(np.concatenate([part.rows for part in parts])) == list(range(80))
    for part, data in zip(parts, found, strict=True):
        (tmp_path / "x").write_bytes(data)
        contents = read(f"{tmp_path}/x")
        for file, row in zip(contents.files, part.rows, strict=True):
            assert file == files[row] or (part.palette and (pixels(file) == pixels(files[row])).all())
        np.testing.assert_array_equal(contents.labels, LOGITS[part.rows] if soft else np.array(hard)[part.rows])
        assert contents.classes == list(CLASSES)


def test_several_containers_are_numbered():
    assert file_names("set.tessera", 1) == ["set.tessera"]
    assert file_names("a.set.tessera", 2) == ["a.set-000000.tessera", "a.set-000001.tessera"]


@pytest.fixture
def indexed(tmp_path) -> Index:
    """Six images in few colours."""
    palettes, indices = median_cut(np.stack([np.asarray(Image.effect_noise((8, 8), 90).convert("RGB"))] * 6), 4)
    rows = [(key, one["png"], int(one["cls"])) for key, one in samples(palettes, indices, np.arange(6) % 3, CLASSES)]
    return index_of({"a.tar": rows}, tmp_path / "data", CLASSES)


def test_indexed_pngs_are_one_container_of_few_colours(indexed, tmp_path):
    """As shards again, they have the same payload, and pack to the same bytes."""
    (data,) = packed(indexed)
    assert data.startswith(codec.MAGIC) and len(data) == payload_bytes(indexed)
    (tmp_path / "set.tessera").write_bytes(data)
    found = read(f"{tmp_path}/set.tessera")
    assert found.labels.tolist() == [0, 1, 2] * 2
    rows = [(key, one["png"], int(one["cls"])) for key, one in _samples(found, 0)]
    again = index_of({"a.tar": rows}, tmp_path / "again", CLASSES)
    assert packed(again) == [data] and payload_bytes(again) == len(data)


@pytest.mark.parametrize(
    ("stage", "summary", "message"),
    [("fill", {}, "pack the shards that were filled"), ("distilled", {"colors": 4}, "take distilled.*tessera")],
)
def test_a_folder_whose_payload_is_told_is_refused(indexed, stage, summary, message):
    store = Store.at(indexed.data.root)
    refuse_told(indexed)
    manifest = {"stage": stage, "summary": {"images": 6, "payload_bytes": 1} | summary}
    store.write(".tessera/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(ValueError, match=f"--data {indexed.data.root}: the payload of .*{message}"):
        refuse_told(indexed)
    store.write(".tessera/manifest.json", json.dumps(manifest | {"stage": "unpack"}).encode())
    refuse_told(indexed)


FILE = container.pack([b"image"], ["png"], np.array([0]), ["a", "b"])
MISTAKES = [
    (b"a tar", "no container of images"),
    (FILE[:-1], "is damaged, truncated"),
    (codec.MAGIC + bytes(60), "is damaged, truncated"),
    (container.pack([b"image"], ["CLS"], np.array([0]), ["a"]), "has the extension cls"),
    (container.pack([b"image"], ["png"], np.array([0]), ["a", "b\nc"]), "class names are not different lines"),
    (container.pack([b"image"], ["png"], np.array([0]), ["a", "a"]), "class names are not different lines"),
    (container.pack([b"image"], ["png"], np.array([0]), ["a", "c"]), "has other classes, or another kind of labels"),
    (container.pack([b"image"], ["png"], np.ones((1, 2)), ["a", "b"]), "has other classes, or another kind of labels"),
]


@pytest.mark.parametrize(("data", "message"), MISTAKES, ids=[str(n) for n in range(len(MISTAKES))])
def test_a_file_that_is_no_container_is_named(tmp_path, data, message):
    (tmp_path / "good.tessera").write_bytes(FILE)
    (tmp_path / "bad.tessera").write_bytes(data)
    with pytest.raises(ValueError, match=f"--from {tmp_path}/bad.tessera: .*{message}"):
        checked([f"{tmp_path}/good.tessera", f"{tmp_path}/bad.tessera"])


def test_labels_are_numbers_unless_a_number_would_be_read_as_a_name(tmp_path):
    for classes, told in ((["a", "b"], b"1"), (["1", "0"], b"0")):
        (tmp_path / "x").write_bytes(container.pack([b"image"], ["png"], np.array([1]), classes))
        assert list(_samples(read(f"{tmp_path}/x"), 7)) == [("00000007", {"png": b"image", "cls": told})]


def test_several_files_follow_the_from_of_unpack_alone():
    given = ["unpack", "--from", "a", "b", "--out", "o"]
    assert cli.several_values(given) == ["unpack", "--from", "a", "--from", "b", "--out", "o"]
    assert cli.several_values(["import", *given[1:]]) == ["import", *given[1:]]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.main, cli.several_values(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_relative_places_are_refused_in_a_submitted_job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for arguments in (["pack", "--data", "/a.tar", "--to", "here"], ["unpack", "--out", "/o", "--from", "/f", "here"]):
        with pytest.raises(ValueError, match=f"{arguments[-2].replace('/f', '--from')} here: a relative path"):
            run(*arguments, "--store", "/s")


def test_a_missing_file_and_a_folder_are_named_before_a_cluster_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr("ray_jobs.cluster.ray.init", lambda **_: pytest.fail("a cluster is started"))
    with pytest.raises(FileNotFoundError, match=f"--from {tmp_path}/none.tessera: no such file"):
        run("unpack", "--from", f"{tmp_path}/none.tessera", "--out", f"{tmp_path}/o", "--store", f"{tmp_path}/s")
    with pytest.raises(ValueError, match=f"--to {tmp_path}: is a folder"):
        run("pack", "--data", f"{tmp_path}/a.tar", "--to", str(tmp_path), "--store", f"{tmp_path}/s")


def test_out_and_in_again(cluster, shards, s3, tmp_path):
    """800 real images: their files, labels and classes. Nothing is done twice; what was unpacked packs to the same bytes, on S3."""
    store, packed, out = ["--store", f"{tmp_path}/runs"], tmp_path / "set.tessera", tmp_path / "out"
    pack = ["pack", "--data", str(shards), "--to", str(packed), *store]
    unpack = ["unpack", "--from", str(packed), "--out", str(out), *store]
    size = f"800 images, {(run(*pack), packed.stat().st_size)[1]:,} bytes in 1 file"
    assert size in run(*unpack)
    before, after = members(shards), members(out)
    keys = sorted({name.partition(".")[0] for name in before})
    assert [name.partition(".")[0] for name in after][::2] == [f"{n:08d}" for n in range(800)]
    for n, key in enumerate(keys):
        assert after[f"{n:08d}.jpg"] == before[f"{key}.jpg"] and after[f"{n:08d}.cls"] == before[f"{key}.cls"]
    assert (out / "classes.txt").read_bytes() == (shards / "classes.txt").read_bytes()
    times = [path.stat().st_mtime_ns for path in (packed, out / "train-000000.tar")]
    assert "pack          done before" in run(*pack) and "unpack        done before" in run(*unpack)
    assert times == [path.stat().st_mtime_ns for path in (packed, out / "train-000000.tar")]
    run("pack", "--data", str(out), "--to", f"{s3}/packed/again.tessera", *store)
    whole = packed.read_bytes()
    assert Store.at(f"{s3}/packed").read("again.tessera") == whole
    run("unpack", "--from", f"{s3}/packed/*.tessera", "--out", f"{s3}/unpacked", *store)
    assert Store.at(f"{s3}/unpacked").read("train-000000.tar") == (out / "train-000000.tar").read_bytes()
    packed.write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"--to {packed}: holds something else already"):
        run(*pack)
    with pytest.raises(ValueError, match=f"--from {packed}: no container"):
        run("unpack", "--from", str(packed), "--out", f"{tmp_path}/none", *store)
    assert not (tmp_path / "none").exists() or not any((tmp_path / "none").rglob("*.*"))
    packed.unlink()
    run(*pack)
    assert packed.read_bytes() == whole


def test_a_mixture_with_soft_labels_is_a_file_of_each_kind(cluster, mixed, tmp_path):
    index, store = mixed[0], ["--store", f"{tmp_path}/runs"]
    folder = index.data.root
    Store(folder).write("classes.txt", "".join(f"{name}\n" for name in CLASSES).encode())
    pack = ["pack", "--data", folder, "--labels", "soft", "--to"]
    said = run(*pack, f"{tmp_path}/set.tessera", *store)
    assert f"80 images, {payload_bytes(index, soft=True):,} bytes in 2 files" in said
    assert f"{tmp_path}/set-000000.tessera to set-000001.tessera" in said
    run("unpack", "--from", f"{tmp_path}/set-*.tessera", "--out", f"{tmp_path}/out", *store)
    run(*pack[:2], f"{tmp_path}/out", *pack[3:], f"{tmp_path}/again.tessera", *store)
    for n in range(2):
        assert (tmp_path / f"set-{n:06d}.tessera").read_bytes() == (tmp_path / f"again-{n:06d}.tessera").read_bytes()
