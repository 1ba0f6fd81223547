"""Mixup and CutMix: each image with the one before it in the global batch, labels by the same shares, for any number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from adq import training
from adq.mixing import interleaved, mixed, mixed_labels, neighbours, own_share
from adq.randomness import numpy_generator
from adq.training import Recipe
from tests.adq.training_cases import TRANSFORM, network, run, striped_images
from tests.adq.two_workers import run_two_workers

pytestmark = pytest.mark.usefixtures("one_thread")

# Everything at once, but for batch norm, which sees the images of its own worker.
ALL = Recipe(
    epochs=2, batch_size=4, lr=0.05, mixup=0.4, cutmix=1.0, trivial_augment=True, erasing=0.5, ema=0.9, clip_norm=1.0,
    label_smoothing=0.1, decay_vectors=False, lr_batch=8,
)  # fmt: skip


def shares(mixup: float, cutmix: float, count: int = 400, side: int = 16) -> list[torch.Tensor]:
    return [own_share(mixup, cutmix, side, numpy_generator(0, "test", i)) for i in range(count)]


def test_a_share_of_mixup_is_one_beta_distributed_number():
    found = shares(0.2, 0)
    assert all(own.min() == own.max() for own in found)
    values = np.array([own[0, 0] for own in found])
    assert values.min() >= 0 and values.max() <= 1
    # Beta(a, a) has the variance 1 / (4 (2 a + 1)).
    assert values.mean() == pytest.approx(0.5, abs=0.06)
    assert values.var() == pytest.approx(1 / (4 * 1.4), rel=0.1)


def test_a_share_of_cutmix_is_a_box_of_the_neighbour():
    found = shares(0, 1.0)
    for own in found:
        assert set(own.unique().tolist()) <= {0.0, 1.0}
        rows, columns = (own == 0).any(1), (own == 0).any(0)
        assert torch.equal(own == 0, rows[:, None] & columns[None, :]), "a box"
        for line in (rows, columns):
            assert int((line[1:] != line[:-1]).sum()) <= 2, "without holes"
    # Half of a uniform share would be kept, were boxes not cut off at the border.
    assert 0.5 < float(torch.stack(found).mean()) < 0.75
    assert len({tuple((own == 0).nonzero()[0].tolist()) for own in found if (own == 0).any()}) > 50


def test_with_both_each_takes_half_of_the_steps():
    boxes = sum(own.min() != own.max() for own in shares(0.4, 1.0))
    assert 140 < boxes < 220  # some boxes are all or nothing


def test_images_and_labels_are_mixed_by_the_same_share():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    others = neighbours(images, 0, 1, 3)
    assert others[:, 0, 0, 0].tolist() == [2, 0, 1], "the first one's neighbour is the last"
    own = torch.ones(4, 4)
    own[1:3, 1:4] = 0
    cut = mixed(images, others, own)
    assert cut[0, 0].tolist() == [[0, 0, 0, 0], [0, 2, 2, 2], [0, 2, 2, 2], [0, 0, 0, 0]]
    labels = torch.tensor([1, 0, 1])
    assert mixed_labels(labels, labels.roll(1), own, 3).tolist() == [[0, 1, 0], [0.625, 0.375, 0], [0.375, 0.625, 0]]
    blend = mixed(images, others, torch.full((4, 4), 0.75))
    assert blend[:, 0, 0, 0].tolist() == [0.5, 0.75, 1.75]
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert mixed_labels(soft, soft.roll(1, 0), torch.full((4, 4), 0.75), 2).tolist() == [[0.625, 0.375], [0.875, 0.125]]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("world", [2, 3])
def test_the_neighbours_of_all_workers_are_those_of_one(world, count, monkeypatch):
    whole = torch.arange(count * 2).view(count, 2)
    padded = [torch.zeros(-(-count // world), 2, dtype=torch.int64) for _ in range(world)]
    for rank in range(world):
        padded[rank][: len(whole[rank::world])] = whole[rank::world]
    assert torch.equal(interleaved(padded, count), whole)

    def gather(shares, mine):
        assert any(torch.equal(mine, share) for share in padded)
        for share, values in zip(shares, padded, strict=True):
            share.copy_(values)

    monkeypatch.setattr(dist, "all_gather", gather)
    for rank in range(world):
        assert torch.equal(neighbours(whole[rank::world], rank, world, count), whole.roll(1, 0)[rank::world])


@pytest.mark.parametrize("changes", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_the_loss_of_a_mixed_image_is_the_mean_over_both_labels_by_their_shares(changes):
    images, model = striped_images(6), network()
    recipe = Recipe(steps=1, augment="none", **changes)
    labels = torch.from_numpy(images.labels)
    batch = (images.images, labels, 6)
    loss = training._gradients(model, batch, recipe, TRANSFORM, (0, 0, 1), "cpu", 0, 1)
    own = own_share(recipe.mixup, recipe.cutmix, 16, numpy_generator(0, "mix", 0, 1))
    inputs = TRANSFORM.normalise(images.images)
    with torch.no_grad():
        logits = model(own * inputs + (1 - own) * inputs.roll(1, 0))
    share = float(own.mean())
    assert 0.01 < share < 0.99
    both = share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels.roll(1))
    assert loss == pytest.approx(float(both), rel=1e-5)


def distributed_worker(rank: int, world: int, folder: Path) -> None:
    model = run(network(rank), striped_images(9), ALL, rank=rank, world=world)
    torch.save(model.state_dict(), folder / f"{rank}.pt")


def test_two_processes_train_the_network_of_one_with_everything_on(tmp_path):
    """Nine images in batches of four: in the last batch of an epoch, the second worker has nothing."""
    alone = run(network(), striped_images(9), ALL).state_dict()
    run_two_workers(distributed_worker, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_with_everything_on_resumes_to_the_same_bits():
    saved = {}
    whole = run(network(), striped_images(9), ALL, save=lambda epoch, state: saved.update({epoch: state()}))
    kept = {name: tensor.clone() for name, tensor in saved[1]["average"].items()}
    for epoch in (1, 2):
        resumed = run(network(seed=9), striped_images(9), ALL, start=saved[epoch])
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(kept[name], tensor) for name, tensor in saved[1]["average"].items()), "start is left alone"


def test_mixing_is_learnt_from():
    images = striped_images(32)
    recipe = Recipe(steps=80, batch_size=16, lr=0.05, augment="none", mixup=0.2, cutmix=1.0)
    model = run(network(), images, recipe)
    assert training.correct(model, images, np.arange(32), TRANSFORM, "cpu").mean() > 0.9
