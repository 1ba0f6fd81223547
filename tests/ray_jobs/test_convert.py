"""Conversion: the source's own bytes, mixed shards, the same tars whatever order the source is listed in."""

import dataclasses
import io
import itertools
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adq.index import Labels, scan
from adq.shards import locate, open_file
from adq.sources import Source
from ray_jobs import convert as convert_module
from ray_jobs.convert import Conversion, convert
from ray_jobs.store import Store

CLASSES = ("ant", "bee", "cow")
EACH = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of three classes, with names that have dots, capitals, and the wrong extension."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for n in range(EACH):
            buffer = io.BytesIO()
            kind, ext = (("JPEG", "JPEG"), ("PNG", "png"), ("PNG", "jpg"))[n % 3]
            Image.new("RGB", (8 + n % 5, 8), (label * 90, n * 4, 0)).save(buffer, kind)
            (root / name / f"v1.{n:03d}.{ext}").write_bytes(buffer.getvalue())
    return root


def wanted(place: Path, into: object, **options) -> Conversion:
    return Conversion(**{"source": "imagefolder", "from_path": str(place), "out": str(into), "shards": 3} | options)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {info.name: tar.extractfile(info).read() for info in tar}
    return found


def test_every_image_keeps_its_bytes_and_gets_its_label(photos, tmp_path):
    convert(wanted(photos, tmp_path))
    found = contents(tmp_path)
    assert len(found) == 2 * 3 * EACH
    for label, name in enumerate(CLASSES):
        for path in (photos / name).iterdir():
            key = f"{name}/{path.stem.replace('.', '_')}"
            assert found[f"{key}{path.suffix.lower()}"] == path.read_bytes()
            assert found[f"{key}.cls"] == str(label).encode()
    assert (tmp_path / "classes.txt").read_text().split() == list(CLASSES)


def test_the_shards_pass_the_index(photos, tmp_path):
    data = locate(convert(wanted(photos, tmp_path)))
    assert data.shards == ("train-000000.tar", "train-000001.tar", "train-000002.tar")
    labels = []
    for shard in data.shards:
        path = tmp_path / shard
        with open_file(str(path)) as stream:
            found = scan(stream, path.stat().st_size, shard, Labels("cls", CLASSES))
        labels += [sample.label for sample in found.samples]
    assert np.bincount(labels).tolist() == [EACH] * 3


def test_each_shard_is_mixed(photos, tmp_path):
    convert(wanted(photos, tmp_path))
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as tar:
            order = [info.name[0] for info in tar if info.name.endswith(".cls")]
        assert len(order) > EACH / 2
        assert min(order.count(name[0]) for name in CLASSES) >= 5
        changes = sum(a != b for a, b in itertools.pairwise(order))
        assert changes > len(order) / 3  # sorted by class there would be two


def test_the_bytes_do_not_depend_on_how_the_source_is_listed(photos, tmp_path, monkeypatch):
    convert(wanted(photos, tmp_path / "forward"))
    real_walk, real_open = os.walk, convert_module.open_source
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((w, d, f[::-1]) for w, d, f in list(real_walk(*a, **k))[::-1]))
    convert(wanted(photos, tmp_path / "folders"))

    def backwards(conversion: Conversion) -> Source:
        source = real_open(conversion)
        return dataclasses.replace(source, samples=iter(list(source.samples)[::-1]))

    monkeypatch.setattr(convert_module, "open_source", backwards)
    convert(wanted(photos, tmp_path / "samples"))
    assert tars(tmp_path / "forward") == tars(tmp_path / "folders") == tars(tmp_path / "samples")


def test_the_bytes_do_not_depend_on_the_buffers(photos, tmp_path, monkeypatch):
    convert(wanted(photos, tmp_path / "large"))
    monkeypatch.setattr(convert_module, "BUFFER_BYTES", 1)
    convert(wanted(photos, tmp_path / "small"))
    assert tars(tmp_path / "large") == tars(tmp_path / "small")


