"""How GraphCut's cost grows: with rows, dimensions, bins, actors; and beside other implementations. One JSON line a run.

    python -m tests.bench.graphcut_scaling --out FILE [--threads 1] [--features FOLDER]
    python -m tests.bench.graphcut_scaling --out FILE --page FOLDER     # tables (Markdown) and a plot of the lines that are there

Each run is `tests.bench.graphcut` in a process of its own; lines that are there are skipped.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SAMPLES, DIMS, BINS, ACTORS = (12_500, 25_000, 50_000, 100_000, 200_000), (64, 256, 768, 2048), (2, 5, 10, 20), (1, 2)
BASE = {"samples": 50_000, "dim": 768, "bins": 10, "actors": 0}
OTHERS = ((1_000, 256), (3_000, 256))
VARIED = {"samples": "rows N", "dim": "dimensions d", "bins": "bins m"}


def planned(features: Path | None) -> Iterator[dict]:
    for scope in ("class", "global"):
        common = {"scope": scope, "classes": 100}
        for name, values in (("samples", SAMPLES), ("dim", DIMS), ("bins", BINS)):
            yield from (BASE | common | {name: value} for value in values)
        yield from (BASE | common | {"samples": 100_000, "actors": actors} for actors in ACTORS)
        if features:
            yield {"features": str(features), "scope": scope}
    for samples, dim in OTHERS:
        yield {"samples": samples, "dim": dim, "classes": 1, "scope": "global", "others": True}


def measure(wanted: dict, threads: int) -> dict:
    """The last line of a run of the bench."""
    arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in wanted.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.graphcut", *arguments], check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def tables(lines: list[dict]) -> str:
    out = []
    for name, title in VARIED.items():
        out += [f"\n| {title} | class scope, s | global scope, s | picks a pass, global |", "|--:|--:|--:|--:|"]
        rows = [one for one in lines if _varies(one, name)]
        for value in sorted({one["wanted"][name] for one in rows}):
            found = {one["wanted"]["scope"]: one for one in rows if one["wanted"][name] == value}
            seconds = [f"{found[s]['seconds']:.1f}" if s in found else "" for s in ("class", "global")]
            passes = f"{found['global']['picks_per_pass']:,.0f}" if "global" in found else ""
            out.append(f"| {value:,} | {seconds[0]} | {seconds[1]} | {passes} |")
    out += ["\n| 100,000 x 768 in | class scope, s | global scope, s |", "|---|--:|--:|"]
    for actors, title in ((0, "this process"), (1, "one actor"), (2, "two actors")):
        found = {
            one["wanted"]["scope"]: one["seconds"] for one in lines
            if one["wanted"].get("samples") == 100_000 and one["wanted"].get("actors") == actors
        }  # fmt: skip
        out.append(f"| {title} | {found.get('class', float('nan')):.1f} | {found.get('global', float('nan')):.1f} |")
    out += ["\n| real embeddings | scope | mean cosine | seconds |", "|---|---|--:|--:|"]
    for one in (one for one in lines if "features" in one["wanted"]):
        out.append(
            f"| {one['samples']:,} x {one['dim']} | {one['scope']} | {one['mean_cosine']:.2f} | {one['seconds']:.1f} |"
        )
    out += ["\n| rows | GraphCut | seconds | memory above the rows, GB | picks |", "|--:|---|--:|--:|---|"]
    for one in (one for one in lines if "others" in one):
        size = f"{one['samples']:,} x {one['dim']}"
        memory = (one["memory_over_rows"] - 1) * one["rows_gb"]
        out.append(f"| {size} | ours | {one['seconds']:.2f} | {memory:.2f} | |")
        for name, other in one["others"].items():
            same = "the same" if other["same_picks"] else f"{other['same_bin']:.1%} in the same bin"
            out.append(f"| {size} | {name} | {other['seconds']:.2f} | {other['memory_gb']:.2f} | {same} |")
    return "\n".join(out)


def _varies(one: dict, name: str) -> bool:
    wanted = one["wanted"]
    return "actors" in wanted and all(wanted[other] == BASE[other] for other in BASE if other != name)


def plot(lines: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    fig = Figure((9, 3.4), dpi=110, layout="constrained")
    for axes, (name, title) in zip(fig.subplots(1, 3, sharey=True), VARIED.items(), strict=True):
        for scope, color, marker in (("class", "#0072B2", "o"), ("global", "#D55E00", "s")):
            rows = [one for one in lines if _varies(one, name) and one["wanted"]["scope"] == scope]
            points = sorted((one["wanted"][name], one["seconds"]) for one in rows)
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=f"{scope} scope")
        axes.set_xscale("log")
        axes.set_yscale("log")
        values = sorted({one["wanted"][name] for one in lines if _varies(one, name)})
        axes.set_xticks(values, [f"{v / 1000:g}k" if v >= 10_000 else str(v) for v in values])
        axes.minorticks_off()
        axes.set_xlabel(title)
        axes.grid(color="#E6E6E6")
        axes.spines[["top", "right"]].set_visible(False)
    fig.axes[0].set_ylabel("seconds, one core")
    fig.axes[0].legend(frameon=False)
    fig.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="write graphcut.md, the tables, and graphcut.png here")
    parser.add_argument("--features", type=Path, help="an extract stage's folder in a store")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.page:
        (options.page / "graphcut.md").write_text(tables(lines) + "\n")
        plot(lines, options.page / "graphcut.png")
        return
    for wanted in planned(options.features):
        if any(one["wanted"] == wanted for one in lines):
            continue
        line = measure(wanted, options.threads) | {"wanted": wanted, "threads": options.threads}
        with options.out.open("a") as out:
            out.write(json.dumps(line, sort_keys=True) + "\n")
        lines.append(line)
        print(f"{wanted}: {line['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
