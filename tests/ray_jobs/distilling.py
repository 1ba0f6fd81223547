"""What the tests of distillation share: tiny distillations of real images, and a worker group without Ray Train."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ray_jobs.distill import Distilling, Wanted
from ray_jobs.experts import Experts, Network
from ray_jobs.options import Data
from ray_jobs.workers import Group, Member

TINY = {"images_per_class": 2, "colors": 4, "steps": 12, "batch_real": 16, "start": "random"}
NETWORK = Network(width=8)
EXPERTS = Experts(experts=2, expert_epochs=3, expert_batch=100)


def wanted(shards: Path, out: Path, skip_corrupt: bool = False, **options) -> Wanted:
    data = Data(data=(str(shards),), skip_corrupt=skip_corrupt)
    return Wanted(Distilling(**TINY | options), NETWORK, EXPERTS, data, str(out))


@dataclass(frozen=True)
class Alone(Member):
    """A member whose group is itself: what it would sum with others, it has alone."""

    kept: list = field(default_factory=list)

    def tell(self, note: object) -> None:
        if self.rank == 0:
            self.notes(note)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def checkpoint(self, own: bool = False) -> dict | None:
        return None

    def keep(self, state: dict, own: bool = False) -> None:
        self.kept.append(state)


def one_by_one(group: Group, work: Callable, plan: object, on_note: Callable) -> None:
    """As `workers.run_group`, in this process, one worker after the other: for workers that need nothing of each other."""
    with one_thread():
        for rank in range(group.workers):
            work(Alone(rank, group.workers, "cpu", 1, group.checkpoint_seconds, on_note), plan)


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
