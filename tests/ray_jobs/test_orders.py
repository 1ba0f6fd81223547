"""Where an image stands in torchvision's data sets: against torchvision itself, and never a guess."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from adq.sources import image_folder
from ray_jobs.exchange import decode, encode
from ray_jobs.orders import TORCHVISION_EXTENSIONS, Listing, file_names, torchvision_order
from tests.ray_jobs.listings import a_listing, cifar, imagenet, npy


def test_cifar_indices_are_the_numbers_of_the_keys():
    listing = cifar()
    order, places = torchvision_order(listing)
    assert order == "cifar" and [listing.keys[n] for n in places] == [f"train_{n:05d}" for n in range(40)]
    indices = np.array([39, 0, 7])
    np.testing.assert_array_equal(decode(npy(indices), listing, "dq"), [0, 7, 39])
    saved = np.load(io.BytesIO(encode(listing, [39, 7], "dq")), allow_pickle=False)
    assert saved.dtype == np.int64 and saved.tolist() == [7, 39]
    assert torchvision_order(cifar(split="test"))[0] == "cifar"


def test_folders_are_in_the_order_of_torchvision(tmp_path):
    names = ["b/2.JPEG", "b/10.jpg", "b/1.png", "a b/x (1).jpg", "a b/x.jpg", "a b/x-1.jpg", "a b/x_1.jpg", "a b/X.jpg", "B/é.webp",
             "b/sub/0.jpg", "b/sub-a/0.jpg", "b/sub/deep/0.jpg", "b/zub.jpg", "v1.0/1.jpg"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = image_folder(tmp_path)
    rows = sorted((r.key, r.label, f"{r.key}.{r.ext}", hashlib.sha256(r.image).hexdigest()) for r in source.samples)
    listing = Listing(*(tuple(column) for column in zip(*rows, strict=True)), classes=source.classes)
    order, places = torchvision_order(listing)
    samples = ImageFolder(tmp_path).samples
    theirs = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path, _ in samples]
    assert order == "imagefolder" and [listing.sha256[n] for n in places] == theirs
    assert [listing.labels[n] for n in places] == [label for _, label in samples]
    paths = [str(Path(path).relative_to(tmp_path)).replace("JPEG", "jpeg") for path, _ in samples]
    assert [file_names(listing)[0][n] for n in places] == paths


def test_the_extensions_are_torchvisions():
    assert {f".{ext}" for ext in TORCHVISION_EXTENSIONS} == set(IMG_EXTENSIONS)


def test_imagenet_files_have_their_own_names():
    text = encode(imagenet(), range(16), "filelist").decode()
    assert "n01440764/n01440764_10026.JPEG\n" in text and "n01440764/ILSVRC2012_val_00000293.JPEG\n" in text
    mixed = a_listing({"n01440764_n01440764_7": "n01440764", "n01440764_ILSVRC2012_val_00000009": "n01440764"})
    assert file_names(mixed)[0] == ["n01440764/ILSVRC2012_val_00000009.JPEG", "n01440764/n01440764_7.JPEG"]
    tiny = a_listing({"n01443537_0": "goldfish", "n01629819_3": "a newt"}, "jpeg", ("goldfish", "a newt"))
    names, told = file_names(tiny)
    assert names == ["n01443537/n01443537_0.JPEG", "n01629819/n01629819_3.JPEG"] and told.all()
    assert not file_names(a_listing({"n01443537_0": "n01629819"}))[1].any(), "another class's name tells nothing"


def test_an_order_that_keys_do_not_tell_must_be_said():
    listing = a_listing({"frog_12": "frog", "frog_2": "frog", "cat_3": "cat"}, classes=("frog", "cat"))
    for kind in ("torchvision", "dq"):
        with pytest.raises(ValueError, match=r"no torchvision order is known.*'cat_3'.*--order imagefolder"):
            encode(listing, [0], kind)
    order, places = torchvision_order(listing, "imagefolder")
    assert order == "imagefolder" and [listing.keys[n] for n in places] == ["cat_3", "frog_12", "frog_2"]
    data = encode(listing, [1], "torchvision", "imagefolder")
    np.testing.assert_array_equal(decode(data, listing, "torchvision"), [1], "the file says its order")
    with pytest.raises(ValueError, match="of the order 'imagefolder', not 'cifar'"):
        decode(data, listing, "torchvision", "cifar")


@pytest.mark.parametrize(
    ("listing", "order", "message"),
    [
        (a_listing({"train_00000": "a", "train_00002": "a"}), "auto", "train_00001 is missing"),
        (a_listing({"train_00000": "a", "test_00000": "a"}), "auto", "train_ and test_ images"),
        (a_listing({"a/x": "a"}), "cifar", "'a/x' is none of train_00000"),
        (a_listing({"a/x": "a"}, "gif"), "auto", "does not see .gif"),
        (a_listing({"x": "a/b"}), "imagefolder", "'a/b' cannot be a folder"),
        (a_listing({"a/x": "a"}), "mine", "--order mine: expected one of auto, cifar, imagefolder"),
    ],
)
def test_no_order_is_guessed(listing, order, message):
    with pytest.raises(ValueError, match=message):
        torchvision_order(listing, order)
