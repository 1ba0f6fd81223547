"""Kill the pipeline in every stage, run it again, and compare every output with an undisturbed run.

    python -m tests.bench.kills --data 'SHARDS' --work DIR [--weights train:1] [--backbone convnet-d3-w32]

Prints one line a stage: where it was killed, whether all sha256 are the same. Exits 1 where one is not.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STAGES = ("ingest", "weights", "extract", "bins", "discriminator", "ratios", "score", "sample", "write")


def command(data: Sequence[str], store: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "ray_jobs", "compress", "--data", *data, "--store", str(store), "--out", str(out), *more,
    ]  # fmt: skip


def outputs(store: Path, out: Path) -> dict[str, str]:
    """sha256 of every file that is a result: parts and manifests, not run.json, MLflow or Ray Train's own."""
    found = {}
    for root, name in ((store, "store"), (out, "out")):
        for path in sorted(root.rglob("*")):
            parts = path.relative_to(root).parts
            if (
                path.is_file()
                and path.name != "run.json"
                and (name == "out" or parts[0] in STAGES)
                and "train" not in parts
            ):
                found[f"{name}/{'/'.join(parts)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def begun(store: Path, out: Path, stage: str) -> Callable[[], bool]:
    """Whether a stage has begun and is not finished: its first marker is there, or what comes before it is finished."""
    before = STAGES[STAGES.index(stage) - 1] if stage != "ingest" else None
    folder = out if stage == "write" else store / stage

    def condition() -> bool:
        if stage == "write":
            return (out / ".tessera" / "owner.json").exists()
        if any(folder.glob("*/parts/*.json")):
            return not any(folder.glob("*/manifest.json"))
        return (
            before is not None
            and stage not in ("ingest", "extract", "ratios")
            and any((store / before).glob("*/manifest.json"))
        )

    return condition


def kill_when(arguments: list[str], condition: Callable[[], bool], limit: float = 600.0, delay: float = 0.0) -> bool:
    """Start a command in a session of its own, kill it all at once when the condition holds; False where it ended first."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if process.poll() is not None:
            if process.returncode:
                raise RuntimeError(process.stderr.read().decode()[-2000:])
            return False
        if condition():
            time.sleep(delay)
            ended = process.poll() is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return not ended
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    raise TimeoutError(f"nothing to kill after {limit} s: {' '.join(arguments)}")


def finish(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder; about 1 GB for 10,000 images")
    parser.add_argument("--weights", default="train:1")
    parser.add_argument("--backbone", default="convnet-d3-w32")
    wanted = parser.parse_args()
    more = ("--weights", wanted.weights, "--backbone", wanted.backbone)
    calm = (wanted.work / "calm-store", wanted.work / "calm-out")
    started = time.monotonic()
    finish(command(wanted.data, *calm, *more))
    first = time.monotonic() - started
    started = time.monotonic()
    finish(command(wanted.data, *calm, *more))
    print(f"undisturbed {first:.0f} s, again {time.monotonic() - started:.0f} s", flush=True)
    expected = outputs(*calm)
    results = {}
    for label, extra in (("1 actor", ("--actors", "1")), ("2 actors", ("--actors", "2"))):
        other = (wanted.work / "other-store", wanted.work / "other-out")
        finish(command(list(reversed(wanted.data)), *other, *more, *extra))
        results[label] = outputs(*other) == expected
        print(
            f"{label}, shards in reverse: {'same' if results[label] else 'DIFFERENT'} sha256 of {len(expected)} files",
            flush=True,
        )
        for folder in other:
            shutil.rmtree(folder)
    for stage in STAGES:
        store, out = wanted.work / f"{stage}-store", wanted.work / f"{stage}-out"
        # Finished stages before it are copied, so that each kill costs its own stage only.
        for done in STAGES[: STAGES.index(stage)]:
            shutil.copytree(calm[0] / done, store / done)
        arguments = command(wanted.data, store, out, *more)
        killed = kill_when(arguments, begun(store, out, stage), delay=0.05)
        finish(arguments)
        same = outputs(store, out) == expected
        results[stage] = killed and same
        print(
            f"killed in {stage}: {'yes' if killed else 'NO'}, afterwards {'same' if same else 'DIFFERENT'} sha256",
            flush=True,
        )
        for folder in (store, out):
            shutil.rmtree(folder)
    print(json.dumps(results))
    sys.exit(0 if all(results.values()) else 1)


if __name__ == "__main__":
    main()
