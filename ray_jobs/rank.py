"""rank: DD-Ranking's label- and augmentation-robust scores of a distilled set, beside random real images of as many bytes.

Published scores compare as many images; a palettised image is smaller than a real one, so here the bytes are equal. Where the
set is trained on soft labels, the random images get some, too, of a teacher trained on all of them. The whole real data set is
trained with the distilled set's own settings (--steps and the like), where DD-Ranking has a configuration for it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

import numpy as np

from adq.recipe import Recipe
from adq.robust_scores import augmentation_robust_score, label_robust_score
from ray_jobs import ingest, weights
from ray_jobs.accuracy import as_bytes, markdown, t_half_interval
from ray_jobs.compare import train_all
from ray_jobs.cost import gpus_each
from ray_jobs.evaluate import Evaluation, Wanted, labelled, planned
from ray_jobs.frozen import check_classes as check_network
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.held_out import check_decodable, check_test
from ray_jobs.ingest import Index
from ray_jobs.job import Job, opened
from ray_jobs.loading import Rows
from ray_jobs.mlflow_run import Run
from ray_jobs.named_sets import further_set
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.payload import payload_bytes
from ray_jobs.relabel import relabelled
from ray_jobs.store import canonical_json, sha256
from ray_jobs.trainings import Plan, Training, facts_of
from ray_jobs.weights import Extractor

REAL, DISTILLED, RANDOM, PLAIN = "all real images", "distilled", "random, as many bytes", ", without augmentation"
HARD = ", hard labels"  # of a set that is ranked by its soft ones


@dataclass(frozen=True)
class Unaugmented(Evaluation):
    """The same trainings on images as they are."""

    def recipe_for(self, arch: str, side: int) -> Recipe:
        plain = {"augment": "none", "trivial_augment": False, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
        return replace(super().recipe_for(arch, side), **plain)


def run(
    distilled: str,
    data: Data,
    test: tuple[str, ...],
    options: Evaluation,
    backbone: Backbone,
    compute: Compute,
    place: Place,
) -> None:
    """The command: trainings of the real, the distilled and random images, and both scores of each network.

    Args:
        backbone: the teacher, where `options.labels` is soft.

    Raises:
        ValueError: classes that differ; a distilled set as large as the real one, or smaller than one real image; both kinds of
            labels at once, or soft ones that there are not.
    """
    if options.labels == "both":
        raise ValueError("--labels both: a set is ranked by one kind of labels; give hard or soft")
    soft = options.labels == "soft"
    grid = Grid(Comparison("random"), options, data, Selection(method="random"), backbone, test, "")
    identity = ["rank", distilled, asdict(options), asdict(data), test, asdict(backbone)]
    with opened(place, compute, "rank", identity) as job:
        job.run.params({"distilled": distilled, "test": " ".join(test)} | asdict(options))
        index, held_out = ingest.run(job, data), ingest.run(job, replace(data, data=test), False, "test")
        check_test(REAL, index, held_out)
        check_decodable(job, held_out, options, first=not soft)
        own, _ = further_set(job, DISTILLED, distilled, grid, index, held_out)
        own_rows = labelled(Wanted(DISTILLED, own, grid.seeds), options.labels)
        budget, whole = payload_bytes(own, soft=soft), payload_bytes(index)
        if budget >= whole:
            raise ValueError(
                f"{distilled}: {as_bytes(budget)} of payload, the real images have {as_bytes(whole)}: nothing to rank"
            )
        teacher = weights.run(job, index, backbone) if soft else None
        if teacher is not None:
            check_network(teacher, index)
        chosen = _chosen(Selected(job, index, grid), budget, soft)
        few = [*own_rows, *_random(job, index, chosen, grid, teacher)]
        whole_rows = [Wanted(REAL, index, grid.seeds)]
        whole_rows += [Wanted(DISTILLED + HARD, own, grid.seeds)] if soft else []
        augmented = planned(job, [*whole_rows, *few], held_out, options)
        plain = planned(
            job, [replace(one, name=one.name + PLAIN) for one in few], held_out, Unaugmented(**vars(options))
        )
        plan = replace(augmented, trainings=augmented.trainings + plain.trainings)
        with _runs(job, plan) as runs:
            parents = {training.name: runs[training.classifier.arch] for training in plan.trainings}
            each = gpus_each(0.0, plan.trainings[0].classifier.transform.crop)
            train_all(job, plan, options.workers, each, parents)
            found: dict[tuple[str, str], list[Training]] = {}
            for training in plan.trainings:
                found.setdefault((training.set, training.classifier.arch), []).append(training)
            _report(job, runs, found)


def _chosen(selected: Selected, budget: int, soft: bool) -> list[Rows]:
    """The random images of each seed that `budget` bytes hold, with a warning where they leave out classes."""
    grid, index = selected.grid, selected.index
    variant = Variant("random", grid.selection)
    chosen = [selected.within(variant, budget, seed, soft)[0] for seed in grid.seeds]
    labels, classes = index.table()["label"].to_numpy(), len(index.classes)
    empty = max(classes - len(np.unique(labels[rows.positions])) for rows in chosen)
    if empty:
        print(
            f"warning: {RANDOM}: {as_bytes(budget)} hold {min(rows.images for rows in chosen):,} real images, and {empty:,} of "
            f"{classes:,} classes have none: a lead over them says little; rank a larger distilled set",
            flush=True,
        )
    return chosen


def _random(job: Job, index: Index, chosen: list[Rows], grid: Grid, teacher: Extractor | None) -> list[Wanted]:
    """The random images of each seed; with a teacher, labelled by it."""
    if teacher is None:
        return [Wanted(RANDOM, index, [seed], rows) for seed, rows in zip(grid.seeds, chosen, strict=True)]
    sets = [relabelled(job, index, teacher, rows) for rows in chosen]
    return [Wanted(RANDOM, one, [seed], soft=True) for seed, one in zip(grid.seeds, sets, strict=True)]


@contextlib.contextmanager
def _runs(job: Job, plan: Plan) -> Iterator[dict[str, Run]]:
    """A run for every network, known by its trainings, under which they and its scores go."""
    with contextlib.ExitStack() as stack:
        runs = {}
        for arch in dict.fromkeys(training.classifier.arch for training in plan.trainings):
            contents = [training.stage.digest for training in plan.trainings if training.classifier.arch == arch]
            digest = sha256(canonical_json(["rank", arch, sorted(contents)]))
            runs[arch] = stack.enter_context(job.child(f"scores {arch}", digest, {"arch": arch}))
        yield runs


def _report(job: Job, runs: Mapping[str, Run], done: Mapping[tuple[str, str], list[Training]]) -> None:
    lines = [("network", "set", "images", "payload", "as tars", "top-1")]
    told = []
    found = {key: [facts_of(training)["top1"] for training in group] for key, group in done.items()}
    for (name, arch), group in done.items():
        count, payload, tars = (
            round(fmean(getattr(one, size) for one in group)) for size in ("count", "payload", "tars")
        )
        size = (f"{count:,}", as_bytes(payload), as_bytes(tars))
        lines.append((arch, name, *size, _percent(found[name, arch])))
    for arch in dict.fromkeys(arch for _, arch in found):
        real, distilled, random, distilled_plain, random_plain = (
            found[name, arch] for name in (REAL, DISTILLED, RANDOM, DISTILLED + PLAIN, RANDOM + PLAIN)
        )
        hard = found.get((DISTILLED + HARD, arch), distilled)
        scores = {
            "label_robust_score": [
                label_robust_score(*each) for each in zip(real, hard, distilled, random, strict=True)
            ],
            "augmentation_robust_score": [
                augmentation_robust_score(*each)
                for each in zip(distilled, random, distilled_plain, random_plain, strict=True)
            ],
            "over_random": [mine - other for mine, other in zip(distilled, random, strict=True)],
        }
        runs[arch].metrics({name: fmean(values) for name, values in scores.items()})
        if len(real) > 1:
            runs[arch].metrics({f"{name}_half_interval": t_half_interval(values) for name, values in scores.items()})
        lrs, ars, lead = scores.values()
        told.append(
            f"{arch}: label-robust score {_percent(lrs)}, augmentation-robust score {_percent(ars)}; {_percent(lead, '+')} points "
            "over random images of as many bytes"
        )
    text = markdown(lines, left=2) + "\n\n" + "\n".join(told)
    job.run.text(text, "rank.md")
    job.report(f"{text}\n")


def _percent(shares: Sequence[float], sign: str = "") -> str:
    """The mean over the seeds in per cent, and half of its 95 % t-interval where there are several."""
    half = f" ± {100 * t_half_interval(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * fmean(shares):{sign}.1f}{half}"
