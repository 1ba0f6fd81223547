"""What a frontier says: accuracy of every spending of every budget, the best of each, as a table, a figure and a sentence."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adq.controls import is_control
from ray_jobs.accuracy import as_bytes, markdown, per_cent, t_half_interval
from ray_jobs.budget import as_budget
from ray_jobs.comparison import by_seed, count_of, runs_table, share_moved
from ray_jobs.frontier_rule import RULE, rule_bytes
from ray_jobs.store import Store, parquet_bytes

if TYPE_CHECKING:  # what only the driver needs
    from ray_jobs.ingest import Index
    from ray_jobs.job import Job

HEADINGS = (
    "network", "budget", "way to spend it", "images", "payload", "as tars", "top-1", "below the best", "moved", "n",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Spending:
    """A way to spend a budget."""

    method: str
    encoding: str  # "" of a set that was made elsewhere
    budget: int

    @property
    def name(self) -> str:
        return spending(self.method, self.encoding)

    @property
    def leads(self) -> bool:
        """Whether it may be the best: ADQ's controls are there to judge it."""
        return not is_control(self.method)

    @property
    def title(self) -> str:
        return f"{self.name} in {as_budget(self.budget)}"


@dataclass(frozen=True, eq=False)
class Spent(Spending):
    """One training of one spending."""

    seed: int
    images: int
    payload: int
    tars: int  # bytes, by `ray_jobs.payload.tar_bytes`
    arch: str = ""
    top1: float = math.nan
    correct: np.ndarray | None = None  # bool [T]
    training: str = ""
    moved: float = 0.0
    selection: str = ""  # digest of what is trained on


@dataclass(frozen=True)
class Point(Spending):
    """A spending of a budget on a network: shares of test images, means over the seeds."""

    arch: str
    images: int
    payload: int
    tars: int
    seeds: int
    selections: int  # different ones, of these seeds
    mean: float
    half_interval: float  # half of the 95 % t-interval; NaN with one seed
    below: tuple[float, float]  # the best spending of the budget less this one, seed by seed, and half of its interval
    moved: float


def spending(method: str, encoding: str) -> str:
    """How a person calls it."""
    return f"{method} as {encoding}" if encoding else method


def points(done: Sequence[Spent]) -> list[Point]:
    """By network and budget, the highest first; a control that is above the best is below it by less than nothing."""
    groups: dict[tuple[str, int, str], list[Spent]] = {}
    for one in done:
        groups.setdefault((one.arch, one.budget, one.name), []).append(one)
    means = {key: statistics.fmean(one.top1 for one in group) for key, group in groups.items()}
    found = []
    order = sorted(groups, key=lambda key: (key[0], key[1], -means[key], key[2]))
    leaders: dict[tuple[str, int], str] = {}
    for arch, budget, name in sorted(order, key=lambda key: not groups[key][0].leads):
        leaders.setdefault((arch, budget), name)
    for arch, budget, name in order:
        group, leader = groups[arch, budget, name], leaders[arch, budget]
        top1 = by_seed((one.seed, one.top1) for one in group)
        best_of = groups[arch, budget, leader]
        reached = {
            seed: statistics.fmean(one.top1 for one in best_of if one.seed == seed)
            for seed in {one.seed for one in best_of}
        }
        gaps = by_seed((one.seed, reached[one.seed] - one.top1) for one in group)
        found.append(Point(
            group[0].method, group[0].encoding, budget, arch, round(statistics.fmean(one.images for one in group)),
            round(statistics.fmean(one.payload for one in group)), round(statistics.fmean(one.tars for one in group)),
            len(top1), len({one.selection for one in group}), statistics.fmean(top1), t_half_interval(top1),
            (statistics.fmean(gaps), t_half_interval(gaps)), statistics.fmean(one.moved for one in group),
        ))  # fmt: skip
    return found


