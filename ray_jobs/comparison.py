"""What a comparison says: means with intervals, differences to random and DQ seed by seed, costs; as a table and a figure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from adq.controls import PERMUTATIONS
from adq.selection import BY_IMPORTANCE
from ray_jobs.accuracy import as_bytes, markdown, per_cent, t_half_interval
from ray_jobs.store import Store, parquet_bytes

if TYPE_CHECKING:  # what only the driver needs
    from ray_jobs.ingest import Index
    from ray_jobs.job import Job

BASELINES = ("random", "dq")
BINNING = ("bins", "scope", "normalize", "centre")  # the settings that bins hang on
SAME_SIZE = 0.01  # of a keep ratio: sets that differ less are compared
NOTHING = (math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One training of one selection."""

    method: str  # with its settings, as the user named it
    keep: float
    seed: int
    extractor: int  # its seed
    images: int
    payload: int  # bytes of its container
    tars: int  # bytes, by `ray_jobs.payload.tar_bytes`
    moved: float
    seconds: float  # that the selection cost, all stages before it included
    gpu_seconds: float
    selection: str = ""  # digest of what is trained on
    arch: str = ""
    top1: float = math.nan
    correct: np.ndarray | None = None  # bool [T]
    training: str = ""


@dataclass(frozen=True)
class Cell:
    """A method at a keep ratio on a network: shares of test images, means over the seeds."""

    method: str
    keep: float
    arch: str
    images: int
    payload: int
    tars: int
    seeds: int
    selections: int  # different ones, of these seeds
    mean: float
    half_interval: float  # half of the 95 % t-interval; NaN with one seed
    over_random: tuple[float, float]  # mean difference, seed by seed, and half of its interval
    over_dq: tuple[float, float]
    moved: float
    seconds: float
    gpu_seconds: float


def compared_at(keep: float, shares: Iterable[float]) -> float | None:
    """The share that is nearest to a keep ratio, if it is near enough to compare: a set need not have a ratio of the grid."""
    nearest = min(shares, key=lambda share: abs(share - keep), default=None)
    return nearest if nearest is not None and abs(nearest - keep) <= SAME_SIZE * nearest else None


def as_many(images: int, others: int) -> bool:
    """Whether two sets are of one size; one image more or less, by rounding, does not make another."""
    return abs(images - others) <= max(1, SAME_SIZE * others)


def dq_of(method: str, named: Iterable[str]) -> str:
    """The dq that a method is held against: the one of its bins, where that is named, too."""
    base, own = settings_of(method)
    bins = {pair for pair in own if pair[0] in BINNING}
    return next((each for each in named if base != "dq" and bins and settings_of(each) == ("dq", bins)), "dq")


def settings_of(method: str) -> tuple[str, set[tuple[str, str]]]:
    """A method's name as the method and its settings, in whatever order and spacing they were given."""
    base, *settings = method.split(":")
    pairs = (setting.partition("=")[::2] for setting in settings)
    return base, {(name.strip().replace("-", "_"), value.strip()) for name, value in pairs}


def share_moved(method: str, moved: float) -> str:
    """`moved` as a table says it: nothing where no importance could have moved anything."""
    return f"{100 * moved:.1f} %" if moved or method.partition(":")[0] in BY_IMPORTANCE else ""


def by_seed(values: Iterable[tuple[int, float]]) -> list[float]:
    """The mean value of each seed: of several permutations in one seed, that of all."""
    found: dict[int, list[float]] = {}
    for seed, value in values:
        found.setdefault(seed, []).append(value)
    return [statistics.fmean(found[seed]) for seed in sorted(found)]


