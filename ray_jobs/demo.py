"""demo: the whole pipeline on the embedded data set, in minutes on two cores."""

import os
from pathlib import Path

from adq.shards import tar_bytes
from adq.synthetic import CLASSES, samples
from ray_jobs import distill, figures, ingest
from ray_jobs.accuracy import accuracies, as_text
from ray_jobs.compress import Compression, stages
from ray_jobs.distill import Distilling
from ray_jobs.evaluate import Evaluation, evaluate
from ray_jobs.experts import Experts, Network
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.job import opened
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.store import Store

PER_CLASS = {"train": 300, "test": 100}
SHARDS = {"train": 3, "test": 1}
METHODS = ("random", "dq", "adq")
KEEP = 0.1
DISTILLED = "distilled"
DISTILLING = Distilling(bytes_per_class=2500, colors=16, start="random", steps=150, batch_real=64)
AT_EQUAL_BYTES = ("random", "adq")
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
    """Compress the embedded data set by three methods, distil it, train on each and on the whole, print a table."""
    home = Path(folder).resolve()
    data = home / "data"
    make_data(data)
    source = Data(data=(f"{data}/train-*.tar",))
    place = Place(store=str(home / "runs"), experiment="tessera-demo")
    # One actor with both cores starts faster than two with one each.
    cores = min(2, os.cpu_count() or 1)
    compute = Compute(threads=cores, cpus_per_actor=cores)
    with opened(place, compute, "demo", ["demo", str(home), seeds]) as job:
        job.run.params({"seeds": seeds})
        sets = {}

        def keep(method: str, share: float, name: str) -> None:
            out = home / name.replace(" ", "-")
            print(f"\n{name}, keep {share:.3g}", flush=True)
            stages(job, Compression(source, BACKBONE, Selection(method=method, keep=share), str(out)))
            sets[name] = ingest.run(job, Data(data=(str(out),)), require_all_classes=False, context=name)

        for method in METHODS:
            keep(method, KEEP, method)
        sets["all images"] = ingest.run(job, source)
        print(f"\n{DISTILLED}, {DISTILLING.bytes_per_class} bytes a class", flush=True)
        wanted = distill.Wanted(DISTILLING, Network(width=32), Experts(), source, str(home / DISTILLED))
        payload = distill.stages(job, wanted)["distilled"].summary["payload_bytes"]
        evaluation, comparison = Evaluation(seeds=seeds, **EVALUATION), Comparison(extractors=1)
        grid = Grid(comparison, evaluation, source, Selection(), BACKBONE, (), "")
        selected = Selected(job, sets["all images"], grid)
        for method in AT_EQUAL_BYTES:
            # As many images as the distilled set's bytes hold.
            _, small = selected.within(Variant.of(method, Selection()), payload, Selection.seed)
            keep(method, small.keep, f"{method} small")
        sets[DISTILLED] = ingest.run(job, Data(data=(str(home / DISTILLED),)), context=DISTILLED)
        print("\ntraining on each", flush=True)
        test = ingest.run(job, Data(data=(f"{data}/test-*.tar",)), context="test")
        found = accuracies(evaluate(job, sets, test, evaluation))
        rows = [{"method": s.set, "images": s.images, "mean": 100 * s.mean, "std": 100 * s.sd} for s in found]
        job.run.figure(figures.accuracy(rows), "figures/accuracy.png")
        job.run.text(as_text(found), "accuracy.md")
        job.report(f"{as_text(found)}\n\nshards   {home / 'adq'}\nimages   {home / DISTILLED / 'pictures'}")
