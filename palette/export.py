"""A palettised data set for everybody else: indexed PNG files, and the samples of WebDataset shards."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from adq.index import class_texts
from palette.codec import check_set

SOFT = "npy"  # the extension of a sample's soft label
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def png_bytes(palette: np.ndarray, indices: np.ndarray) -> bytes:
    """An indexed PNG of 1, 2, 4 or 8 bits a pixel, of a palette uint8 [K, 3] and indices uint8 [H, W]."""
    image, buffer = Image.fromarray(indices), io.BytesIO()
    image.putpalette(palette[: int(indices.max()) + 1].tobytes())
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def samples(
    palettes: np.ndarray, indices: np.ndarray, labels: np.ndarray, classes: Sequence[str], prefix: str = "distilled"
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The set as WebDataset samples; write them with `adq.shards.tar_bytes(members(samples(...)))`.

    Args:
        palettes, indices, labels, classes: as `palette.codec.encode` takes them.
        prefix: of the keys, which are PREFIX_00000, PREFIX_00001, ...: unique, without a dot, in the order of the images.

    Yields:
        (key, {"png": an indexed PNG, "cls": the label, as `adq.index.class_texts` says it}). With soft labels, "cls" is the
        likeliest class (the lowest of equals), and "npy" is a NumPy file of the C logits, float16 and little endian: see
        `soft_label`.

    Raises:
        ValueError: as encode; or a prefix that is no plain name.
    """
    if not re.fullmatch(r"[\w-]+", prefix):
        raise ValueError(f"the prefix {prefix!r} is no plain name; use letters, digits, - and _")
    palettes, indices, labels = check_set(palettes, indices, labels, classes)
    digits, texts = max(5, len(str(len(labels) - 1))), class_texts(classes)
    rows = zip(palettes, indices, labels, hard_labels(labels), strict=True)
    for number, (palette, image, label, hard) in enumerate(rows):
        sample = {"png": png_bytes(palette, image), "cls": texts[hard].encode()}
        if labels.ndim == 2:
            sample[SOFT] = soft_bytes(label)
        yield f"{prefix}_{number:0{digits}d}", sample


def soft_bytes(logits: np.ndarray) -> bytes:
    """A soft label [C] as the "npy" member that `soft_label` reads."""
    buffer = io.BytesIO()
    np.save(buffer, logits.astype("<f2"), allow_pickle=False)
    return buffer.getvalue()


def soft_label(data: bytes, classes: int) -> np.ndarray:
    """The soft label that a sample's "npy" member holds. Nothing is unpickled, and no size is believed.

    Args:
        data: a NumPy file of little endian floats, of 2, 4 or 8 bytes each.

    Returns:
        float64 [classes]: logits, whose softmax are the probabilities of the classes.

    Raises:
        ValueError: another file, type or shape; a number that is not finite.
    """
    stream = io.BytesIO(data)
    try:
        shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError) as error:
        raise ValueError(f"the soft label is no NumPy file of numbers ({error})") from error
    if dtype.kind != "f" or dtype.str[0] != "<" or dtype.itemsize > 8 or shape != (classes,):
        raise ValueError(f"the soft label is {dtype.str} {list(shape)}; expected little endian floats [{classes}]")
    if len(data) - stream.tell() != classes * dtype.itemsize:
        raise ValueError(f"the soft label is truncated, or more follows its {classes} numbers")
    logits = np.frombuffer(data, dtype, offset=stream.tell()).astype(np.float64)
    if not np.isfinite(logits).all():
        raise ValueError("the soft label is not finite")
    return logits


def members(samples: Iterable[tuple[str, dict[str, bytes]]]) -> Iterator[tuple[str, bytes]]:
    """The files KEY.EXTENSION of samples, with their bytes, in the order in which a shard holds them."""
    for key, sample in samples:
        for extension, data in sample.items():
            yield f"{key}.{extension}", data


def class_folders(classes: Sequence[str]) -> list[str]:
    """The folder of each class's PNGs, by label: see `write_pngs`."""
    digits = len(str(len(classes) - 1))
    names = [re.sub(r"[^\w -]", "_", name)[:40] for name in classes]
    return [f"{label:0{digits}d}-{name}" for label, name in enumerate(names)]


def write_pngs(
    folder: str | Path, palettes: np.ndarray, indices: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> list[Path]:
    """The set as indexed PNG files, a folder for each class.

    Folders are LABEL-NAME (03-cat): in label order for whoever sorts them, such as torchvision's ImageFolder, and inside `folder`
    whatever a class is called: characters other than letters, digits, space, - and _ become _.

    Args:
        folder: made where it is missing; files of the same name are written over.
        palettes, indices, labels, classes: as `palette.codec.encode` takes them; of soft labels, the likeliest class counts.

    Returns:
        The files, in the order of the images.

    Raises:
        ValueError: as encode. OSError: a folder that cannot be written.
    """
    palettes, indices, labels = check_set(palettes, indices, labels, classes)
    folders, written = class_folders(classes), []
    for label, (key, sample) in zip(hard_labels(labels), samples(palettes, indices, labels, classes), strict=True):
        path = Path(folder) / folders[label] / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample["png"])
        written.append(path)
    return written


def hard_labels(labels: np.ndarray) -> list[int]:
    """Labels [N], of soft ones [N, C] the likeliest classes (the lowest of equals)."""
    return (labels.argmax(axis=1) if labels.ndim == 2 else labels).tolist()
