import numpy as np

from adq.controls import CONTROLS, is_control, permuted, random_bins, reversed_importance


def test_permuted_importance_has_the_same_numbers_elsewhere():
    importance = np.linspace(0, 2, 10)
    found = [permuted(importance, seed) for seed in range(5)]
    assert all(sorted(order) == sorted(importance) and (order != importance).any() for order in found)
    assert len({order.tobytes() for order in found}) == 5
    assert (permuted(importance, 0) == found[0]).all()
    assert len({tuple(permuted(importance, 0, number)) for number in range(9)}) == 9, "several of one seed"
    few = [tuple(permuted(importance[:3], 1, number)) for number in range(6)]
    assert len(set(few[:5])) == 5 and tuple(importance[:3]) not in few and few[5] == few[0], (
        "all orders but its own, then again"
    )
    assert [permuted(importance[:2], 0, number).tolist() for number in range(2)] == [importance[1::-1].tolist()] * 2
    assert (permuted(importance, 0, 2) == permuted(importance, 0, 2)).all()
    assert permuted(np.array([1.0]), 0).tolist() == [1.0]
    assert reversed_importance(importance).tolist() == importance[::-1].tolist()


def test_random_bins_are_as_large_in_every_class():
    generator = np.random.default_rng(0)
    labels, bins = generator.integers(4, size=500), generator.integers(6, size=500)
    keys = [f"{i:04d}" for i in range(500)]
    found = random_bins(keys, bins, labels, 1)
    for label in range(4):
        mine = labels == label
        assert np.bincount(found[mine], minlength=6).tolist() == np.bincount(bins[mine], minlength=6).tolist()
    # They mean nothing: agreement is that of chance, a sixth.
    assert 0.08 < (found == bins).mean() < 0.26
    assert (random_bins(keys, bins, labels, 2) != found).any()


def test_a_control_is_known_by_its_name_with_and_without_settings():
    assert all(is_control(name) and is_control(f"{name}:alpha=1") for name in CONTROLS)
    assert not any(is_control(name) for name in ("adq", "adq:alpha=1", "dq", "random", "adq-permutedly"))
