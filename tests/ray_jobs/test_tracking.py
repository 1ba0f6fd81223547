"""Runs are continued, nested and readable, on SQLite and on a real MLflow server; nodes are sampled on a real Ray."""

import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from matplotlib.figure import Figure

from ray_jobs import machine
from ray_jobs.job import described
from ray_jobs.machine import NodeMonitor, NodeSampler
from ray_jobs.tracking import open_tracker

SHA256 = "0123456789abcdef" * 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def starting_server(tmp_path_factory):
    """A server's process, started first: the tests that need none run while it gets ready."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/kept"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True)
    try:
        yield process, f"http://127.0.0.1:{port}", folder / "log"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def server(starting_server):
    process, uri, log = starting_server
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=1).close()
            return uri
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def sqlite_store(tmp_path_factory):
    return tmp_path_factory.mktemp("a store")


@pytest.fixture(params=["sqlite", "server"])
def reopen(request, monkeypatch, sqlite_store):
    """Opens the tracker as a new process would."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = request.getfixturevalue("server") if request.param == "server" else None
    return lambda: open_tracker(uri, "an experiment", str(sqlite_store))


def steps(tracker, run, name):
    return sorted(metric.step for metric in tracker.client.get_metric_history(run.id, name))


def read(tracker, run, path, tmp_path):
    return Path(tracker.client.download_artifacts(run.id, path, str(tmp_path))).read_bytes()


