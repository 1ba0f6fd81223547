"""Sources: real tiny archives in, the same bytes and the right labels out; every broken one a clear error."""

import hashlib
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adq import cifar as cifar_module
from adq.cifar import cifar, download_cifar
from adq.sources import Record, image_folder, tiny_imagenet
from tests.adq.archives import raises, read, tar_bytes, write_files, write_zip

# CIFAR


def cifar_records(count: int, label_bytes: int, classes: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    rows[:, label_bytes - 1] = np.arange(count) % classes
    return rows


def cifar_files(kind: str) -> dict[str, bytes]:
    if kind == "cifar10":
        batches = {f"data_batch_{n}.bin": cifar_records(10, 1, 10, n).tobytes() for n in range(1, 6)}
        names = "".join(f"class{n}\n" for n in range(10)) + "\n"
        test = cifar_records(10, 1, 10, 9).tobytes()
        return {"readme.html": b"", **batches, "test_batch.bin": test, "batches.meta.txt": names.encode()}
    names = "".join(f"fine{n}\n" for n in range(100)).encode()
    parts = {"train.bin": cifar_records(1100, 2, 100).tobytes(), "test.bin": cifar_records(100, 2, 100, 1).tobytes()}
    return {**parts, "fine_label_names.txt": names, "coarse_label_names.txt": b"coarse\n"}


def write_cifar(root: Path, kind: str, packed: bool) -> Path:
    folder = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[kind]
    files = {f"{folder}/{name}": data for name, data in cifar_files(kind).items()}
    if not packed:
        return write_files(root, files) / folder
    path = root / f"{kind.replace('cifar', 'cifar-')}-binary.tar.gz"
    path.write_bytes(tar_bytes(files, "w:gz"))
    return path


def test_a_cifar_record_is_label_then_red_green_blue_planes(tmp_path):
    planes = np.arange(3 * 32 * 32).reshape(3, 32, 32) % 251
    record = np.concatenate([[1], planes.ravel()]).astype(np.uint8).tobytes()
    other = bytes([0]) + record[1:]
    names = {"batches.meta.txt": b"cat\ndog\n", "test_batch.bin": record + other}
    source = cifar(write_files(tmp_path, names | {"data_batch_1.bin": b""}), "cifar10", "test")
    first, second = source.samples
    assert source.classes == ("cat", "dog")
    assert (first.key, first.ext, first.label, second.label) == ("test_00000", "png", 1, 0)
    image = np.asarray(Image.open(io.BytesIO(first.image)))
    assert image.shape == (32, 32, 3)
    assert all(
        image[row, column, band] == planes[band, row, column]
        for row in (0, 31)
        for column in (3, 30)
        for band in range(3)
    )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("kind", "total"), [("cifar10", 50), ("cifar100", 1100)])
def test_cifar_keeps_every_pixel_label_and_order(tmp_path, kind, total, packed):
    place = write_cifar(tmp_path, kind, packed)
    found = read(cifar(place, kind, "train"))
    label_bytes = 1 if kind == "cifar10" else 2
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] if kind == "cifar10" else ["train.bin"]
    rows = np.concatenate([np.frombuffer(cifar_files(kind)[name], np.uint8) for name in names])
    rows = rows.reshape(total, label_bytes + 3072)
    assert list(found) == [f"train_{n:05d}" for n in range(total)]
    for row, (_, image, label) in zip(rows, found.values(), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1)
        assert label == row[label_bytes - 1]
        assert np.array_equal(pixels.ravel(), row[label_bytes:])
    again = cifar(tmp_path, kind, "train")  # the folder that holds the archive, or the unpacked folder
    assert {record.key: record[1:] for record in again.samples} == found


def test_cifar_errors_name_the_file_and_what_to_do(tmp_path):
    with raises(FileNotFoundError, tmp_path, "cifar-10-binary.tar.gz", "Download"):
        cifar(tmp_path, "cifar10", "train")
    with raises(ValueError, "kind 'cifar11'", "cifar100"):
        cifar(tmp_path, "cifar11", "train")
    with raises(ValueError, "split 'val'", "test"):
        cifar(tmp_path, "cifar10", "val")
    files = cifar_files("cifar10")
    short = write_files(tmp_path / "short", files | {"data_batch_3.bin": files["data_batch_3.bin"][:-1]})
    with raises(ValueError, short, "data_batch_3.bin has 30729 bytes", "3073"):
        cifar(short, "cifar10", "train")
    with raises(ValueError, "data_batch_2.bin missing", "again"):
        cifar(write_files(tmp_path / "part", {k: v for k, v in files.items() if "_2" not in k}), "cifar10", "train")
    wrong = write_files(tmp_path / "wrong", files | {"batches.meta.txt": b"only\ntwo\n"})
    with raises(ValueError, "train record 2 (data_batch_1.bin) has label 2", "2 classes"):
        list(cifar(wrong, "cifar10", "train").samples)
    broken = tmp_path / "cifar-10-binary.tar.gz"
    broken.write_bytes(tar_bytes(files, "w:gz")[:-2000])
    with raises(ValueError, broken, "not a readable", "again"):
        cifar(broken, "cifar10", "train")


