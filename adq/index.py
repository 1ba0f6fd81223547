"""What a shard holds: keys, labels and byte ranges. What its headers can show to be wrong is an error here.

A shard is read once, front to back; every error names the file and the key and says what to do.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import BinaryIO, NamedTuple

from adq.file_heads import split
from adq.images import EXTENSIONS, UndecodableImage, header_size

# Longer for bzip2: a tar begins with its first member's name, which may be BZh.jpg.
COMPRESSED = {rb"\x1f\x8b": "gzip", rb"BZh.1AY&SY": "bzip2", rb"\xfd7zXZ": "xz", rb"\x28\xb5\x2f\xfd": "zstd"}
BLOCK = 512
MOST_CLASSES = 0xFFFF  # that a container holds
SIZED_IMAGES = 16  # images a shard whose header is read for its size


class Member(NamedTuple):
    name: str
    offset: int  # of the data, in bytes from the start of the shard
    size: int
    sha256: str


class Parts(NamedTuple):
    """The sizes of an image's parts in the container of `adq.container`, which holds each head once."""

    own: int  # bytes
    head: str  # which it is: the first 16 hex digits of its sha256; empty for no head
    head_bytes: int

    @classmethod
    def of(cls, data: bytes) -> "Parts":
        head, own = split(data)
        return cls(len(own), hashlib.sha256(head).hexdigest()[:16] if head else "", len(head))


@dataclass(frozen=True)
class Sample:
    """One key of a shard: its label, where its members lie, and what its image takes in a container."""

    key: str
    label: int
    members: tuple[Member, ...]
    image: Parts


@dataclass(frozen=True)
class Labels:
    """How labels are read: `cls` (a member that holds an integer or a class name) or `json:FIELD`.

    With `json:FIELD`, a sample without a .json member is read by its .cls: distilled images stand beside such data.
    """

    source: str = "cls"
    classes: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.source != "cls" and not re.fullmatch(r"json:[^:]+", self.source):
            raise ValueError(f"--label {self.source}: expected cls or json:FIELD")

    @property
    def extension(self) -> str:
        return "cls" if self.source == "cls" else "json"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes or ())}

    def parse(self, data: bytes, where: str) -> int:
        """The label as an integer; what is a class name and a number, too, is the name (`class_texts` writes such).

        Raises:
            ValueError: there is none, or one outside the classes.
        """
        value: object = data[:200].decode("utf-8", "replace").strip()
        if self.source != "cls":
            field = self.source.removeprefix("json:")
            try:
                value = json.loads(data)
                for part in field.split("."):
                    value = value[part]
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise ValueError(f"{where}: no field {field!r} in its json member; see --label") from error
        if not isinstance(value, bool) and str(value) in self._numbers:
            return self._numbers[str(value)]
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", str(value)):  # int() would take 1_0 for 10
            raise ValueError(f"{where}: label {str(value)[:60]!r} is neither a number nor a class name; see --classes")
        label = int(str(value))
        most = len(self.classes or range(MOST_CLASSES))
        if not 0 <= label < most:
            known = f"0 to {most - 1:,}"
            raise ValueError(f"{where}: label {label} is outside the classes ({known}); see --classes")
        return label


def class_texts(classes: Sequence[str]) -> list[str]:
    """What a `.cls` member says of each class: its number, or its name where names of classes are numbers, too."""
    numbers = [str(number) for number in range(len(classes))]
    return list(classes) if {*numbers} & {*classes} else numbers


@dataclass(frozen=True)
class ShardScan:
    """A shard's samples in its own order, and the shorter side in pixels of its first images."""

    samples: tuple[Sample, ...]
    sides: tuple[int, ...]


