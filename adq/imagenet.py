"""ImageNet-1K as it comes, in folders or in the official tars read as streams: whole, or a subset of ten classes.

Labels are positions in the sorted WordNet ids, never the numbers of the ILSVRC2012 development kit. Folders and tars
give the same keys: the file names. The training tar is neither unpacked nor held: one image is in memory at a time.
"""

import re
import tarfile
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from adq.imagenet_labels import LABEL_FORMATS, read_labels
from adq.imagenet_subsets import SUBSETS
from adq.sources import (
    IMAGE_EXTENSIONS,
    Record,
    Source,
    extension,
    folder_names,
    key_of,
    list_images,
    require_every_class,
)

WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)
UNIQUE_NAME = re.compile(r"(n\d{8}_\d+|ILSVRC2012_val_\d+)\.\w+", re.ASCII)  # ImageNet's own names need no folder
READ_SIZE = 1 << 20


def imagenet(path: str | Path, split: str, val_labels: str | Path | None = None, subset: str | None = None) -> Source:
    """ImageNet-1K, or any data set of its layout.

    Args:
        path: the folder that holds train/ and val/, or ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (a folder
            goes first where both are there); or one official tar.
        split: "train" (train/ID/*.JPEG, or a tar of one tar per class) or "val" (class folders; a flat folder or tar).
        val_labels: the labels of flat validation images, as text or CSV: one a line in the order of the images, or
            "NAME LABEL", or "NAME,LABEL ..."; a label is a WordNet id, or a position in the train data's sorted ids.
        subset: a name in SUBSETS; labels are then positions in its ten sorted ids. Of a tar, only its images are read.

    Returns:
        The classes are WordNet ids: those of the train data where `path` holds it, else of the validation data. `count`
        is None for the whole training tar.

    Raises:
        FileNotFoundError: neither folder nor tar of this split, or no such file of labels.
        ValueError: an unknown split or subset, a class without images, an image without a label, labels that are not
            positions in the sorted ids, or a tar that is unreadable, cut off or something else. What is wrong inside a
            class tar of the training tar shows when it is read.
    """
    root = Path(path)
    if split not in ("train", "val"):
        raise ValueError(f"split {split!r}: ImageNet has 'train' and 'val' (its test images have no labels).")
    if subset is not None and subset not in SUBSETS:
        raise ValueError(f"subset {subset!r}: give one of {', '.join(SUBSETS)}.")
    place = _place(root, split)
    if place is None:
        raise FileNotFoundError(
            f"{root}: neither {split}/ nor ILSVRC2012_img_{split}.tar is here. Give the folder that holds it."
        )
    if split == "train":
        classes = _chosen(_train_ids(place), subset, place)
        return _class_folders(place, classes) if place.is_dir() else _train_tar(place, classes, subset)
    train = _place(root, "train") if root.is_dir() else None
    ids = _train_ids(train) if train else None
    if place.is_dir() and folder_names(place):
        return _class_folders(place, _chosen(_same_ids(place, ids), subset, place))
    return _flat_images(place, ids, val_labels, subset)


def _place(root: Path, split: str) -> Path | None:
    """The folder or the tar of a split."""
    if root.is_file():
        return root
    return next((place for place in (root / split, root / f"ILSVRC2012_img_{split}.tar") if place.exists()), None)


def _train_ids(place: Path) -> list[str]:
    """The sorted WordNet ids of the train data; of the tar, the headers of its class tars are read, by seeking."""
    if place.is_dir():
        return _folder_ids(place)
    ids = []
    with place.open("rb") as file:
        for member, _ in _members(file, "r:", str(place)):
            ids.append(_class_of(member.name, place))
    if len(set(ids)) < len(ids):
        raise ValueError(f"{place}: a class has two tars. Download the archive again.")
    return sorted(ids)


def _folder_ids(place: Path) -> list[str]:
    names = folder_names(place)
    other = [name for name in names if not WORDNET_ID.fullmatch(name)]
    loose = [entry.name for entry in place.iterdir() if extension(entry.name) in IMAGE_EXTENSIONS]
    if other or loose or not names:
        raise ValueError(
            f"{place}: folders named by WordNet id (n01440764) are expected, and nothing else; found "
            f"{(other + loose + ['none'])[0]}. Read folders of other names as an image folder."
        )
    return names


def _same_ids(place: Path, ids: list[str] | None) -> list[str]:
    """The classes of validation folders: the train data's where it is there, so that both splits are labelled alike."""
    found = _folder_ids(place)
    strange = sorted(set(found) - set(ids or found))
    if strange:
        raise ValueError(
            f"{place}: class {strange[0]} is not in the train data beside it. Remove it, or give its images."
        )
    return ids or found


def _chosen(ids: list[str], subset: str | None, place: Path) -> tuple[str, ...]:
    """All ids, or those of the subset; sorted."""
    if subset is None:
        return tuple(ids)
    missing = sorted(SUBSETS[subset].keys() - set(ids))
    if missing:
        name = SUBSETS[subset][missing[0]]
        raise ValueError(
            f"{place}: class {missing[0]} ({name}) of the subset {subset} is not here. Give all of ImageNet."
        )
    return tuple(sorted(SUBSETS[subset]))


def _class_folders(place: Path, classes: tuple[str, ...]) -> Source:
    """ID/**/*.JPEG."""
    present = [(label, wnid) for label, wnid in enumerate(classes) if (place / wnid).is_dir()]
    files = [(label, f"{wnid}/{name}") for label, wnid in present for name in list_images(place / wnid)]
    require_every_class((label for label, _ in files), classes, str(place))
    if len({_key(name) for _, name in files}) < len(files):
        raise ValueError(f"{place}: two images have one name in one class. Rename one, or read it as an image folder.")

    def samples() -> Iterator[Record]:
        for label, name in files:
            yield Record(_key(name), extension(name), (place / name).read_bytes(), label)

    return Source(classes, samples(), len(files), tuple(place / name for _, name in files))


