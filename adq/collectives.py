"""What the workers of a training tell each other, and its state between two runs: the same for every loop of steps.

Of a global batch of n images, worker r of w holds the positions r, r + w, r + 2w, ...
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn


def check_world(world: int) -> None:
    """Raises RuntimeError where several workers have no process group."""
    if world > 1 and not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"training with {world} workers needs torch.distributed: call init_process_group first")


def own_positions(count: int, rank: int, world: int, images: int, labels: int | None = None) -> Tensor:
    """The positions of a worker in a global batch of `count`, int64.

    Raises:
        ValueError: the worker has other than so many images, or labels where they are needed.
    """
    positions = torch.arange(count)[rank::world]
    if images != len(positions) or (labels is not None and labels != images):
        got = f"{images} images" if labels is None else f"{images} images and {labels} labels"
        raise ValueError(f"worker {rank} of {world} got {got} of a global batch of {count}, expected {len(positions)}")
    return positions


def adopt(tensors: list[Tensor]) -> None:
    """Worker 0's values, in place, on every worker."""
    exchange(tensors, partial(dist.broadcast, src=0))


def total_gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """The sum of all workers' losses; their gradients are summed in place, zero where a worker had none."""
    loss = loss.detach()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    exchange([loss, *(parameter.grad for parameter in model.parameters())], dist.all_reduce)
    return loss


@torch.no_grad()
def exchange(tensors: list[Tensor], collective: Callable[[Tensor], object]) -> None:
    """Apply a collective to all tensors in place, as one message."""
    if not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    collective(message)
    for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def restore(start: dict, run: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Load a checkpoint that has `model`, `optimizer`, `step`, `epoch` and the fields of `run`, which say whose it is.

    Returns:
        Steps and epochs done. Raises ValueError if it belongs to another run.
    """
    if different := [name for name in run if start[name] != run[name]]:
        raise ValueError(f"the checkpoint is of another run: it differs in {', '.join(different)}")
    model.load_state_dict(start["model"])
    optimizer.load_state_dict(start["optimizer"])
    return start["step"], start["epoch"]


def on_cpu(value: object) -> object:
    """A copy of nested dictionaries and lists with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    return [on_cpu(item) for item in value] if isinstance(value, list) else value
