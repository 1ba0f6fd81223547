"""The whole pipeline on as many images as ImageNet-1K has, and as many classes: seconds and memory of each stage.

    python -m tests.bench.scale --data 'cifar10-train-*.tar' --work DIR [--images 1281167] [--classes 1000] [OPTION OF compress ...]

The shards are made of real images: each is moved, mirrored, turned in hue by what its class asks for, and encoded again. Prints a
Markdown table. Memory is the largest anonymous RSS of the driver, and of a worker, that was seen while a stage ran.
"""

import argparse
import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from adq.randomness import numpy_generator
from adq.shards import locate, read_samples, tar_bytes
from tests.bench.kills import STAGES, command

PER_SHARD = 1000
SHIFT = 4  # pixels


def varied(data: bytes, hue: int, seed: int) -> bytes:
    """An image file, moved by up to `SHIFT` pixels, mirrored or not, its hue turned by `hue` of 256 steps, as JPEG."""
    rng = numpy_generator(seed, "scale")
    pixels = np.array(Image.open(io.BytesIO(data)).convert("HSV"))
    pixels[..., 0] += np.uint8(hue)
    wide = np.pad(pixels, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * SHIFT + 1, 2)
    cut = wide[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    cut = cut[:, ::-1] if rng.integers(2) else cut
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(cut), "HSV").convert("RGB").save(out, "JPEG", quality=75)
    return out.getvalue()


_sources: dict[int, list[bytes]] = {}  # of a worker: images by label


def path_of(folder: Path, number: int) -> Path:
    return folder / f"train-{number:06d}.tar"


def write_shard(folder: Path, images: int, classes: int, number: int) -> None:
    """One shard: image i is of class i modulo `classes`, of which each belongs to one of the source's in a hue of its own."""
    kinds, members = len(_sources), []
    for i in range(number * PER_SHARD, min((number + 1) * PER_SHARD, images)):
        label = i % classes
        source = _sources[label % kinds]
        image = varied(source[i // classes % len(source)], 256 * (label // kinds) * kinds // classes, i)
        members += [(f"{i:08d}.jpg", image), (f"{i:08d}.cls", str(label).encode())]
    temporary = path_of(folder, number).with_suffix(".part")
    temporary.write_bytes(tar_bytes(members))
    temporary.rename(path_of(folder, number))


def write_shards(data: str, folder: Path, images: int, classes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found, sources = locate((data,)), {}
    for shard in found.shards:
        for sample in read_samples(found, shard):
            sources.setdefault(int(sample["cls"]), []).append(sample["jpg"])
    missing = [number for number in range(-(-images // PER_SHARD)) if not path_of(folder, number).exists()]
    with ProcessPoolExecutor(initializer=_sources.update, initargs=(sources,)) as pool:
        list(pool.map(partial(write_shard, folder, images, classes), missing, chunksize=8))
    (folder / "classes.txt").write_text("".join(f"class {label:04d}\n" for label in range(classes)))


class Watch(threading.Thread):
    """The largest anonymous RSS, in bytes, of a process and of Ray's workers, since it was asked last."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.driver, self.worker, self.ended = pid, 0, 0, False

    def run(self) -> None:
        while not self.ended:
            self.driver = max(self.driver, _anonymous(self.pid))
            workers = [pid for pid in _below(self.pid) if _read(pid, "cmdline").startswith("ray::")]
            self.worker = max([self.worker, *map(_anonymous, workers)])
            time.sleep(1)

    def asked(self) -> tuple[int, int]:
        found = self.driver, self.worker
        self.driver = self.worker = 0
        return found


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def _anonymous(pid: int) -> int:
    lines = _read(pid, "status").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def _below(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        after = _read(int(path.name), "stat").rpartition(")")[2].split()
        if after:
            children.setdefault(int(after[1]), []).append(int(path.name))
    found, waiting = [], [pid]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="shards of JPEGs with labels as numbers, such as CIFAR-10's")
    parser.add_argument("--work", type=Path, required=True, help="a folder; some 12 GB for the defaults")
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    wanted, more = parser.parse_known_args()
    started = time.monotonic()
    write_shards(wanted.data, wanted.work / "data", wanted.images, wanted.classes)
    print(f"{wanted.images:,} images of {wanted.classes:,} classes, {time.monotonic() - started:.0f} s\n", flush=True)
    store = wanted.work / "runs"
    pattern = str(wanted.work / "data" / "train-*.tar")
    arguments = command([pattern], store, wanted.work / "small", *more)
    print("| stage | took | what came out | driver, GB | largest worker, GB |\n|---|--:|--:|--:|--:|", flush=True)
    begun = time.monotonic()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as process:
        watch = Watch(process.pid)
        watch.start()
        for line in process.stdout:
            name, took, found = (part.strip() for part in (line[:13], line[13:28], line[28:]))  # as Job.stage prints it
            if name in STAGES and took != "done before":
                driver, worker = (size / 1e9 for size in watch.asked())
                print(f"| {name} | {took} | {found} | {driver:.2f} | {worker:.2f} |", flush=True)
        watch.ended = True
    if process.returncode:
        raise SystemExit(process.returncode)
    held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    print(f"\nin all {time.monotonic() - begun:.0f} s; {held / 1e9:.1f} GB in the store", flush=True)


if __name__ == "__main__":
    main()