def cells(done: Sequence[Outcome]) -> list[Cell]:
    """The cells of the table: by network, keep ratio, and in the order of the methods."""
    groups: dict[tuple[str, float, str], list[Outcome]] = {}
    for one in done:
        groups.setdefault((one.arch, one.keep, one.method), []).append(one)
    order = list(dict.fromkeys(one.method for one in done))

    def over(baseline: str, arch: str, keep: float, method: str) -> tuple[float, float]:
        at = compared_at(keep, [share for a, share, name in groups if (a, name) == (arch, baseline)])
        before = {one.seed: one for one in groups.get((arch, at, baseline), ())}
        both = [(one, before[one.seed]) for one in groups[arch, keep, method] if one.seed in before]
        pairs = by_seed((one.seed, one.top1 - other.top1) for one, other in both if as_many(one.images, other.images))
        if baseline == method or not pairs:
            return NOTHING
        return statistics.fmean(pairs), t_half_interval(pairs)

    found = []
    for arch, keep, method in sorted(groups, key=lambda g: (g[0], g[1], order.index(g[2]))):
        group = groups[arch, keep, method]
        top1 = by_seed((one.seed, one.top1) for one in group)
        found.append(Cell(
            method, keep, arch, group[0].images, round(statistics.fmean(one.payload for one in group)),
            round(statistics.fmean(one.tars for one in group)), len(top1), len({one.selection for one in group}),
            statistics.fmean(top1), t_half_interval(top1),
            over("random", arch, keep, method), over(dq_of(method, order), arch, keep, method),
            statistics.fmean(one.moved for one in group),
            statistics.fmean(one.seconds for one in group), statistics.fmean(one.gpu_seconds for one in group),
        ))  # fmt: skip
    return found


HEADINGS = (
    "network",
    "method",
    "keep",
    "images",
    "payload",
    "as tars",
    "top-1",
    "over random",
    "over DQ",
    "moved",
    "selecting",
    "GPU",
    "n",
)


def as_table(found: Sequence[Cell], links: Mapping[tuple[str, float, str], str] | None = None) -> str:
    """A Markdown table that also reads well on a terminal; top-1 and differences in per cent with 95 % intervals.

    Args:
        links: addresses behind the accuracies, by (method, keep, network); listed below the table.
    """
    lines = [HEADINGS]
    for number, cell in enumerate(found, 1):
        top1 = per_cent(cell.mean, cell.half_interval)
        if links:
            top1 = f"[{top1}][{number}]"
        lines.append((
            cell.arch, cell.method, f"{100 * cell.keep:.3g} %", f"{cell.images:,}", as_bytes(cell.payload),
            as_bytes(cell.tars), top1, per_cent(*cell.over_random, sign=True), per_cent(*cell.over_dq, sign=True),
            share_moved(cell.method, cell.moved),
            f"{cell.seconds:,.1f} s", f"{cell.gpu_seconds:,.0f} s" if cell.gpu_seconds else "",
            count_of(cell.seeds, cell.selections),
        ))  # fmt: skip
    empty = [i for i in range(len(HEADINGS)) if i > 1 and not any(line[i] for line in lines[1:])]
    table = markdown([[cell for i, cell in enumerate(line) if i not in empty] for line in lines], left=2)
    if not links:
        return table
    addresses = [f"[{number}]: {links[cell.method, cell.keep, cell.arch]}" for number, cell in enumerate(found, 1)]
    return "\n".join([table, "", *addresses])


def differences_elsewhere(found: Sequence[Cell]) -> str:
    """A line for each set whose differences are to methods at a keep ratio that is near to its own."""
    shares = {cell.keep for cell in found if cell.method in BASELINES}
    near = {
        (cell.method, cell.images): compared_at(cell.keep, shares)
        for cell in found
        if cell.keep not in shares and compared_at(cell.keep, shares)
    }
    return "\n".join(
        f"{method} has {images:,} images; its differences are to what is chosen at keep {share:g}."
        for (method, images), share in near.items()
    )


def of_other_sizes(found: Sequence[Cell]) -> str:
    """A line for each method that keeps another number of images than its ratio says, as eq. 10 as printed does."""
    random = {cell.keep: cell.images for cell in found if cell.method == "random"}
    other = {
        (cell.method, cell.keep): (cell.images, random[cell.keep])
        for cell in found
        if cell.keep in random and not as_many(cell.images, random[cell.keep])
    }
    return "\n".join(
        f"{method} keeps {images:,} images at keep {keep:g}, random {others:,}: they are not compared."
        for (method, keep), (images, others) in other.items()
    )


