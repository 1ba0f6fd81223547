"""More than one node: every node must see the driver's files, or the error says what to use instead."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import ray

from ray_jobs.cluster import Cluster, probe

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus", "0", "--block", "--disable-usage-stats"]


def nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def wait(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{nodes()} nodes after {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def second_node(cluster, tmp_path) -> Iterator[None]:
    """A node whose folder `hidden` is another file system, as on a machine without the shared mount."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a node with other mounts needs root and unshare")
    join = f"mount -t tmpfs none '{hidden}' && exec {' '.join(RAY)} --address {cluster}"
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", join], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait(lambda: nodes() == 2 or process.poll() is not None)
        assert process.poll() is None, "the second node did not start"
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        wait(lambda: nodes() == 1)


def test_a_place_that_a_node_does_not_see_is_named(second_node, tmp_path):
    seen = Cluster(cpus=1, gpus=0, nodes=2)
    shared = tmp_path / "shared"
    shared.mkdir()
    probe(seen, [str(shared), "s3://not-looked-at"])
    assert not list(shared.iterdir()), "the probe leaves nothing behind"
    with pytest.raises(
        ValueError, match=r"hidden: node .* does not see .*s3://, gs:// or a mount that all nodes share"
    ):
        probe(seen, [str(tmp_path / "hidden")])
