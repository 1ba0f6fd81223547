"""dynamics: how each image is learnt in a short training, for the methods that select by difficulty."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from adq.dynamics import Dynamics, short_run
from adq.extractor import input_transform
from adq.process import settle
from adq.training import default_recipe
from ray_jobs.actors import map_actors
from ray_jobs.classifier import Classifier
from ray_jobs.ingest import Index
from ray_jobs.loading import how_to_hold, open_set, order_kind
from ray_jobs.options import Backbone
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job

VERSION = 1
EPOCHS = 10  # of the short training: EL2N's and forgetting's papers read the first ten to twenty
COLUMNS = ("el2n", "forgetting", "confidence")


@dataclass(frozen=True)
class Watcher:
    """An actor that trains a network and watches it learn."""

    stage: Stage
    index: Index
    classifier: Classifier
    how: str
    threads: int
    device: str

    def ready(self, _shared: list) -> None:
        settle(self.threads)

    def work(self, _shared: list) -> Part:
        classifier = self.classifier
        data = open_set(self.index, classifier.transform, self.how, self.threads, leave_out=True)
        device = "cuda:0" if self.device == "cuda" else self.device
        found = short_run(
            data.images, classifier.build(), classifier.recipe, classifier.transform, classifier.seed, device
        )
        columns = {name: pa.array(getattr(found, name).astype(np.float32)) for name in COLUMNS}
        columns["correct"] = pa.array(found.correct.T.tolist(), pa.list_(pa.bool_()))
        return self.stage.commit_table("dynamics", pa.table({"key": data.keys, **columns}))


def check(job: "Job", index: Index, backbone: Backbone) -> str:
    """How the images are held. Raises ValueError where they do not fit a worker's memory."""
    side = backbone.side(index.side)
    how = how_to_hold(index, input_transform(backbone.name(index.side, job.device), side))
    if how == "streamed":
        raise ValueError(
            f"{index.image_bytes / 1e9:.1f} GB of images do not fit a worker, which methods that watch a training need"
        )
    return how


def run(job: "Job", index: Index, backbone: Backbone, skip_corrupt: bool) -> Manifest:
    """Watch the extractor's network learn the data for ten epochs, or find it done.

    Raises:
        ValueError: the images do not fit a worker's memory; some cannot be decoded and may not be left out.
    """
    arch, side = backbone.name(index.side, job.device), backbone.side(index.side)
    transform = input_transform(arch, side)
    recipe = default_recipe(arch, side, EPOCHS)
    classifier = Classifier(arch, len(index.classes), 0, transform, recipe, backbone.feature_seed)
    how = check(job, index, backbone)
    stage = Stage(
        job.store, "dynamics", VERSION, {"index": index.manifest.content},
        classifier.config() | {"order": order_kind(how), "threads": job.compute.threads, "device": job.device},
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts: list[Part] = []
        progress = Progress("dynamics", EPOCHS * index.images)
        arguments = (stage, replace(index), classifier, how, job.compute.threads, job.device)
        map_actors(Watcher, arguments, [()], 1, job.compute, job.device, parts.append)
        progress.add(EPOCHS * index.images)
        if parts[0].rows < index.images and not skip_corrupt:
            raise ValueError(
                f"{index.images - parts[0].rows} images cannot be decoded: `extract` lists them; --skip-corrupt leaves them out"
            )
        return parts, {"images": parts[0].rows, "epochs": EPOCHS, "recipe": asdict(recipe)}

    return job.stage(stage, work)


def dynamics_by_key(manifest: Manifest) -> tuple[list[str], Dynamics]:
    """The keys, in their order, and how their images were learnt."""
    table = manifest.table("dynamics")
    correct = np.array(table["correct"].to_pylist(), dtype=bool).T
    return table["key"].to_pylist(), Dynamics(*(table[name].to_numpy() for name in COLUMNS), correct)
