"""compare: which method is better, at which size, on which network: one command, one table, every run behind it.

Pairs share everything but the choice: in seed s all methods use the same draw, the same initial weights, the same order of batches
and the same extractor. Selections are rows of the ingested data; no shards are written for them.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from adq.sampling import kept
from ray_jobs import choices, ingest
from ray_jobs.classifier import input_side
from ray_jobs.comparison import Cell, Outcome, cells, report
from ray_jobs.cost import Expected, estimate, gpus_each, of_trainings
from ray_jobs.evaluate import Wanted, check_parts, finish, labelled, planned
from ray_jobs.grid import Grid, Selected
from ray_jobs.held_out import check_decodable, check_test
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.mlflow_run import Run
from ray_jobs.named_sets import sets_named, warn_of_soft_labels
from ray_jobs.options import Compute, Place
from ray_jobs.packing import pack
from ray_jobs.payload import payload_bytes
from ray_jobs.progress import counted
from ray_jobs.recorder import Recorder
from ray_jobs.stages import Stage
from ray_jobs.store import Store, canonical_json, sha256
from ray_jobs.trainings import Plan, Training, correct_of, facts_of, train_and_test
from ray_jobs.workers import Group, run_group


def run(grid: Grid, compute: Compute, place: Place) -> None:
    """The command: estimate, select, train, and write the table, the figure and every run to --out."""
    shares, named = grid.comparison.shares(), grid.named_sets
    if grid.evaluation.labels != "hard" and not named:
        raise ValueError(f"--labels {grid.evaluation.labels}: is for --sets alone; what methods choose has hard labels")
    Store.at(grid.out).check_writable()
    with opened(place, compute, "compare", grid.identity()) as job:
        index = ingest.run(job, grid.data)
        test = ingest.run(job, replace(grid.data, data=grid.test), False, "test")
        for share in shares:
            kept(share, index.images)
        check_test("--data", index, test)
        check_decodable(job, test, grid.evaluation, first=False)
        grid.check_methods(index)
        parts = {f"keep {share:g}": share for share in shares}
        parts |= {variant.name: 1.0 for variant in grid.variants if variant.literal}
        check_parts(job, index, parts, grid.evaluation, grid.evaluation.image_size or input_side(test.side))
        options = {
            name: value
            for part in (grid.comparison, grid.evaluation, grid.data, grid.selection, grid.backbone)
            for name, value in asdict(part).items()
            if value is not None and name not in ("method", "seed", "keep")
        }
        job.run.params(options | {"keep": grid.comparison.keep})
        further = further_sets(job, grid, index, test)
        expected = Expected.of_shares(grid, index, [one for one, _ in further])
        print(estimate(job, index, test, grid, expected), flush=True)
        if not grid.comparison.estimate:
            train_and_tell(job, grid, chosen(job, grid, index) + further, test)


Sets = list[tuple[Wanted, list[Outcome]]]  # and what is known of each before it is trained on, a seed of it each


def chosen(job: Job, grid: Grid, index: Index) -> Sets:
    """The selections of a grid, which selections.parquet in --out then holds, too."""
    selected, found = Selected(job, index, grid), []
    for seed in grid.seeds:
        for keep in grid.comparison.shares():
            for variant in grid.variants:
                rows, outcome = selected.of(variant, keep, seed, warn=True)
                found.append((Wanted(f"{variant.name} keep {keep:g}", index, [seed], rows), [outcome]))
    selected.release()
    choices.write(Store.at(grid.out), index, {f"{one.name} seed {one.seeds[0]}": one.rows for one, _ in found})
    print(f"selected      {counted(len(found), 'set')}", flush=True)
    return found


def train_and_tell(job: Job, grid: Grid, sets: Sets, test: Index, more: str = "") -> None:
    """Train on every set, or find it done, and write the table, the figures and every run.

    Args:
        more: lines below the table.
    """
    outcomes = {(one.name, outcome.seed): outcome for one, each in sets for outcome in each}
    plan = planned(job, [one for one, _ in sets], test, grid.evaluation)
    if 0 < len(plan.pending()) < len({training.stage.digest for training in plan.trainings}):
        print(of_trainings(job, plan, grid, "left"), flush=True)
    with _cell_runs(job, grid, plan, outcomes) as runs:
        parents = {t.name: runs[_cell_name(outcomes, t)] for t in plan.trainings}
        each = gpus_each(grid.comparison.gpus_per_training, plan.trainings[0].classifier.transform.crop)
        train_all(job, plan, grid.evaluation.workers, each, parents)
        done = [
            replace(outcomes[t.set, t.classifier.seed], arch=t.classifier.arch, top1=facts_of(t)["top1"],
                    correct=correct_of(t), training=t.stage.digest)
            for t in plan.trainings
        ]  # fmt: skip
        found = cells(done)
        links = {}
        for cell in found:
            cell_run = runs[f"{cell.method} keep {cell.keep:g} {cell.arch}"]
            cell_run.metrics(_metrics(cell))
            links[cell.method, cell.keep, cell.arch] = job.tracker.link(cell_run)
    report(job, Store.at(grid.out), done, found, links, test, more)


def further_sets(job: Job, grid: Grid, source: Index, test: Index) -> Sets:
    """The sets of --sets, which no method selects. Raises ValueError as `named_sets.sets_named`."""
    groups = (
        group for name, places in grid.named_sets.items() for group in sets_named(job, name, places, grid, source, test)
    )
    return [row for group in groups for own, each in group for row in _further(own, each, grid.evaluation.labels)]


def _further(own: Index, each: list[Outcome], labels: str) -> Sets:
    """A set of --sets and its outcomes; with both kinds of labels twice, where it has soft ones."""
    name, found = each[0].method, []
    if labels == "hard":
        warn_of_soft_labels(name, own)
    for one in labelled(Wanted(name, own, [outcome.seed for outcome in each]), labels):
        payload = payload_bytes(own, soft=one.soft)
        wanted = replace(one, name=f"{one.name} keep {each[0].keep:g}")
        found.append((wanted, [replace(outcome, method=one.name, payload=payload) for outcome in each]))
    return found


def _metrics(cell: Cell) -> dict[str, float]:
    named = {
        "top1": cell.mean, "top1_half_interval": cell.half_interval, "over_random": cell.over_random[0],
        "over_dq": cell.over_dq[0], "images": cell.images, "selections": cell.selections, "payload_bytes": cell.payload,
        "tar_bytes": cell.tars, "moved": cell.moved, "selection_seconds": cell.seconds, "selection_gpu_seconds": cell.gpu_seconds,
    }  # fmt: skip
    return {name: value for name, value in named.items() if value == value}


def _cell_name(outcomes: Mapping[tuple[str, int], Outcome], training: Training) -> str:
    """Of the run of a cell: several permutations share one."""
    outcome = outcomes[training.set, training.classifier.seed]
    return f"{outcome.method} keep {outcome.keep:g} {training.classifier.arch}"


@contextlib.contextmanager
def _cell_runs(job: Job, grid: Grid, plan: Plan, outcomes: dict) -> Iterator[dict[str, Run]]:
    """A run for every method, keep ratio and network, under which its trainings go.

    Its accuracies are of these very trainings, and its differences of the others: where a file of the same name holds something
    else, it is another run.
    """
    variants = {variant.name: variant for variant in grid.variants}
    contents = sorted({training.stage.digest for training in plan.trainings})
    with contextlib.ExitStack() as stack:
        runs: dict[str, Run] = {}
        for training in plan.trainings:
            outcome, name = outcomes[training.set, training.classifier.seed], _cell_name(outcomes, training)
            if name not in runs:
                variant = variants.get(outcome.method)
                settings = asdict(variant.selection) if variant else {"method": "none"}
                params = {k: v for k, v in settings.items() if k not in ("seed", "permutation")} | {
                    "set": outcome.method, "keep": outcome.keep, "arch": training.classifier.arch, "seeds": grid.evaluation.seeds,
                }  # fmt: skip
                digest = sha256(canonical_json([grid.identity(), name, contents]))
                runs[name] = stack.enter_context(job.child(name, digest, params))
        yield runs


def train_all(job: Job, plan: Plan, workers: int, gpus: float, parents: Mapping[str, Run]) -> None:
    """What is not trained yet: packed, or, with several workers a training, one after the other.

    Args:
        gpus: of a GPU, for each of many trainings at once.
        parents: by the name of a training, the MLflow run under which it goes.
    """
    recorder = Recorder(job, plan, parents)
    pending = plan.pending()
    done_before = len({t.stage.digest for t in plan.trainings}) - len(pending)
    print(
        f"train         {counted(len(pending), 'network')}" + (f", {done_before} done before" if done_before else ""),
        flush=True,
    )
    if pending:
        with recorder.live(pending):
            if workers > 1:
                # Named by all trainings, also those that are done: a command that is run again finds the checkpoint of the one
                # that was cut off.
                every = {t.name: t.stage.digest for t in plan.trainings}
                stage = Stage(job.store, "trainings", 1, every, {})
                group = Group(workers, job.compute.threads, job.device, stage)
                group.check()
                run_group(group, train_and_test, replace(plan, trainings=tuple(pending)), recorder.on_note)
                group.clean()
            else:
                pack(job, plan, pending, gpus, recorder.on_note)
    for training in plan.trainings:
        finish(training)
        recorder.record(training)
