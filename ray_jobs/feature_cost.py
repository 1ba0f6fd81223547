"""What is looked at before images are chosen and stored, as far as its cost can be told before it is spent: features, short
trainings, Grad-CAM.

Rates are measured: a network works for a second, and the first images are decoded.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch

from adq.dynamics import EPOCHS
from adq.extractor import FeatureExtractor, InputTransform, input_transform
from adq.features import load
from adq.images import UndecodableImage
from adq.selection import looks_at, needs
from adq.training import default_recipe
from ray_jobs.actors import pool_size
from ray_jobs.bins import IN_THE_DRIVER
from ray_jobs.classifier import Classifier
from ray_jobs.decode import encoded_images
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.loading import how_to_hold
from ray_jobs.options import Backbone, Compute
from ray_jobs.packing import RATE_SECONDS, Asked, Rate, placed, rates
from ray_jobs.progress import clock, counted
from ray_jobs.seen import extracts, trained_epochs
from ray_jobs.trainings import Plan

FIRST = 64  # images of a set on which decoding is measured, at most
ALONE = 700_000_000  # bytes of memory of the entry point without data
ROW = 1000  # for each image, its key, its members and what is chosen
GRAPHCUT = 18  # bytes of memory a number of the embeddings, at most, where the entry point cuts the bins
SORTED = 8  # where it holds and sorts them
LATER = "              bins, scores and the choices are not counted; what is done already is"


@dataclass(frozen=True)
class Looked:
    """What some methods look at, of one extractor, and of how many images it ranks the patches."""

    job: Job
    index: Index
    backbone: Backbone
    methods: Collection[str]
    ranked: int = 0

    @property
    def extracts(self) -> bool:
        return any(extracts(method, self.backbone) for method in self.methods)

    @property
    def watches(self) -> bool:
        return any("dynamics" in needs(method) for method in self.methods)

    @cached_property
    def epochs(self) -> int:
        """For which the extractor is trained here."""
        return trained_epochs(self.backbone, self.index) or 0

    @cached_property
    def network(self) -> Classifier:
        arch = self.backbone.name(self.index.side, self.job.device)
        transform = input_transform(arch, self.backbone.side(self.index.side))
        recipe = default_recipe(arch, transform.crop, max(self.epochs, 1))
        return Classifier(arch, len(self.index.classes), 0, transform, recipe, 0)

    def asked(self) -> list[Asked]:
        """The network, if any is needed, whose rates the others take."""
        if not (self.extracts or self.watches or self.ranked):
            return []
        trains = self.watches or self.epochs > 0 or self.ranked > 0
        return [Asked(self.network, self.backbone.train_workers, trains)]

    def seconds_of_features(self, rate: Rate, decoding: float) -> float:
        """Of one extractor, its training included. An image and its augmented view pass it once each."""
        seconds = self._in_actors(self.index.images, 2 / rate.tested, decoding)
        return seconds + (self._epochs(self.epochs, rate.trained, decoding) if self.epochs else 0.0)

    def seconds_of_ranking(self, rate: Rate, decoding: float) -> float:
        """Of the patches by Grad-CAM, forward and backward as a step of a training; where there are no features, the network's
        own training included."""
        seconds = self._in_actors(self.ranked, 1 / rate.trained, decoding)
        trained = self.epochs > 0 and not self.extracts
        return seconds + (self._epochs(self.epochs, rate.trained, decoding) if trained else 0.0)

    def _in_actors(self, images: int, passing: float, decoding: float) -> float:
        """Seconds of images in actors of which each has a network of its own.

        Args:
            passing: seconds of an image by --train-workers together.
        """
        job, each = self.job, passing * self.backbone.train_workers
        own = decoding / job.decoders
        seconds = images * (max(each, own) if job.device == "cuda" else each + own)
        return seconds / at_once(job, job.compute, len(self.index.data.shards))

    def seconds_of_watching(self, rate: Rate, decoding: float) -> float:
        """Of one short training, and the predictions after each epoch."""
        return self._epochs(EPOCHS, rate.trained, decoding) + self._epochs(EPOCHS, rate.tested, decoding)

    def _epochs(self, epochs: int, rate: float, decoding: float) -> float:
        """Seconds of epochs over the whole set, on --train-workers."""
        each = decoding / decoders(self.job, 1.0, self.backbone.train_workers)
        how = how_to_hold(self.index, self.network.transform, augment=self.network.recipe.augment)
        return passes(epochs * self.index.images, rate, how, each)

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Numbers of an image's embedding, and of its pooled features."""
        side = self.network.transform.crop
        embedding, pooled = FeatureExtractor(self.network.build(), self.network.arch)(torch.zeros(1, 3, side, side))
        return embedding.shape[1], pooled.shape[1]

    @property
    def stored(self) -> int:
        """Bytes of all features in the store, before compression: the embedding in 4 bytes a number, all others in 2."""
        embedding, pooled = self.widths
        return self.index.images * (6 * embedding + 4 * pooled)

    @property
    def memory(self) -> int:
        """Bytes that the entry point needs, at most: measured with the size of ImageNet-1K."""
        numbers = self.index.images * self.widths[0]
        here = numbers * 4 <= IN_THE_DRIVER and not self.job.compute.graphcut_actors
        cuts = here and any("bins" in needs(method) for method in self.methods)
        holds = any("embeddings" in looks_at(method) for method in self.methods)
        return ALONE + ROW * self.index.images + numbers * max(GRAPHCUT * cuts, SORTED * holds)


