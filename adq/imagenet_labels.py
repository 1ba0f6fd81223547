"""Validation labels of ImageNet-1K from a text or CSV file that the user gives, since the official tar has none."""

import re
from pathlib import Path, PurePosixPath

from adq.sources import IMAGE_EXTENSIONS, extension

LABEL = re.compile(r"n\d{8}|\d+", re.ASCII)
LABEL_FORMATS = (
    'one WordNet id a line in the order of the images, or "NAME ID" or "NAME,ID" lines (LOC_val_solution.csv of '
    "Kaggle's copy will do)"
)


def read_labels(path: str | Path, ids: list[str] | None) -> dict[str, str]:
    """A file of validation labels as {image name without extension: WordNet id}; `imagenet` lists the formats.

    Args:
        ids: the sorted WordNet ids that numbers are positions in, or None where they are not known.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of labels. Give {LABEL_FORMATS}.")
    labels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        cells = [cell.strip(' "') for cell in line.split(",")] if "," in line else line.split()
        if not cells:
            continue
        label = cells[0] if len(cells) == 1 else cells[1].partition(" ")[0]
        if not LABEL.fullmatch(label):
            if number == 1:
                continue  # the header of a CSV
            raise ValueError(f"{path}, line {number}: {label!r} is no label. Give {LABEL_FORMATS}.")
        stem = f"ILSVRC2012_val_{len(labels) + 1:08d}" if len(cells) == 1 else _stem(cells[0])
        if stem in labels:
            raise ValueError(f"{path}, line {number}: {stem} has a label already. Keep one line per image.")
        labels[stem] = label
    if not labels:
        raise ValueError(f"{path}: no labels. Give {LABEL_FORMATS}.")
    return _as_ids(labels, ids, path)


def _stem(name: str) -> str:
    file = PurePosixPath(name)
    return file.stem if extension(name) in IMAGE_EXTENSIONS else file.name


def _as_ids(labels: dict[str, str], ids: list[str] | None, path: Path) -> dict[str, str]:
    """Labels that are numbers as WordNet ids; numbers that cannot be positions in the sorted ids are refused."""
    numbers = [int(label) for label in labels.values() if label.isdigit()]
    if not numbers:
        return labels
    if len(numbers) < len(labels):
        raise ValueError(f"{path}: some labels are WordNet ids and some are numbers. Give {LABEL_FORMATS}.")
    if min(numbers) >= 1 and max(numbers) == (1000 if ids is None else len(ids)):
        raise ValueError(
            f"{path}: the labels count from 1, as ILSVRC2012_validation_ground_truth.txt of the development kit does; "
            f"its numbers are NOT in the order of the sorted WordNet ids: most would be wrong. Give {LABEL_FORMATS}."
        )
    if ids is None:
        raise ValueError(f"{path}: numbers need the train data beside the validation data. Or give {LABEL_FORMATS}.")
    if max(numbers) >= len(ids):
        raise ValueError(
            f"{path}: label {max(numbers)}, but the train data has {len(ids)} classes, 0 to {len(ids) - 1}."
        )
    return {stem: ids[int(label)] for stem, label in labels.items()}
