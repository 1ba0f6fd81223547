"""rank: DD-Ranking's label- and augmentation-robust scores of a distilled set, beside random real images of as many bytes.

Published scores compare as many images; a palettised image is smaller than a real one, so here the bytes are equal.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from adq.recipe import Recipe
from adq.robust_scores import augmentation_robust_score, label_robust_score
from ray_jobs import ingest
from ray_jobs.accuracy import as_bytes, markdown, t_half_interval
from ray_jobs.compare import train_all
from ray_jobs.cost import gpus_each
from ray_jobs.evaluate import Evaluation, Wanted, check_classes, planned
from ray_jobs.grid import Comparison, Grid, Selected, Variant, further_set
from ray_jobs.job import Job, opened
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.payload import payload_bytes
from ray_jobs.trainings import facts_of

REAL, DISTILLED, RANDOM, PLAIN = "all real images", "distilled", "random, as many bytes", ", without augmentation"


@dataclass(frozen=True)
class Unaugmented(Evaluation):
    """The same trainings on images as they are."""

    def recipe_for(self, arch: str, side: int) -> Recipe:
        plain = {"augment": "none", "trivial_augment": False, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
        return replace(super().recipe_for(arch, side), **plain)


def run(distilled: str, data: Data, test: tuple[str, ...], options: Evaluation, compute: Compute, place: Place) -> None:
    """The command: trainings of the real, the distilled and random images, and both scores of each network.

    Raises:
        ValueError: classes that differ; a distilled set as large as the real one, or smaller than one real image.
    """
    grid = Grid(Comparison("random"), options, data, Selection(method="random"), Backbone(), test, "")
    with opened(place, compute, "rank", ["rank", distilled, asdict(options), asdict(data), test]) as job:
        index, held_out = ingest.run(job, data), ingest.run(job, replace(data, data=test), False, "test")
        check_classes(REAL, index, held_out)
        own, outcomes = further_set(job, DISTILLED, distilled, grid, index, held_out)
        budget, whole = outcomes[0].payload, payload_bytes(index)
        if budget >= whole:
            raise ValueError(
                f"{distilled}: {as_bytes(budget)} of payload, the real images have {as_bytes(whole)}: nothing to rank"
            )
        selected = Selected(job, index, grid)
        chosen = [selected.within(Variant("random", grid.selection), budget, seed) for seed in grid.seeds]
        few = [Wanted(DISTILLED, own, grid.seeds)]
        few += [Wanted(RANDOM, index, [seed], rows) for seed, (rows, _) in zip(grid.seeds, chosen, strict=True)]
        augmented = planned(job, [Wanted(REAL, index, grid.seeds), *few], held_out, options)
        plain = planned(
            job, [replace(one, name=one.name + PLAIN) for one in few], held_out, Unaugmented(**vars(options))
        )
        plan = replace(augmented, trainings=augmented.trainings + plain.trainings)
        train_all(job, plan, options.workers, gpus_each(0.0, plan.trainings[0].classifier.transform.crop), {})
        found: dict[tuple[str, str], list[float]] = {}
        for training in plan.trainings:
            found.setdefault((training.set, training.classifier.arch), []).append(facts_of(training)["top1"])
        mean = (round(fmean(getattr(one, name) for _, one in chosen)) for name in ("images", "payload"))
        images = {REAL: (index.images, whole), DISTILLED: (own.images, budget), RANDOM: tuple(mean)}
        _report(job, found, images)


def _report(job: Job, found: Mapping[tuple[str, str], list[float]], images: Mapping[str, tuple[int, int]]) -> None:
    lines = [("network", "set", "images", "payload", "top-1")]
    told = []
    for name, arch in found:
        count, payload = images[name.removesuffix(PLAIN)]
        top1 = found[name, arch]
        half = t_half_interval(top1)
        spread = f" ± {100 * half:.1f}" if half == half else ""
        lines.append((arch, name, f"{count:,}", as_bytes(payload), f"{100 * sum(top1) / len(top1):.1f}{spread}"))
    for arch in dict.fromkeys(arch for _, arch in found):
        real, distilled, random, distilled_plain, random_plain = (
            found[name, arch] for name in (REAL, DISTILLED, RANDOM, DISTILLED + PLAIN, RANDOM + PLAIN)
        )
        lrs = [label_robust_score(a, b, b, c) for a, b, c in zip(real, distilled, random, strict=True)]
        ars = [
            augmentation_robust_score(*each)
            for each in zip(distilled, random, distilled_plain, random_plain, strict=True)
        ]
        lead = sum(b - c for b, c in zip(distilled, random, strict=True)) / len(real)
        scores = {
            "label_robust_score": sum(lrs) / len(lrs),
            "augmentation_robust_score": sum(ars) / len(ars),
            "over_random": lead,
        }
        job.run.metrics({f"{name}_{arch}": value for name, value in scores.items()})
        told.append(
            f"{arch}: label-robust score {100 * scores['label_robust_score']:.1f}, augmentation-robust score "
            f"{100 * scores['augmentation_robust_score']:.1f}; {100 * lead:+.1f} points over random images of as many bytes"
        )
    text = markdown(lines, left=2) + "\n\n" + "\n".join(told)
    job.run.text(text, "rank.md")
    print(f"\n{text}\n\n{job.where_to_look()}")