def estimate(looked: Looked) -> str:
    """What compressing costs, in the words of a person; of methods that look at features or a short training, and of Grad-CAM."""
    asked = looked.asked()
    if not asked:
        return f"cost          {', '.join(looked.methods)} needs no network: reading the shards, choosing and writing are all"
    measured, *_ = rates(looked.job, Plan((), replace(looked.index), {}), asked, looked.job.compute.gpus_per_actor)
    decoding = seconds_to_decode(looked.index, looked.network.transform)
    parts = told(looked, measured, decoding, 1 if looked.extracts else 0, 1 if looked.watches else 0)
    per_thread = f", decoding {1 / decoding:,.0f} a thread" if decoding else ""
    rate = f"({looked.network.arch} {measured.tested:,.0f} images a second{per_thread}, measured)"
    lines = [f"cost          {parts[0]} {rate}", *(f"              and {part}" for part in parts[1:]), LATER]
    if looked.extracts:
        lines.append(f"store         up to {looked.stored / 1e9:,.2f} GB of features")
        lines.append(f"memory        up to {looked.memory / 1e9:,.2f} GB of the entry point")
    return "\n".join(lines)


def told(looked: Looked, rate: Rate, decoding: float, extractors: int, trainings: int) -> list[str]:
    """What so many extractors and short trainings take, a text each."""
    found = []
    if extractors:
        seconds = extractors * looked.seconds_of_features(rate, decoding)
        found.append(f"about {clock(seconds)} for features, from {counted(extractors, 'extractor')}")
    if trainings:
        seconds = trainings * looked.seconds_of_watching(rate, decoding)
        found.append(f"about {clock(seconds)} for {counted(trainings, 'short training')} that methods watch")
    if looked.ranked:
        seconds = looked.seconds_of_ranking(rate, decoding)
        found.append(f"about {clock(seconds)} for Grad-CAM of {counted(looked.ranked, 'image')}")
    return found


def seconds_to_decode(index: Index, transform: InputTransform) -> float:
    """Seconds that an image takes from its file to a network's input, on one thread of this process."""
    count, spent = 0, 0.0
    for _, data in islice(encoded_images(index.data, index.data.shards[0], index.image_ext, index.key_prefix), FIRST):
        started = time.monotonic()
        try:
            load(data, transform)
        except UndecodableImage:
            continue
        spent, count = spent + time.monotonic() - started, count + 1
        if spent >= RATE_SECONDS:
            break
    return spent / max(count, 1)


def passes(count: int, rate: float, how: str, decoding: float) -> float:
    """Seconds for images to pass a network: those that are not held decoded are decoded each time, while it works."""
    return max(count / rate, 0.0 if how == "decoded" else count * decoding)


def decoders(job: Job, gpus: float, workers: int) -> int:
    """Threads that decode for a training."""
    return int(placed(job, gpus).cpus_per_actor) * workers


def at_once(job: Job, compute: Compute, tasks: int) -> int:
    """Actors that find room, of so many as there would be for these tasks."""
    fits = pool_size(job.cluster, replace(compute, actors=0), job.device, tasks)
    return min(fits, compute.actors or fits)
