"""Which method is better over the whole grid of a comparison: mean accuracies of all its keep ratios, best first."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.accuracy import markdown, per_cent, t_half_interval
from ray_jobs.comparison import BASELINES, NOTHING, Outcome, as_many, by_seed, count_of

HEADINGS = ("network", "method", "top-1", "over random", "over DQ", "n")


@dataclass(frozen=True)
class Rank:
    """A method on a network: shares of test images, means over the keep ratios and then over the seeds that have all of them."""

    method: str
    arch: str
    mean: float
    half_interval: float  # half of the 95 % t-interval; NaN with one seed
    over_random: tuple[float, float]  # mean difference, seed by seed, and half of its interval; NaN where there is none
    over_dq: tuple[float, float]
    seeds: int
    selections: int  # different ones of these seeds, at the ratio with most


def ratios_of(done: Sequence[Outcome]) -> list[float]:
    """The keep ratios of a grid, ascending, without the whole set, which all methods share."""
    return sorted({one.keep for one in done if one.method in BASELINES and one.keep < 1})


def ranking(done: Sequence[Outcome]) -> list[Rank]:
    """The methods that some seed has at every keep ratio of the grid, by network, best first; [] with fewer than two ratios."""
    ratios = ratios_of(done)
    if len(ratios) < 2:
        return []
    groups: dict[tuple[str, str, float], list[Outcome]] = {}
    for one in done:
        if one.keep in ratios:
            groups.setdefault((one.arch, one.method, one.keep), []).append(one)
    named = dict.fromkeys((arch, method) for arch, method, _ in groups)
    means = {
        (arch, method): _by_seed([groups.get((arch, method, keep), []) for keep in ratios]) for arch, method in named
    }

    def over(baseline: str, arch: str, method: str) -> tuple[float, float]:
        mine, theirs = means[arch, method], means.get((arch, baseline), {})
        sizes = [
            [groups[arch, name, keep][0].images for keep in ratios]
            for name in (method, baseline)
            if (arch, name) in named
        ]
        pairs = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
        if baseline == method or not pairs or not all(as_many(*pair) for pair in zip(*sizes, strict=True)):
            return NOTHING
        return statistics.fmean(pairs), t_half_interval(pairs)

    found = []
    for arch, method in named:
        if top1 := list(means[arch, method].values()):
            selections = max(len({one.selection for one in groups[arch, method, keep]}) for keep in ratios)
            over_both = over("random", arch, method), over("dq", arch, method)
            found.append(Rank(
                method, arch, statistics.fmean(top1), t_half_interval(top1), *over_both, len(top1), selections,
            ))  # fmt: skip
    return sorted(found, key=lambda rank: (rank.arch, -rank.mean))


def _by_seed(at: Sequence[Sequence[Outcome]]) -> dict[int, float]:
    """The mean over the ratios, by seeds that have all of them; `at` holds the outcomes of each ratio."""
    seeds = set.intersection(*({one.seed for one in ones} for ones in at))
    return {
        seed: statistics.fmean(by_seed((one.seed, one.top1) for one in ones if one.seed == seed)[0] for ones in at)
        for seed in sorted(seeds)
    }


def over_all(done: Sequence[Outcome]) -> str:
    """The ranking as a person reads it, in Markdown; "" where a comparison has one keep ratio alone."""
    if not (found := ranking(done)):
        return ""
    *most, last = (f"{keep:g}" for keep in ratios_of(done))
    return (
        f"In the mean of keep {', '.join(most)} and {last}, best first; differences are taken seed by seed, and intervals "
        f"corrected for nothing:\n\n{as_table(found)}"
    )


def as_table(found: Sequence[Rank]) -> str:
    """A Markdown table that also reads well on a terminal; per cent and points with 95 % intervals."""
    lines = [HEADINGS]
    for rank in found:
        lines.append((
            rank.arch, rank.method, per_cent(rank.mean, rank.half_interval), per_cent(*rank.over_random, sign=True),
            per_cent(*rank.over_dq, sign=True), count_of(rank.seeds, rank.selections),
        ))  # fmt: skip
    return markdown(lines, left=2)
