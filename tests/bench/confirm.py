"""The confirmatory analysis of a comparison: see PROTOCOL.md beside it.

    python -m tests.bench.confirm --runs FOLDER [FOLDER ...] [--method support-points] [--over random dq]

FOLDERs are those of `ray_jobs compare --out`. The endpoint is the mean difference over all keep ratios of a folder; intervals come
from a bootstrap over seeds and test images, p-values are adjusted by Holm over all questions (folders times baselines).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from adq.statistics import bootstrap_difference, holm


def results(folder: Path, arch: str | None) -> tuple[dict[tuple[str, float], np.ndarray], list[int], str]:
    """By method and keep ratio bool [S, T] in the order of the seeds; the seeds; the network."""
    table = pq.read_table(folder / "runs.parquet")
    images = len(table.schema.metadata[b"test_keys"].decode().split("\n"))
    rows = sorted(table.to_pylist(), key=lambda row: row["seed"])
    archs = sorted({row["arch"] for row in rows})
    arch = arch or archs[0]
    found: dict[tuple[str, float], list[np.ndarray]] = {}
    for row in rows:
        if row["arch"] == arch:
            correct = np.unpackbits(np.frombuffer(row["correct"], np.uint8))[:images].astype(bool)
            found.setdefault((row["method"], row["keep"]), []).append(correct)
    return {name: np.stack(each) for name, each in found.items()}, sorted({row["seed"] for row in rows}), arch


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
        found, seeds, arch = results(folder, wanted.arch)
        shares = sorted({keep for method, keep in found if method == wanted.method})
        for baseline in wanted.over:
            pairs = [(found[wanted.method, keep], found[baseline, keep]) for keep in shares]
            difference = bootstrap_difference([a for a, _ in pairs], [b for _, b in pairs], wanted.draws)
            lines.append({
                "data": folder.name, "arch": arch, "over": baseline, "keep": shares, "seeds": len(seeds),
                "points": round(100 * difference.mean, 2), "low": round(100 * difference.low, 2),
                "high": round(100 * difference.high, 2), "p": difference.p,
                "by_keep": [round(100 * float(a.mean() - b.mean()), 2) for a, b in pairs],
            })  # fmt: skip
    for line, adjusted in zip(lines, holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = adjusted
        each = ", ".join(f"{d:+.2f} at {100 * k:g} %" for k, d in zip(line["keep"], line["by_keep"], strict=True))
        print(
            f"{line['data']}: {wanted.method} over {line['over']} {line['points']:+.2f} points "
            f"({line['low']:+.2f} to {line['high']:+.2f}), p {line['p_holm']:.4f} after Holm; {each}; {line['seeds']} seeds"
        )
    print(json.dumps(lines, sort_keys=True))


if __name__ == "__main__":
    main()
