import math

import pytest

from adq.robust_scores import augmentation_robust_score, label_robust_score


def test_by_hand():
    # IOR 0.2, HLR 0.4: alpha = -0.1.
    expected = (math.exp(-0.1) - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(0.9, 0.5, 0.6, 0.4) == pytest.approx(expected) == pytest.approx(0.2284, abs=1e-4)
    assert augmentation_robust_score(0.5, 0.3, 0.4, 0.4) == pytest.approx(
        (math.exp(0.1) - math.exp(-1)) / (math.e - math.exp(-1))
    )


def test_the_ends_of_the_scale():
    assert label_robust_score(1, 0, 0, 1) == pytest.approx(0)
    assert label_robust_score(0, 1, 1, 0) == pytest.approx(1)
    assert augmentation_robust_score(0, 1, 0, 1) == pytest.approx(0)
    assert augmentation_robust_score(1, 0, 1, 0) == pytest.approx(1)


def test_weights_move_it_from_one_part_to_the_other():
    assert label_robust_score(0.9, 0.1, 0.5, 0.5, weight=1.0) == label_robust_score(0.2, 0.7, 0.5, 0.5, weight=1.0)
    assert augmentation_robust_score(0.9, 0.1, 0.5, 0.5, weight=0.0) == augmentation_robust_score(
        0, 0, 0.2, 0.2, weight=0.0
    )