def split_name(name: str, where: str) -> tuple[str, str]:
    """(key, extension) of a member. Raises ValueError for names that WebDataset would read in two ways."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{where}: member {name!r} points outside the archive")
    if any("\ud800" <= character <= "\udfff" for character in name):  # how tarfile shows bytes that are no UTF-8
        raise ValueError(f"{where}: member {name!r} has a name that is not UTF-8; rename it")
    folder, _, base = name.rpartition("/")
    parts = base.split(".")
    if len(parts) > 2:
        raise ValueError(
            f"{where}: member {name!r} has more than one dot; rename it so that only the extension has one"
        )
    if len(parts) < 2 or not parts[0] or not parts[1]:
        raise ValueError(f"{where}: member {name!r} has no key or no extension; expected KEY.EXT")
    return (f"{folder}/{parts[0]}" if folder else parts[0]), parts[1].lower()


def scan(stream: BinaryIO, size: int, where: str, labels: Labels, image_ext: tuple[str, ...] = EXTENSIONS) -> ShardScan:
    """Read a shard front to back.

    Args:
        stream: seekable, at its start.
        size: bytes of the whole file.
        where: the file's name, for errors.
        labels: how labels are read.
        image_ext: the extensions that count as the image.

    Raises:
        ValueError: a compressed, truncated or damaged tar; a key whose members are not adjacent, or that comes twice;
            a sample without a label or an image, or with two; a label outside the classes.
    """
    magic = stream.read(16)
    stream.seek(0)
    for start, kind in COMPRESSED.items():
        if re.match(start, magic):
            raise ValueError(f"{where}: is compressed with {kind}; unpack it to a plain tar (byte ranges need one)")
    groups: dict[str, list[Member]] = {}
    samples: list[Sample] = []
    sides: list[int] = []
    label: int | None = None
    plain: bytes | None = None  # the .cls of a sample that may have no .json
    image: Parts | None = None
    end, current = 0, None

    def close() -> None:
        nonlocal label, plain, image
        if current is None:
            return
        if label is None and plain is not None:
            label = replace(labels, source="cls").parse(plain, f"{where}: key {current!r}")
        images = [m.name for m in groups[current] if m.name.rsplit(".", 1)[-1].lower() in image_ext]
        if label is None:
            raise ValueError(f"{where}: key {current!r} has no label (.{labels.extension} member); see --label")
        if len(images) != 1:
            found = "no image" if not images else f"{len(images)} images ({', '.join(images)})"
            raise ValueError(f"{where}: key {current!r} has {found}; expected one member of {','.join(image_ext)}; "
                             "see --image-ext")  # fmt: skip
        samples.append(Sample(current, label, tuple(groups[current]), image))
        label = plain = image = None

    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                tar.members = []
                end = max(end, info.offset_data + -(-info.size // BLOCK) * BLOCK if info.isreg() else info.offset_data)
                base = info.name.rpartition("/")[2]
                if info.issym() or info.islnk():
                    raise ValueError(
                        f"{where}: member {info.name} is a link; write the file itself (tar --dereference)"
                    )
                if not info.isreg() or re.match(r"__[^/]*__($|/)", info.name) or base.startswith("._"):
                    continue
                if info.issparse():
                    raise ValueError(f"{where}: member {info.name} is sparse; write the tar again without --sparse")
                key, ext = split_name(info.name, where)
                data = tar.extractfile(info).read()
                if len(data) != info.size:
                    raise ValueError(f"{where}: is truncated inside {info.name}; copy it again")
                if key != current:
                    close()
                    _check_new(key, info.name, groups, where)
                    current, groups[key] = key, []
                if any(member.name.rsplit(".", 1)[-1].lower() == ext for member in groups[key]):
                    raise ValueError(f"{where}: key {key!r} comes twice (member {info.name}); keys are unique")
                groups[key].append(Member(info.name, info.offset_data, info.size, hashlib.sha256(data).hexdigest()))
                if ext == labels.extension:
                    label = labels.parse(data, f"{where}: key {key!r}")
                elif ext == "cls":
                    plain = data
                if ext in image_ext:
                    image = Parts.of(data)
                    if len(sides) < SIZED_IMAGES:
                        sides.extend(_side(data))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{where}: is damaged or truncated ({error}); copy it again") from error
    stream.seek(end)
    tail = stream.read(2 * BLOCK)
    if len(tail) < 2 * BLOCK or any(tail):
        raise ValueError(f"{where}: is truncated or damaged after byte {end} of {size}: the two closing blocks of a tar "
                         "are missing; copy or write it again")  # fmt: skip
    while rest := stream.read(1 << 20):
        if any(rest):
            raise ValueError(f"{where}: more follows the closing blocks at byte {end}: tars that were put together with cat; "
                             "keep them as shards of their own")  # fmt: skip
    close()
    if not samples:
        raise ValueError(f"{where}: holds no samples; leave it out, or see --image-ext and --label")
    return ShardScan(tuple(samples), tuple(sides))


def _check_new(key: str, name: str, groups: dict[str, list[Member]], where: str) -> None:
    if key not in groups:
        return
    if any(member.name == name for member in groups[key]):
        raise ValueError(f"{where}: key {key!r} comes twice (member {name}); keys are unique in a data set")
    raise ValueError(f"{where}: the members of key {key!r} are not adjacent; write each sample's members side by side")


def _side(data: bytes) -> list[int]:
    try:
        return [min(header_size(data))]
    except UndecodableImage:
        return []  # recorded with its reason by `extract`, which decodes every image
