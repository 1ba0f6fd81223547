"""What the tests share: the real images, where they are, and one Ray cluster a module that needs it."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def cifar10_shard(number: int, split: str = "train") -> str:
    """The path of a shard of real images; skips, loudly, where there is none."""
    path = DATA / "cifar10" / f"cifar10-{split}-{number:06d}.tar"
    if not path.exists():
        pytest.skip(f"no real images at {path}")
    return str(path)
