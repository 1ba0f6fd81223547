"""The conformance vectors, computed again in two ways: by the public functions, and by plain readings of README.md.

The second way takes nothing from Tessera: it is what another implementation would have to do.
"""

import hashlib
import json
import math

import numpy as np
import pytest

from tests.conformance.make import VECTORS, expected, load_inputs

INPUTS = load_inputs()
STORED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in VECTORS.glob("*.json")}


def check(found: object, stored: object) -> None:
    """Integers and text are the same, floats agree to 1e-6."""
    assert type(found) is type(stored)
    if isinstance(stored, dict):
        assert list(found) == list(stored)
        for name in stored:
            check(found[name], stored[name])
    elif isinstance(stored, list):
        assert len(found) == len(stored)
        for one, other in zip(found, stored, strict=True):
            check(one, other)
    elif isinstance(stored, float):
        assert found == pytest.approx(stored, rel=1e-6, abs=1e-9)
    else:
        assert found == stored


def test_the_public_functions_give_the_stored_results():
    check(expected(INPUTS), {name: STORED[name] for name in expected(INPUTS)})
    assert set(STORED) == set(expected(INPUTS)), "a file that nobody checks"


def test_the_vectors_are_small_and_need_no_pickle():
    assert sum(path.stat().st_size for path in VECTORS.iterdir()) < 100_000
    assert set(INPUTS) == {"embeddings", "labels", "images_small", "images_large", "projected", "views"}


def hashed(seed: int, purpose: str, *names: str) -> int:
    text = "\x1f".join([str(seed), purpose, *names])
    return int(hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest(), 16) // 2


def best(gains: dict[int, float]) -> int:
    """The largest gain, equal ones to the lowest index; no other row may be so near that arithmetic would decide."""
    top = max(gains.values())
    equal = [i for i, gain in gains.items() if gain >= top - 1e-9]
    assert all(gain < top - 1e-7 for i, gain in gains.items() if i not in equal), "too near: another seed, please"
    return min(equal)


def distances(rows: np.ndarray, kernel: str) -> np.ndarray:
    rows = rows.astype(np.float64)
    if kernel == "cosine":
        rows = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return ((rows[:, None] - rows[None]) ** 2).sum(axis=2)


def greedy(distance: np.ndarray, left: list[int], budget: int, lam: float) -> list[int]:
    towards_all, towards_chosen = distance[:, left].sum(axis=1), np.zeros(len(distance))
    chosen: list[int] = []
    for _ in range(budget):
        gains = {i: 2 * towards_chosen[i] - lam * towards_all[i] for i in left if i not in chosen}
        chosen.append(best(gains))
        towards_chosen += distance[:, chosen[-1]]
    return chosen


@pytest.mark.parametrize("case", STORED["graphcut_bins"], ids=lambda c: f"{c['scope']}-{c['kernel']}-{c['num_bins']}")
def test_bins_by_quadratic_greedy(case):
    labels = INPUTS["labels"] if case["scope"] == "class" else np.zeros_like(INPUTS["labels"])
    bins, ranks = np.full(240, -1), np.full(240, -1)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        distance = distances(INPUTS["embeddings"][mine], case["kernel"])
        left, order = list(range(len(mine))), []
        for number in range(case["num_bins"]):
            size = len(mine) // case["num_bins"] + (number < len(mine) % case["num_bins"])
            picks = left if number == case["num_bins"] - 1 else greedy(distance, left, size, 1.0)
            assert len(picks) == size
            bins[mine[picks]] = number
            order += picks
            left = [i for i in left if i not in picks]
        ranks[mine[order]] = np.arange(len(mine))
    assert bins.tolist() == case["bin"] and ranks.tolist() == case["rank"]


def test_there_are_ties_to_decide():
    case = STORED["graphcut_bins"][1]
    place = list(zip(case["bin"], case["rank"], strict=True))
    assert all(place[n] > place[n - 180] for n in range(200, 230)), "of equal rows, the lower index is picked first"


@pytest.mark.parametrize("case", STORED["graphcut_select"], ids=lambda c: f"{c['kernel']}-{c['lam']}-{c['budget']}")
def test_selection_by_quadratic_greedy(case):
    distance = distances(INPUTS["embeddings"], case["kernel"])
    assert greedy(distance, list(range(240)), case["budget"], case["lam"]) == case["indices"]