def test_two_processes_open_a_new_store_at_once_and_say_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code = """
import os, sys
from ray_jobs.tracking import open_tracker
child = os.fork()
open_tracker(None, "new", sys.argv[1]).run("a run", "first" if child else "second")
sys.exit(os.waitpid(child, 0)[1] if child else 0)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    tracker = open_tracker(None, "new", str(tmp_path))
    names = [experiment.name for experiment in tracker.client.search_experiments()]
    assert sorted(names) == ["Default", "new"]


def test_a_child_is_nested_below_its_parent(reopen):
    tracker = reopen()
    with tracker.run("pipeline", "nested") as parent, tracker.run("bins", "nested", parent=parent.id) as child:
        pass
    with tracker.run("another", "nested-2") as other:
        adopted = tracker.run("bins", "nested", parent=other.id)
        adopted.finish()
    assert len({parent.id, child.id, other.id, adopted.id}) == 4, "one digest below two parents is two runs"
    found = tracker.client.get_run(child.id)
    assert found.data.tags["mlflow.parentRunId"] == parent.id
    assert found.info.run_name == "bins"
    assert "mlflow.parentRunId" not in tracker.client.get_run(parent.id).data.tags


def test_a_restart_goes_on_in_the_same_run_and_logs_no_step_twice(reopen):
    tracker = reopen()
    with pytest.raises(RuntimeError), tracker.run("weights", "restart", params={"epochs": 9}) as first:
        first.metric_series([(step, {"loss": 1.0}) for step in (0, 1, 5)])
        first.metrics({"images": 10})
        raise RuntimeError("the node is gone")
    failed = tracker.client.get_run(first.id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["error"] == "RuntimeError: the node is gone"

    tracker = reopen()
    with tracker.run("weights", "restart", params={"epochs": 9}) as second:
        running = tracker.client.get_run(second.id)
        assert running.info.status == "RUNNING"
        assert "error" not in running.data.tags
        assert second.next_step("lo") == 6
        second.metric_series([(step, {"loss": 2.0}) for step in (0, 1, 2, 5, 6, 6)])
        second.metric("loss", 3.0, 6)
        second.metrics({"images": 10, "bytes": 20})
    assert second.id == first.id
    assert steps(tracker, second, "loss") == [0, 1, 2, 5, 6]
    assert steps(tracker, second, "images") == steps(tracker, second, "bytes") == [0]
    done = tracker.client.get_run(first.id)
    assert done.info.status == "FINISHED"
    assert done.data.metrics["loss"] == 2.0


def test_an_interrupted_run_is_marked_as_killed(reopen):
    tracker = reopen()
    with pytest.raises(KeyboardInterrupt), tracker.run("score", "killed") as run:
        raise KeyboardInterrupt
    assert tracker.client.get_run(run.id).info.status == "KILLED"


def test_parameters_are_cut_and_may_be_repeated_but_not_changed(reopen):
    tracker = reopen()
    values = {f"option-{number}": number for number in range(150)} | {"data": "x" * 9000, "classes": None}
    run = tracker.run("sample", "params", params=values)
    run.params(values)
    run = reopen().run("sample", "params", params=values)
    logged = tracker.client.get_run(run.id).data.params
    assert len(logged) == 152
    assert logged["data"] == "x" * 6000
    with pytest.raises(ValueError, match=r"option-3.* is '3', now '4'"):
        run.params({"option-3": 4})
    run.finish()


def test_data_sets_are_inputs_with_cut_digests_and_whole_ones_as_tags(reopen):
    for _ in range(2):
        tracker = reopen()
        with tracker.run("write", "datasets") as run:
            run.dataset(
                "cifar10", "s3://bucket/train-{000000..000009}.tar", SHA256, "source", 50_000, {"jpg": "binary"}
            )
            run.dataset("cifar10 10 %", "/data/subset", SHA256[::-1], "subset", 5_000, profile={"bytes": 7})
            run.dataset("own", "/data/own", SHA256, "distilled, 16 colours (ours)", 40)
    found = tracker.client.get_run(run.id)
    inputs = {item.tags[0].value: item.dataset for item in found.inputs.dataset_inputs}
    assert len(found.inputs.dataset_inputs) == 3
    assert inputs["source"].digest == SHA256[:36]
    assert (inputs["source"].source_type, inputs["subset"].source_type) == ("s3", "local")
    assert json.loads(inputs["source"].source) == {"uri": "s3://bucket/train-{000000..000009}.tar"}
    assert json.loads(inputs["subset"].profile) == {"num_rows": 5_000, "bytes": 7}
    assert found.data.tags["dataset.source.sha256"] == SHA256
    assert found.data.tags["dataset.distilled_ 16 colours _ours_.sha256"] == SHA256
    assert found.data.tags["dataset.subset.sha256"] == SHA256[::-1]


def test_artifacts_are_readable_and_written_over_in_place(reopen, tmp_path):
    for text in ("first", "second"):
        tracker = reopen()
        with tracker.run("evaluate", "artifacts") as run:
            run.text(f"# {text}", "report.md")
            run.artifact_bytes(text.encode(), "manifests/bins.json")
            run.figure(Figure((1, 1)), "figures/empty.png")
    assert read(tracker, run, "report.md", tmp_path) == b"# second"
    assert read(tracker, run, "manifests/bins.json", tmp_path) == b"second"
    assert read(tracker, run, "figures/empty.png", tmp_path).startswith(b"\x89PNG")
    assert len(tracker.client.list_artifacts(run.id)) == 3


def test_values_that_are_not_finite_are_logged_as_nan(reopen):
    tracker = reopen()
    with tracker.run("distill", "nan") as run:
        run.metric_series([(0, {"loss": 1.0}), (1, {"loss": math.nan}), (2, {"loss": math.inf})])
        run.metric("loss", math.nan, 1)
    values = [metric.value for metric in tracker.client.get_metric_history(run.id, "loss")]
    assert sorted(map(str, values)) == ["1.0", "nan", "nan"]


def test_a_description_says_what_was_asked_and_what_was_found(reopen, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/ray_jobs/__main__.py", "rank", "--tracking-uri", "http://me:secret@host/a b"])
    told = described("| a |\n|--:|\n| 1 |\n\nruns here\nshards there\n")
    command = "`python -m ray_jobs rank --tracking-uri 'http://host/a b'`"
    assert told == f"{command}\n\n| a |\n|--:|\n| 1 |\n\nruns here  \nshards there  "
    monkeypatch.setattr(sys, "argv", ["pytest", "secret"])
    assert described("found") == "found  "
    tracker = reopen()
    with tracker.run("rank", "described") as run:
        run.note("\n".join(f"| {n} |" for n in range(2000)))
    note = tracker.client.get_run(run.id).data.tags["mlflow.note.content"]
    assert len(note) < 5000 and note.endswith(" |\n\nThe rest is among the artifacts.") and note.startswith("| 0 |\n")


def test_everything_lies_inside_the_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    tracker = open_tracker(None, "here", "../a new store")
    with tracker.run("ingest", "inside") as run:
        run.text("x", "note.md")
    store = tmp_path / "a new store"
    assert (store / "mlflow.db").is_file()
    assert list((store / "mlflow-artifacts").rglob("note.md"))
    location = tracker.client.get_experiment(tracker.experiment_id).artifact_location
    assert location == (store / "mlflow-artifacts").as_uri()
    assert not list(elsewhere.iterdir())
    assert shlex.split(tracker.ui_command())[-1] == f"sqlite:///{store}/mlflow.db"
    assert run.id in tracker.link(run)


def test_a_remote_store_needs_a_tracking_uri(sqlite_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"--tracking-uri or MLFLOW_TRACKING_URI"):
        open_tracker(None, "remote", "s3://bucket/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{sqlite_store}/mlflow.db")
    tracker = open_tracker(None, "remote", "s3://bucket/runs/")
    location = tracker.client.get_experiment(tracker.experiment_id).artifact_location
    assert location == "s3://bucket/runs/mlflow-artifacts"


def test_a_server_decides_where_its_artifacts_are(server, tmp_path):
    tracker = open_tracker(server, "served", str(tmp_path / "store"))
    location = tracker.client.get_experiment(tracker.experiment_id).artifact_location
    assert location.startswith("mlflow-artifacts:")
    assert not (tmp_path / "store").exists()


def test_unusable_addresses_say_what_to_do(tmp_path):
    for folder in (str(tmp_path / "mlruns"), (tmp_path / "mlruns").as_uri(), "mlruns"):
        with pytest.raises(ValueError, match="no longer keeps runs in plain folders"):
            open_tracker(folder, "x", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:\d+ does not answer") as caught:
        open_tracker(f"http://user:secret@127.0.0.1:{free_port()}", "x", str(tmp_path))
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_an_error(sqlite_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = open_tracker(None, "gone", str(sqlite_store))
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ValueError, match="mlflow experiments restore"):
        open_tracker(None, "gone", str(sqlite_store))


def test_a_gpu_that_lacks_a_counter_still_shows_the_others(monkeypatch):
    def lacking(_):
        raise machine.pynvml.NVMLError_NotSupported()

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=20e9, total=80e9),
        "nvmlDeviceGetUtilizationRates": lacking,
        "nvmlDeviceGetPowerUsage": lambda _: 350_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(machine.pynvml, name, answer)
    values = NodeSampler().sample()
    assert {name: value for name, value in values.items() if name.startswith("gpu")} == {
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_memory_usage_megabytes": 20_000.0,
        "gpu_0_power_usage_watts": 350.0,
        "gpu_0_power_usage_percentage": 50.0,
    }


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()


@pytest.mark.parametrize("reopen", ["sqlite"], indirect=True)
def test_nodes_are_sampled_until_the_end_and_a_restart_goes_on(cluster, reopen):
    tracker = reopen()
    node = ray.nodes()[0]["NodeManagerHostname"]
    name = f"system/{node}/cpu_utilization_percentage"
    with tracker.run("compress", "monitored") as run:
        with NodeMonitor(run, interval=0.3):
            wait_for(lambda: run.next_step("system/") >= 3)
        first = run.next_step("system/")
    with reopen().run("compress", "monitored") as again, NodeMonitor(again, interval=0.3):
        wait_for(lambda: again.next_step("system/") >= first + 2)
    assert steps(tracker, run, name) == list(range(again.next_step("system/")))
    metrics = tracker.client.get_run(run.id).data.metrics
    assert 0 < metrics[f"system/{node}/system_memory_usage_percentage"] < 100
    assert metrics[f"system/{node}/disk_available_megabytes"] > 0
    wait_for(
        lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
    )  # it takes no CPU from the work


@pytest.mark.parametrize("reopen", ["sqlite"], indirect=True)
def test_a_monitor_outlives_a_killed_actor_and_never_stops_the_work(cluster, reopen):
    tracker = reopen()
    with tracker.run("compress", "killed actor") as run, NodeMonitor(run, interval=0.3) as monitor:
        wait_for(lambda: run.next_step("system/") >= 1)
        (node,) = monitor._nodes.values()
        ray.kill(node._actor)
        before = run.next_step("system/")
        wait_for(lambda: run.next_step("system/") >= before + 2)
    began = time.monotonic()
    with tracker.run("compress", "short") as run, NodeMonitor(run, interval=30):
        pass
    assert time.monotonic() - began < 5, "a stage that ends at once does not wait for a sample"
