"""System metrics of the nodes that work, where MLflow's UI shows them: on the run's page for them.

One small actor a node reads the node's counters; the driver collects them and logs, as the only one that writes.
"""

import contextlib
import logging
import math
import os
import re
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pynvml
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:  # the actors need no MLflow
    from ray_jobs.mlflow_run import Run

logger = logging.getLogger(__name__)

PREFIX = "system/"
LAST_SAMPLE_S = 2.0
MAX_FAILURES = 3


class NodeSampler:
    """Reads the counters of the machine that it runs on, under MLflow's own names."""

    def __init__(self):
        psutil.cpu_percent()  # the share is measured from one call to the next
        self._received, self._sent = _network_bytes()
        try:
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            self._gpus = []

    def sample(self) -> dict[str, float]:
        """cpu_utilization_percentage and its like; megabytes are 10^6 bytes, network counts from the start."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
        received, sent = _network_bytes()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (received - self._received) / 1e6,
            "network_transmit_megabytes": (sent - self._sent) / 1e6,
        }
        for number, gpu in enumerate(self._gpus):
            # A device may lack a counter (a MIG slice has no utilisation): the others still count.
            with contextlib.suppress(pynvml.NVMLError):
                memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                values[f"gpu_{number}_memory_usage_percentage"] = memory.used / memory.total * 100
                values[f"gpu_{number}_memory_usage_megabytes"] = memory.used / 1e6
            with contextlib.suppress(pynvml.NVMLError):
                values[f"gpu_{number}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            with contextlib.suppress(pynvml.NVMLError):
                watts = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
                values[f"gpu_{number}_power_usage_watts"] = watts
                limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3
                values[f"gpu_{number}_power_usage_percentage"] = watts / limit * 100
        return {name: round(float(value), 1) for name, value in values.items()}


class NodeMonitor:
    """While it is open, logs `system/<node>/...` metrics of every node of the cluster to a run.

    Nodes that join are found, nodes that die are left out. Nothing that goes wrong here stops the work. A restart's
    steps go on after the last one that is logged.

    Args:
        run: the run to log to.
        interval: seconds between samples.
    """

    def __init__(self, run: "Run", interval: float = 5.0):
        if not (interval > 0 and math.isfinite(interval)):
            raise ValueError(f"interval is {interval}, expected a number of seconds above 0")
        self._run = run
        self._interval = interval
        self._step = run.next_step(PREFIX)
        self._stop = threading.Event()
        self._nodes: dict[str, _Node] = {}
        self._thread = threading.Thread(target=self._watch, name="node-monitor", daemon=True)

    def __enter__(self) -> "NodeMonitor":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join(LAST_SAMPLE_S + self._interval)

    def _watch(self) -> None:
        try:
            while not self._stop.is_set() and ray.is_initialized():
                began = time.monotonic()
                self._find_nodes()
                self._collect(self._interval)
                self._stop.wait(max(0.0, self._interval - (time.monotonic() - began)))
            self._collect(LAST_SAMPLE_S)
        except Exception:
            logger.warning("system metrics end here; the work goes on", exc_info=True)
        finally:
            if ray.is_initialized():
                for node in self._nodes.values():
                    node.close()

    def _find_nodes(self) -> None:
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node_id in self._nodes.keys() - alive.keys():
            self._nodes.pop(node_id).close()
        names = {node.name for node in self._nodes.values()}
        for node_id in sorted(alive.keys() - self._nodes.keys()):
            name = re.sub(r"[^\w.-]", "_", alive[node_id]["NodeManagerHostname"])
            if name in names:  # several nodes on one machine
                name = f"{name}-{node_id[:6]}"
            names.add(name)
            self._nodes[node_id] = _Node(node_id, name)

    def _collect(self, timeout: float) -> None:
        """Ask every node and log what comes within `timeout` seconds; a slow node's answer counts when it comes."""
        asked = {node.ask(): node for node in self._nodes.values() if node.failures < MAX_FAILURES}
        values = {}
        deadline = time.monotonic() + timeout
        while asked and not (self._stop.is_set() and not any(node.ready for node in asked.values())):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            done, _ = ray.wait(list(asked), timeout=min(left, 0.2))
            for answer in done:
                node = asked.pop(answer)
                values |= {f"{PREFIX}{node.name}/{name}": value for name, value in node.take(answer).items()}
        if values:
            self._run.metrics(values, step=self._step)
            self._step += 1


class _Node:
    """A node's actor, and the answer that it owes."""

    def __init__(self, node_id: str, name: str):
        self.name = name
        self.ready = False
        self.failures = 0
        self._node_id = node_id
        self._answer = None
        self._start()

    def _start(self) -> None:
        strategy = NodeAffinitySchedulingStrategy(self._node_id, soft=False)
        self._actor = ray.remote(NodeSampler).options(num_cpus=0, scheduling_strategy=strategy).remote()

    def ask(self) -> ray.ObjectRef:
        if self._answer is None:
            self._answer = self._actor.sample.remote()
        return self._answer

    def take(self, answer: ray.ObjectRef) -> dict[str, float]:
        self._answer = None
        try:
            values = ray.get(answer)
        except RayError:
            # The actor was killed, for instance for memory, or its node died and is left out from the next sample on.
            self.ready = False
            self.failures += 1
            if self.failures == MAX_FAILURES:
                logger.warning("no more system metrics of node %s", self.name, exc_info=True)
            else:
                self._start()
            return {}
        self.ready, self.failures = True, 0
        return values

    def close(self) -> None:
        with contextlib.suppress(RayError, ValueError):
            ray.kill(self._actor)


def _network_bytes() -> tuple[int, int]:
    counters = psutil.net_io_counters()
    return (counters.bytes_recv, counters.bytes_sent) if counters else (0, 0)
