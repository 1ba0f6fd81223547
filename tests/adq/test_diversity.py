"""The discriminator really trains, and eq. 5 against its double loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adq.diversity import (
    Discriminator,
    Head,
    bootstrap_error,
    cosines,
    diversity,
    halves,
    info_nce,
    ratios,
    retrieval,
    top_share,
    train_discriminator,
)  # fmt: skip

CONFIG = Discriminator(steps=60, batch_size=64, dim=16, hidden=32)


def noisy_views(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and views that differ by more noise than signal in half of the features: something to learn."""
    g = torch.Generator().manual_seed(seed)
    signal = torch.randn(count, 12, generator=g)

    def noise() -> torch.Tensor:
        return 3 * torch.randn(count, 12, generator=g)

    return torch.cat([signal, noise()], 1), torch.cat([signal + 0.1 * torch.randn(count, 12, generator=g), noise()], 1)


def test_loss_falls_and_the_right_view_is_found_more_often_on_unseen_images():
    features, views = noisy_views(300, 0)
    unseen = noisy_views(200, 1)
    untrained = train_discriminator(features, views, Discriminator(steps=0, dim=16, hidden=32), 0, "a")
    losses: list[float] = []
    trained = train_discriminator(features, views, CONFIG, 0, "a", lambda step, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    assert retrieval(trained, *unseen) > retrieval(untrained, *unseen) + 0.2


def test_training_repeats_to_the_last_bit_and_halves_differ():
    features, views = noisy_views(100, 2)
    first, second = (train_discriminator(features, views, CONFIG, 3, "a") for _ in range(2))
    other = train_discriminator(features, views, CONFIG, 3, "b")
    for one, two, three in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


@pytest.mark.parametrize("block", [3, 2048])
def test_ratios_equal_the_double_loop(block):
    g = torch.Generator().manual_seed(4)
    x, v = F.normalize(torch.randn(11, 5, generator=g), dim=1), F.normalize(torch.randn(11, 5, generator=g), dim=1)
    want = []
    for i in range(11):
        negatives = np.mean([np.exp(float(x[i] @ x[j]) / 0.2) for j in range(11) if j != i])
        want.append(negatives / np.exp(float(x[i] @ v[i]) / 0.2))
    np.testing.assert_allclose(ratios(x, v, slice(0, 11), 0.2, block), want, rtol=1e-5)
    np.testing.assert_allclose(ratios(x, v, slice(4, 7), 0.2, block), want[4:7], rtol=1e-5)
    mean_cosine = [(sum(float(x[i] @ x[j]) for j in range(11)) - 1) / 10 for i in range(11)]
    np.testing.assert_allclose(cosines(x, slice(0, 11)), mean_cosine, atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "log", "code"])
def test_near_copies_are_less_diverse_than_varied_images(how):
    features, views = noisy_views(400, 5)
    head = train_discriminator(features, views, CONFIG, 0, "a")
    g = torch.Generator().manual_seed(6)
    copies = features[:1] + 0.01 * torch.randn(80, 24, generator=g)
    copy_views = copies + 0.3 * torch.randn(80, 24, generator=g)

    def score(images: torch.Tensor, their_views: torch.Tensor) -> float:
        with torch.no_grad():
            x, v = head(images), head(their_views)
        everything = slice(0, len(x))
        return diversity(ratios(x, v, everything, 0.07).numpy(), cosines(x, everything).numpy(), how)

    assert score(copies, copy_views) < score(features[:80], views[:80])


def test_no_overflow_at_a_low_temperature():
    x = F.normalize(torch.ones(4, 3), dim=1)
    assert torch.isfinite(ratios(x, x, slice(0, 4), 0.001)).all()


def test_equal_vectors_have_ratio_one_and_a_lone_image_zero():
    x = F.normalize(torch.ones(6, 3), dim=1)
    np.testing.assert_allclose(ratios(x, x, slice(0, 6), 0.07), 1.0, rtol=1e-5)
    assert diversity(np.ones(6), np.ones(6), "mean") == -1
    assert ratios(x[:1], x[:1], slice(0, 1), 0.07).tolist() == [0.0]


def test_halves_split_by_key_alone():
    keys = [f"image-{i}" for i in range(2000)]
    sides = halves(keys, 0)
    assert 900 < sides.sum() < 1100
    assert halves(keys[::-1], 0).tolist() == sides[::-1].tolist()


def test_standard_error_and_top_share():
    values = np.random.default_rng(0).normal(size=400)
    error = bootstrap_error(lambda chosen: values[chosen].mean(), 400, np.random.default_rng(1))
    assert error == pytest.approx(values.std() / 20, rel=0.2)
    assert top_share(np.ones(100)) == pytest.approx(0.01)
    assert top_share(np.array([0.0] * 99 + [5.0])) == 1.0


def test_info_nce_is_log_batch_when_nothing_is_known():
    x = F.normalize(torch.ones(8, 4), dim=1)
    assert info_nce(x, x, 0.07).item() == pytest.approx(np.log(8), rel=1e-5)


def test_clear_errors():
    with pytest.raises(ValueError, match="--temperature"):
        Discriminator(temperature=0)
    with pytest.raises(ValueError, match="at least two images"):
        train_discriminator(torch.ones(1, 4), torch.ones(1, 4), CONFIG, 0, "a")
    assert Head(4, CONFIG)(torch.ones(2, 4)).shape == (2, 16)
