"""Importance by hand, and its degenerate cases."""

import numpy as np
import pytest

from adq.importance import importance, normalize


def test_by_hand():
    got = importance(np.array([1.0, 2.0, 3.0]), np.array([-4.0, -2.0, -3.0]))
    np.testing.assert_allclose(got, [0 + 0, 0.5 + 1, 1 + 0.5])
    np.testing.assert_allclose(importance(np.array([1.0, 2.0, 3.0]), np.zeros(3)), [0, 0.5, 1])


def test_one_score_alone():
    texture, diversity = np.array([1.0, 2.0]), np.array([5.0, 4.0])
    assert importance(texture, diversity, scores="texture").tolist() == [0, 1]
    assert importance(texture, diversity, scores="diversity").tolist() == [1, 0]


def test_no_range_is_no_importance():
    assert normalize(np.array([2.0, 2.0])).tolist() == [0, 0]
    assert importance(np.ones(3), np.ones(3), how="zscore").tolist() == [0, 0, 0]


def test_order_is_kept_by_both_norms():
    scores = np.random.default_rng(0).normal(size=9)
    for how in ("minmax", "zscore"):
        assert (np.argsort(normalize(scores, how)) == np.argsort(scores)).all()


def test_clear_errors():
    with pytest.raises(ValueError, match="finite"):
        normalize(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="score norm"):
        normalize(np.array([1.0, 2.0]), "l1")
