"""demo: the whole pipeline on the embedded data set, in minutes on two cores."""

import os
from pathlib import Path

from adq.shards import tar_bytes
from adq.synthetic import CLASSES, samples
from ray_jobs import figures, ingest
from ray_jobs.accuracy import accuracies, as_text
from ray_jobs.compress import Compression, stages
from ray_jobs.evaluate import Evaluation, evaluate
from ray_jobs.job import opened
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.store import Store

PER_CLASS = {"train": 300, "test": 100}
SHARDS = {"train": 3, "test": 1}
METHODS = ("random", "dq", "adq")
KEEP = 0.1
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
    """Compress the embedded data set by three methods, train on each and on the whole, print a table."""
    home = Path(folder).resolve()
    data = home / "data"
    make_data(data)
    source = Data(data=(f"{data}/train-*.tar",))
    place = Place(store=str(home / "runs"), experiment="tessera-demo")
    # One actor with both cores starts faster than two with one each.
    cores = min(2, os.cpu_count() or 1)
    compute = Compute(threads=cores, cpus_per_actor=cores)
    with opened(place, compute, "demo", ["demo", str(home), seeds]) as job:
        sets = {}
        for method in METHODS:
            out = home / method
            wanted = Compression(source, BACKBONE, Selection(method=method, keep=KEEP), str(out))
            print(f"\n{method}, keep {KEEP:g}", flush=True)
            stages(job, wanted)
            sets[method] = ingest.run(job, Data(data=(str(out),)), require_all_classes=False, context=method)
        sets["all images"] = ingest.run(job, source)
        print("\ntraining on each", flush=True)
        test = ingest.run(job, Data(data=(f"{data}/test-*.tar",)), context="test")
        found = accuracies(evaluate(job, sets, test, Evaluation(seeds=seeds, **EVALUATION)))
        rows = [{"method": s.set, "images": s.images, "mean": 100 * s.mean, "std": 100 * s.sd} for s in found]
        job.run.figure(figures.accuracy(rows), "figures/accuracy.png")
        job.run.text(as_text(found), "accuracy.md")
        print(f"\n{as_text(found)}\n\nshards   {home / 'adq'}\n{job.where_to_look()}")
