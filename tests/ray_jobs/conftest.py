"""One real Ray cluster for all tests of the jobs, and small real data sets as shards."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from adq.shards import tar_bytes
from ray_jobs.options import Compute
from tests.conftest import cifar10_shard

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# One actor each time: what a process costs to start is most of a small job. Tests of several actors say so.
CPU = Compute(device="cpu", batch_size=64, actors=1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A local cluster of three logical CPUs; commands in other processes join it through RAY_ADDRESS."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    address = ray.get_runtime_context().gcs_address
    os.environ["RAY_ADDRESS"] = address
    yield address
    del os.environ["RAY_ADDRESS"]
    ray.shutdown()


def real_samples(count: int, shard: int = 0, split: str = "train") -> list[tuple[str, bytes, int]]:
    """(key, JPEG bytes, label) of the first images of a shard of ../shared/data/cifar10."""
    out: list[tuple[str, bytes, int]] = []
    with tarfile.open(cifar10_shard(shard, split)) as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name.endswith(".jpg"):
                key, image = member.name.removesuffix(".jpg"), data
            else:
                out.append((key, image, int(data)))
            if len(out) == count:
                return out
    return out


def write_shard(path: Path, samples: list[tuple[str, bytes, int]]) -> None:
    members = []
    for key, image, label in samples:
        members += [(f"{key}.jpg", image), (f"{key}.cls", str(label).encode())]
    path.write_bytes(tar_bytes(members))


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A folder with 4 shards of real images, 300, 250, 200 and 50, and classes.txt."""
    folder = tmp_path_factory.mktemp("shards")
    samples = real_samples(800)
    for n, (start, end) in enumerate(((0, 300), (300, 550), (550, 750), (750, 800))):
        write_shard(folder / f"part-{n:06d}.tar", samples[start:end])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def members(path: Path, pattern: str = "*.tar") -> dict[str, bytes]:
    """Every member of every tar in a folder."""
    out = {}
    for tar_path in sorted(path.glob(pattern)):
        with tarfile.open(fileobj=io.BytesIO(tar_path.read_bytes())) as tar:
            for member in tar:
                out[member.name] = tar.extractfile(member).read()
    return out


def tars(path: Path) -> int:
    """Bytes of every tar in a folder and those below."""
    return sum(tar_path.stat().st_size for tar_path in path.rglob("*.tar"))
