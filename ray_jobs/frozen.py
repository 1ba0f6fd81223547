"""A trained network in actors: its weights go through the object store once, and are loaded once an actor."""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from torch import nn

from adq.extractor import head_size, load_weights
from adq.models import build
from adq.process import settle

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.ingest import Index
    from ray_jobs.weights import Extractor

BATCH = 256  # images whose soft labels are made together


def check_classes(extractor: "Extractor", of: "Index", instead: str = "") -> None:
    """Raises ValueError where the network does not know as many classes as the data have. Args: instead: what else helps."""
    known = extractor.manifest.summary["classes"]
    if known != len(of.classes):
        raise ValueError(
            f"{extractor.arch} is asked for the true class, but its weights know {known:,} classes and the data have "
            f"{len(of.classes):,}: train it on the data with --weights train:10, or give such a file{instead}"
        )


def shared_weights(extractor: "Extractor", of: "Index | None" = None) -> dict[str, np.ndarray]:
    """The tensors of the weights stage, as `map_actors` shares them.

    Args:
        of: data whose classes the network must know.

    Raises:
        ValueError: it knows others.
    """
    if of is not None:
        check_classes(extractor, of)
    saved = torch.load(io.BytesIO(extractor.manifest.bytes("weights.pt")), weights_only=True)
    return {name: value.numpy() for name, value in saved.items()}


class Frozen:
    """An actor with the trained network on its device, and threads that decode for it.

    Its plan has arch, transform, device, threads and decoders.
    """

    def __init__(self, plan: Any):
        settle(plan.threads)
        self.plan, self.model = plan, None
        self.pool = ThreadPoolExecutor(max(1, plan.decoders))

    def ready(self, weights: list[ray.ObjectRef]) -> None:
        """Load the weights, once an actor."""
        if self.model is None:
            self.model = network(weights, self.plan.arch, self.plan.transform.crop).to(self.plan.device)

    @torch.no_grad()
    def soft_labels(self, images: torch.Tensor) -> list[bytes]:
        """The logits of images as files, float16 [C] in .npy each. Args: images: uint8 [N, 3, S, S]."""
        parts = [self.model(self.plan.transform.normalise(part.to(self.plan.device))) for part in images.split(BATCH)]
        return [_npy(row) for row in torch.cat(parts).float().cpu().numpy().astype("<f2")]


def _npy(row: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, row, allow_pickle=False)
    return buffer.getvalue()


def network(weights: list[ray.ObjectRef], arch: str, image_size: int) -> nn.Module:
    """In an actor: the network with these weights, in evaluation mode on the CPU."""
    state: Mapping[str, np.ndarray] = ray.get(weights[0])
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    model = build(arch, head_size(arch, tensors), image_size)
    load_weights(model, tensors, "the weights stage")
    return model.eval()