@pytest.mark.parametrize("packed", [True, False])
def test_the_pickled_cifar_is_refused_and_never_unpickled(tmp_path, packed):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    files = {"cifar-10-batches-py/data_batch_1": pickle.dumps(Bomb()), "cifar-10-batches-py/batches.meta": b""}
    place = write_files(tmp_path, files)
    if packed:
        place = tmp_path / "cifar-10-python.tar.gz"
        place.write_bytes(tar_bytes(files, "w:gz"))
    for path in (place, tmp_path, tmp_path / "cifar-10-batches-py"):
        with raises(ValueError, path, "Use the binary version, cifar-10-binary.tar.gz"):
            cifar(path, "cifar10", "train")


def test_download_checks_the_md5_and_says_where_a_copy_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    target = tmp_path / "data" / "cifar-10-binary.tar.gz"
    with raises(FileNotFoundError, "http://127.0.0.1:9/x", "put it at", target):
        download_cifar("cifar10", target.parent, url="http://127.0.0.1:9/x")
    served = write_cifar(tmp_path, "cifar10", packed=True)
    with raises(ValueError, served, "MD5", "c32a1d4ab5d03f1284b67883e8d87530"):
        download_cifar("cifar10", target.parent, url=served.as_uri())
    assert not list(target.parent.iterdir())
    layout = cifar_module._LAYOUTS["cifar10"]
    md5 = hashlib.md5(served.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar_module._LAYOUTS, "cifar10", type(layout)(**{**vars(layout), "md5": md5}))
    assert download_cifar("cifar10", target.parent, url=served.as_uri()) == target
    assert target.read_bytes() == served.read_bytes()
    assert download_cifar("cifar10", target.parent, url="http://127.0.0.1:9/x") == target  # it is there: no network
    target.write_bytes(b"something else")
    with raises(ValueError, target, "Remove it"):
        download_cifar("cifar10", target.parent)


# Image folders


def test_an_image_folder_keeps_bytes_and_makes_keys_without_dots(tmp_path):
    files = {"b/two.JPG": b"2", "a.x/deep/er/one.v2.png": b"1", "b/notes.txt": b"no", "b/.hidden.jpg": b"no"}
    source = image_folder(write_files(tmp_path, files))
    assert source.classes == ("a.x", "b")
    assert list(source.samples) == [Record("a_x/deep/er/one_v2", "png", b"1", 0), Record("b/two", "jpg", b"2", 1)]


def test_colliding_keys_are_told_apart_alike_every_time(tmp_path):
    files = {"c/a.b.jpg": b"1", "c/a_b.jpg": b"2", "c/a_b.png": b"3", "c/z.jpg": b"4"}
    root = write_files(tmp_path, files)
    found = read(image_folder(root))
    assert read(image_folder(root)) == found
    assert [image for _, image, _ in found.values()] == [b"1", b"2", b"3", b"4"]
    assert [key[:5] for key in found] == ["c/a_b", "c/a_b", "c/a_b", "c/z"]


def test_image_folder_errors(tmp_path):
    with raises(FileNotFoundError, tmp_path / "none", "one folder of images per class"):
        image_folder(tmp_path / "none")
    with raises(ValueError, tmp_path, "no class folders"):
        image_folder(tmp_path)
    write_files(tmp_path, {"cat/1.jpg": b"", "dog/1.heic": b""})
    with raises(ValueError, tmp_path, "no images in class dog"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, extensions=("jpg", ".HEIC")).count == 2
    write_files(tmp_path, {"__background__/1.jpg": b""})
    with raises(ValueError, tmp_path / "__background__", "skip names such as __NAME__", "Rename the folder"):
        image_folder(tmp_path)
    shutil.rmtree(tmp_path / "__background__")
    write_files(tmp_path, {"stray.png": b""})
    with raises(ValueError, tmp_path / "stray.png", "outside"):
        image_folder(tmp_path)


# Tiny-ImageNet

