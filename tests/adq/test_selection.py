"""One door for all methods: quotas and draws of ADQ and its controls, picks of the others."""

from dataclasses import replace

import numpy as np
import pytest

from adq.controls import CONTROLS, permuted, random_bins
from adq.coresets import METHODS
from adq.sampling import class_table, draw
from adq.selection import ALL_METHODS, BY_IMPORTANCE, choose, looks_at, needs
from tests.adq.test_coresets import make_pool

IMPORTANCE = np.array([0.1, 0.9, 2.0, 0.4, 0.0])


def adq(bins: np.ndarray, importance: np.ndarray, keep: float, seed: int, **settings) -> np.ndarray:
    """By hand: eq. 9 and 10 over these bins."""
    pool = make_pool()
    counts = np.array([[((bins == n) & (pool.labels == c)).sum() for c in range(5)] for n in range(5)])
    return draw(pool.keys, bins, pool.labels, class_table(importance, counts, keep, seed=seed, **settings), seed)


@pytest.mark.parametrize("keep", [0.05, 0.3])
def test_adq_and_its_controls_differ_in_the_importance_or_the_bins_alone(keep):
    pool = make_pool()
    wanted = {
        "adq": (pool.bins, IMPORTANCE),
        "adq-permuted": (pool.bins, permuted(IMPORTANCE, 3)),
        "adq-reversed": (pool.bins, IMPORTANCE[::-1]),
        "adq-random-bins": (random_bins(pool.keys, pool.bins, pool.labels, 3), IMPORTANCE),
    }
    assert {"adq", *CONTROLS} == set(wanted) == set(BY_IMPORTANCE)
    found = {method: choose(pool, method, keep, 3, IMPORTANCE) for method in wanted}
    for method, (bins, importance) in wanted.items():
        np.testing.assert_array_equal(found[method].chosen, adq(bins, importance, keep, 3))
        np.testing.assert_array_equal(found[method].importance, importance)
        assert found[method].moved > 0 and (found[method].quota == found[method].drawn).all()
    assert len({found[method].chosen.tobytes() for method in wanted}) == 4


def test_several_permutations_of_one_seed():
    pool = make_pool()
    found = [choose(pool, "adq-permuted", 0.3, 3, IMPORTANCE, permutation=number) for number in range(3)]
    for number, made in enumerate(found):
        np.testing.assert_array_equal(made.importance, permuted(IMPORTANCE, 3, number))
    assert len({made.chosen.tobytes() for made in found}) == 3


def test_alpha_and_the_allocation_reach_the_quotas():
    pool = make_pool()
    dq = choose(pool, "dq", 0.2, 0)
    np.testing.assert_array_equal(choose(pool, "adq", 0.2, 0, IMPORTANCE, alpha=0.0).chosen, dq.chosen)
    code = choose(pool, "adq", 0.2, 0, IMPORTANCE, allocation="code")
    np.testing.assert_array_equal(code.chosen, adq(pool.bins, IMPORTANCE, 0.2, 0, allocation="code"))
    loose = choose(pool, "adq", 0.2, 0, IMPORTANCE, balance="none")
    np.testing.assert_array_equal(loose.chosen, adq(pool.bins, IMPORTANCE, 0.2, 0, balance="none"))
    assert dq.moved == 0 and not dq.importance.any()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_others_keep_what_their_functions_pick(method):
    pool = make_pool()
    made = choose(pool, method, 0.1, 1)
    np.testing.assert_array_equal(np.flatnonzero(made.chosen), np.sort(METHODS[method].function(pool, 20, 1)))
    assert made.drawn.sum() == 20 and (made.drawn == made.quota).all() and (made.sizes.sum(axis=0) > 0).sum() == 4
    if method in ("prefix", "support-points"):
        deep = choose(pool, method, 0.1, 1, depth=0.3)
        picks = METHODS[method].function(pool, 20, 1, depth=0.3)
        np.testing.assert_array_equal(np.flatnonzero(deep.chosen), np.sort(picks))
        assert (deep.chosen != made.chosen).any()


@pytest.mark.parametrize(
    ("method", "settings"), [("ccs", {"beta": 0.6}), ("d2", {"neighbours": 3, "gamma_reverse": 9.0})]
)
def test_settings_reach_the_functions_that_read_them(method, settings):
    pool = make_pool()
    made = choose(pool, method, 0.1, 1, **settings)
    np.testing.assert_array_equal(
        np.flatnonzero(made.chosen), np.sort(METHODS[method].function(pool, 20, 1, **settings))
    )
    assert (made.chosen != choose(pool, method, 0.1, 1).chosen).any()
    with pytest.raises(ValueError, match=f"method herding has no setting '{next(iter(settings))}'; known: none"):
        choose(pool, "herding", 0.1, 1, **settings)


def test_what_is_missing_or_unknown_is_said():
    pool = make_pool()
    with pytest.raises(ValueError, match="adq-reversed needs the importance of each bin"):
        choose(pool, "adq-reversed", 0.1, 0)
    for method in ("dq", "adq", "prefix"):
        with pytest.raises(ValueError, match=r"needs (the )?bins"):
            choose(replace(pool, bins=None), method, 0.1, 0, np.ones(5) if method == "adq" else None)
    with pytest.raises(ValueError, match=r"method 'best': expected one of adq, adq-permuted, .*, d2"):
        choose(pool, "best", 0.1, 0)
    with pytest.raises(ValueError, match=r"--keep 2: expected a share"):
        choose(pool, "random", 2, 0)


def test_what_methods_need_and_look_at():
    assert needs("adq") == {"embeddings", "bins", "scores"} and looks_at("adq") == {"bins", "scores"}
    assert needs("dq") == {"embeddings", "bins"} and looks_at("dq") == {"bins"}
    assert needs("support-points") == looks_at("support-points") == {"embeddings", "bins"}
    assert needs("random") == looks_at("random") == set() and needs("el2n") == {"dynamics"}
    assert set(ALL_METHODS) == {*METHODS, *BY_IMPORTANCE} and len(ALL_METHODS) == len(set(ALL_METHODS))
