"""What storing images in another way takes, told by some of them before all are encoded: time, and bytes in containers."""

import io
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from adq.container import label_bytes
from adq.file_heads import split
from adq.randomness import numpy_generator
from adq.varints import varint_bytes
from palette.encodings import ORIGINAL, Encoded
from ray_jobs import feature_cost, ingest
from ray_jobs.accuracy import as_bytes
from ray_jobs.actors import pool_size
from ray_jobs.budget import as_budget
from ray_jobs.containers import LARGEST_SIDE, palette_container
from ray_jobs.encode import Storage
from ray_jobs.encoder import How
from ray_jobs.feature_cost import Looked
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.members import image_files
from ray_jobs.options import Backbone, Compute, Data, Place
from ray_jobs.payload import payload_bytes
from ray_jobs.progress import clock

SAMPLED = 256  # images that are encoded, at most
SECONDS = 2.0  # of work after which no further ones are
TOGETHER = 4  # the first time, then twice as many each time


@dataclass(frozen=True)
class Sampled:
    """What an encoding makes of an image, in the mean."""

    seconds: float  # on one thread
    own: float  # bytes in a container
    shared: int = 0  # bytes that a container holds once

    def payload(self, images: int) -> int:
        return round(self.shared + images * self.own)

    def fitting(self, budget: int, most: int) -> int:
        """Images that a budget holds, of so many."""
        return max(0, min(most, int((budget - self.shared) / self.own)))


def sampled(index: Index, storage: Storage, skip_corrupt: bool = False) -> Sampled:
    """Encode images of a data set, drawn at random. Patches that a network would rank are dropped by chance here.

    Raises:
        ValueError: none of them can be decoded.
    """
    encoding = storage.encoding()
    if encoding == ORIGINAL and not skip_corrupt:
        return Sampled(0.0, payload_bytes(index) / index.images)
    how = How(encoding, "random" if storage.needs_network else storage.saliency, decoded=skip_corrupt)
    drawn = numpy_generator(0, "encoding-cost").permutation(index.images)[:SAMPLED]
    keys = index.table()["key"]
    made: list[Encoded] = []
    spent, seen, together = 0.0, 0, TOGETHER
    while seen < len(drawn) and (spent < SECONDS or not made):
        rows = drawn[seen : seen + together]
        extensions = (index.stored.names[index.stored.extensions[row]] for row in rows)
        files = list(zip(extensions, image_files(index, rows), strict=True))
        started = time.monotonic()
        found = how.encoded([keys[int(row)].as_py() for row in rows], files, {})
        spent, seen, together = spent + time.monotonic() - started, seen + len(rows), 2 * together
        made += [one for one in found if isinstance(one, Encoded)]
    if not made:
        raise ValueError(f"{index.data.root}: of {seen:,} images drawn at random none can be decoded")
    if encoding == ORIGINAL:
        return Sampled(spent / seen, payload_bytes(index) / index.images)
    return _measured(made, index.classes, spent / seen)


def _measured(made: Sequence[Encoded], classes: Sequence[str], seconds: float) -> Sampled:
    """In the mean of some encoded images. A head that only one of them has tells of as many more among as many more (Good, 1953):
    it counts as that image's own."""
    heads, owns = zip(*(split(one.data) for one in made), strict=True)
    met = Counter(heads)
    sizes = np.array([len(own) + (len(head) if met[head] == 1 else 0) for head, own in zip(heads, owns, strict=True)])
    own = float((sizes + varint_bytes(sizes)).mean()) + label_bytes(len(classes))
    shared = sum(len(head) for head, count in met.items() if count > 1)
    if (coded := _in_few_colors(made)) is not None:
        own, shared = min((own, shared), (coded / len(made) + label_bytes(len(classes)) - label_bytes(1), 0))
    return Sampled(seconds, own, shared + sum(2 + len(name.encode()) for name in classes))


def _in_few_colors(made: Sequence[Encoded]) -> int | None:
    """Bytes of indexed PNGs in containers of `palette.codec`, one for each size; None where some are none, or too large."""
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for one in made:
        if one.extension != "png":
            return None
        with Image.open(io.BytesIO(one.data), formats=["PNG"]) as image:
            if image.mode != "P" or max(image.size) > LARGEST_SIDE:
                return None
            groups[image.size].append(one.data)
    return sum(len(palette_container(files, np.zeros(len(files), np.int64), ("",))) for files in groups.values())


def told(job: Job, index: Index, found: Mapping[Storage, Sampled], images: int, budgets: Sequence[int] = ()) -> str:
    """What so many images of a set take in each encoding, and how many of them a budget holds, in the words of a person."""
    actors = pool_size(job.cluster, job.compute, "cpu", len(index.data.shards))
    lines = []
    for storage, one in found.items():
        exact = storage.encoding() == ORIGINAL and images == index.images
        line = f"{storage.encode}: {'' if exact else 'about '}{as_bytes(one.payload(images))}"
        if one.seconds:
            line += f", stored in about {clock(images * one.seconds / actors)}"
        fit = ((as_budget(budget), one.fitting(budget, index.images)) for budget in budgets)
        held = [f"{budget} hold {'all' if n == index.images else f'about {n:,}' if n else 'none'}" for budget, n in fit]
        lines.append("; ".join([line, ", ".join(held)] if held else [line]))
    return "\n".join(f"{'' if n else 'payload':<13} {line}" for n, line in enumerate(lines))


def tell(storage: Storage, data: Data, backbone: Backbone, compute: Compute, place: Place) -> None:
    """A command: read the shards, and say what encoding them will take, and to how many bytes."""
    identity = ["encode", asdict(storage), asdict(data), asdict(backbone)]
    with opened(place, compute, f"encode {storage.encode}", identity) as job:
        index = ingest.run(job, data, require_all_classes=False)
        found = {storage: sampled(index, storage, data.skip_corrupt)}
        print(told(job, index, found, index.images), flush=True)
        if storage.needs_network:
            print(feature_cost.estimate(Looked(job, index, backbone, (), index.images)), flush=True)
