"""The task losses of a distillation: what is drawn at each step, and from which generators."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adq.randomness import torch_generator
from palette.augment import augment, draw, join
from palette.experts import check_experts
from palette.matching import dm_loss, fresh_network, largest_start, real_means, synthetic_means, tm_loss, unflatten
from palette.network import normalise, to_uint8
from palette.recipe import Distillation
from palette.synthetic import Synthetic

# From (step, painted images [n, 3, S, S]) to the task loss.
Objective = Callable[[int, Tensor], Tensor]
AHEAD = 2  # epochs from a student's start to its target


def distributions(
    config: Distillation,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    targets: dict[int, Tensor] | None = None,
) -> Objective:
    """Distribution matching: each step a fresh network, and for each class `batch_real` images and one augmentation.

    Args:
        images: uint8 [N, S, S, 3] on the device of the run.
        labels: int64 [N] on the CPU.
        classes: those whose synthetic images the objective is given, in this order.
        targets: mean embeddings [C, d] of the real images by step, read and filled.
    """
    members = [(labels == label).nonzero()[:, 0] for label in classes]
    side, seed = images.shape[1], config.seed

    def objective(step: int, painted: Tensor) -> Tensor:
        # The head is not used.
        network = fresh_network(config.depth, config.width, 1, side, seed, step).to(painted.device)
        draws = join(
            [draw(torch_generator(seed, "dsa", step, label), side, 1, config.augmentations) for label in classes]
        )
        real = None if targets is None else targets.get(step)
        if real is None:
            real = real_means(
                network,
                images,
                [_batch(step, *pair) for pair in zip(classes, members, strict=True)],
                draws,
                config.compiled,
            )
            if targets is not None:
                targets[step] = real
        return dm_loss(real, synthetic_means(network, painted, draws, config.compiled))

    def _batch(step: int, label: int, indices: Tensor) -> Tensor:
        order = torch.randperm(len(indices), generator=torch_generator(seed, "real", step, label))
        return indices[order[: config.batch_real]]

    return objective


def trajectories(config: Distillation, synthetic: Synthetic, experts: Sequence[Tensor], num_classes: int) -> Objective:
    """Trajectory matching: each step an expert, a start epoch, and a student trained on the synthetic images.

    Soft labels start as the logits of the first expert, at its end, of the images that the set starts from.

    Raises:
        ValueError: experts that are too short, or of another network.
    """
    matching, seed = config.trajectories, config.seed
    check_experts(experts, matching.last_start, AHEAD)
    latents, device = synthetic.latents, synthetic.latents.device
    count, side = len(latents), latents.shape[-1]
    network = fresh_network(config.depth, config.width, num_classes, side, seed, "student").to(device)
    labels = synthetic.labels.to(device)
    if synthetic.label_logits is not None:
        with torch.no_grad():
            parameters = unflatten(network, experts[0][-1].to(device))
            seen = normalise(to_uint8(latents))
            synthetic.label_logits.copy_(torch.func.functional_call(network, parameters, (seen,)))

    def batches(step: int, painted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(matching.batch_size or count, count)
        order: list[Tensor] = []
        for position in range(matching.student_steps):
            if not order:
                generator = torch_generator(seed, "synthetic", step, position)
                order = list(torch.randperm(count, generator=generator).split(size))
            chosen = order.pop(0)
            draws = draw(torch_generator(seed, "dsa", step, position), side, len(chosen), config.augmentations)
            where = chosen.to(device)
            target = (
                labels[where] if synthetic.label_logits is None else F.softmax(synthetic.label_logits[where], dim=1)
            )
            yield augment(painted[where], draws, torch.arange(len(chosen))), target

    def objective(step: int, painted: Tensor) -> Tensor:
        generator = torch_generator(seed, "expert", step)
        largest = largest_start(step, config.steps, matching.first_start, matching.last_start)
        expert = experts[int(torch.randint(len(experts), (), generator=generator))]
        epoch = int(torch.randint(largest + 1, (), generator=generator))
        start, target = expert[epoch].to(device), expert[epoch + AHEAD].to(device)
        return tm_loss(network, start, target, batches(step, painted), synthetic.step_size)

    return objective