@pytest.mark.parametrize("case", STORED["texture"], ids=lambda c: f"{c['images']}-{c['patch']}")
def test_texture_pixel_by_pixel(case):
    images = INPUTS[case["images"].removesuffix(".npy")]
    for image, level in zip(images, case["level"], strict=True):
        height, width, _ = image.shape
        grey = image.astype(np.float64) @ [0.299, 0.587, 0.114] / 255

        def at(y: int, x: int, grey=grey, height=height, width=width) -> float:
            y, x = (n if 0 <= n < size else (1 if n < 0 else size - 2) for n, size in ((y, height), (x, width)))
            return grey[y, x]

        side = min(case["patch"], height, width)
        total = 0.0
        for y in range(height // side * side):
            for x in range(width // side * side):
                across = sum(w * (at(y + d, x + 1) - at(y + d, x - 1)) for d, w in ((-1, 1), (0, 2), (1, 1)))
                down = sum(w * (at(y + 1, x + d) - at(y - 1, x + d)) for d, w in ((-1, 1), (0, 2), (1, 1)))
                total += abs(across) / 2 + abs(down) / 2
        assert total / ((height // side) * (width // side) * side * side) == pytest.approx(level, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", STORED["diversity"], ids=lambda c: f"{c['rows']}-{c['tau']}")
def test_diversity_pair_by_pair(case):
    count = case["rows"]
    ones, views = INPUTS["projected"][:count].tolist(), INPUTS["views"][:count].tolist()

    def like(a: list[float], b: list[float]) -> float:
        return math.exp(math.fsum(x * y for x, y in zip(a, b, strict=True)) / case["tau"])

    ratio, cosine = [], []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        sims = [like(ones[i], ones[j]) for j in others]
        ratio.append(math.fsum(sims) / len(others) / like(ones[i], views[i]) if others else 0.0)
        cosine.append(math.fsum(math.log(s) * case["tau"] for s in sims) / len(others) if others else 1.0)
    check(ratio, case["ratio"])
    check(cosine, case["cosine"])
    check(-math.fsum(ratio) / count, case["mean"])
    check(-math.fsum(math.log(max(r, 1e-30)) for r in ratio) / count, case["log"])
    check(1 / max(math.fsum(cosine) / count, 1e-6), case["code"])


@pytest.mark.parametrize("case", STORED["importance"], ids=lambda c: c["case"])
def test_importance_by_hand(case):
    for how in ("minmax", "zscore"):
        parts = []
        for score in ("representativeness", "diversity"):
            values = case[score]
            low, mean = min(values), sum(values) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            scale = max(values) - low if how == "minmax" else deviation
            parts.append([(v - low) / scale if max(values) > low else 0.0 for v in values])
            check(parts[-1], case[how][score])
        check([a + b for a, b in zip(*parts, strict=True)], case[how]["importance"])


def shared(case: dict, total: int) -> list[float]:
    """min(N_n, c w_n) summing to the total, c found by bisection; bins of no weight share what the others cannot hold."""
    sizes, importance = case["sizes"], case["importance"]
    alpha = 1.0 if case["allocation"] == "code" else case["alpha"]
    mean = sum(n * i for n, i in zip(sizes, importance, strict=True)) / sum(sizes)
    weights = [n * (alpha * i / mean + 1 - alpha) if mean else n for n, i in zip(sizes, importance, strict=True)]
    held = sum(n for n, w in zip(sizes, weights, strict=True) if w > 0)
    if held < total:
        share = (total - held) / (sum(sizes) - held)
        return [float(n) if w > 0 else n * share for n, w in zip(sizes, weights, strict=True)]
    low, high = 0.0, max(n / w for n, w in zip(sizes, weights, strict=True) if w > 0)
    for _ in range(200):
        c = (low + high) / 2
        enough = sum(min(n, c * w) for n, w in zip(sizes, weights, strict=True)) >= total
        low, high = (low, c) if enough else (c, high)
    return [float(min(n, high * w)) for n, w in zip(sizes, weights, strict=True)]


def rounded(target: list[float], total: int, low: list[int], high: list[int], seed: int) -> list[int]:
    counts = [min(max(math.floor(t + 1e-9), a), b) for t, a, b in zip(target, low, high, strict=True)]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        bound = high if step == 1 else low
        free = [n for n in range(len(counts)) if counts[n] != bound[n]]
        free.sort(key=lambda n: (-round(step * (target[n] - counts[n]), 9), hashed(seed, "quota", str(n))))
        for n in free[: abs(total - sum(counts))]:
            counts[n] += step
    return counts


def nested(case: dict, total: int) -> list[int]:
    """The quotas of the bins, by halving."""
    sizes = case["sizes"]
    (a, low), (b, high) = (0, [0] * len(sizes)), (sum(sizes), sizes)
    counts = high if total == b else None
    while counts is None or sum(counts) != total:
        middle = (a + b) // 2
        counts = rounded(shared(case, middle), middle, low, high, case["seed"])
        if total > middle:
            a, low = middle, counts
        else:
            b, high = middle, counts
    return counts


@pytest.mark.parametrize("name", sorted({case["case"] for case in STORED["quotas"]}))
def test_quotas_by_halving(name):
    for case in (case for case in STORED["quotas"] if case["case"] == name):
        sizes = case["sizes"]
        if case["allocation"] == "literal":
            ratios = [
                case["alpha"] * i + (1 - case["alpha"]) * n / sum(sizes)
                for i, n in zip(case["importance"], sizes, strict=True)
            ]
            assert case["quotas"] == [min(n, math.floor(r * n + 1e-9)) for r, n in zip(ratios, sizes, strict=True)]
            continue
        total = round(case["keep"] * sum(sizes))
        check(shared(case, total), case["share"])
        counts = nested(case, total)
        assert counts == case["quotas"] and sum(counts) == total, case


def test_hashes_and_draws_by_hand():
    stored = STORED["draws"]
    for case in stored["hashes"]:
        assert hashed(case["seed"], case["purpose"], *case["names"]) == int(case["value"])
    keys, bins, labels = stored["keys"], stored["bin"], INPUTS["labels"].tolist()
    for case in stored["cases"]:
        order = sorted(range(240), key=lambda n: hashed(case["seed"], "draw", keys[n]))
        assert order == case["order"]
        left = [list(row) for row in stored["table"]]
        drawn = []
        for n in order:
            if left[bins[n]][labels[n]] > 0:
                left[bins[n]][labels[n]] -= 1
                drawn.append(n)
        assert sorted(drawn) == case["drawn"]
        assert not any(map(any, left)), "every cell had enough images"
