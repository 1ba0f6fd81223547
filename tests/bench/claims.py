"""The runs behind results/claims.md as lines of JSON, and their tables and figures, as results/tables.md has them.

    python -m tests.bench.claims --lines tests/bench/results/claims.jsonl [--add NAME=FOLDER ...] [--figures FOLDER]
    python -m tests.bench.claims --lines tests/bench/results/claims.jsonl --of NAME ... --above METHOD OTHER ...

FOLDER is the --out of a `ray_jobs compare`; NAME says which data they are of. Without anything else, the tables are printed; with
--above, by how much a method is above others in the lines of some names, at each keep ratio and in the mean of all.
"""

import argparse
import json
import statistics
from pathlib import Path

import pyarrow.parquet as pq

from adq.coresets import METHODS
from adq.selection import ALL_METHODS, BY_IMPORTANCE
from ray_jobs.accuracy import per_cent, t_half_interval
from ray_jobs.comparison import Cell, Outcome, cells, count_of
from ray_jobs.comparison_figures import accuracy_over_keep
from ray_jobs.progress import counted
from ray_jobs.standings import over_all

KEPT = ("method", "keep", "seed", "extractor", "images", "moved", "seconds", "arch", "top1")
SAME = ("data", "arch", "method", "keep", "seed")


def lines_of(name: str, folder: Path) -> list[dict]:
    """A line a training, without its bit for every test image."""
    rows = pq.read_table(folder / "runs.parquet").to_pylist()
    return [
        {"data": name} | {key: row[key] for key in KEPT if key in row} | {"selection": row["selection"][:16]}
        for row in rows
    ]


def replaced(found: list[dict], added: list[dict]) -> list[dict]:
    """All lines, where those that were added take the place of what was measured of the same before; each once."""
    known = {json.dumps([line[key] for key in SAME]) for line in added}
    kept = [line for line in found if json.dumps([line[key] for key in SAME]) not in known]
    once = {json.dumps([line.get(key) for key in (*SAME, "selection")]): line for line in added}
    return [*kept, *once.values()]


def outcome(line: dict) -> Outcome:
    found = {key: line[key] for key in KEPT}
    return Outcome(**found, payload=0, tars=0, gpu_seconds=0.0, selection=line.get("selection") or _selection(line))


def _selection(line: dict) -> str:
    """What tells the selections of a method apart, for lines that do not say."""
    method = line["method"].partition(":")[0]
    if method not in ALL_METHODS or line["keep"] == 1:
        return ""
    drawn = method in BY_IMPORTANCE or METHODS[method].draws
    return f"{line['extractor']} {line['seed'] if drawn else ''}"


def as_lines(found: list[Cell]) -> str:
    """Markdown."""
    rows = ["| keep | method | images | top-1, % | over random | over DQ | moved | seeds |"]
    rows.append("|--:|---|--:|--:|--:|--:|--:|--:|")
    for cell in found:
        over = [per_cent(*pair, sign=True) for pair in (cell.over_random, cell.over_dq)]
        cells_of = [
            f"{100 * cell.keep:.3g} %",
            cell.method,
            f"{cell.images:,}",
            per_cent(cell.mean, cell.half_interval),
        ]
        moved = f"{cell.moved:.1%}" if cell.method.startswith("adq") else ""
        rows.append(f"| {' | '.join([*cells_of, *over, moved, count_of(cell.seeds, cell.selections)])} |")
    return "\n".join(rows)


def above(lines: list[dict], method: str, other: str) -> str:
    """By how many points of top-1 a method is above another, seed by seed, at each keep ratio and in the mean of all of them.

    Raises:
        ValueError: no seed has both at any keep ratio.
    """
    found: dict[tuple[str, float, int], list[float]] = {}
    for line in lines:
        found.setdefault((line["method"], line["keep"], line["seed"]), []).append(line["top1"])
    top1 = {key: statistics.fmean(values) for key, values in found.items()}  # of several permutations in a seed, of all
    rows: dict[float, dict[int, float]] = {}
    for name, keep, seed in sorted(top1):
        if name == method and keep < 1 and (other, keep, seed) in top1:
            rows.setdefault(keep, {})[seed] = top1[name, keep, seed] - top1[other, keep, seed]
    if not rows:
        raise ValueError(f"no seed has both {method} and {other}")
    told = [f"{100 * keep:g} % {_of(mine)}" for keep, mine in rows.items()]
    if seeds := set.intersection(*map(set, rows.values())):
        told.append(f"mean {_of({seed: statistics.fmean(mine[seed] for mine in rows.values()) for seed in seeds})}")
    return f"{method} above {other}: {'; '.join(told)}"


def _of(differences: dict[int, float]) -> str:
    values = list(differences.values())
    return f"{per_cent(statistics.fmean(values), t_half_interval(values), sign=True)} ({counted(len(values), 'seed')})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--add", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--figures", type=Path, help="a folder for those of what is added")
    parser.add_argument("--of", nargs="+", default=[], metavar="NAME", help="for --above: the lines of these")
    parser.add_argument(
        "--above", nargs="+", default=[], metavar="METHOD", help="a method, and those it is held against"
    )
    wanted = parser.parse_args()
    found = [json.loads(line) for line in wanted.lines.read_text().splitlines()] if wanted.lines.exists() else []
    added = [
        line for name, folder in (entry.split("=", 1) for entry in wanted.add) for line in lines_of(name, Path(folder))
    ]
    found = replaced(found, added)
    if wanted.above:
        mine = [line for line in found if line["data"] in wanted.of]
        try:
            print("\n".join(above(mine, wanted.above[0], other) for other in wanted.above[1:]))
        except ValueError as error:
            parser.error(f"--of {' '.join(wanted.of) or '(nothing)'}: {error}")
        return
    wanted.lines.write_text("".join(json.dumps(line) + "\n" for line in found))
    for name in dict.fromkeys(line["data"] for line in found):
        done = [outcome(line) for line in found if line["data"] == name]
        print("\n\n".join(filter(None, (name, as_lines(cells(done)), over_all(done)))) + "\n")
        if wanted.figures and name in {line["data"] for line in added}:
            wanted.figures.mkdir(parents=True, exist_ok=True)
            for arch in dict.fromkeys(one.arch for one in done):
                mine = [cell for cell in cells(done) if cell.arch == arch]
                accuracy_over_keep(mine, f"{name}, {arch}").savefig(wanted.figures / f"claims_{name}.png")


if __name__ == "__main__":
    main()
