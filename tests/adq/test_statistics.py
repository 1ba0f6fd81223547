import numpy as np
import pytest

from adq.statistics import bootstrap_difference, holm


def results(accuracies, images=400, shift=0.0, seed=0):
    """bool [S, T] with given accuracies of the seeds."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.random(images) < a + shift for a in accuracies])


def test_a_difference_is_found_and_none_is_not():
    accuracies = np.linspace(0.55, 0.65, 8)
    first, second = results(accuracies, shift=0.08), results(accuracies, seed=1)
    found = bootstrap_difference([first], [second], draws=2000)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.low < found.mean < found.high and found.low > 0 and found.p < 0.01
    same = bootstrap_difference([second], [results(accuracies, seed=2)], draws=2000)
    assert same.low < 0 < same.high and same.p > 0.05
    turned = bootstrap_difference([second], [first], draws=2000)
    assert turned.mean == pytest.approx(-found.mean) and turned.high < 0


def test_the_interval_knows_seeds_and_images():
    # All images alike: only the seeds vary, and the interval is that of their mean.
    gap = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    by_seed = np.repeat(gap[:, None], 50, axis=1)
    nothing = np.zeros_like(by_seed)
    found = bootstrap_difference([by_seed], [nothing], draws=4000)
    sd = np.sqrt(3 / 8 * 5 / 8 / 8)
    assert found.high - found.low == pytest.approx(2 * 1.96 * sd, rel=0.15)
    # Conditions are averaged before anything is drawn: the same one twice says no more than once.
    assert bootstrap_difference([by_seed] * 2, [nothing] * 2, draws=4000) == found


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="of one shape"):
        bootstrap_difference([np.ones((2, 3))], [np.ones((2, 4))])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
