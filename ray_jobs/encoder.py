"""The actor of `ray_jobs.encode`: it stores the images of a shard in another way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from adq.images import UndecodableImage, decode, header_size, upright_size
from adq.patches import fits, grid
from adq.saliency import fill_error, random_saliency
from adq.shards import DataSet, chunks, join, read_samples, tar_bytes
from palette.encodings import ORIGINAL, Encoded, Encoding, encode, resized, resized_size
from ray_jobs.ingest import full_key, undecodable
from ray_jobs.saliency import NONE
from ray_jobs.stages import Part, Stage

BATCH = 256  # images that are encoded together
ENCODED = ".tessera/encoded/"  # before a shard's name: what became of its images
SCHEMA = pa.schema([
    ("key", pa.string()), ("label", pa.int64()), ("bytes_before", pa.int64()), ("extension", pa.string()),
    ("bytes", pa.int64()),
    ("kept_side", pa.int32()),  # shorter side in pixels of an image that was to be stored anew, and stays as it was
    ("error", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class How:
    """How images are stored, as far as they themselves decide it."""

    encoding: Encoding
    saliency: str = "random"  # of patches, where some are dropped
    seed: int = 0  # of random saliency
    decoded: bool = False  # files that stay as they are must be images, too

    def encoded(
        self, keys: Sequence[str], files: Sequence[tuple[str, bytes]], ranked: Mapping[str, np.ndarray]
    ) -> list[Encoded | UndecodableImage]:
        """Images as they are stored, or why they cannot be.

        Args:
            files: (extension, bytes) of each image. ranked: the saliency of its patches by key, where a network gave it.
        """
        try:
            if self.encoding == ORIGINAL and self.decoded:
                for _, data in files:
                    decode(data)  # as `encode` does of any other
            return encode(files, self.encoding, self._saliency(keys, files, ranked))
        except UndecodableImage:
            errors = {i: error for i, (_, data) in enumerate(files) if (error := _error(data))}
            if not errors:
                raise
            good = [i for i in range(len(files)) if i not in errors]
            made = iter(self.encoded([keys[i] for i in good], [files[i] for i in good], ranked) if good else ())
            return [errors[i] if i in errors else next(made) for i in range(len(files))]

    def _saliency(
        self, keys: Sequence[str], files: Sequence, ranked: Mapping[str, np.ndarray]
    ) -> list[np.ndarray] | None:
        if not self.encoding.patches:
            return None
        if self.saliency == "grad-cam":
            return [ranked[key] for key in keys]
        sizes = [resized_size(upright_size(data), self.encoding.resize)[::-1] for _, data in files]
        with_patches = [i for i, size in enumerate(sizes) if fits(*size)]
        if self.saliency == "fill-error":  # one by one: decoded images can be hundreds of times their files
            images = (resized(decode(files[i][1]), self.encoding.resize) for i in with_patches)
            found = dict(zip(with_patches, fill_error(images), strict=True))
        else:
            cuts = {i: grid(*sizes[i]) for i in with_patches}
            found = {i: random_saliency(keys[i], cut.rows, cut.columns, self.seed) for i, cut in cuts.items()}
        return [found.get(i, NONE) for i in range(len(files))]


@dataclass(frozen=True)
class Plan:
    """What an actor must know."""

    stage: Stage
    data: DataSet
    image_ext: tuple[str, ...]
    key_prefix: str
    classes: tuple[str, ...]
    how: How
    skip_corrupt: bool


class Encoder:
    """An actor that encodes the images of a shard."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def ready(self, _shared: list) -> None:
        """Nothing to load."""

    def work(
        self, _shared: list, shard: str, labels: Mapping[str, int], ranked: Mapping[str, np.ndarray]
    ) -> list[Part]:
        """The encoded shard, if an image of it could be decoded, and what became of each image.

        Args:
            labels: by key. ranked: the saliency of each image's patches, where a network gave it.
        """
        members: list[tuple[str, bytes]] = []
        rows: list[tuple] = []
        for batch in chunks(read_samples(self.plan.data, shard), BATCH):
            keys = [full_key(shard, sample["__key__"], self.plan.key_prefix) for sample in batch]
            files = [next((e, sample[e]) for e in self.plan.image_ext if e in sample) for sample in batch]
            for key, sample, (extension, before), after in zip(
                keys, batch, files, self.plan.how.encoded(keys, files, ranked), strict=True
            ):
                name = sample["__key__"]
                if isinstance(after, UndecodableImage):
                    rows.append((key, labels[key], len(before), None, 0, None, str(after)))
                    continue
                kept = min(header_size(before)) if not after.gained and self.plan.how.encoding != ORIGINAL else None
                members.append((f"{name}.{after.extension}", after.data))
                members += [(f"{name}.{e}", d) for e, d in sample.items() if e != extension and not e.startswith("__")]
                rows.append((key, labels[key], len(before), after.extension, len(after.data), kept, None))
        errors = [(shard, row[0], row[-1]) for row in rows if row[-1]]
        if errors and not self.plan.skip_corrupt:
            raise undecodable(errors)
        if len(rows) != len(labels):
            raise ValueError(f"{join(self.plan.data.root, shard)}: changed since ingest; run again to ingest it anew")
        name, stage = shard.removesuffix(".tar"), self.plan.stage
        table = pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA)
        # An empty shard would stop whoever reads it.
        made = [stage.commit(name, tar_bytes(members), len(rows) - len(errors), "tar")] if members else []
        return [*made, stage.commit_table(ENCODED + name, table)]


def _error(data: bytes) -> UndecodableImage | None:
    try:
        decode(data)
    except UndecodableImage as error:
        return error
    return None
