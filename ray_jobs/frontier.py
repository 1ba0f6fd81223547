"""frontier: what accuracy a budget of bytes buys, for every way to spend it: fewer images, or smaller ones, or distilled ones.

A spending is a method and an encoding; of it, as many images are chosen as fit into the budget, counted as one compact container.
Pairs share draw, initial weights and order of batches as in `compare`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from palette.encodings import ORIGINAL
from ray_jobs import encode, encoding_cost, ingest, weights
from ray_jobs.budget import DoesNotFit, as_budget, parse_budgets
from ray_jobs.classifier import input_side
from ray_jobs.compare import train_all
from ray_jobs.copies import Copies
from ray_jobs.cost import Expected, estimate, gpus_each, of_trainings
from ray_jobs.encode import Storage
from ray_jobs.encoding_cost import sampled
from ray_jobs.evaluate import Wanted, check_parts, planned
from ray_jobs.frontier_report import Point, Spent, points, report
from ray_jobs.frontier_rule import ALL, settings
from ray_jobs.grid import Grid, Selected
from ray_jobs.held_out import check_decodable, check_test
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.mlflow_run import Run
from ray_jobs.named_sets import sets_named, warn_of_soft_labels
from ray_jobs.options import Compute, Place, option
from ray_jobs.payload import tar_bytes
from ray_jobs.progress import counted
from ray_jobs.store import Store, canonical_json, sha256
from ray_jobs.trainings import Plan, correct_of, facts_of


@dataclass(frozen=True)
class Budgets:
    """What is compared."""

    budgets: str | None = option(None, "Payload of each data set; needed.", metavar="300kB,1MB,3MB")
    encodings: str = option(
        "original,webp:50,webp:20", "Ways to store the images, as --encode of compress takes them.", metavar="CHAIN,CHAIN"
    )  # fmt: skip
    saliency: str = option("grad-cam", "By what patches are dropped.", encode.SALIENCY)

    def storages(self) -> list[Storage]:
        """The encodings, each once. Raises ValueError."""
        found = [Storage(text.strip(), self.saliency) for text in self.encodings.split(",") if text.strip()]
        if not found:
            raise ValueError("--encodings: give at least one, such as original,webp:50")
        return list({str(storage.encoding()): storage for storage in found}.values())


def run(budgets: Budgets, grid: Grid, compute: Compute, place: Place) -> None:
    """The command: encode, choose, train, and write the table, the figure and every run to --out."""
    sizes, storages = parse_budgets(budgets.budgets or ""), budgets.storages()
    sets = grid.named_sets
    store = Store.at(grid.out)
    store.check_writable()
    with opened(place, compute, "frontier", [asdict(budgets), grid.identity()]) as job:
        index = ingest.run(job, grid.data)
        test = ingest.run(job, replace(grid.data, data=grid.test), False, "test")
        check_test("--data", index, test)
        check_decodable(job, test, grid.evaluation, first=False)
        job.run.params(asdict(budgets) | {
            "methods": grid.comparison.methods, "without_controls": grid.comparison.without_controls,
            "seeds": grid.evaluation.seeds,
        })  # fmt: skip
        copies = Copies(job, index, grid.backbone, skip_corrupt=grid.data.skip_corrupt)
        selected = Selected(job, index, grid)
        _check(job, index, test, grid, copies, storages, sizes)
        further = [
            row for name, places in sets.items() for row in _further(job, name, places, grid, index, test, sizes)
        ]
        if grid.comparison.estimate:
            _estimate(job, index, test, grid, storages, sizes, [wanted for wanted, _ in further])
            return
        copies.check(storages)
        pairs = [
            pair for budget in sizes for storage in storages for pair in _spendings(grid, selected, copies, storage, budget)
        ]  # fmt: skip
        pairs += further
        if not pairs:
            raise ValueError(f"--budgets {budgets.budgets}: nothing fits; raise them")
        selected.release()
        spent = {(wanted.name, one.seed): one for wanted, one in pairs}
        print(f"chosen        {counted(len(pairs), 'set')}", flush=True)
        plan = planned(job, [wanted for wanted, _ in pairs], test, grid.evaluation)
        print(of_trainings(job, plan, grid), flush=True)
        with _runs(job, grid, plan, spent) as runs:
            parents = {t.name: runs[spent[t.set, t.classifier.seed].title, t.classifier.arch] for t in plan.trainings}
            each = gpus_each(grid.comparison.gpus_per_training, plan.trainings[0].classifier.transform.crop)
            train_all(job, plan, grid.evaluation.workers, each, parents)
            done = [
                replace(spent[t.set, t.classifier.seed], arch=t.classifier.arch, top1=facts_of(t)["top1"],
                        correct=correct_of(t), training=t.stage.digest)
                for t in plan.trainings
            ]  # fmt: skip
            found = points(done)
            for point in found:
                runs[point.title, point.arch].metrics(_metrics(point))
        backbone = replace(
            grid.backbone,
            backbone=grid.backbone.name(index.side, job.device),
            weights=weights.origin(index, grid.backbone),
        )
        report(job, store, done, found, test, settings(budgets.saliency, grid.selection, backbone))


def _check(
    job: Job, index: Index, test: Index, grid: Grid, copies: Copies, storages: Sequence[Storage], sizes: Sequence[int]
) -> None:
    """What can be known before anything is encoded; what sets of other encodings take in a worker's memory is not.

    Raises:
        ValueError: of methods, their --embeddings and --bins, of networks, workers and --memory: what cannot be.
    """
    grid.check_methods(index)
    parts = {}
    for storage in storages:
        if storage.encoding() == ORIGINAL:
            whole = copies.guess(storage, np.arange(index.images))
            parts = {f"{as_budget(budget)} of {storage.encode}": budget / whole for budget in sizes if budget < whole}
    check_parts(job, index, parts, grid.evaluation, grid.evaluation.image_size or input_side(test.side))


def _estimate(
    job: Job, index: Index, test: Index, grid: Grid, storages: Sequence[Storage], sizes: Sequence[int], further: Sequence[Wanted]
) -> None:  # fmt: skip
    """Say what everything costs, from a few encoded images: before all are encoded, which may take a night itself."""
    found = {storage: sampled(index, storage, grid.data.skip_corrupt) for storage in storages}
    print(encoding_cost.told(job, index, found, index.images, sizes), flush=True)
    held = [{one.fitting(budget, index.images) for budget in sizes} for one in found.values()]
    least = len(index.classes)
    counts = [n for each in held for n in each for _ in (grid.variants if n < index.images else "1") if n >= least]
    named = (counted(len(grid.variants), "method"), counted(len(storages), "encoding"), counted(len(sizes), "budget"))
    ranked = index.images * any(storage.needs_network for storage in storages)
    expected = Expected(" x ".join(named), counts, further, ranked)
    print(estimate(job, index, test, grid, expected), flush=True)


def _further(
    job: Job, name: str, places: Sequence[str], grid: Grid, source: Index, test: Index, sizes: Sequence[int]
) -> list[tuple[Wanted, Spent]]:
    """The sets of a name of --sets, those of one size in the smallest budget that holds each; on hard labels, which are all that
    their payload counts.

    Raises:
        ValueError: as `sets_named`; one budget for several sizes.
    """
    rows: dict[int, list[tuple[Wanted, Spent]]] = {}
    for group in sets_named(job, name, places, grid, source, test):
        payload = max(outcome.payload for _, each in group for outcome in each)
        held = [budget for budget in sizes if budget >= payload]
        if not held:
            print(f"warning: {name} takes {payload:,} bytes, more than any budget, and is left out")
            continue
        if held[0] in rows:
            raise ValueError(f"--sets {name}=...: has sets of several sizes in {as_budget(held[0])}; name them apart")
        rows[held[0]] = []
        for own, each in group:
            warn_of_soft_labels(name, own)
            for one in each:
                spent = Spent(name, "", held[0], one.seed, one.images, one.payload, one.tars, selection=one.selection)
                rows[held[0]].append((Wanted(spent.title, own, [spent.seed]), spent))
    return [row for found in rows.values() for row in found]


def _spendings(
    grid: Grid, selected: Selected, copies: Copies, storage: Storage, budget: int
) -> Iterator[tuple[Wanted, Spent]]:
    """Every set of an encoding in a budget; where everything fits, methods have nothing to choose, and there is one set."""
    copy, encoding = copies.of(storage), str(storage.encoding())
    if copies.guess(storage, copies.readable) <= budget:
        payload, whole = copies.payload(storage, copies.readable), copies.part(storage, copies.readable)
        if payload <= budget:
            rows = whole if whole.images < copy.images else None
            for seed in grid.seeds:
                tars = tar_bytes(copy, whole.positions)
                spent = Spent(ALL, encoding, budget, seed, whole.images, payload, tars, selection=whole.digest)
                yield Wanted(spent.title, copy, [seed], rows), spent
            return
    for variant in grid.variants:
        try:
            fits = [(seed, copies.fitting(selected, variant, storage, budget, seed)) for seed in grid.seeds]
        except DoesNotFit as error:
            print(f"warning: {variant.name} as {encoding} is left out: {error}", flush=True)
            continue
        for seed, (rows, payload, moved) in fits:
            tars = tar_bytes(copy, rows.positions)
            spent = Spent(
                variant.title, encoding, budget, seed, rows.images, payload, tars, moved=moved, selection=rows.digest
            )
            yield Wanted(replace(spent, method=variant.name).title, copy, [seed], rows), spent


def _metrics(point: Point) -> dict[str, float]:
    named = {
        "top1": point.mean, "images": point.images, "payload_bytes": point.payload, "tar_bytes": point.tars,
        "budget": point.budget, "moved": point.moved,
    }  # fmt: skip
    return named | ({"top1_half_interval": point.half_interval} if point.seeds > 1 else {})


@contextlib.contextmanager
def _runs(job: Job, grid: Grid, plan: Plan, spent: dict) -> Iterator[dict[tuple[str, str], Run]]:
    """A run for every spending and network, under which its trainings go, and known by all of them, as a comparison's cells are."""
    contents = sorted({training.stage.digest for training in plan.trainings})
    with contextlib.ExitStack() as stack:
        runs: dict[tuple[str, str], Run] = {}
        for training in plan.trainings:
            arch, one = training.classifier.arch, spent[training.set, training.classifier.seed]
            if (one.title, arch) not in runs:
                params = {"set": one.method, "encode": one.encoding, "budget": one.budget, "arch": arch}
                digest = sha256(canonical_json(["frontier", grid.identity(), one.title, arch, contents]))
                runs[one.title, arch] = stack.enter_context(job.child(f"{one.title} {arch}", digest, params))
        yield runs
