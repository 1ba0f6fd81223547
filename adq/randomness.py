"""Random draws that depend on what is drawn, never on who draws it or when.

Every draw has its own generator, seeded by (seed, purpose, names), so results are the same for any number of workers,
any order of shards and any number of restarts.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_GLOBAL_DRAWS = threading.RLock()


def seed_of(seed: int, purpose: str, *names: object) -> int:
    """A 63-bit seed from (seed, purpose, names), the same on every machine."""
    text = "\x1f".join([str(seed), purpose, *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *names: object) -> np.random.Generator:
    """A NumPy generator of its own for (seed, purpose, names)."""
    return np.random.default_rng(seed_of(seed, purpose, *names))


def torch_generator(seed: int, purpose: str, *names: object) -> "torch.Generator":
    """A CPU torch generator of its own for (seed, purpose, names)."""
    import torch  # takes seconds to load: not for callers that draw with NumPy alone

    return torch.Generator().manual_seed(seed_of(seed, purpose, *names))


@contextmanager
def global_draws(seed: int, purpose: str, *names: object, device: str = "cpu") -> Iterator[None]:
    """Torch's global generators (of the CPU, and of `device`) draw for (seed, purpose, names) inside, and are as before after it.

    For layers that take no generator of their own: initial weights, dropout. One thread at a time: threads that share the
    generators would draw each other's numbers.
    """
    import torch

    with _GLOBAL_DRAWS, torch.random.fork_rng([device] if device.startswith("cuda") else []):
        torch.default_generator.manual_seed(seed_of(seed, purpose, *names))
        if device.startswith("cuda"):
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed_of(seed, purpose, *names))
        yield


def key_order(keys: list[str], seed: int, purpose: str) -> np.ndarray:
    """The positions of `keys` in the order of a seeded hash: one fixed random permutation, whatever else is there.

    Returns:
        int64 [len(keys)], positions into `keys`.
    """
    hashes = np.fromiter((seed_of(seed, purpose, key) for key in keys), dtype=np.uint64, count=len(keys))
    return np.argsort(hashes, kind="stable")
