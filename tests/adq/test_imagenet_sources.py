"""ImageNet as it is downloaded, small: the same bytes and the right labels from folders and tars; damage is refused."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from adq.imagenet import imagenet, train_stream
from adq.imagenet_subsets import SUBSETS
from tests.adq.archives import IDS, raises, read, tar_bytes, write_files

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