def leader_of(found: Sequence[Point], arch: str, budget: int) -> Point:
    """The best spending of a budget; a control where there is nothing else."""
    here = [point for point in found if (point.arch, point.budget) == (arch, budget)]
    return next((point for point in here if point.leads), here[0])


def best(found: Sequence[Point]) -> list[Point]:
    """The frontier: of every network and budget the best spending; a larger budget may also be spent as a smaller one."""
    frontier: dict[tuple[str, int], Point] = {}
    for arch in dict.fromkeys(point.arch for point in found):
        leader = None
        for budget in sorted({point.budget for point in found if point.arch == arch}):
            own = leader_of(found, arch, budget)
            leader = own if leader is None or (own.leads, own.mean) > (leader.leads, leader.mean) else leader
            frontier[arch, budget] = leader
    return list(frontier.values())


def as_table(found: Sequence[Point]) -> str:
    """A Markdown table; accuracies in per cent with 95 % intervals; differences are seed by seed."""
    lines = [HEADINGS]
    for point in found:
        first = point is leader_of(found, point.arch, point.budget)
        gap, half = point.below
        lines.append((
            point.arch, as_budget(point.budget), point.name, f"{point.images:,}", as_bytes(point.payload), as_bytes(point.tars),
            per_cent(point.mean, point.half_interval),
            "best" if first else per_cent(gap, half),
            share_moved(point.method, point.moved), count_of(point.seeds, point.selections),
        ))  # fmt: skip
    if not any(point.moved for point in found):
        lines = [(*line[:-2], line[-1]) for line in lines]
    return markdown(lines, left=3)


def sentences(found: Sequence[Point]) -> list[str]:
    """What a user can act on, one for each network and budget: the best spending, and which others cannot be told from it."""
    told = []
    for arch in dict.fromkeys(point.arch for point in found):
        for budget in sorted({point.budget for point in found if point.arch == arch}):
            here = [point for point in found if (point.arch, point.budget) == (arch, budget)]
            leader = leader_of(found, arch, budget)
            others = [point for point in here if point is not leader]
            equal = [
                point.name for point in others if not abs(point.below[0]) > point.below[1]
            ]  # also without an interval
            above = [point.name for point in others if -point.below[0] > point.below[1]]
            text = (
                f"{arch}, {as_budget(budget)}: {leader.name}, {leader.images:,} images, "
                f"{per_cent(leader.mean, leader.half_interval)} %"
            )
            text += f"; above it, and only a control: {', '.join(above)}" if above else ""
            told.append(text + (f"; not to be told from it: {', '.join(equal)}" if equal else ""))
    return told


def report(
    job: "Job",
    store: Store,
    done: Sequence[Spent],
    found: Sequence[Point],
    test: "Index",
    measured: Mapping[str, object],
) -> None:
    """Write runs.parquet, frontier.json, table.md and a figure a network to the store and to MLflow; print table and sentences.

    Args:
        measured: the settings of all spendings, for frontier.json.
    """
    from ray_jobs.frontier_figure import accuracy_over_bytes

    table, told = as_table(found), "\n".join(sentences(found))
    store.write("runs.parquet", parquet_bytes(runs_table(done, test.table()["key"].to_pylist())))
    store.write(RULE, rule_bytes(measured, found))
    store.write("table.md", f"{table}\n\n{told}\n\n{job.tracker.ui_command()}\n".encode())
    for name in ("table.md", RULE, "runs.parquet"):
        job.run.artifact_bytes(store.read(name), name)
    for arch in dict.fromkeys(point.arch for point in found):
        figure, image = accuracy_over_bytes([point for point in found if point.arch == arch], arch), io.BytesIO()
        job.run.figure(figure, f"figures/{arch}.png")
        figure.savefig(image, format="png")
        store.write(f"{arch}.png", image.getvalue())
    job.report(f"{table}\n\n{told}\n\nruns     {store.path('runs.parquet')}")
