"""Make the conformance vectors: inputs once, expected results from Tessera's public functions.

    python -m tests.conformance.make            # the expected results anew, from the inputs that are there
    python -m tests.conformance.make --inputs   # the inputs too

What the files mean is in README.md beside this file. `test_conformance.py` and `test_tables.py` compute all results again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from adq.coresets import Pool
from adq.diversity import cosines, diversity, ratios
from adq.graphcut import graphcut_bins, graphcut_select
from adq.importance import importance, normalize
from adq.randomness import key_order, numpy_generator, seed_of
from adq.sampling import class_table, draw, quotas, shares
from adq.support_points import depth_at, support_points
from adq.texture import texture_level

VECTORS = Path(__file__).parent / "vectors"
CLASSES, BINS = 3, 5
GRAPHCUT = [
    {"scope": scope, "kernel": kernel, "num_bins": bins}
    for scope, kernel, bins in (
        ("class", "cosine", 10), ("global", "cosine", 10), ("class", "l2", 4), ("global", "l2", 4), ("global", "cosine", 1),
    )
]  # fmt: skip
SELECT = [
    {"kernel": kernel, "lam": lam, "budget": budget}
    for kernel, lam, budget in (("cosine", 1.0, 60), ("l2", 1.0, 60), ("cosine", 0.25, 40), ("cosine", 2.0, 120))
]
TEXTURE = [
    {"images": f"images_{size}.npy", "patch": patch} for size, patch in (("small", 32), ("large", 32), ("large", 8))
]
SCORES = {
    "plain": ([0.11, 0.42, 0.35, 0.2, 0.42], [-3.5, -1.25, -2.0, -0.5, -1.0]),
    "one score without a range": ([0.2, 0.2, 0.2], [-1.0, -4.0, -2.0]),
    "no range at all": ([0.3, 0.3], [-1.0, -1.0]),
}
BIN_SETS = {
    "even": ([0.0, 0.5, 1.0, 1.5, 2.0], [48, 48, 48, 48, 48]),
    "uneven": ([1.9, 0.3, 0.0, 1.1], [10, 200, 77, 13]),
    "ties": ([1.0, 1.0, 1.0, 1.0], [5, 5, 5, 5]),
    "no importance": ([0.0, 0.0, 0.0], [40, 40, 41]),
}
RULES = [("share", alpha, keep) for alpha in (0.0, 0.65, 1.0) for keep in (0.03, 0.1, 0.3, 0.9)]
RULES += [("code", 0.65, 0.1), ("literal", 0.65, 0.1)]
SEEDS = (0, 7)
TABLES = {
    "one bin": ([0.0], [[79, 84, 77]]),
    "ties": ([1.0, 1.0, 1.0], [[6, 6, 6, 6]] * 3),
    "uneven": ([1.9, 0.3, 0.0, 1.1], [[30, 2, 0], [5, 40, 9], [0, 3, 70], [12, 11, 13]]),
    "long tail": ([0.2, 1.3, 0.7], [[60, 7, 1, 0], [40, 9, 0, 1], [21, 30, 5, 2]]),
}
TABLE_RULES = [(alpha, keep) for alpha in (0.0, 0.65) for keep in (0.05, 0.17, 0.4, 0.9)]
SUPPORT = [(12, None), (48, None), (60, 1.0), (24, 0.3), (200, None)]  # images kept, depth
HASHED = [(0, "draw", ["train_00000"]), (0, "draw", ["n01440764_10026"]), (7, "quota", ["3"]), (1, "cell", ["2", "9"]),
          (-1, "write", ["schön/é"]), (0, "draw", [])]  # fmt: skip


def inputs() -> dict[str, np.ndarray]:
    """Arrays from fixed seeds: what the expected results are computed from."""
    made = {}
    draws = numpy_generator(0, "conformance", "embeddings")
    centres = draws.normal(size=(6, 8))
    rows = np.maximum(centres[draws.integers(0, 6, 240)] + 0.7 * draws.normal(size=(240, 8)), 0) + 0.01
    rows[200:230] = rows[20:50]  # equal rows: ties go to the lowest index
    rows[230:235] = 4 * rows[60:65]  # the same direction, another length
    made["embeddings"] = rows.astype(np.float32)
    labels = draws.integers(0, CLASSES, 240)
    labels[200:230], labels[230:235] = labels[20:50], labels[60:65]
    made["labels"] = labels.astype(np.int64)
    draws = numpy_generator(0, "conformance", "images")
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None] * 15, (16, 16))
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)
    flat = np.full((16, 16), 77, dtype=np.uint8)
    noise = draws.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    grey = np.stack([np.stack([plane] * 3, axis=-1) for plane in (flat, ramp, ramp.T, board)])
    made["images_small"] = np.concatenate([grey, noise])
    made["images_large"] = draws.integers(0, 256, (1, 40, 72, 3), dtype=np.uint8)
    draws = numpy_generator(0, "conformance", "diversity")
    projected = draws.normal(size=(60, 6)) + 0.8
    views = projected + 0.2 * draws.normal(size=(60, 6))
    for name, vectors in (("projected", projected), ("views", views)):
        made[name] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return made


def expected(arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """The expected results by file name, as they are stored in JSON."""
    return {
        "graphcut_bins": [case | _bins(arrays, case) for case in GRAPHCUT],
        "graphcut_select": [
            case | {"indices": graphcut_select(arrays["embeddings"], **case).tolist()} for case in SELECT
        ],
        "texture": [case | {"level": _texture(arrays[case["images"].removesuffix(".npy")], case["patch"])} for case in TEXTURE],
        "diversity": [_diversity(arrays, bin_size, tau) for bin_size, tau in ((60, 0.07), (60, 0.5), (2, 0.07), (1, 0.07))],
        "importance": [_importance(name, *scores) for name, scores in SCORES.items()],
        "quotas": _quotas(),
        "class_table": _tables(),
        "support_points": _support_points(arrays),
        "draws": _draws(arrays),
    }  # fmt: skip


def _bins(arrays: dict[str, np.ndarray], case: dict) -> dict:
    bins, ranks = graphcut_bins(arrays["embeddings"], arrays["labels"], **case)
    return {"bin": bins.tolist(), "rank": ranks.tolist()}


def _texture(images: np.ndarray, patch: int) -> list[float]:
    return texture_level(torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255, patch).tolist()


def _diversity(arrays: dict[str, np.ndarray], size: int, tau: float) -> dict:
    projected, views = (torch.from_numpy(arrays[name][:size]) for name in ("projected", "views"))
    ratio = ratios(projected, views, slice(None), tau).numpy()
    cosine = cosines(projected, slice(None)).numpy()
    scores = {how: diversity(ratio, cosine, how) for how in ("mean", "log", "code")}
    return {"rows": size, "tau": tau, "ratio": ratio.tolist(), "cosine": cosine.tolist()} | scores


def _importance(name: str, representativeness: list[float], spread: list[float]) -> dict:
    given = {"case": name, "representativeness": representativeness, "diversity": spread}
    for how in ("minmax", "zscore"):
        given[how] = {
            "representativeness": normalize(np.array(representativeness), how).tolist(),
            "diversity": normalize(np.array(spread), how).tolist(),
            "importance": importance(np.array(representativeness), np.array(spread), how).tolist(),
        }
    return given


def _quotas() -> list[dict]:
    cases = []
    for name, (weights, sizes) in BIN_SETS.items():
        for (allocation, alpha, keep), seed in ((rule, seed) for rule in RULES for seed in SEEDS):
            # The seed breaks ties alone.
            if round(keep * sum(sizes)) < 1 or (seed and name != "ties"):
                continue
            case = {"case": name, "importance": weights, "sizes": sizes, "keep": keep, "alpha": alpha}
            case |= {"allocation": allocation, "seed": seed}
            if allocation != "literal":
                total = round(keep * sum(sizes))
                used = 1.0 if allocation == "code" else alpha
                case["share"] = shares(np.array(weights), np.array(sizes), total, used).tolist()
            case["quotas"] = quotas(np.array(weights), np.array(sizes), keep, alpha, allocation, seed).tolist()
            cases.append(case)
    return cases


def _tables() -> list[dict]:
    cases = []
    for name, (weights, counts) in TABLES.items():
        for (alpha, keep), seed in ((rule, seed) for rule in TABLE_RULES for seed in SEEDS):
            if (seed and name != "ties") or (alpha and not any(weights)):
                continue
            table = class_table(np.array(weights), np.array(counts), keep, alpha, "share", "class", seed)
            case = {"case": name, "importance": weights, "counts": counts, "keep": keep, "alpha": alpha, "seed": seed}
            cases.append(case | {"table": table.tolist()})
    return cases


def _support_points(arrays: dict[str, np.ndarray]) -> list[dict]:
    keys = [f"{n:03d}" for n in range(len(arrays["labels"]))]
    pool = Pool(
        keys, arrays["labels"], arrays["embeddings"], *graphcut_bins(arrays["embeddings"], arrays["labels"], 10)
    )
    return [
        {"total": total, "depth": depth_at(total / len(keys)) if depth is None else depth,
         "indices": support_points(pool, total, 0, depth).tolist()}
        for total, depth in SUPPORT
    ]  # fmt: skip


def _draws(arrays: dict[str, np.ndarray]) -> dict:
    # As text: some languages' JSON numbers hold 53 bits.
    hashes = [{"seed": s, "purpose": p, "names": n, "value": str(seed_of(s, p, *n))} for s, p, n in HASHED]
    keys = [f"class{label}/image-{n:03d}" for n, label in enumerate(arrays["labels"].tolist())]
    bins, ranks = graphcut_bins(arrays["embeddings"], arrays["labels"], BINS)
    table = np.arange(BINS * CLASSES).reshape(BINS, CLASSES) % 7
    cases = []
    for seed in SEEDS:
        chosen = draw(keys, bins, arrays["labels"], table, seed)
        cases.append({
            "seed": seed, "order": key_order(keys, seed, "draw").tolist(), "drawn": np.flatnonzero(chosen).tolist(),
        })  # fmt: skip
    return {
        "hashes": hashes,
        "keys": keys,
        "bin": bins.tolist(),
        "rank": ranks.tolist(),
        "table": table.tolist(),
        "cases": cases,
    }


def load_inputs() -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, allow_pickle=False) for path in sorted(VECTORS.glob("*.npy"))}


def as_json(value: object, indent: str = "") -> str:
    """JSON with a line for every field and every case; lists of numbers stay on one line."""
    deeper = indent + " "
    if isinstance(value, dict):
        return (
            "{\n"
            + ",\n".join(f"{deeper}{json.dumps(k)}: {as_json(v, deeper)}" for k, v in value.items())
            + f"\n{indent}}}"
        )
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(deeper + json.dumps(v, ensure_ascii=False) for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", action="store_true", help="make the inputs too")
    if parser.parse_args().inputs:
        for name, array in inputs().items():
            np.save(VECTORS / f"{name}.npy", array, allow_pickle=False)
    for name, value in expected(load_inputs()).items():
        (VECTORS / f"{name}.json").write_text(as_json(value) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
