"""Small shards as bytes, and what the index says of them."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from adq.index import Labels, ShardScan, scan
from adq.shards import tar_bytes

WHERE = "/data/train-000042.tar"
BLOCK = 512


def jpeg(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = jpeg()


def sample(key: str, label: str | bytes = "0", image: bytes = JPEG) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image), (f"{key}.cls", label.encode() if isinstance(label, str) else label)]


def read(data: bytes, labels: Labels | None = None, **options) -> ShardScan:
    return scan(io.BytesIO(data), len(data), WHERE, labels or Labels(), **options)


def members(*given: list[tuple[str, bytes]], **options) -> ShardScan:
    return read(tar_bytes(itertools.chain(*given)), **options)


def refused(data: bytes, *words: str, labels: Labels | None = None) -> None:
    """The shard is refused with its name, and with each of the words."""
    with pytest.raises(ValueError, match="train-000042") as caught:
        read(data, labels)
    assert type(caught.value) is ValueError
    for word in words:
        assert word in str(caught.value)
