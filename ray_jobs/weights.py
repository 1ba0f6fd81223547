"""weights: the backbone's weights: torchvision's, a file's, or trained on the data itself with Ray Train."""

import io
import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from adq.extractor import InputTransform, head_size, input_transform, load_weights, torchvision_state
from adq.models import LARGE_FORMS, SMALL, build, zoo
from adq.shards import absolute, file_info, open_file
from adq.training import default_recipe
from ray_jobs.classifier import Classifier, count_correct, fit
from ray_jobs.ingest import Index
from ray_jobs.loading import how_to_hold, open_set, order_kind
from ray_jobs.options import Backbone
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import canonical_json, parquet_table, sha256
from ray_jobs.watch import of_epochs
from ray_jobs.workers import Group, Member, run_group

if TYPE_CHECKING:  # what only the driver needs is not loaded by the workers
    from ray_jobs.job import Job
    from ray_jobs.mlflow_run import Run

VERSION = 1
DEFAULT_EPOCHS = 10
TESTED = 5000  # training images, at most, on which the trained backbone's accuracy is measured
NESTED = ("state_dict", "model", "model_state_dict")  # where checkpoints keep their weights

State = dict[str, Tensor]


@dataclass(frozen=True)
class Extractor:
    """A backbone: its network, the images that it takes, and the stage that holds its weights as `weights.pt`."""

    manifest: Manifest
    arch: str
    image_size: int
    transform: InputTransform


@dataclass(frozen=True)
class Training:
    """What a worker must know to train the backbone."""

    stage: Stage
    index: Index
    classifier: Classifier
    how: str


def run(job: "Job", index: Index, backbone: Backbone) -> Extractor:
    """Find or make the weights.

    Raises:
        ValueError: unknown names, weights that do not fit the network, a file that holds more than tensors.
        FileNotFoundError: --weights is neither a name, nor a file, nor train:EPOCHS.
    """
    arch, side = backbone.name(index.side, job.device), backbone.side(index.side)
    source = origin(index, backbone)
    if trained := re.fullmatch(r"train:(\d+)", source):
        return _train(job, index, arch, side, int(trained[1]), backbone.train_workers, backbone.feature_seed)
    if file_info(absolute(source)).is_file:
        return _from_file(job, arch, side, absolute(source))
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", source):
        raise FileNotFoundError(
            f"--weights {source}: no such file; give a file, torchvision's name (IMAGENET1K_V1, DEFAULT) or train:EPOCHS"
        )
    transform = input_transform(arch, side, source)
    return _loaded(job, arch, transform, source, {}, lambda: torchvision_state(arch, source))


def origin(index: Index, backbone: Backbone) -> str:
    """Where weights come from: as --weights says, or the default for images of this side."""
    return backbone.weights or ("DEFAULT" if backbone.side(index.side) >= SMALL else f"train:{DEFAULT_EPOCHS}")


def _from_file(job: "Job", arch: str, side: int, path: str) -> Extractor:
    with open_file(path) as stream:
        data = stream.read()
    transform = input_transform(arch, side, _published_name(arch, path))
    return _loaded(job, arch, transform, path, {"file": sha256(data)}, lambda: read_weights(data, path))


def _loaded(
    job: "Job", arch: str, transform: InputTransform, origin: str, inputs: Mapping[str, str], read: Callable[[], State]
) -> Extractor:
    # A file is known by its digest, not by its path.
    config = {"arch": arch, "transform": asdict(transform)} | ({} if inputs else {"weights": origin})
    stage = Stage(job.store, "weights", VERSION, inputs, config)

    def work(stage: Stage) -> tuple[list[Part], dict]:
        state = read()
        classes = head_size(arch, state)
        load_weights(build(arch, classes, transform.crop), state, origin)
        return [_commit(stage, state)], {"arch": arch, "classes": classes, "tensors": len(state)}

    return Extractor(job.stage(stage, work, "tensors"), arch, transform.crop, transform)