def _key(name: str) -> str:
    """The key of ID/NAME: the name alone where ImageNet itself gave it."""
    file = name.rpartition("/")[2]
    return key_of(file if UNIQUE_NAME.fullmatch(file) else name)


def _train_tar(place: Path, classes: tuple[str, ...], subset: str | None) -> Source:
    """A tar of one tar per class. All of it is read as one stream; for a subset, the other classes are jumped over."""
    labels = {wnid: label for label, wnid in enumerate(classes)}

    def samples() -> Iterator[Record]:
        with place.open("rb") as file:
            yield from train_stream(file, labels, place, "r:" if subset else "r|")

    return Source(classes, samples(), _count(place, labels) if subset else None, (place,))


def _count(place: Path, wanted: Container[str]) -> int:
    """The images of some classes in the training tar, by the headers of their tars alone."""
    with place.open("rb") as file:
        return sum(
            extension(member.name) in IMAGE_EXTENSIONS
            for class_tar, stream in _members(file, "r:", str(place))
            if _class_of(class_tar.name, place) in wanted
            for member, _ in _members(stream, "r:", f"{place}: {class_tar.name}")
        )


def train_stream(file: IO[bytes], labels: dict[str, int], place: Path, mode: str) -> Iterator[Record]:
    """The samples of the training tar `file` whose class is in `labels`, in its order; mode "r|" never seeks."""
    for class_tar, stream in _members(file, mode, str(place)):
        wnid = _class_of(class_tar.name, place)
        if wnid not in labels:
            continue
        name = f"{place}: {class_tar.name}"
        empty = True
        for member, image in _members(stream, "r|", name):
            if extension(member.name) in IMAGE_EXTENSIONS:
                empty = False
                key = _key(f"{wnid}/{PurePosixPath(member.name).name}")
                yield Record(key, extension(member.name), _bytes(image, member, name), labels[wnid])
        if empty:
            require_every_class((), [wnid], str(place))


def _class_of(name: str, place: Path) -> str:
    """The WordNet id that a class tar is named by."""
    file = PurePosixPath(name)
    if file.suffix != ".tar" or not WORDNET_ID.fullmatch(file.stem):
        raise ValueError(
            f"{place}: holds {name}, but ILSVRC2012_img_train.tar holds one tar per class (n01440764.tar)."
        )
    return file.stem


def _flat_images(place: Path, ids: list[str] | None, val_labels: str | Path | None, subset: str | None) -> Source:
    """Validation images that only a file of labels gives a class, in a folder or a tar."""
    if place.is_dir():
        names = list_images(place)
    else:
        with place.open("rb") as file:
            names = [member.name for member, _ in _members(file, "r:", str(place))]
            names = [name for name in names if extension(name) in IMAGE_EXTENSIONS]
    if not names:
        raise ValueError(f"{place}: no images. Expected ILSVRC2012_val_00000001.JPEG and so on, or class folders.")
    if val_labels is None:
        raise ValueError(f"{place}: the images have no class folders, so a file of labels is needed: {LABEL_FORMATS}.")
    given = read_labels(val_labels, ids)
    classes = _chosen(ids or sorted(set(given.values())), subset, place)
    position = {wnid: label for label, wnid in enumerate(classes)}
    labels = {}
    for name in names:
        wnid = given.get(PurePosixPath(name).stem)
        if wnid is None:
            raise ValueError(f"{place}: {name} has no label in {val_labels}. Add it, or remove the image.")
        if wnid in position:
            labels[name] = position[wnid]
        elif subset is None:
            raise ValueError(
                f"{val_labels}: {name} is of class {wnid}, which the train data beside {place} does not have."
            )
    if len({PurePosixPath(name).stem for name in names}) < len(names):
        raise ValueError(f"{place}: an image is there twice. Take the data set again.")
    require_every_class(labels.values(), classes, str(place))

    def samples() -> Iterator[Record]:
        if place.is_dir():
            for name, label in labels.items():
                yield Record(key_of(PurePosixPath(name).name), extension(name), (place / name).read_bytes(), label)
            return
        with place.open("rb") as file:
            for member, image in _members(file, "r:" if subset else "r|", str(place)):
                if member.name in labels:
                    key = key_of(PurePosixPath(member.name).name)
                    data = _bytes(image, member, str(place))
                    yield Record(key, extension(member.name), data, labels[member.name])

    files = [place / name for name in labels] if place.is_dir() else [place]
    return Source(classes, samples(), len(labels), (*files, Path(val_labels)))


def _members(file: IO[bytes], mode: str, name: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The regular files of an uncompressed tar and their bytes, in order, then the check that it ends as a tar does."""
    try:
        with tarfile.open(fileobj=file, mode=mode, bufsize=READ_SIZE) as archive:
            for member in archive:
                if member.isfile():
                    yield member, archive.extractfile(member)
            # tarfile stops in silence at a broken header and at a cut between two members. In a whole tar, the block of
            # zeros that it stopped at is followed by another.
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"{name}: cut off or damaged at byte {archive.offset}. Download the archive again.")
    except tarfile.TarError as error:
        raise ValueError(f"{name}: not a readable tar ({error}). Download the archive again.") from error


def _bytes(image: IO[bytes], member: tarfile.TarInfo, name: str) -> bytes:
    try:
        return image.read()
    except tarfile.TarError as error:
        raise ValueError(f"{name}: cut off within {member.name} ({error}). Download the archive again.") from error
