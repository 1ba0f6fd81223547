"""The confirmatory analysis of a comparison: see PROTOCOL.md beside it.

    python -m tests.bench.confirm --runs FOLDER [FOLDER ...] [--method support-points] [--over random dq]

FOLDERs are those of `ray_jobs compare --out`. The endpoint is the mean difference over all keep ratios of a folder; intervals come
from a bootstrap over seeds and test images, p-values are adjusted by Holm over all questions (folders times baselines). The same is
said of each keep ratio, adjusted over all of these, which the protocol does not name.

The bootstrap takes seeds as independent. A method without a draw makes one selection an extractor, though, which all seeds of that
extractor share. So a second line takes extractors as the unit: the mean difference by extractor, over its seeds and all ratios,
and the t-interval and t-test over these means.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.special import stdtr

from adq.statistics import Difference, bootstrap_difference, holm
from ray_jobs.accuracy import t_half_interval

ATTEMPTS = Path(__file__).parent / "results" / "attempts.jsonl"


def results(
    folder: Path, arch: str | None, methods: Sequence[str]
) -> tuple[dict[tuple[str, float], np.ndarray], np.ndarray, str]:
    """Of these methods.

    Returns:
        By method and keep ratio [S, T] in the order of the seeds, of several permutations of a seed the mean; the feature seed of
        each seed, int64 [S]; the network.

    Raises:
        ValueError: one of them is not there, or has other seeds.
    """
    table = pq.read_table(folder / "runs.parquet")
    images = len(table.schema.metadata[b"test_keys"].decode().split("\n"))
    rows = sorted(table.to_pylist(), key=lambda row: row["seed"])
    archs = sorted({row["arch"] for row in rows})
    arch = arch or archs[0]
    found: dict[tuple[str, float], dict[int, list[np.ndarray]]] = {}
    for row in rows:
        if row["arch"] == arch and row["method"] in methods:
            correct = np.unpackbits(np.frombuffer(row["correct"], np.uint8))[:images].astype(bool)
            found.setdefault((row["method"], row["keep"]), {}).setdefault(row["seed"], []).append(correct)
    seeds = {frozenset(each) for each in found.values()}
    if len(seeds) != 1 or {method for method, _ in found} != set(methods):
        raise ValueError(f"{folder}: not all of {', '.join(methods)} have the same seeds at every keep ratio")
    extractors = {row["seed"]: row["extractor"] for row in rows if row["arch"] == arch and row["method"] == methods[0]}
    means = {name: np.stack([np.mean(of_seed, axis=0) for of_seed in each.values()]) for name, each in found.items()}
    return means, np.array(list(extractors.values())), arch


def by_extractor(first: Sequence[np.ndarray], second: Sequence[np.ndarray], extractors: np.ndarray) -> dict:
    """First minus second in points, by extractor, and with extractors as the unit; null where there is one extractor alone.

    Args:
        first, second: for every keep ratio, [S, T]. extractors: int [S].
    """
    gap = np.mean([100 * (a.mean(axis=1) - b.mean(axis=1)) for a, b in zip(first, second, strict=True)], axis=0)
    means = {int(one): float(gap[extractors == one].mean()) for one in np.unique(extractors)}
    unit = t_difference(list(means.values()))
    return {
        "by_extractor": {str(one): round(mean, 2) for one, mean in means.items()},
        "points": round(unit.mean, 2),
        **{name: None if math.isnan(getattr(unit, name)) else getattr(unit, name) for name in ("low", "high", "p")},
    }


def t_difference(values: Sequence[float]) -> Difference:
    """The mean of the differences of n independent units, with its t-interval and the p-value of the one-sample t-test.

    Returns:
        One unit alone: an interval and a p-value of NaN.
    """
    mean, half = statistics.fmean(values), t_half_interval(values)
    if math.isnan(half):
        return Difference(mean, half, half, half)
    error = statistics.stdev(values) / math.sqrt(len(values))
    t = abs(mean) / error if error else math.inf
    return Difference(mean, mean - half, mean + half, 2 * float(stdtr(len(values) - 1, -t)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--method", default="support-points")
    parser.add_argument("--over", nargs="+", default=["random", "dq"])
    parser.add_argument("--arch")
    parser.add_argument("--draws", type=int, default=10_000)
    wanted = parser.parse_args()
    lines = []
    for folder in wanted.runs:
        found, extractors, arch = results(folder, wanted.arch, [wanted.method, *wanted.over])
        shares = sorted({keep for method, keep in found if method == wanted.method})
        for baseline in wanted.over:
            pairs = [(found[wanted.method, keep], found[baseline, keep]) for keep in shares]
            first, second = [a for a, _ in pairs], [b for _, b in pairs]
            difference = bootstrap_difference(first, second, wanted.draws)
            lines.append({
                "data": folder.name, "arch": arch, "over": baseline, "keep": shares, "seeds": len(extractors),
                **as_points(difference),
                "by_keep": [as_points(bootstrap_difference([a], [b], wanted.draws)) for a, b in pairs],
                "extractors_as_the_unit": by_extractor(first, second, extractors),
            })  # fmt: skip
    for questions in (lines, [one for line in lines for one in line["by_keep"]]):
        for one, adjusted in zip(questions, holm([one["p"] for one in questions]), strict=True):
            one["p_holm"] = adjusted
    for line in lines:
        each = ", ".join(
            f"{d['points']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f}, p {d['p_holm']:.4f}) at {100 * k:g} %"
            for k, d in zip(line["keep"], line["by_keep"], strict=True)
        )
        print(
            f"{line['data']}: {wanted.method} over {line['over']} {line['points']:+.2f} points "
            f"({line['low']:+.2f} to {line['high']:+.2f}), p {line['p_holm']:.4f} after Holm; {each}; {line['seeds']} seeds"
        )
        print("  " + as_text(line["extractors_as_the_unit"]))
    tried = {json.loads(line)["method"] for line in ATTEMPTS.read_text().splitlines()} - {"random", "dq"}
    print(f"{len(tried)} selections were tried before, in development: {', '.join(sorted(tried))}")
    print(json.dumps(lines, sort_keys=True))


def as_points(found: Difference) -> dict[str, float]:
    points = {"points": found.mean, "low": found.low, "high": found.high}
    return {name: round(100 * value, 2) for name, value in points.items()} | {"p": found.p}


def as_text(unit: dict) -> str:
    """A line of what `by_extractor` found."""
    means = ", ".join(f"{mean:+.2f} ({extractor})" for extractor, mean in unit["by_extractor"].items())
    if unit["p"] is None:
        return f"one extractor alone has no interval with extractors as the unit: {means}"
    return (
        f"with extractors as the unit {unit['points']:+.2f} ({unit['low']:+.2f} to {unit['high']:+.2f}), p {unit['p']:.4f}, "
        f"{len(unit['by_extractor']) - 1} degrees of freedom; by extractor {means}"
    )


if __name__ == "__main__":
    main()
