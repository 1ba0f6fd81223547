"""What the tests share: the real images, where they are, and one Ray cluster a module that needs it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def cifar10_shard(number: int, split: str = "train") -> str:
    """The path of a shard of real images; skips, loudly, where there is none."""
    path = DATA / "cifar10" / f"cifar10-{split}-{number:06d}.tar"
    if not path.exists():
        pytest.skip(f"no real images at {path}")
    return str(path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch with one thread: faster on small tensors, and sums are added up in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def settled_arithmetic(one_thread: None) -> Iterator[None]:
    """What an actor sets for its process (`adq.process.settle`) ends with the test."""
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty bucket behind a real S3 API: moto's server in a process of its own, on loopback."""
    import boto3  # with its server half a second of import: only for the tests that need it

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "server.log"
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch, open(log, "wb") as output:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "tessera", "AWS_SECRET_ACCESS_KEY": "tessera",
            "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f"the S3 server does not answer: {log.read_text()[-2000:]}")
                    time.sleep(0.1)
            boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="tessera-test")
            yield "s3://tessera-test"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
