"""Scores over GraphCut's bins (Figure 2 of ADQ), by extractor: what the `score` stages of a store hold, as lines, table and figure.

    python -m tests.bench.bin_scores --store runs --out bin_scores.jsonl [--figure figure2.png]

A line a bin and extractor, with the standard errors that the stage computed; without --store, the lines that are there are read.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow.parquet as pq

SCORES = {"representativeness": "eq. 3, texture", "diversity": "eq. 5, diversity"}
COLUMNS = ("bin", "size", *SCORES, *(f"{score}_se" for score in SCORES), "top_1_percent_share", "importance")


def lines_of(store: Path) -> list[dict]:
    """Of every `score` stage there, by the seed of its extractor."""
    found = []
    for path in sorted(store.glob("score/*/manifest.json")):
        manifest = json.loads(path.read_text())
        (part,) = manifest["parts"]
        rows = pq.read_table(store / part["path"], columns=list(COLUMNS)).to_pylist()
        found += [{"extractor": manifest["config"]["seed"]} | row for row in rows]
    if len({(line["extractor"], line["bin"]) for line in found}) < len(found):
        raise ValueError(
            f"{store} has the scores of one extractor twice: of other data, or other settings; give it a store of its own"
        )
    return sorted(found, key=lambda line: (line["extractor"], line["bin"]))


def table(lines: list[dict]) -> str:
    """Markdown: a row a bin; of each extractor both scores with their standard errors."""
    extractors = sorted({line["extractor"] for line in lines})
    rows = ["| bin | " + " | ".join(f"{score}, {e}" for score in SCORES for e in extractors) + " |"]
    rows.append("|--:|" + "--:|" * (len(SCORES) * len(extractors)))
    for number in sorted({line["bin"] for line in lines}):
        mine = {line["extractor"]: line for line in lines if line["bin"] == number}
        # Diversities are of the order of 1e-4.
        told = [
            f"{scale * mine[e][score]:.{digits}f} ± {scale * mine[e][f'{score}_se']:.{digits}f}"
            for score, scale, digits in (("representativeness", 1, 4), ("diversity", 1e4, 2))
            for e in extractors
        ]
        rows.append(f"| {number + 1} | {' | '.join(told)} |")
    return "\n".join(rows)


def figure(lines: list[dict], path: Path) -> None:
    drawn, axes = plt.subplots(1, len(SCORES), figsize=(9, 3.2), layout="constrained")
    for axis, (score, title) in zip(axes, SCORES.items(), strict=True):
        for extractor in sorted({line["extractor"] for line in lines}):
            mine = [line for line in lines if line["extractor"] == extractor]
            bins = [line["bin"] + 1 for line in mine]
            errors = [line[f"{score}_se"] for line in mine]
            values = [line[score] for line in mine]
            axis.errorbar(bins, values, yerr=errors, marker="o", capsize=2, label=f"extractor {extractor}")
        axis.set(title=title, xlabel="GraphCut bin", xticks=bins)
    axes[0].legend(frameon=False, fontsize=8)
    drawn.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, help="of compare or compress: its `score` stages are read")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    wanted = parser.parse_args()
    lines = (
        lines_of(wanted.store) if wanted.store else [json.loads(line) for line in wanted.out.read_text().splitlines()]
    )
    if not lines:
        parser.error(f"{wanted.store} has no finished `score` stage")
    wanted.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))
    shares = [line["top_1_percent_share"] for line in lines]
    print(f"\none image in a hundred carries {min(shares):.0%} to {max(shares):.0%} of a bin's diversity, ", end="")
    print(f"median {statistics.median(shares):.0%}")
    if wanted.figure:
        figure(lines, wanted.figure)


if __name__ == "__main__":
    main()
