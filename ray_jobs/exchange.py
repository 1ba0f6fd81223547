"""Selections as files that others read and write: pure functions between bytes and positions in a data set's listing.

keys         CSV or TSV with a header: key, class, sha256 of the image's bytes. Survives everything but other image bytes.
torchvision  indices into torchvision's data set (`ray_jobs.orders` says which): JSON written here, with the sha256 of the data
             set's keys and the chosen keys as guards; a JSON list or plain integers are read too
filelist     one path a line, n01440764/n01440764_10026.JPEG; read by what it ends in, a label after it is not looked at
dq           what the published code of DQ (Zhou et al., ICCV 2023) saves and loads as select_indices_CIFAR10_0.125.npy: a 1-D
             int64 array of indices into CIFAR10(train=True), or ImageFolder's ImageNet, without any guard. (Its own training
             on reconstructed CIFAR images applies them to an ImageFolder of 0.png, 1.png, 10.png, ..., which is another order.)
"""

import csv
import io
import json
import os
import re
from collections.abc import Sequence

import numpy as np

from adq.images import EXTENSIONS
from ray_jobs.orders import Listing, file_names, torchvision_order

FORMATS = ("keys", "torchvision", "filelist", "dq")
SUFFIXES = {"keys": "csv", "torchvision": "json", "filelist": "txt", "dq": "npy"}
SAME_EXTENSION = {"jpeg": "jpg", "tiff": "tif"}
LABELLED = re.compile(rf"(.*\.(?:{'|'.join(EXTENSIONS)}))\s+\d+", re.IGNORECASE)
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def encode(listing: Listing, chosen: Sequence[int], kind: str, order: str = "auto", delimiter: str = ",") -> bytes:
    """A selection as the bytes of a file.

    Args:
        listing: the whole data set. chosen: positions in it.
        kind: one of FORMATS. order: see `torchvision_order`. delimiter: of the format keys.

    Raises:
        ValueError: an empty selection; the data set has no order of torchvision's; a format that cannot tell these images apart.
    """
    chosen = np.unique(np.asarray(chosen, dtype=np.int64))
    if not len(chosen):
        raise ValueError("the selection is empty")
    if kind == "keys":
        text = io.StringIO()
        table = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        table.writerow(("key", "class", "sha256"))
        table.writerows((listing.keys[n], listing.classes[listing.labels[n]], listing.sha256[n]) for n in chosen)
        data = text.getvalue().encode()
    elif kind == "filelist":
        names, _ = file_names(listing)
        data = "".join(f"{names[n]}\n" for n in chosen).encode()
    elif kind in FORMATS:
        order, places = torchvision_order(listing, order)
        indices = np.flatnonzero(np.isin(places, chosen))
        data = _npy(indices) if kind == "dq" else _json(listing, order, indices, places[indices])
    else:
        raise ValueError(f"--format {kind}: expected one of {', '.join(FORMATS)}")
    if not np.array_equal(np.sort(_found(data, listing, kind, order, "the export")), chosen):
        raise ValueError(f"--format {kind} cannot tell some of these images apart; use --format keys")
    return data


def decode(data: bytes, listing: Listing, kind: str, order: str = "auto", where: str = "the selection") -> np.ndarray:
    """The images that a file names.

    Args:
        where: the file, for errors.

    Returns:
        int64 positions in `listing`, sorted.

    Raises:
        ValueError: not this format; nothing chosen; an image that is not in the data set, comes twice, or has other bytes.
    """
    found = _found(data, listing, kind, order, where)
    if not len(found):
        raise ValueError(f"{where}: chooses no image")
    positions, counts = np.unique(found, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{where}: {_some('image', positions[counts > 1], listing)} more than once; a selection is a set"
        )
    return positions


def _found(data: bytes, listing: Listing, kind: str, order: str, where: str) -> np.ndarray:
    """Positions in the listing, in the order of the file."""
    if kind == "keys":
        found = _read_keys(_text(data, where), listing, where)
    elif kind == "filelist":
        found = _read_names(_text(data, where), listing, where)
    elif kind == "torchvision":
        found = _read_json(_text(data, where), listing, order, where)
    elif kind == "dq":
        found = _at(_read_npy(data, where), torchvision_order(listing, order)[1], where)
    else:
        raise ValueError(f"--format {kind}: expected one of {', '.join(FORMATS)}")
    return np.asarray(found, dtype=np.int64)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: is no text in UTF-8; see --format") from error


def _some(what: str, items: Sequence, listing: Listing | None = None) -> str:
    """Up to five of the items by name, and how many more there are."""
    shown = [repr(listing.keys[item] if listing else item) for item in items[:5]]
    return f"{what} {', '.join(shown)}" + (f" and {len(items) - 5:,} more" if len(items) > 5 else "")


