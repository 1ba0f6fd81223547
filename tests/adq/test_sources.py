"""Sources: real tiny archives in, the same bytes and the right labels out; every broken one a clear error."""

import hashlib
import io
import pickle
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adq import cifar as cifar_module
from adq.cifar import cifar, download_cifar
from adq.imagenet import imagenet, train_stream
from adq.imagenet_subsets import SUBSETS
from adq.sources import Record, Source, image_folder, tiny_imagenet

IDS = ["n01440764", "n02102040", "n02979186"]  # sorted
# The subsets as the literature lists them, its class numbers turned into ids by Keras's imagenet_class_index.json: a
# second source, typed apart from the first (LOC_synset_mapping.txt).
LITERATURE = {
    "nette": "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257",
    "woof": "n02096294 n02093754 n02111889 n02088364 n02086240 n02089973 n02087394 n02115641 n02099601 n02105641",
    "fruit": "n07753275 n07753592 n07745940 n07747607 n07749582 n07768694 n07753113 n07720875 n07718472 n07742313",
    "meow": "n02123045 n02123159 n02123394 n02123597 n02124075 n02129165 n02129604 n02128925 n02128757 n02127052",
    "squawk": "n01806143 n02007558 n01818515 n02051845 n02056570 n01614925 n01843383 n01518878 n01860187 n01819313",
    "yellow": "n02206856 n12057211 n07753592 n07749582 n12144580 n04146614 n03530642 n02129165 n01773157 n01531178",
}


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


# ImageNet

IMAGES = {wnid: {f"{wnid}_{n}.JPEG": f"{wnid} {n}".encode() * 300 for n in (7, 18)} for wnid in IDS}
VAL = {f"ILSVRC2012_val_{n:08d}.JPEG": f"val {n}".encode() * 200 for n in range(1, 5)}
VAL_IDS = [IDS[2], IDS[0], IDS[1], IDS[0]]  # the class of each of VAL


def train_tar(images: dict[str, dict[str, bytes]]) -> bytes:
    """Class tars in an order that is not sorted."""
    return tar_bytes({f"{wnid}.tar": tar_bytes(images[wnid]) for wnid in sorted(images, reverse=True)})


def write_train(root: Path, form: str, images: dict[str, dict[str, bytes]] = IMAGES) -> Path:
    if form == "tar":
        return write_files(root, {"ILSVRC2012_img_train.tar": train_tar(images)})
    return write_files(root, {f"train/{wnid}/{name}": data for wnid in images for name, data in images[wnid].items()})


def write_val(root: Path, form: str) -> Path:
    if form == "tar":
        return write_files(root, {"ILSVRC2012_img_val.tar": tar_bytes(VAL)})
    return write_files(root, {f"val/{name}": data for name, data in VAL.items()})


def subset_images(name: str) -> dict[str, dict[str, bytes]]:
    return {wnid: {f"{wnid}_{n}.JPEG": f"{wnid} {n}".encode() for n in range(2)} for wnid in SUBSETS[name]}


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_imagenet_train_is_the_same_from_folders_and_tar(tmp_path, form):
    root = write_train(tmp_path, form)
    source = imagenet(root, "train")
    assert source.classes == tuple(IDS)
    assert source.count == (6 if form == "folder" else None)
    assert read(source) == {
        name[:-5]: ("jpeg", data, IDS.index(wnid)) for wnid in IDS for name, data in IMAGES[wnid].items()
    }
    if form == "tar":
        assert imagenet(root / "ILSVRC2012_img_train.tar", "train").classes == tuple(IDS)


class Pipe(io.RawIOBase):
    """A file that can only be read forward, and counts what was read of it."""

    def __init__(self, data: bytes):
        self.file, self.size, self.taken = io.BytesIO(data), len(data), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size <= 1 << 20
        self.taken += size
        return self.file.read(size)


def test_the_training_tar_is_read_as_one_stream_as_it_is_needed():
    noise = np.random.default_rng(0).bytes(1 << 20)
    images = {wnid: {f"{wnid}_{n}.JPEG": noise + bytes([n]) for n in range(4)} for wnid in IDS}
    pipe = Pipe(train_tar(images))
    samples = train_stream(pipe, {wnid: label for label, wnid in enumerate(IDS)}, Path("train.tar"), "r|")
    for number, record in enumerate(samples, start=1):
        assert record.image == images[IDS[record.label]][f"{record.key}.JPEG"]
        assert pipe.taken <= number * len(record.image) + (4 << 20)  # never more than the buffers ahead
    assert number == 12