def read_weights(data: bytes, origin: str) -> State:
    """The tensors of a checkpoint: a state dict, or one under the key state_dict or model.

    Raises:
        ValueError: the file holds more than tensors and plain values (nothing else is unpickled), or no weights.
    """
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "it is empty")[:120]
        raise ValueError(
            f"--weights {origin}: not a checkpoint of plain tensors ({reason}); nothing else is unpickled: save it with "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(value, Mapping):
        value = next((value[name] for name in NESTED if isinstance(value.get(name), Mapping)), value)
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise ValueError(
            f"--weights {origin}: no weights in it; expected a state dict, or one under {' or '.join(NESTED)}"
        )
    # Written by DataParallel, names have a prefix.
    wrapped = all(name.startswith("module.") for name in value)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in value.items()}


def _published_name(arch: str, path: str) -> str | None:
    """torchvision's name for a file that has the name under which torchvision publishes it."""
    name = LARGE_FORMS.get(arch, arch)
    if name not in zoo().list_models(module=zoo()):
        return None
    file = path.rsplit("/", 1)[-1]
    weights = zoo().get_model_weights(name)
    return next((w.name for w in weights if w.url.rsplit("/", 1)[-1] == file), None)


def _train(job: "Job", index: Index, arch: str, side: int, epochs: int, workers: int, seed: int) -> Extractor:
    transform = input_transform(arch, side)
    recipe = default_recipe(arch, side, epochs)
    classifier = Classifier(arch, len(index.classes), 0, transform, recipe, seed, "extractor")
    how = how_to_hold(index, transform, augment=recipe.augment)
    stage = Stage(
        job.store, "weights", VERSION,
        inputs={"index": index.manifest.content},
        config=classifier.config() | {
            "order": order_kind(how), "threads": job.compute.threads, "train_workers": workers, "device": job.device,
        },
    )  # fmt: skip
    group = Group(workers, job.compute.threads, job.device, stage)

    def work(stage: Stage) -> tuple[list[Part], dict]:
        parts = stage.committed()
        if "weights.pt" not in parts:
            group.check()
            run_group(group, _work, Training(stage, index, classifier, how), of_epochs("weights", epochs, index.images))
            parts = stage.committed()
        group.clean()
        facts = json.loads(parquet_table(stage.read(parts["training"])).schema.metadata[b"summary"])
        return [parts["training"], parts["weights.pt"]], facts

    def log(run: "Run", manifest: Manifest) -> None:
        curve = manifest.table("training").to_pylist()
        run.metric_series((row["epoch"], {"train_loss": row["train_loss"]}) for row in curve)

    return Extractor(job.stage(stage, work, "images", log), arch, transform.crop, transform)


def _work(member: Member, training: Training) -> None:
    stage, classifier = training.stage, training.classifier
    # `extract` lists the images that cannot be decoded; here they are left out.
    data = open_set(training.index, classifier.transform, training.how, member.threads, leave_out=True)
    model, losses = fit(member, classifier, data, stage.digest)
    every = -(-len(data.labels) // TESTED)
    right = count_correct(member, model, data, classifier.transform, every, some=True)
    if member.rank == 0:
        facts = {
            "arch": classifier.arch, "classes": classifier.classes, "images": len(data.labels), "left_out": data.dropped,
            "train_loss": losses[-1], "train_top1": float(right.mean()),
        }  # fmt: skip
        curve = pa.table({"epoch": range(1, len(losses) + 1), "train_loss": losses})
        stage.commit_table("training", curve.replace_schema_metadata({"summary": canonical_json(facts)}))
        _commit(stage, model.state_dict())


def _commit(stage: Stage, state: State) -> Part:
    """Saved to memory, then written; copies, so that the bytes depend on the values alone."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, buffer)
    return stage.commit("weights.pt", buffer.getvalue(), len(state), "pt")
