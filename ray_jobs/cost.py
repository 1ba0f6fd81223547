"""What a comparison will cost, said before it is spent. Rates are measured: each network trains on noise for a second."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adq.extractor import input_transform
from adq.models import SMALL
from adq.sampling import kept
from ray_jobs.classifier import Classifier, input_side
from ray_jobs.evaluate import Evaluation, Wanted, held
from ray_jobs.feature_cost import LATER, Looked, at_once, decoders, passes, seconds_to_decode, told
from ray_jobs.grid import Grid
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.loading import how_to_hold, some_rows
from ray_jobs.packing import Asked, Rate, placed, rates
from ray_jobs.progress import clock, counted
from ray_jobs.trainings import Plan, Training, images_of


def gpus_each(wanted: float, side: int) -> float:
    """Of a GPU, for one training at this image side: what is wanted, else a quarter for small images and a whole one for others."""
    return wanted or (0.25 if side < SMALL else 1.0)


@dataclass(frozen=True)
class Piece:
    """A training as far as it costs time: images, and how a worker holds them; `alone`, without the rest of their set."""

    classifier: Classifier
    index: Index
    images: int
    how: str
    alone: bool

    @classmethod
    def of(cls, training: Training) -> "Piece":
        alone = training.rows is not None and training.rows.alone
        return cls(training.classifier, training.index, training.count, training.how, alone)

    @classmethod
    def expected(cls, classifier: Classifier, wanted: Wanted, options: Evaluation) -> "Piece":
        how, rows = held(wanted, classifier.transform, options.memory, classifier.recipe.augment)
        images = (wanted.rows or wanted.index).images
        return cls(classifier, wanted.index, images, how, rows is not None and rows.alone)

    @property
    def seen(self) -> int:
        """Images, over all epochs."""
        return images_of(self.classifier.recipe, self.images)

    def seconds(self, rate: Rate, decoding: float) -> float:
        """Of the training. Images of a set that is held whole are decoded once for all, which is not counted here."""
        opening = self.images * decoding if self.alone and self.how == "decoded" else 0.0
        return opening + passes(self.seen, rate.trained, self.how, decoding)


@dataclass(frozen=True)
class Expected:
    """What a grid trains on, as far as it is known before images are chosen."""

    said: str  # which, in the words of a person
    sizes: Sequence[int]  # images of each set of one seed
    further: Sequence[Wanted] = ()  # those of --sets
    ranked: int = 0  # images whose patches a network ranks

    @classmethod
    def of_shares(cls, grid: Grid, index: Index, further: Sequence[Wanted]) -> "Expected":
        """Of a comparison."""
        shares = grid.comparison.shares()
        said = f"{counted(len(grid.variants), 'set')} x {counted(len(shares), 'keep ratio')}"
        if any(variant.literal for variant in grid.variants):
            said += " (literal ones counted as all images, the most that they can keep)"
        every = [(keep, variant) for keep in shares for variant in grid.variants]
        return cls(said, [index.images if one.literal else kept(keep, index.images) for keep, one in every], further)


def estimate(job: Job, index: Index, test: Index, grid: Grid, expected: Expected) -> str:
    """What the whole grid costs, what is done included, as far as this can be known before; in the words of a person."""
    options, further = grid.evaluation, expected.further
    side = options.image_size or input_side(test.side)
    archs = options.archs(job.device)
    classifiers = [
        Classifier(
            arch, len(test.classes), options.width, input_transform(arch, side), options.recipe_for(arch, side), 0
        )
        for arch in archs
    ]
    asked = [Asked(classifier, options.workers) for classifier in classifiers]
    methods = {variant.selection.method for variant in grid.variants}
    looked = Looked(job, index, grid.backbone, methods, expected.ranked)
    asked += looked.asked()
    _slots(job, grid, side)  # raises, before seconds are spent
    measured = rates(job, Plan((), replace(test), {}), asked, gpus_each(grid.comparison.gpus_per_training, side))
    decoding = seconds_to_decode(index, classifiers[0].transform)
    rows = {size: some_rows(index, size) for size in set(expected.sizes)}  # of millions of images, once
    every = [Wanted("", index, grid.seeds, rows[size]) for size in expected.sizes] + list(further)
    pieces = [
        Piece.expected(classifier, one, options) for classifier in classifiers for one in every for _ in one.seeds
    ]
    # Several of --sets that share a name and the seeds are one.
    said = f"({expected.said} + {len({one.name for one in further})} of --sets)" if further else expected.said
    text = (
        f"grid          {said} x {counted(options.seeds, 'seed')} x "
        f"{counted(len(archs), 'network')}: {counted(len(pieces), 'training')}, "
        f"{sum(piece.seen for piece in pieces) / 1e6:,.1f} M images\n"
        + _said(job, grid, "cost", pieces, test, dict(zip(archs, measured, strict=False)), decoding)
    )
    extractors = len({grid.extractor(seed, index) for seed in grid.seeds}) if looked.extracts else 0
    watched = len({grid.watched(seed) for seed in grid.seeds}) if looked.watches else 0
    more = [f"              and {part}" for part in told(looked, measured[-1], decoding, extractors, watched)]
    return "\n".join([text, *more, LATER])


def of_trainings(job: Job, plan: Plan, grid: Grid, label: str = "cost") -> str:
    """What the trainings of a plan cost that are not done yet, in the words of a person, after a label."""
    pending = plan.pending()
    each = {t.classifier.arch: Asked(t.classifier, grid.evaluation.workers) for t in pending}
    transform = plan.trainings[0].classifier.transform
    gpus = gpus_each(grid.comparison.gpus_per_training, transform.crop)
    measured = rates(job, plan, list(each.values()), gpus) if each else []
    decoding = seconds_to_decode(plan.trainings[0].index, transform) if each else 0.0
    known = dict(zip(each, measured, strict=True))
    return _said(job, grid, label, [Piece.of(t) for t in pending], plan.test, known, decoding)


def _said(
    job: Job, grid: Grid, label: str, pieces: Sequence[Piece], test: Index, known: Mapping[str, Rate], decoding: float
) -> str:
    """Args: decoding: seconds for an image on one thread."""
    options, seconds = grid.evaluation, 0.0
    side = options.image_size or input_side(test.side)
    slots, gpus = _slots(job, grid, side), gpus_each(grid.comparison.gpus_per_training, side)
    if pieces:
        each = decoding / decoders(job, 1.0 if options.workers > 1 else gpus, options.workers)
        how = how_to_hold(test, pieces[0].classifier.transform, options.memory)
        for piece in pieces:
            rate = known[piece.classifier.arch]
            seconds += (piece.seconds(rate, each) + passes(test.images, rate.tested, how, each)) / slots
        opened = {p.index.manifest.content: p.index.images for p in pieces if p.how == "decoded" and not p.alone}
        seconds += each * (sum(opened.values()) + (test.images if how == "decoded" else 0))
    rates_of = [f"{arch} {rate.trained:,.0f} images a second" for arch, rate in known.items()]
    shown = f" ({', '.join(rates_of)}, decoding {1 / decoding:,.0f} a thread, measured)" if known and decoding else ""
    return f"{label:<13} about {clock(seconds)} on {counted(slots * options.workers, 'worker')}{shown}"


def _slots(job: Job, grid: Grid, side: int) -> int:
    """Trainings at once. Raises ValueError as `actors.pool_size`, before anything is spent on them."""
    if grid.evaluation.workers > 1:
        return 1
    return at_once(job, placed(job, gpus_each(grid.comparison.gpus_per_training, side)), sys.maxsize)
