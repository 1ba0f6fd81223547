"""The real images of tests.bench.palettes."""

import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adq.images import decode
from adq.training import TensorImages

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"


def samples(path: Path) -> dict[str, dict[str, bytes]]:
    """The files of a shard by key and extension, in its own order."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            found.setdefault(key, {})[extension] = archive.extractfile(member).read()
    return found


def load(folder: Path, split: str, shards: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, S, S, 3] and labels int64 [N] of so many shards from the `first` on, in the order of their keys."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(f"*{split}-*.tar"))[first : first + shards]:
        found |= samples(path)
    if not found:
        raise FileNotFoundError(f"no {split} shards in {folder}")
    keys = sorted(found)
    images = np.stack([np.asarray(decode(found[key]["jpg"])) for key in keys])
    return torch.from_numpy(images), torch.tensor([int(found[key]["cls"]) for key in keys])


def examples(images: Tensor, labels: Tensor) -> TensorImages:
    return TensorImages(images.permute(0, 3, 1, 2).contiguous(), labels.numpy())