def of_other_bins(found: Sequence[Cell]) -> str:
    """A line for methods that are held against a dq of other bins than theirs."""
    named = dict.fromkeys(cell.method for cell in found)
    other = [
        name for name in named
        if "dq" in named and name.partition(":")[0] != "dq" and dq_of(name, named) == "dq"
        and any(setting in BINNING for setting, _ in settings_of(name)[1])
    ]  # fmt: skip
    return f"{', '.join(other)}: over DQ is over a dq of other bins; name the dq of the same, too." if other else ""


def few_permutations(found: Sequence[Cell]) -> str:
    """What the permuted control stands on, where that is fewer than PERMUTATIONS."""
    permuted = [cell for cell in found if cell.method.partition(":")[0] == "adq-permuted" and cell.keep < 1]
    fewest = min((cell.selections for cell in permuted), default=PERMUTATIONS)
    if fewest >= PERMUTATIONS:
        return ""
    told = "one permutation" if fewest == 1 else f"{fewest} permutations"
    return f"adq-permuted stands on {told} of the importance: {PERMUTATIONS} tell more."


def count_of(seeds: int, selections: int) -> str:
    """How many seeds, and of how many different selections, where these are fewer or, by several permutations, more."""
    if selections == seeds:
        return str(seeds)
    if selections > seeds:
        return f"{seeds}, {selections} sets"
    return f"{seeds} of {selections} {'set' if selections == 1 else 'sets'}"


def trained_again(found: Sequence[Cell]) -> str:
    """What intervals say where several trainings share a selection, if any do."""
    if all(cell.selections >= cell.seeds for cell in found):
        return ""
    return "n of k sets: n trainings of k different selections, whose interval says little of the selections of other extractors."


def runs_table(done: Sequence, keys: Sequence[str]) -> pa.Table:
    """A row a training, of dataclasses of one kind with `correct`, bool [T].

    In the table this is a bit a test image, in the order of the metadata's test_keys, first bit highest.
    """
    columns = {f.name: [getattr(one, f.name) for one in done] for f in fields(done[0]) if f.name != "correct"}
    correct = pa.array([np.packbits(one.correct).tobytes() for one in done], pa.binary())
    return pa.table({**columns, "correct": correct}).replace_schema_metadata({"test_keys": "\n".join(keys)})


def report(
    job: "Job",
    store: Store,
    done: Sequence[Outcome],
    found: Sequence[Cell],
    links: Mapping,
    test: "Index",
    more: str = "",
) -> None:
    """Write runs.parquet, table.md and a figure a network to the store and to MLflow, and print the table.

    Args:
        more: lines below it, which are printed alone.
    """
    from ray_jobs.comparison_figures import accuracy_over_keep
    from ray_jobs.standings import over_all

    notes = (
        differences_elsewhere(found),
        of_other_sizes(found),
        of_other_bins(found),
        trained_again(found),
        few_permutations(found),
        over_all(done),
    )
    table, linked = ("\n\n".join(filter(None, (as_table(found, to), *notes))) for to in (None, links))
    store.write("runs.parquet", parquet_bytes(runs_table(done, test.table()["key"].to_pylist())))
    linked += f"\n\n{job.tracker.ui_command()}\n"
    store.write("table.md", linked.encode())
    job.run.text(linked, "table.md")
    job.run.artifact_bytes(store.read("runs.parquet"), "runs.parquet")
    for arch in dict.fromkeys(cell.arch for cell in found):
        figure = accuracy_over_keep([cell for cell in found if cell.arch == arch], arch)
        job.run.figure(figure, f"figures/{arch}.png")
        store.write(f"{arch}.png", _png(figure))
    job.report(f"{table}\n\nruns     {store.path('runs.parquet')}\ntable    {store.path('table.md')}{more}")


def _png(figure) -> bytes:
    import io

    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
