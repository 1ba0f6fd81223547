"""Which method is better over the whole grid of a comparison: mean accuracies of all its keep ratios, best first."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.accuracy import markdown, per_cent, t_half_interval
from ray_jobs.comparison import BASELINES, NOTHING, Outcome, as_many, count_of, dq_of

HEADINGS = ("mean", "over random", "over DQ", "n")


@dataclass(frozen=True)
class Standing:
    """A method on a network: shares of test images, means over the keep ratios and then over the seeds that have all of them."""

    method: str
    arch: str
    at: tuple[tuple[float, float], ...]  # at each ratio the mean and half of its 95 % t-interval; NaN with one seed
    mean: float
    half_interval: float
    over_random: tuple[float, float]  # mean difference, seed by seed, and half of its interval; NaN where there is none
    over_dq: tuple[float, float]
    seeds: int
    selections: int  # different ones of these seeds, at the ratio with most


def ratios_of(done: Sequence[Outcome]) -> list[float]:
    """The keep ratios of a grid, ascending, without the whole set, which all methods share."""
    named = {one.method for one in done}
    if not named & set(BASELINES):  # then those that some method has several of: a set of --sets has one
        named = {name for name in named if len({one.keep for one in done if one.method == name}) > 1}
    return sorted({one.keep for one in done if one.keep < 1 and one.method in (named & set(BASELINES) or named)})


def standings(done: Sequence[Outcome]) -> list[Standing]:
    """The methods that some seed has at every keep ratio of the grid, by network, best first; [] with fewer than two ratios."""
    ratios = ratios_of(done)
    if len(ratios) < 2:
        return []
    groups: dict[tuple[str, str, float], list[Outcome]] = {}
    for one in done:
        if one.keep in ratios:
            groups.setdefault((one.arch, one.method, one.keep), []).append(one)
    named = dict.fromkeys((arch, method) for arch, method, _ in groups)
    # Of each method what its seeds reach that have all ratios: [ratios] by seed.
    reached = {name: _by_seed([groups.get((*name, keep), []) for keep in ratios]) for name in named}

    def over(baseline: str, arch: str, method: str) -> tuple[float, float]:
        mine, theirs = reached[arch, method], reached.get((arch, baseline), {})
        pairs = [statistics.fmean(mine[s]) - statistics.fmean(theirs[s]) for s in sorted(mine.keys() & theirs.keys())]
        if baseline == method or not pairs:
            return NOTHING
        sizes = ([groups[arch, name, keep][0].images for name in (method, baseline)] for keep in ratios)
        return _with_interval(pairs) if all(as_many(*pair) for pair in sizes) else NOTHING

    methods = {method for _, method in named}
    found = []
    for arch, method in named:
        if seeds := reached[arch, method]:
            selections = max(len({one.selection for one in groups[arch, method, keep]}) for keep in ratios)
            at = tuple(_with_interval(values) for values in zip(*seeds.values(), strict=True))
            mean = _with_interval([statistics.fmean(values) for values in seeds.values()])
            over_both = over("random", arch, method), over(dq_of(method, methods), arch, method)
            found.append(Standing(method, arch, at, *mean, *over_both, len(seeds), selections))
    return sorted(found, key=lambda one: (one.arch, -one.mean))


def _by_seed(at: Sequence[Sequence[Outcome]]) -> dict[int, list[float]]:
    """Accuracies at each ratio, of several permutations in a seed their mean, by the seeds that have all of them."""
    seeds = set.intersection(*({one.seed for one in ones} for ones in at))
    return {
        seed: [statistics.fmean(one.top1 for one in ones if one.seed == seed) for ones in at] for seed in sorted(seeds)
    }


def _with_interval(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), t_half_interval(values)


def over_all(done: Sequence[Outcome]) -> str:
    """The standings as a person reads it, in Markdown; "" where a comparison has one keep ratio alone."""
    if not (found := standings(done)):
        return ""
    *most, last = (f"{keep:g}" for keep in ratios_of(done))
    standing = {one.method for one in found}
    without = [name for name in dict.fromkeys(one.method for one in done) if name not in standing]
    left_out = f"; without {', '.join(without)}, not of all these ratios" if without else ""
    return (
        f"In the mean of keep {', '.join(most)} and {last}, best first; differences are taken seed by seed, and intervals "
        f"corrected for nothing{left_out}:\n\n{as_table(found, ratios_of(done))}"
    )


def as_table(found: Sequence[Standing], ratios: Sequence[float]) -> str:
    """A Markdown table that also reads well on a terminal; per cent and points with 95 % intervals."""
    lines = [("network", "method", *(f"{100 * keep:.3g} %" for keep in ratios), *HEADINGS)]
    for one in found:
        differences = per_cent(*one.over_random, sign=True), per_cent(*one.over_dq, sign=True)
        means = (per_cent(*pair) for pair in (*one.at, (one.mean, one.half_interval)))
        lines.append((one.arch, one.method, *means, *differences, count_of(one.seeds, one.selections)))
    return markdown(lines, left=2)
