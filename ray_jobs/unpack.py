"""unpack: compact files as WebDataset shards, which `evaluate` and any loader reads: what `pack` and `distill` write.

Containers have no keys: images are called 00000000, 00000001, ... in their order, through all files in the order given. Files come
back as they were, so that they pack to the same bytes again; images in few colours become indexed PNGs, of the same pixels. Memory:
a few times one container's bytes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adq import container
from adq.index import class_texts
from adq.shards import absolute, file_info, join, locate, open_file, tar_bytes
from palette import codec
from palette.export import SOFT, members, png_bytes, soft_bytes
from ray_jobs import write
from ray_jobs.job import opened
from ray_jobs.options import Compute, Place
from ray_jobs.pack import told
from ray_jobs.stages import Part, Stage
from ray_jobs.store import Store, canonical_json, sha256
from ray_jobs.write import SHARD_BYTES, SHARD_IMAGES, Output, cut

VERSION = 1
OWN_MEMBERS = {"cls", SOFT}  # of a sample in shards: no image can have such an extension


class Contents(NamedTuple):
    """What a container holds."""

    files: list[bytes]
    extensions: list[str]
    labels: np.ndarray  # int64 [N] or float16 [N, C]
    classes: list[str]


def run(sources: Sequence[str], out: str, place: Place) -> None:
    """The command: write the images of containers as shards, in the order in which the files are given.

    Raises:
        ValueError: a file is no container, or they have other classes or kinds of labels; the folder holds something else.
        OSError: a place that cannot be read or written.
    """
    paths = [path for source in sources for path in _located(source)]
    digests = [sha256(_bytes(path)) for path in paths]
    with opened(place, Compute(), "unpack", ["unpack", digests, absolute(out)]) as job:
        write.check(out)
        config = {"shard_images": SHARD_IMAGES, "shard_bytes": SHARD_BYTES}
        stage = Output(Store.at(out), "unpack", VERSION, {"files": sha256(canonical_json(digests))}, config)
        job.run.params({"from": " ".join(paths)})
        # Before --out is claimed, which then takes no other files.
        only = checked(paths) if stage.manifest() is None else None
        stage.claim()

        def work(stage: Stage) -> tuple[list[Part], dict]:
            shards, count = [], 0
            for path in paths:
                contents = only or read(path)
                for shard in cut(_samples(contents, count)):
                    name = f"train-{len(shards):06d}"
                    shards.append(stage.commit(name, tar_bytes(members(shard)), len(shard), "tar"))
                count += len(contents.files)
            names = "".join(f"{name}\n" for name in contents.classes).encode()
            summary = {
                "images": count, "files": len(paths), "payload_bytes": sum(file_info(path).size for path in paths),
                "tar_bytes": sum(part.bytes for part in shards),
            }  # fmt: skip
            return [*shards, stage.commit("classes", names, len(contents.classes), "txt")], summary

        made = job.stage(stage, work)
        s = made.summary
        job.run.metrics(s)
        job.run.dataset("unpacked", absolute(out), made.content, "subset", s["images"])
        job.report(f"{told(s, s['tar_bytes'])}\nshards   {absolute(out)}")


def read(path: str) -> Contents:
    """A container of any images, or of few colours, which become indexed PNGs.

    Raises:
        ValueError: the file is none, or one whose class names or extensions shards cannot have.
    """
    data = _bytes(path)
    try:
        if data.startswith(codec.MAGIC):
            palettes, indices, labels, classes = codec.decode(data)
            files = [png_bytes(palette, image) for palette, image in zip(palettes, indices, strict=True)]
            found = Contents(files, ["png"] * len(files), labels, classes)
        else:
            found = Contents(*container.unpack(data))
    except ValueError as error:
        raise ValueError(f"--from {path}: {error}") from error
    listed = [line.strip() for line in "\n".join(found.classes).splitlines() if line.strip()]
    if listed != found.classes or len(set(listed)) != len(listed):
        raise ValueError(
            f"--from {path}: its class names are not different lines of text, as classes.txt must have them"
        )
    if wrong := {one.lower() for one in found.extensions} & OWN_MEMBERS:
        raise ValueError(f"--from {path}: an image has the extension {min(wrong)}, which is a label's in shards")
    return found


def checked(paths: Sequence[str]) -> Contents | None:
    """Read every container before anything is written.

    Returns:
        What the only one holds; None of several, which are too much to be held together.

    Raises:
        ValueError: as `read`, or containers that are not of one set.
    """
    kind: tuple[list[str], int] | None = None
    for path in paths:
        contents = read(path)
        found = contents.classes, contents.labels.ndim
        if kind not in (None, found):
            raise ValueError(
                f"--from {path}: has other classes, or another kind of labels, than {paths[0]}; unpack them one by one"
            )
        kind = found
    return contents if len(paths) == 1 else None


def _samples(contents: Contents, start: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of shards."""
    told = class_texts(contents.classes)
    rows = zip(contents.files, contents.extensions, contents.labels, strict=True)
    for n, (data, extension, label) in enumerate(rows, start):
        sample = {extension: data, "cls": told[label.argmax() if label.ndim else label].encode()}
        yield f"{n:08d}", sample | ({SOFT: soft_bytes(label)} if label.ndim else {})


def _located(source: str) -> list[str]:
    try:
        found = locate([source], "")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--from {source}: no such file; give files that pack or distill wrote") from error
    return [join(found.root, name) for name in found.shards]


def _bytes(path: str) -> bytes:
    with open_file(path) as stream:
        return stream.read()
