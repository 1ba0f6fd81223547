"""What the lines of tests.bench.palettes say: a table with differences paired by seed, and figures of accuracy over colours."""

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t of 1 to 9 degrees of freedom
QUANTISED = ("none+median_cut", "none+kmeans", "none+octree")
JOINTLY = ("direct", "network", "soft", "buckets")
EQUAL = ("random+median_cut@bytes", "random+kmeans@bytes", "random+octree@bytes", "random+webp", "random+jpeg", "none+webp",
         "none+jpeg", "none+webp@bytes", "none+jpeg@bytes")  # fmt: skip
ORDER = ("random", "none", *QUANTISED, *JOINTLY, "random+median_cut", "random+kmeans", "random+octree", *EQUAL)
NAMES = {
    "none+median_cut": "DM, then median cut", "none+kmeans": "DM, then k-means", "none+octree": "DM, then octree",
    "direct": "palettes trained jointly", "network": "palette network", "soft": "palette network, soft",
    "buckets": "jointly, gradient through the means",
}  # fmt: skip
SETTINGS_OF_START = ("start", "lam")
COLUMNS = ("run", "variant", "K", "images", "payload bytes", "colours used", "top-1", "95 % interval", "over random",
           "to full colour", "over the best afterwards", "to direct", "seeds")  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The lines of one run, of several seeds."""

    run: str
    colors: int | None
    settings: dict
    rows: dict[int, dict]  # by seed

    @property
    def plain(self) -> bool:
        return not self.settings["set"]

    @property
    def means(self) -> dict[int, float]:
        """By seed, the mean over the networks."""
        return {seed: statistics.fmean(row["top1"]) for seed, row in self.rows.items()}

    @property
    def mean(self) -> float:
        return statistics.fmean(self.means.values())

    def average(self, name: str) -> float:
        """Of a field over the seeds; NaN where no line has it."""
        values = [row[name] for row in self.rows.values() if name in row]
        return statistics.fmean(values) if values else math.nan


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: Mapping) -> str:
    """What makes a line another one."""
    return json.dumps([row["run"], row["colors"], row["seed"], row["settings"]], sort_keys=True)


def grouped(rows: Sequence[dict]) -> list[Group]:
    """Groups in the order of the table: full colour, then by K, variants at the end; of equal lines, the last one counts."""
    groups: dict[str, Group] = {}
    for row in rows:
        same = key({**row, "seed": None})
        group = groups.setdefault(same, Group(row["run"], row["colors"], row["settings"], {}))
        group.rows[row["seed"]] = row

    def place(group: Group) -> tuple:
        rank = ORDER.index(group.run) if group.run in ORDER else len(ORDER)
        variant = (group.settings["name"], *group.settings["set"])
        return (
            not group.plain,
            variant if not group.plain else (),
            group.colors or 0,
            rank,
            group.run,
            key(_line(group)),
        )

    return sorted(groups.values(), key=place)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval (from eleven values on a little too wide); NaN with one value."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    times = TIMES_975[min(len(values), 10) - 2]
    return statistics.fmean(values), times * statistics.stdev(values) / len(values) ** 0.5


def paired(group: Group, other: Group | None) -> tuple[float, float] | None:
    """The difference of two runs, seed by seed, with half of its 95 % interval; None without seeds in common."""
    if other is None or other is group:
        return None
    ours, theirs = group.means, other.means
    common = sorted(ours.keys() & theirs.keys())
    return interval([ours[seed] - theirs[seed] for seed in common]) if common else None


def table(rows: Sequence[dict]) -> str:
    """Markdown: means over the seeds of each seed's mean over networks, with 95 % intervals over the seeds.

    Differences are paired by seed: over random real images and to DM in full colour, as many images each, and over the better
    of DM's images quantised afterwards and to `direct`, at the same K.
    """
    groups = grouped(rows)
    usual = _usual(groups)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "--:|" * (len(COLUMNS) - 2)]
    for group in groups:
        mean, half = interval(list(group.means.values()))
        used = group.average("colors_used")
        after = [_beside(groups, group, run, group.colors) for run in QUANTISED]
        best = max((found for found in after if found is not None), key=lambda found: found.mean, default=None)
        cells = (
            group.run, _variant(group, usual), str(group.colors or ""), f"{group.average('images'):.0f}",
            f"{group.average('payload_bytes'):,.0f}", "" if math.isnan(used) else f"{used:.1f}", f"{mean:.1f}",
            "" if math.isnan(half) else f"± {half:.1f}", _signed(paired(group, _beside(groups, group, "random", None))),
            _signed(paired(group, _beside(groups, group, "none", None))), _signed(paired(group, best)),
            _signed(paired(group, _beside(groups, group, "direct", group.colors)) if group.colors else None), str(len(group.rows)),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def drawn(rows: Sequence[dict]) -> "dict[str, Figure]":
    """Figures by name: accuracy over K by method, at equal bytes, and by start, where there are such lines."""
    from ray_jobs.palette_figures import accuracy_over_colors

    groups = grouped(rows)
    settings = _usual(groups)
    usual = [group for group in groups if _base(group.settings) == settings]
    plain = [group for group in usual if group.plain and group.colors]
    full = next((group for group in usual if group.run == "none" and group.plain), None)
    methods = {NAMES[run]: _series(plain, run) for run in (*JOINTLY, *QUANTISED)}
    equal = {NAMES.get(run, run): _series(plain, run) for run in (*JOINTLY[:2], *EQUAL)}
    starts: dict[str, list] = {}
    for group in usual:
        changed = [change.partition("=")[0] for change in group.settings["set"]]
        if group.run == "direct" and set(changed) <= set(SETTINGS_OF_START):
            name = "start random" if group.plain else group.settings["name"] or ", ".join(group.settings["set"])
            starts.setdefault(name, []).append(_point(group))
    wanted = {"methods": methods}
    if any(_series(plain, run) for run in EQUAL):
        wanted["equal_bytes"] = equal
    if len(starts) > 1:
        wanted["starts"] = starts
    in_full = interval(list(full.means.values())) if full else None
    found = {name: {label: points for label, points in series.items() if points} for name, series in wanted.items()}
    return {name: accuracy_over_colors(series, in_full) for name, series in found.items() if series}


def keep(
    figures: "Mapping[str, Figure]", name: str, folder: Path, tracking_uri: str | None = None, text: str | None = None
) -> None:
    """Write figures to a folder, and to the one MLflow run of this name."""
    folder.mkdir(parents=True, exist_ok=True)
    for what, figure in figures.items():
        figure.savefig(folder / f"{what}.png")
    if tracking_uri is None:
        return
    from ray_jobs.tracking import open_tracker

    tracker = open_tracker(tracking_uri, "tessera", str(folder))
    digest = hashlib.sha256(f"tests.bench.palettes {name}".encode()).hexdigest()
    with tracker.run(f"bench palettes: {name}", digest) as run:
        for what, figure in figures.items():
            run.figure(figure, f"figures/{what}.png")
        if text is not None:
            run.text(text, "table.md")


def _line(group: Group) -> dict:
    return {"run": group.run, "colors": group.colors, "seed": None, "settings": group.settings}


def _base(settings: Mapping) -> dict:
    """The settings that two runs share when they are compared; embeddings are of the start alone."""
    return {name: value for name, value in settings.items() if name not in ("name", "set", "embedding_epochs")}


def _usual(groups: Sequence[Group]) -> dict:
    """The settings of most lines."""
    counts: Counter[str] = Counter()
    for group in groups:
        counts[json.dumps(_base(group.settings), sort_keys=True)] += len(group.rows)
    return json.loads(counts.most_common(1)[0][0]) if counts else {}


def _variant(group: Group, usual: Mapping) -> str:
    """Its name, or what --set changed, and settings that are not the usual ones."""
    name = group.settings["name"] or " ".join(group.settings["set"])
    other = [f"{field}={value}" for field, value in _base(group.settings).items() if usual.get(field) != value]
    return ", ".join([name, *other] if name else other)


def _beside(groups: Sequence[Group], group: Group, run: str, colors: int | None) -> Group | None:
    """The plain run of this name with otherwise the same settings."""
    return next(
        (
            other
            for other in groups
            if other.run == run
            and other.colors == colors
            and other.plain
            and _base(other.settings) == _base(group.settings)
        ),
        None,
    )


def _signed(difference: tuple[float, float] | None) -> str:
    if difference is None:
        return ""
    mean, half = difference
    return f"{mean:+.1f}" if math.isnan(half) else f"{mean:+.1f} ± {half:.1f}"


def _point(group: Group) -> tuple[int, float, float]:
    return group.colors, *interval(list(group.means.values()))


def _series(groups: Sequence[Group], run: str) -> list[tuple[int, float, float]]:
    return [_point(group) for group in groups if group.run == run]