def test_a_second_call_does_nothing(photos, tmp_path, monkeypatch, capsys):
    first = convert(wanted(photos, tmp_path))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    monkeypatch.setattr(convert_module, "_spool", lambda *_: pytest.fail("the source is read again"))
    assert convert(wanted(photos, tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == times
    assert "done before" in capsys.readouterr().out


def test_nothing_else_is_left_in_the_output(photos, tmp_path):
    convert(wanted(photos, tmp_path))
    expected = {"classes.txt", "source.json", *(f"train-{n:06d}.tar" for n in range(3))}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_a_killed_conversion_goes_on_to_the_same_bytes(photos, tmp_path, monkeypatch):
    convert(wanted(photos, tmp_path / "calm"))
    real_write = Store.write

    def die(self, name, data):
        if name == "train-000002.tar":
            raise KeyboardInterrupt
        real_write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", die)
        patch.setattr(shutil, "rmtree", lambda *_: None)  # a kill cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            convert(wanted(photos, tmp_path / "killed"))
    assert len(tars(tmp_path / "killed")) == 2
    convert(wanted(photos, tmp_path / "killed"))
    assert tars(tmp_path / "killed") == tars(tmp_path / "calm")
    assert not list((tmp_path / "killed").glob(".spool-*"))


def test_a_folder_with_other_content_is_refused_and_left_alone(photos, tmp_path):
    (tmp_path / "mine.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"--out {tmp_path}: holds other shards"):
        convert(wanted(photos, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tar"]


@pytest.mark.parametrize("change", [{"shards": 2}, {"split": "val"}])
def test_another_conversion_into_the_same_folder_is_refused(photos, tmp_path, change):
    convert(wanted(photos, tmp_path))
    before = tars(tmp_path)
    with pytest.raises(ValueError, match="holds other shards"):
        convert(wanted(photos, tmp_path, **change))
    assert tars(tmp_path) == before


def test_a_source_that_grew_is_not_taken_for_done(photos, tmp_path):
    source = shutil.copytree(photos, tmp_path / "source")
    convert(wanted(source, tmp_path / "out"))
    shutil.copy(source / "ant" / "v1.000.JPEG", source / "ant" / "new.JPEG")
    with pytest.raises(ValueError, match="holds other shards"):
        convert(wanted(source, tmp_path / "out"))


@pytest.mark.parametrize("change", ["moved", "edited"])
def test_a_source_that_changed_is_not_taken_for_done(photos, tmp_path, change):
    source = shutil.copytree(photos, tmp_path / "source")
    convert(wanted(source, tmp_path / "out"))
    ant, bee = (next(iter(sorted((source / name).iterdir()))) for name in CLASSES[:2])
    if change == "moved":  # as many images, of as many classes
        ant.rename(source / CLASSES[1] / "from-ant.png")
        bee.rename(source / CLASSES[0] / "from-bee.png")
    else:
        ant.write_bytes(ant.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="or those of this source before it changed; choose an empty folder"):
        convert(wanted(source, tmp_path / "out"))


def test_folders_named_by_numbers_keep_their_classes(photos, tmp_path):
    images = sorted((photos / CLASSES[0]).iterdir())
    for name in range(12):
        (tmp_path / "source" / str(name)).mkdir(parents=True)
        shutil.copy(images[name], tmp_path / "source" / str(name) / f"of-{name}.png")
    data = locate(convert(wanted(tmp_path / "source", tmp_path / "out", shards=1)))
    names = tuple((tmp_path / "out" / "classes.txt").read_text().split())
    with open_file(f"{tmp_path}/out/{data.shards[0]}") as stream:
        found = scan(stream, stream.size(), data.shards[0], Labels("cls", names)).samples
    assert len(found) == 12 and all(one.key == f"{names[one.label]}/of-{names[one.label]}" for one in found)


def test_more_shards_than_images_leaves_none_empty(photos, tmp_path):
    data = locate(convert(wanted(photos, tmp_path, shards=400)))
    assert 100 < len(data.shards) < 180 and len(contents(tmp_path)) == 2 * 3 * EACH
    with open_file(f"{tmp_path}/{data.shards[0]}") as stream:
        assert scan(stream, stream.size(), data.shards[0], Labels()).samples


def test_conversion_to_s3_is_the_same_bytes(photos, tmp_path, s3):
    convert(wanted(photos, tmp_path / "local"))
    (pattern,) = convert(wanted(photos, f"{s3}/converted"))
    remote = Store.at(f"{s3}/converted")
    assert {name: remote.read(name) for name in locate([pattern]).shards} == tars(tmp_path / "local")


def test_cifar_becomes_lossless_png_with_its_labels(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = np.concatenate([rng.integers(0, 10, (50, 1)), rng.integers(0, 256, (50, 3072))], axis=1).astype(np.uint8)
    for n in range(5):
        (folder / f"data_batch_{n + 1}.bin").write_bytes(records[10 * n : 10 * n + 10].tobytes())
    (folder / "test_batch.bin").write_bytes(records[:10].tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{n}" for n in range(10)))
    convert(wanted(folder, tmp_path / "out", source="cifar10", shards=2))
    found = contents(tmp_path / "out")
    assert len(found) == 100
    for n, record in enumerate(records):
        assert found[f"train_{n:05d}.cls"] == str(record[0]).encode()
        pixels = np.asarray(Image.open(io.BytesIO(found[f"train_{n:05d}.png"])))
        np.testing.assert_array_equal(pixels, record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
    convert(wanted(folder, tmp_path / "val", source="cifar10", split="val", shards=1))
    assert sorted(contents(tmp_path / "val"))[0] == "test_00000.cls"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"source": "mnist"}, "--source mnist"), ({"from_path": None}, "--from"), ({"out": None}, "--out"),
     ({"subset": "nette"}, "imagenet"), ({"val_labels": "x.csv"}, "imagenet"), ({"shards": -1}, "--shards -1")],
)  # fmt: skip
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        Conversion(**{"source": "imagefolder", "from_path": "a", "out": "b"} | options)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"from_path": "a"}, "from"), ({"out": "b"}, "out"), ({"split": "val"}, "split"), ({"val_labels": "c"}, "val-labels")],
)  # fmt: skip
def test_options_of_a_source_without_one_are_refused(options, name):
    with pytest.raises(ValueError, match=f"--{name}: belongs to --source"):
        Conversion(**options)
    Conversion()


@pytest.mark.parametrize("option", ["from", "out"])
def test_relative_places_in_a_submitted_job_are_refused(photos, tmp_path, monkeypatch, option):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    name = {"from": "from_path", "out": "out"}[option]
    with pytest.raises(ValueError, match=f"--{option} some/place: a relative path in a submitted job"):
        convert(wanted(photos, tmp_path, **{name: "some/place"}))
