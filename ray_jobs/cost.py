"""What a comparison will cost, said before it is spent: rates are measured, each network training on noise for a second."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from adq.extractor import input_transform
from adq.models import SMALL
from adq.sampling import kept
from adq.selection import needs
from adq.training import default_recipe
from ray_jobs import dynamics
from ray_jobs.actors import pool_size
from ray_jobs.classifier import Classifier, input_side
from ray_jobs.evaluate import Wanted
from ray_jobs.grid import Grid
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.options import Compute
from ray_jobs.packing import Asked, Rate, placed, rates
from ray_jobs.progress import clock, counted
from ray_jobs.seen import extracts, trained_epochs
from ray_jobs.trainings import Plan, images_of


def gpus_each(wanted: float, side: int) -> float:
    """Of a GPU, for one training at this image side: what is wanted, else a quarter for small images and a whole one for others."""
    return wanted or (0.25 if side < SMALL else 1.0)


def estimate(job: Job, index: Index, test: Index, grid: Grid, further: Sequence[Wanted]) -> str:
    """What the whole grid costs, what is done included, as far as this can be known before; in the words of a person.

    Args:
        further: those of --sets.
    """
    options, variants, shares = grid.evaluation, grid.variants, grid.comparison.shares()
    side = options.image_size or input_side(test.side)
    archs = options.archs(job.device)
    classifiers = [
        Classifier(
            arch, len(test.classes), options.width, input_transform(arch, side), options.recipe_for(arch, side), 0
        )
        for arch in archs
    ]
    asked = [Asked(classifier, options.workers) for classifier in classifiers]
    methods = {variant.selection.method for variant in variants}
    features = any(extracts(method, grid.backbone) for method in methods)
    watching = any("dynamics" in needs(method) for method in methods)
    epochs = trained_epochs(grid.backbone, index) or 0
    if features or watching:
        backbone = grid.backbone.name(index.side, job.device)
        shape = input_transform(backbone, grid.backbone.side(index.side))
        recipe = default_recipe(backbone, shape.crop, max(epochs, 1))
        network = Classifier(backbone, len(index.classes), 0, shape, recipe, 0)
        asked.append(Asked(network, grid.backbone.train_workers, trains=watching or epochs > 0))
    slots = _slots(job, grid, side)
    measured = rates(job, Plan((), replace(test), {}), asked, gpus_each(grid.comparison.gpus_per_training, side))
    sizes = [kept(keep, index.images) for keep in shares for _ in variants] + [one.index.images for one in further]
    seconds, images = 0.0, 0
    for classifier, rate in zip(classifiers, measured, strict=False):
        images += options.seeds * sum(images_of(classifier.recipe, size) for size in sizes)
        seconds += options.seeds * sum(_seconds(classifier, size, test, rate) for size in sizes)
    sets = f"{counted(len(variants), 'set')} x {counted(len(shares), 'keep ratio')}"
    each = f"{counted(options.seeds, 'seed')} x {counted(len(archs), 'network')}"
    text = (
        f"grid          {f'({sets} + {len(further)} of --sets)' if further else sets} x {each}: "
        f"{counted(len(sizes) * options.seeds * len(archs), 'training')}, {images / 1e6:,.1f} M images\n"
        + _said("cost", seconds, slots, options.workers, dict(zip(archs, measured, strict=False)))
    )
    if features:
        # An image and its augmented view pass the extractor once each, in actors of which each has a network of its own.
        actors = _at_once(job, job.compute, len(index.data.shards))
        training = epochs / measured[-1].trained if epochs else 0.0
        one = index.images * (training + 2 * grid.backbone.train_workers / measured[-1].tested / actors)
        count = len({grid.extractor(seed, index) for seed in grid.seeds})
        text += f"\n              and about {clock(count * one)} for features, from {counted(count, 'extractor')}"
    if watching:
        one = index.images * dynamics.EPOCHS * (1 / measured[-1].trained + 1 / measured[-1].tested)
        count = len({grid.watched(seed) for seed in grid.seeds})
        text += (
            f"\n              and about {clock(count * one)} for {counted(count, 'short training')} that methods watch"
        )
    return text + "\n              bins, scores and the choices are not counted; what is done already is"


def of_trainings(job: Job, plan: Plan, grid: Grid, label: str = "cost") -> str:
    """What the trainings of a plan cost that are not done yet, in the words of a person, after a label."""
    pending = plan.pending()
    workers = grid.evaluation.workers
    each = {t.classifier.arch: Asked(t.classifier, workers) for t in pending}
    side = plan.trainings[0].classifier.transform.crop
    measured = rates(job, plan, list(each.values()), gpus_each(grid.comparison.gpus_per_training, side)) if each else []
    known, slots = dict(zip(each, measured, strict=True)), _slots(job, grid, side)
    seconds = [
        _seconds(t.classifier, t.rows.images if t.rows else t.index.images, plan.test, known[t.classifier.arch])
        for t in pending
    ]
    return _said(label, sum(seconds), slots, workers, known)


def _seconds(classifier: Classifier, images: int, test: Index, rate: Rate) -> float:
    """Of one training, and its test."""
    return images_of(classifier.recipe, images) / rate.trained + test.images / rate.tested


def _said(label: str, seconds: float, slots: int, workers: int, measured: Mapping[str, Rate]) -> str:
    """Args: slots: trainings at once, of so many workers each."""
    each = [f"{arch} {rate.trained:,.0f} images a second" for arch, rate in measured.items()]
    told = f" ({', '.join(each)}, measured)" if each else ""
    return f"{label:<13} about {clock(seconds / slots)} on {counted(slots * workers, 'worker')}{told}"


def _slots(job: Job, grid: Grid, side: int) -> int:
    """Trainings at once. Raises ValueError as `actors.pool_size`, before anything is spent on them."""
    if grid.evaluation.workers > 1:
        return 1
    return _at_once(job, placed(job, gpus_each(grid.comparison.gpus_per_training, side)), sys.maxsize)


def _at_once(job: Job, compute: Compute, tasks: int) -> int:
    """Actors that find room, of so many as there would be for these tasks."""
    fits = pool_size(job.cluster, replace(compute, actors=0), job.device, tasks)
    return min(fits, compute.actors or fits)
