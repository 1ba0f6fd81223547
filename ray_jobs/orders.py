"""Where an image stands in torchvision's data sets, told by its key.

A selection of ours is a set of keys; others number images by the order of a torchvision data set. The order is decided from the
keys alone, by these rules:

- cifar: every key is train_NNNNN, or every key test_NNNNN, and the numbers are 0 to N - 1: what `ingest --source cifar10|cifar100`
  makes. The order is that of the numbers, which is the archive's, and CIFAR10(train=...)'s.
- imagefolder: every key tells its file CLASS/.../NAME.EXT: keys CLASS/.../NAME of an ingested image folder; ImageNet's own names
  (n01440764_10026, also after CLASS_; ILSVRC2012_val_00000293 where the classes are WordNet ids), whose folder is the WordNet id.
  The order is ImageFolder's: class folders by name; in a class the folders by path, files before subfolders; in a folder the files
  by name.

Any other keys tell no file, and no order is guessed: --order imagefolder then says that indices number the files CLASS/KEY.EXT.

An index has its meaning in the whole data set alone: all images that torchvision would find must be in the shards. `ingest`
writes "_" for a dot inside a file's name and leaves hidden files out; a folder with such files may have another order.
"""

import hashlib
import os
import posixpath
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ORDERS = ("auto", "cifar", "imagefolder")
# ImageFolder sees no others.
TORCHVISION_EXTENSIONS = ("jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp")
CIFAR_KEY = re.compile(r"(train|test)_(\d{5})", re.ASCII)
WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)
IMAGENET_NAME = re.compile(r"(n\d{8})_\d+|ILSVRC2012_val_\d{8}", re.ASCII)


@dataclass(frozen=True)
class Listing:
    """The images of a data set, a row each, sorted by key, bytewise."""

    keys: tuple[str, ...]
    labels: tuple[int, ...]
    members: tuple[str, ...]  # the name of the image in its shard
    sha256: tuple[str, ...]  # of the image's bytes
    classes: tuple[str, ...]

    @cached_property
    def positions(self) -> dict[str, int]:
        return {key: n for n, key in enumerate(self.keys)}

    @cached_property
    def keys_sha256(self) -> str:
        """Of all keys, sorted bytewise, each with a newline after it: which data set this is."""
        return hashlib.sha256("".join(f"{key}\n" for key in self.keys).encode()).hexdigest()

    def extension(self, position: int) -> str:
        return os.path.splitext(self.members[position])[1][1:]


def file_names(listing: Listing) -> tuple[list[str], np.ndarray]:
    """The file that each image came from, as CLASS/.../NAME.EXT, and whether its key tells it: list of N, bool [N].

    Where a key does not, the name is CLASS/KEY.EXT. ImageNet's files have their own spelling, .JPEG.
    """
    names, told = [], np.zeros(len(listing.keys), dtype=bool)
    for n, (key, label) in enumerate(zip(listing.keys, listing.labels, strict=True)):
        stem, told[n], imagenet = _stem(key, listing.classes[label])
        extension = listing.extension(n)
        names.append(f"{stem}.{'JPEG' if imagenet and extension.lower() in ('jpg', 'jpeg') else extension}")
    return names, told


def _stem(key: str, name: str) -> tuple[str, bool, bool]:
    """CLASS/.../NAME of a key of the class `name`, whether the key tells it, and whether NAME is ImageNet's own."""
    as_in_keys = name.replace(".", "_")
    if key.startswith(f"{as_in_keys}/"):
        inside = key[len(as_in_keys) + 1 :]
        return f"{name}/{inside}", True, IMAGENET_NAME.fullmatch(inside) is not None
    if WORDNET_ID.fullmatch(name):
        file = key.removeprefix(f"{name}_") if not IMAGENET_NAME.fullmatch(key) else key
        found = IMAGENET_NAME.fullmatch(file)
        if found and found[1] in (name, None):
            return f"{name}/{file}", True, True
    elif (found := IMAGENET_NAME.fullmatch(key)) and found[1]:  # classes in words, as Tiny-ImageNet has them
        return f"{found[1]}/{key}", True, True
    return f"{name}/{key}", False, False


def torchvision_order(listing: Listing, order: str = "auto") -> tuple[str, np.ndarray]:
    """The order of the images in torchvision's data set.

    Args:
        order: "auto" decides by the keys; the others say which it must be.

    Returns:
        "cifar" or "imagefolder", and int64 [N]: the position in `listing` of torchvision's image 0, 1, ...

    Raises:
        ValueError: the keys tell no order, or not this one; an image that ImageFolder would not see.
    """
    if order not in ORDERS:
        raise ValueError(f"--order {order}: expected one of {', '.join(ORDERS)}")
    matches = [CIFAR_KEY.fullmatch(key) for key in listing.keys]
    if order == "cifar" or (order == "auto" and all(matches)):
        return "cifar", _cifar_order(listing, matches)
    names, told = file_names(listing)
    if order == "auto" and not told.all():
        key = listing.keys[int(np.argmin(told))]
        raise ValueError(
            f"no torchvision order is known for these keys: {key!r} is neither CIFAR's (train_00000) nor does it tell the file "
            "that it came from (CLASS/NAME, n01440764_10026); exchange keys or a file list, or, if the indices number the "
            "files CLASS/KEY.EXT as ImageFolder does, say --order imagefolder"
        )
    return "imagefolder", _folder_order(listing, names, told)


def _cifar_order(listing: Listing, matches: list[re.Match | None]) -> np.ndarray:
    if not all(matches):
        key = listing.keys[matches.index(None)]
        raise ValueError(f"--order cifar: key {key!r} is none of train_00000, train_00001, ... or test_00000, ...")
    splits = sorted({match[1] for match in matches})
    if len(splits) > 1:
        raise ValueError(
            "the data holds train_ and test_ images of CIFAR: torchvision numbers each apart; give one split"
        )
    numbers = np.array([int(match[2]) for match in matches], dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    gaps = np.flatnonzero(numbers[order] != np.arange(len(numbers)))
    if len(gaps):
        raise ValueError(
            f"{splits[0]}_{gaps[0]:05d} is missing of the images {splits[0]}_00000 to {splits[0]}_{numbers.max():05d}: "
            "torchvision's indices number the whole data set; give all of its shards"
        )
    return order


def _folder_order(listing: Listing, names: list[str], told: np.ndarray) -> np.ndarray:
    for n, name in enumerate(names):
        if listing.extension(n).lower() not in TORCHVISION_EXTENSIONS:
            raise ValueError(f"{name}: ImageFolder does not see .{listing.extension(n)} files, so its indices skip this one; "
                             "exchange keys or a file list")  # fmt: skip
        if not told[n] and "/" in listing.classes[listing.labels[n]]:
            raise ValueError(
                f"class {listing.classes[listing.labels[n]]!r} cannot be a folder of ImageFolder: its name has a '/'"
            )

    def place(n: int) -> tuple[str, str, str]:
        # As os.walk goes, sorted: a folder's files come before its subfolders.
        folder, _, inside = names[n].partition("/")
        return folder, *posixpath.split(inside)

    return np.array(sorted(range(len(names)), key=place), dtype=np.int64)
