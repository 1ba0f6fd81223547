"""Well-known source layouts as streams of samples for the shard writer: the types, image folders and Tiny-ImageNet.

CIFAR is in cifar.py, ImageNet-1K in imagenet.py. The bytes of image files pass through untouched, everything that names
and headers can show is checked before the first sample, and nothing is unpickled.
"""

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

IMAGE_EXTENSIONS = ("bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")
TINY_IMAGENET = "tiny-imagenet-200"


class Record(NamedTuple):
    """One sample: a key without dots, the member's extension (lower case, no dot), the image's bytes, its label."""

    key: str
    ext: str
    image: bytes
    label: int


@dataclass(frozen=True)
class Source:
    """A labelled image data set; `samples` is read once, and opens its files when its first sample is asked for."""

    classes: tuple[str, ...]  # class names in label order
    samples: Iterator[Record]
    count: int | None  # number of samples; None where only reading everything would tell
    files: tuple[Path, ...]  # that it is read from


def image_folder(path: str | Path, extensions: Iterable[str] = IMAGE_EXTENSIONS) -> Source:
    """Folders named by class: ROOT/CLASS/**/IMAGE, in the order of their paths; labels are positions in sorted names.

    Keys are CLASS/.../NAME with every dot replaced by "_". Where that makes two files one key (a.b.jpg and a_b.jpg, or
    a.jpg and a.png), the first path keeps it and the others get a hash of their path as a suffix.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folder, a class without images, or an image outside of the class folders.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Give a folder that holds one folder of images per class.")
    extensions = tuple(extensions)
    classes = tuple(folder_names(root))
    if skipped := [name for name in classes if re.fullmatch("__.*__", name)]:
        raise ValueError(
            f"{root / skipped[0]}: readers of WebDataset shards skip names such as __NAME__. Rename the folder, or move it away."
        )
    labels = {name: label for label, name in enumerate(classes)}
    names = list_images(root, extensions)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(f"{root / loose[0]}: an image outside of the class folders. Move it into one, or away.")
    if not classes:
        raise ValueError(f"{root}: no class folders. Images are expected at {root}/CLASS/NAME.jpg.")
    assigned = [labels[name.partition("/")[0]] for name in names]
    require_every_class(assigned, classes, f"{root} (extensions looked for: {', '.join(extensions)})")

    def samples() -> Iterator[Record]:
        for name, key, label in zip(names, unique_keys(names), assigned, strict=True):
            yield Record(key, extension(name), (root / name).read_bytes(), label)

    return Source(classes, samples(), len(names), tuple(root / name for name in names))


def tiny_imagenet(path: str | Path, split: str) -> Source:
    """Tiny-ImageNet's own layout, from the folder tiny-imagenet-200, its zip, or a folder that holds one of them.

    Labels are positions in the sorted WordNet ids (wnids.txt itself is not sorted). Class names are the first words of
    words.txt, with the id where two classes share them; without words.txt they are the ids.

    Args:
        split: "train" (train/ID/images/*.JPEG) or "val" (val/images/*.JPEG by val/val_annotations.txt).

    Raises:
        FileNotFoundError: nothing of that name here.
        ValueError: an unknown split, a file of the layout that is missing, a class without images, an unlabelled image.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split {split!r}: Tiny-ImageNet has 'train' and 'val' (its test images have no labels).")
    place = _tiny_imagenet_place(Path(path))
    with _opened(place) as (list_names, read):
        names = list_names()
        root = _tiny_imagenet_root(names, place)
        ids = sorted(read(root + "wnids.txt").decode().split())
        images = [name for name in names if name.startswith(f"{root}{split}/") and extension(name) in IMAGE_EXTENSIONS]
        keys = [key_of(name.rpartition("/")[2]) for name in images]
        annotated = {}
        annotations = [root + "val/val_annotations.txt"] if split == "val" else []
        annotations = [name for name in annotations if name in names]
        for name in annotations:
            rows = (line.split() for line in read(name).decode().splitlines())
            annotated = {row[0]: row[1] for row in rows if len(row) > 1}
        words = _first_words(read(root + "words.txt").decode()) if root + "words.txt" in names else {}
    labels = {wnid: label for label, wnid in enumerate(ids)}
    assigned = []
    for name in images:
        folder = name.removeprefix(f"{root}{split}/").partition("/")[0]
        wnid = folder if folder in labels else annotated.get(name.rpartition("/")[2])
        if wnid not in labels:
            raise ValueError(
                f"{place}: {name} has no label: neither its folder nor {root}val/val_annotations.txt gives an id of "
                "wnids.txt. Unpack or download the archive again."
            )
        assigned.append(labels[wnid])
    if len(set(keys)) < len(keys):
        twice = next(key for key, number in Counter(keys).items() if number > 1)
        raise ValueError(f"{place}: {split} has the image {twice} twice. Remove one of the two copies.")
    require_every_class(assigned, ids, f"{place} ({split})")
    titles = [words.get(wnid, wnid) for wnid in ids]
    classes = [
        title if titles.count(title) == 1 else f"{title} ({wnid})" for title, wnid in zip(titles, ids, strict=True)
    ]

    def samples() -> Iterator[Record]:
        with _opened(place) as (_, read):
            for name, key, label in zip(images, keys, assigned, strict=True):
                yield Record(key, extension(name), read(name), label)

    files = [place / name for name in (root + "wnids.txt", *annotations, *images)] if place.is_dir() else [place]
    return Source(tuple(classes), samples(), len(images), tuple(files))


def list_files(folder: Path) -> list[str]:
    """The files below `folder` as sorted paths relative to it, with "/"; hidden files and folders are left out."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for where, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = "" if where == str(folder) else Path(where).relative_to(folder).as_posix() + "/"
        found += [prefix + name for name in files if not name.startswith(".")]
    return sorted(found)


def list_images(folder: Path, extensions: Iterable[str] = IMAGE_EXTENSIONS) -> list[str]:
    """Those of `list_files` that have one of the extensions, in any case."""
    wanted = {given.lower().lstrip(".") for given in extensions}
    return [name for name in list_files(folder) if extension(name) in wanted]


def folder_names(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def extension(name: str) -> str:
    """The extension of a file name: lower case, without its dot."""
    return os.path.splitext(name)[1][1:].lower()


def key_of(name: str) -> str:
    """A file's path as a key: no extension, and "_" for every dot (webdataset cuts a name at its first dot)."""
    return os.path.splitext(name)[0].replace(".", "_")


def unique_keys(names: list[str]) -> Iterator[str]:
    """A key for each file name: `key_of`, with a hash of the name as a suffix where an earlier name has that key."""
    taken = set()
    for name in names:
        key = key_of(name)
        while key in taken:
            key += "-" + hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
        taken.add(key)
        yield key


def require_every_class(labels: Iterable[int], classes: Iterable[str], place: str) -> None:
    """Raise ValueError, naming the place and the classes, unless every class has an image."""
    present = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise ValueError(
            f"{place}: no images in class {', '.join(empty[:5])}{more}. Add images, or remove the empty class."
        )


def _tiny_imagenet_place(path: Path) -> Path:
    """The folder or the zip that `path` means."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found. Give the folder {TINY_IMAGENET} or {TINY_IMAGENET}.zip.")
    if path.is_dir() and not (path / "wnids.txt").is_file():
        inside = [path / TINY_IMAGENET, path / f"{TINY_IMAGENET}.zip"]
        return next((place for place in inside if place.exists()), path)
    return path


def _tiny_imagenet_root(names: list[str], place: Path) -> str:
    """The prefix of the names that belong to the data set, "" or "tiny-imagenet-200/"."""
    found = [name for name in names if name.rpartition("/")[2] == "wnids.txt"]
    if not found:
        raise ValueError(
            f"{place}: no wnids.txt, so this is not Tiny-ImageNet. Give {TINY_IMAGENET}[.zip] as it comes."
        )
    return min(found, key=len).removesuffix("wnids.txt")


def _first_words(text: str) -> dict[str, str]:
    """words.txt as {WordNet id: its first words}."""
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {wnid: words.split(",")[0].strip() for wnid, words in pairs}


@contextmanager
def _opened(place: Path) -> Iterator[tuple[Callable[[], list[str]], Callable[[str], bytes]]]:
    """A folder or a zip as two functions: the sorted names of its files, and the bytes of one of them."""
    if place.is_dir():
        yield lambda: list_files(place), lambda name: (place / name).read_bytes()
        return
    try:
        with zipfile.ZipFile(place) as archive:
            yield lambda: sorted(archive.namelist()), archive.read
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place}: not a readable zip ({error}). Download it again.") from error
