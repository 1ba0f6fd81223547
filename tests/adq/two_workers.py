"""Two workers of one process group: this process, and one that is started for the other rank."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _join(work: Callable[[int, int, Path], None], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/rendezvous", "timeout": timedelta(seconds=120)}
    dist.init_process_group("gloo", rank=rank, world_size=2, **meeting)
    work(rank, 2, folder)
    dist.destroy_process_group()


def _other(work: Callable[[int, int, Path], None], folder: Path) -> None:
    _join(work, 1, folder)
    # A thread of gloo that frees the last tensor while the interpreter ends would abort the process.
    os._exit(0)


def run_two_workers(work: Callable[[int, int, Path], None], folder: Path) -> None:
    """`work(rank, 2, folder)` for both ranks in one gloo group; a rank that fails fails the test."""
    other = mp.get_context("spawn").Process(target=_other, args=(work, folder))
    other.start()
    _join(work, 0, folder)
    other.join()
    assert other.exitcode == 0