class Counted(io.BytesIO):
    """A file that counts what was read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_a_subset_of_the_training_tar_reads_its_classes_alone(tmp_path):
    other = {wnid: {f"{wnid}_0.JPEG": bytes(4 << 20)} for wnid in ("n01440764", "n09999999")}
    images = subset_images("meow") | other
    root = write_train(tmp_path, "tar", images)
    source = imagenet(root, "train", subset="meow")
    assert source.classes == tuple(sorted(SUBSETS["meow"])) and source.count == 2 * len(SUBSETS["meow"])
    found = read(source)
    assert found == {
        name[:-5]: ("jpeg", data, source.classes.index(wnid))
        for wnid in SUBSETS["meow"]
        for name, data in images[wnid].items()
    }
    file = Counted((root / "ILSVRC2012_img_train.tar").read_bytes())
    labels = {wnid: label for label, wnid in enumerate(source.classes)}
    assert {record.key: record[1:] for record in train_stream(file, labels, root, "r:")} == found
    assert 0 < file.taken < 1 << 20


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("train", [None, "folder", "tar"])
@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{wnid}\n" for wnid in VAL_IDS),
        "".join(f"{name} {wnid}\n" for name, wnid in zip(VAL, VAL_IDS, strict=True)),
        "filename,wnid\n" + "".join(f"val/{name},{wnid}\n" for name, wnid in zip(VAL, VAL_IDS, strict=True)),
        "\ufeffImageId,PredictionString\r\n"
        + "".join(
            f"{name[:-5]},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \r\n"
            for name, wnid in reversed([*zip(VAL, VAL_IDS, strict=True)])
        ),
    ],
)
def test_imagenet_validation_takes_its_labels_from_a_file(tmp_path, form, train, text):
    root = write_val(tmp_path, form)
    if train:
        write_train(root, train)
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    source = imagenet(root if train or form == "folder" else root / "ILSVRC2012_img_val.tar", "val", val_labels=labels)
    assert source.classes == tuple(IDS)
    assert read(source) == {
        name[:-5]: ("jpeg", data, IDS.index(wnid)) for (name, data), wnid in zip(VAL.items(), VAL_IDS, strict=True)
    }


@pytest.mark.parametrize(
    "text", ["2\n0\n1\n0\n", "".join(f"{n} {x}\n" for n, x in zip(VAL, (2, 0, 1, 0), strict=True))]
)
def test_numbers_are_positions_in_the_sorted_ids_of_the_train_data(tmp_path, text):
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    root = write_train(write_val(tmp_path, "tar"), "tar")
    assert [label for *_, label in read(imagenet(root, "val", labels)).values()] == [2, 0, 1, 0]
    with raises(ValueError, labels, "numbers need the train data"):
        imagenet(root / "ILSVRC2012_img_val.tar", "val", labels)


def test_imagenet_validation_in_class_folders_has_the_labels_of_the_train_data(tmp_path):
    files = {f"val/{wnid}/{name}": data for (name, data), wnid in zip(VAL.items(), VAL_IDS, strict=True)}
    root = write_files(tmp_path, files)
    found = read(imagenet(root, "val"))
    assert {key: label for key, (_, _, label) in found.items()} == {
        name[:-5]: IDS.index(wnid) for name, wnid in zip(VAL, VAL_IDS, strict=True)
    }
    write_train(root, "folder", IMAGES | {"n09999999": {"n09999999_1.JPEG": b""}})
    with raises(ValueError, root / "val", "no images in class n09999999"):
        imagenet(root, "val")
    write_files(root, {"val/n00000001/x.JPEG": b""})
    with raises(ValueError, root / "val", "class n00000001 is not in the train data"):
        imagenet(root, "val")


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_subset_of_the_validation_images(tmp_path, form):
    ids = [*sorted(SUBSETS["fruit"]), "n01440764"]
    images = {f"ILSVRC2012_val_{n:08d}.JPEG": wnid.encode() for n, wnid in enumerate(ids, start=1)}
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(ids))
    if form == "tar":
        root = write_files(tmp_path, {"ILSVRC2012_img_val.tar": tar_bytes(images)})
    else:
        root = write_files(tmp_path, {f"val/{name}": data for name, data in images.items()})
    source = imagenet(root, "val", labels, "fruit")
    assert source.classes == tuple(sorted(SUBSETS["fruit"]))
    assert [(image.decode(), label) for _, image, label in read(source).values()] == [
        *zip(ids[:10], range(10), strict=True)
    ]


def test_files_that_imagenet_did_not_name_keep_their_class_in_the_key(tmp_path):
    root = write_files(tmp_path, {f"train/{wnid}/1.a.JPEG": wnid.encode() for wnid in IDS})
    assert list(read(imagenet(root, "train"))) == [f"{wnid}/1_a" for wnid in IDS]


def test_subsets_are_the_ten_classes_of_the_literature():
    assert {name: list(ids) for name, ids in SUBSETS.items()} == {
        name: sorted(ids.split()) for name, ids in LITERATURE.items()
    }
    assert SUBSETS["woof"]["n02115641"] == "dingo" and SUBSETS["squawk"]["n01518878"] == "ostrich"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3\n1\n2\n1\n", ("count from 1", "NOT in the order")),
        ("0\n1\n2\n7\n", ("label 7", "3 classes, 0 to 2")),
        ("0\nn01440764\n1\n2\n", ("some labels are WordNet ids",)),
        ("n01440764\ntench\n", ("line 2", "'tench' is no label")),
        ("\n", ("no labels",)),
        ("n01440764\nn02102040\nn02979186\n", ()),
        ("a n01440764\na n02102040\n", ("line 2", "a has a label already")),
        ("n01440764\nn02102040\nn02979186\nn09999999\n", ("ILSVRC2012_val_00000004.JPEG is of class n09999999",)),
        ("n01440764\nn01440764\nn02979186\nn01440764\n", ()),
    ],
)
def test_files_of_labels_that_are_refused(tmp_path, text, words):
    root = write_train(write_val(tmp_path, "tar"), "tar")
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    if text.count("n01440764") == 3:
        words = (root / "ILSVRC2012_img_val.tar", "no images in class n02102040")
    elif not words:
        words = (root / "ILSVRC2012_img_val.tar", "ILSVRC2012_val_00000004.JPEG has no label in", labels)
    else:
        words = (labels, *words)
    with raises(ValueError, *words):
        imagenet(root, "val", labels)


def test_the_development_kit_is_refused_without_train_data_too(tmp_path):
    labels = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    labels.write_text("\n".join(str(number) for number in range(1, 1001)))
    with raises(ValueError, labels, "count from 1", "LOC_val_solution.csv"):
        imagenet(write_val(tmp_path, "tar"), "val", labels)


def test_imagenet_errors(tmp_path):
    with raises(ValueError, "split 'test'", "no labels"):
        imagenet(tmp_path, "test")
    with raises(ValueError, "subset 'dogs'", "woof"):
        imagenet(tmp_path, "train", subset="dogs")
    with raises(FileNotFoundError, tmp_path, "train/", "ILSVRC2012_img_train.tar"):
        imagenet(tmp_path, "train")
    root = write_val(write_train(tmp_path / "tars", "tar"), "tar")
    with raises(ValueError, root / "ILSVRC2012_img_train.tar", "n02086240 (Shih-Tzu) of the subset woof is not here"):
        imagenet(root, "train", subset="woof")
    with raises(ValueError, root / "ILSVRC2012_img_val.tar", "a file of labels is needed", "LOC_val_solution.csv"):
        imagenet(root, "val")
    with raises(FileNotFoundError, root / "none.csv", "no such file of labels"):
        imagenet(root, "val", root / "none.csv")
    with raises(ValueError, "ILSVRC2012_img_val.tar: holds ILSVRC2012_val_00000001.JPEG", "one tar per class"):
        imagenet(root / "ILSVRC2012_img_val.tar", "train")
    with raises(ValueError, root / "ILSVRC2012_img_train.tar", "no images"):
        imagenet(root / "ILSVRC2012_img_train.tar", "val")
    with raises(ValueError, tmp_path / "named" / "train", "found cats", "image folder"):
        imagenet(write_files(tmp_path / "named", {"train/cats/1.jpg": b""}), "train")
    empty = write_train(tmp_path / "empty", "folder", IMAGES | {"n09999999": {"readme.txt": b""}})
    with raises(ValueError, empty / "train", "no images in class n09999999"):
        imagenet(empty, "train")
    empty = write_train(tmp_path / "empty_tar", "tar", IMAGES | {"n09999999": {"readme.txt": b""}})
    with raises(ValueError, "ILSVRC2012_img_train.tar: no images in class n09999999"):
        list(imagenet(empty, "train").samples)


def cut(data: bytes, kind: str) -> bytes:
    """A tar of VAL or of class tars, damaged."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    if kind == "within a member":
        return data[: last.offset_data + last.size // 2]
    if kind == "at a member's end":
        return data[:end]
    if kind == "a broken header":
        return data[: last.offset] + b"\xff" * 512 + data[last.offset_data :]
    return b"no tar at all" * 100


CUTS = ["within a member", "at a member's end", "a broken header", "no tar"]


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_tar_is_refused_before_the_first_sample(tmp_path, split, kind):
    path = tmp_path / f"ILSVRC2012_img_{split}.tar"
    path.write_bytes(cut(train_tar(IMAGES) if split == "train" else tar_bytes(VAL), kind))
    with raises(ValueError, path, "Download the archive again"):
        imagenet(path, split)


@pytest.mark.parametrize("kind", CUTS)
def test_a_damaged_class_tar_is_refused_and_no_cut_image_is_given(tmp_path, kind):
    tars = {f"{wnid}.tar": tar_bytes(IMAGES[wnid]) for wnid in IDS}
    tars[f"{IDS[1]}.tar"] = cut(tars[f"{IDS[1]}.tar"], kind)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_bytes(tars))
    with raises(ValueError, f"{path}: {IDS[1]}.tar", "Download the archive again"):
        for record in imagenet(path, "train").samples:
            assert record.image == IMAGES[IDS[record.label]][f"{record.key}.JPEG"]
