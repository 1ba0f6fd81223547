"""demo: the whole pipeline on the embedded data set, in minutes on two cores."""

import os
from dataclasses import replace
from pathlib import Path

from adq.shards import tar_bytes
from adq.synthetic import CLASSES, samples
from ray_jobs import compare, distill, ingest
from ray_jobs.compress import Compression, stages
from ray_jobs.distill import Distilling
from ray_jobs.evaluate import Evaluation
from ray_jobs.experts import Experts, Network
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.job import opened
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.store import Store

PER_CLASS = {"train": 300, "test": 100}
SHARDS = {"train": 3, "test": 1}
METHODS = "random,dq,adq,support-points"
SELECTION = Selection(keep=0.1)
DISTILLED = "distilled"
DISTILLING = Distilling(bytes_per_class=2500, colors=16, start="random", steps=150, batch_real=64)
SMALL = "random small"  # of as many bytes as the distilled set
BACKBONE = Backbone(backbone="convnet-d3-w32", weights="train:2")
EVALUATION = {"arch": "convnet-d3-w16", "steps": 180}


def make_data(folder: Path) -> None:
    """The embedded data set as shards: {train,test}-*.tar and classes.txt; the same bytes each time."""
    store = Store(str(folder))
    if store.size("classes.txt"):
        return
    for split, per_class in PER_CLASS.items():
        records = list(samples(per_class, split))
        for n in range(SHARDS[split]):
            members = [
                member
                for r in records[n :: SHARDS[split]]
                for member in ((f"{r.key}.{r.ext}", r.image), (f"{r.key}.cls", str(r.label).encode()))
            ]
            store.write(f"{split}-{n:06d}.tar", tar_bytes(members))
    store.write("classes.txt", "".join(f"{name}\n" for name in CLASSES).encode())


def run(folder: str, seeds: int) -> None:
    """Compress the embedded data set, distil it, compare methods and the distilled set with their controls, print a table."""
    home = Path(folder).resolve()
    data = home / "data"
    make_data(data)
    source, tests = Data(data=(f"{data}/train-*.tar",)), (f"{data}/test-*.tar",)
    place = Place(store=str(home / "runs"), experiment="tessera-demo")
    # One actor with both cores starts faster than two with one each.
    cores = min(2, os.cpu_count() or 1)
    compute = Compute(threads=cores, cpus_per_actor=cores)
    with opened(place, compute, "demo", ["demo", str(home), seeds]) as job:
        job.run.params({"seeds": seeds})

        def keep(method: str, share: float, name: str) -> None:
            print(f"\n{name}, keep {share:.3g}", flush=True)
            stages(job, Compression(source, BACKBONE, Selection(method=method, keep=share), str(home / name)))

        keep(SELECTION.method, SELECTION.keep, SELECTION.method)
        print(f"\ndistilled, {DISTILLING.bytes_per_class} bytes a class", flush=True)
        wanted = distill.Wanted(DISTILLING, Network(width=32), Experts(), source, str(home / "distilled"))
        payload = distill.stages(job, wanted)["distilled"].summary["payload_bytes"]

        comparison = Comparison(METHODS, f"{SELECTION.keep:g}", extractors=1)
        evaluation = Evaluation(seeds=seeds, **EVALUATION)
        grid = Grid(comparison, evaluation, source, SELECTION, BACKBONE, tests, str(home / "compared"))
        index, test = ingest.run(job, source), ingest.run(job, replace(source, data=tests), context="test")
        _, small = Selected(job, index, grid).within(Variant.of("random", SELECTION), payload, SELECTION.seed)
        keep("random", small.keep, "small")
        sets = {"all images": source.data[0], DISTILLED: home / "distilled", SMALL: home / "small"}
        named = tuple(f"{name}={shards}" for name, shards in sets.items())
        grid = replace(grid, comparison=replace(comparison, sets=named))

        print("\ncompared", flush=True)
        every = compare.chosen(job, grid, index) + compare.further_sets(job, grid, index, test)
        more = f"\nshards   {home / SELECTION.method}\nimages   {home / 'distilled' / 'pictures'}"
        alone = replace(job, compute=Compute())  # a core a training, and as many at once
        compare.train_and_tell(alone, grid, every, test, more)