TINY = {
    "wnids.txt": b"n02124075\nn01443537\nn03126707\nn02012849\n",  # not sorted, as in the archive
    "words.txt": b"n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn03126707\tcrane\n"
    b"n02012849\tcrane\nn09999999\tsomething else\n",
    **{
        f"train/{wnid}/images/{wnid}_{number}.JPEG": f"{wnid} {number}".encode()
        for wnid in ("n02124075", "n01443537", "n03126707", "n02012849")
        for number in range(3)
    },
    "train/n01443537/n01443537_boxes.txt": b"n01443537_0.JPEG\t0\t0\t1\t1\n",
    **{f"val/images/val_{number}.JPEG": f"val {number}".encode() for number in range(4)},
    "val/val_annotations.txt": b"val_0.JPEG\tn03126707\t0\t32\t44\t62\nval_1.JPEG\tn02124075\t5\t5\t6\t6\n"
    b"val_2.JPEG\tn01443537\t0\t0\t1\t1\nval_3.JPEG\tn02012849\t0\t0\t1\t1\n",
    "test/images/test_0.JPEG": b"unlabelled",
}


@pytest.mark.parametrize("form", ["folder", "parent", "zip", "parent of zip"])
def test_tiny_imagenet_labels_are_sorted_ids(tmp_path, form):
    files = {f"tiny-imagenet-200/{name}": data for name, data in TINY.items()}
    if "zip" in form:
        path = write_zip(tmp_path / "tiny-imagenet-200.zip", files)
        path = path.parent if "parent" in form else path
    else:
        path = write_files(tmp_path, files) / ("tiny-imagenet-200" if form == "folder" else "")
    train = tiny_imagenet(path, "train")
    assert train.classes == ("goldfish", "crane (n02012849)", "Egyptian cat", "crane (n03126707)")
    found = read(train)
    assert len(found) == 12
    assert found["n02124075_1"] == ("jpeg", b"n02124075 1", 2)
    val = read(tiny_imagenet(path, "val"))
    assert {key: (image, label) for key, (_, image, label) in val.items()} == {
        "val_0": (b"val 0", 3),
        "val_1": (b"val 1", 2),
        "val_2": (b"val 2", 0),
        "val_3": (b"val 3", 1),
    }


def test_the_labels_of_tiny_imagenets_val_are_among_its_files(tmp_path):
    folder = (
        write_files(tmp_path, {f"tiny-imagenet-200/{name}": data for name, data in TINY.items()}) / "tiny-imagenet-200"
    )
    names = {name for split in ("train", "val") for name in map(str, tiny_imagenet(folder, split).files)}
    assert str(folder / "val/val_annotations.txt") in names
    assert not [path for path in tiny_imagenet(folder, "train").files if path.name == "val_annotations.txt"]


def test_tiny_imagenet_val_sorted_into_class_folders_and_without_words(tmp_path):
    ids = ["n01443537", "n02012849", "n02124075", "n03126707"]
    files = {"wnids.txt": TINY["wnids.txt"]} | {f"val/{wnid}/images/{wnid}.JPEG": wnid.encode() for wnid in ids}
    source = tiny_imagenet(write_files(tmp_path, files), "val")
    assert source.classes == tuple(ids)
    assert [(record.image.decode(), record.label) for record in source.samples] == list(zip(ids, range(4), strict=True))


def test_tiny_imagenet_errors(tmp_path):
    with raises(ValueError, "split 'test'", "no labels"):
        tiny_imagenet(tmp_path, "test")
    with raises(FileNotFoundError, tmp_path / "none", "tiny-imagenet-200.zip"):
        tiny_imagenet(tmp_path / "none", "train")
    with raises(ValueError, tmp_path, "no wnids.txt"):
        tiny_imagenet(tmp_path, "train")
    unlabelled = write_zip(tmp_path / "u.zip", TINY | {"val/images/val_9.JPEG": b""})
    with raises(ValueError, unlabelled, "val/images/val_9.JPEG has no label"):
        tiny_imagenet(unlabelled, "val")
    twice = write_zip(tmp_path / "t.zip", TINY | {"val/n02124075/val_1.JPEG": b""})
    with raises(ValueError, twice, "val has the image val_1 twice"):
        tiny_imagenet(twice, "val")
    empty = write_zip(tmp_path / "e.zip", {name: data for name, data in TINY.items() if "n01443537_" not in name})
    with raises(ValueError, empty, "no images in class n01443537"):
        tiny_imagenet(empty, "train")
    broken = tmp_path / "b.zip"
    broken.write_bytes(empty.read_bytes()[:-30])
    with raises(ValueError, broken, "not a readable zip"):
        tiny_imagenet(broken, "train")