def _read_keys(text: str, listing: Listing, where: str) -> list[int]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    header: list[str] | None = None
    found, unknown, changed = [], [], []
    try:
        for row in rows:
            if header is None:
                header = [name.strip().lower() for name in row]
                if not {"key", "sha256"} <= set(header):
                    raise ValueError(f"{where}: expected a header line with the columns key and sha256, found {row}")
                key_at, sha256_at = header.index("key"), header.index("sha256")
            elif row:
                if len(row) != len(header):
                    raise ValueError(f"{where}: line {rows.line_num} has {len(row)} fields; expected {len(header)}")
                position = listing.positions.get(row[key_at])
                if position is None:
                    unknown.append(row[key_at])
                elif listing.sha256[position] != row[sha256_at].strip().lower():
                    changed.append(row[key_at])
                else:
                    found.append(position)
    except csv.Error as error:
        raise ValueError(f"{where}: line {rows.line_num} is no CSV ({error}); see --format") from error
    if unknown:
        raise ValueError(f"{where}: {_some('key', unknown)} not in the data set; is it another one, or --key-prefix?")
    if changed:
        raise ValueError(
            f"{where}: {_some('key', changed)}: the image's sha256 is another one in this data set; it is another version of the "
            "data, or was encoded anew (then a file list or indices may still hold)"
        )
    return found


def _json(listing: Listing, order: str, indices: np.ndarray, chosen: np.ndarray) -> bytes:
    value = {
        "order": order, "images": len(listing.keys), "keys_sha256": listing.keys_sha256, "indices": indices.tolist(),
        "keys": [listing.keys[n] for n in chosen],
    }  # fmt: skip
    return json.dumps(value, indent=0, ensure_ascii=False).encode() + b"\n"


def _read_json(text: str, listing: Listing, order: str, where: str) -> np.ndarray:
    value: object
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: is no JSON ({error}); see --format") from error
    else:
        value = [
            int(word) if re.fullmatch(r"[+-]?[0-9]{1,18}", word) else word for word in re.split(r"[\s,]+", text) if word
        ]
    guards = value if isinstance(value, dict) else {}
    indices = guards.get("indices") if isinstance(value, dict) else value
    if not isinstance(indices, list) or any(type(index) is not int for index in indices):
        raise ValueError(f"{where}: expected integers: a JSON list, an object with a list 'indices', or plain numbers")
    told = guards.get("order", order)
    if order != "auto" and told != order:
        raise ValueError(f"{where}: its indices are of the order {told!r}, not {order!r}")
    if guards.get("images", len(listing.keys)) != len(listing.keys):
        raise ValueError(
            f"{where}: was made from a data set of {guards['images']} images; this one has {len(listing.keys)}"
        )
    if guards.get("keys_sha256", listing.keys_sha256) != listing.keys_sha256:
        raise ValueError(
            f"{where}: was made from a data set of other keys (keys_sha256 differs); give that one as --data"
        )
    found = _at(indices, torchvision_order(listing, told)[1], where)
    keys = guards.get("keys")
    if keys is not None and keys != [listing.keys[n] for n in found]:
        raise ValueError(f"{where}: its keys are not those at its indices; one of both lists was changed")
    return found


def _at(indices: Sequence[int], places: np.ndarray, where: str) -> np.ndarray:
    outside = [int(index) for index in indices if not 0 <= index < len(places)]
    if outside:
        raise ValueError(f"{where}: {_some('index', outside)} outside 0 to {len(places) - 1}; is it another data set?")
    return places[np.asarray(indices, dtype=np.int64)]


def _npy(indices: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, indices.astype("<i8"), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _read_npy(data: bytes, where: str) -> np.ndarray:
    """A 1-D integer array from its header and its bytes: nothing can be unpickled, and no size is believed."""
    stream = io.BytesIO(data)
    try:
        shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{where}: is no .npy file of numbers ({error}); see --format") from error
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError(f"{where}: holds {dtype} of shape {shape}; expected integers of shape [n]")
    if len(data) - stream.tell() != shape[0] * dtype.itemsize:
        raise ValueError(f"{where}: is truncated, or more follows its {shape[0]} indices; copy it again")
    return np.frombuffer(data, dtype, offset=stream.tell())


def _read_names(text: str, listing: Listing, where: str) -> list[int]:
    names, _ = file_names(listing)
    known = {os.path.splitext(name)[0]: n for n, name in enumerate(names)} | listing.positions
    folders = {name.partition("/")[0] for name in names} | set(listing.classes)
    found, unknown = [], []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        labelled = LABELLED.fullmatch(line)
        name = labelled[1] if labelled else line
        if not name:
            continue
        stem, extension = os.path.splitext(name)
        extension = extension[1:].lower()
        if extension not in EXTENSIONS:
            stem, extension = name, ""
        position, before = _ends_in(stem, known)
        if position is None:
            unknown.append(name)
            continue
        own = listing.extension(position).lower()
        if extension and SAME_EXTENSION.get(extension, extension) != SAME_EXTENSION.get(own, own):
            raise ValueError(f"{where}: line {number}: {name}, but the image {listing.keys[position]!r} is a .{own}")
        own_folders = (names[position].partition("/")[0], listing.classes[listing.labels[position]])
        if before in folders and before not in own_folders:
            raise ValueError(
                f"{where}: line {number}: {name}, but the image {listing.keys[position]!r} is of {own_folders[1]}"
            )
        found.append(position)
    if unknown:
        raise ValueError(
            f"{where}: {_some('file', unknown)} not in the data set; expected a path a line that ends in CLASS/NAME.EXT"
        )
    return found


def _ends_in(stem: str, known: dict[str, int]) -> tuple[int | None, str]:
    """The image whose file or key a path ends in, the longest such end first, and the folder before that end."""
    parts = stem.split("/")
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        position = known.get(end, known.get(end.replace(".", "_")))
        if position is not None:
            return position, parts[start - 1] if start else ""
    return None, ""
