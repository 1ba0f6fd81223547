"""What an evaluation says: means over seeds with their spread, as a table for a person."""

import math
import statistics
from dataclasses import dataclass

import pyarrow as pa
from scipy.special import stdtrit

HEADINGS = ("set", "network", "images", "payload", "top-1", "sd", "95 % interval", "n")


@dataclass(frozen=True)
class Accuracy:
    """One network on one set: top-1 over the seeds, as shares."""

    set: str
    arch: str
    images: int
    bytes: int
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def sd(self) -> float:
        """Sample standard deviation; NaN with one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else math.nan

    @property
    def half_interval(self) -> float:
        """Half of the 95 % t-interval of the mean; NaN with one seed."""
        n = len(self.top1)
        return float(stdtrit(n - 1, 0.975)) * self.sd / math.sqrt(n) if n > 1 else math.nan


def accuracies(table: pa.Table) -> list[Accuracy]:
    """The rows of `evaluate`'s table, one a set and network, in its order."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["set"], row["arch"]), []).append(row)
    return [
        Accuracy(name, arch, rows[0]["images"], rows[0]["bytes"], tuple(row["top1"] for row in rows))
        for (name, arch), rows in groups.items()
    ]


def as_text(found: list[Accuracy]) -> str:
    """A Markdown table that also reads well on a terminal; top-1, its spread and its interval in per cent."""
    lines = [HEADINGS]
    for s in found:
        low, high = 100 * (s.mean - s.half_interval), 100 * (s.mean + s.half_interval)
        spread = ("-", "-") if math.isnan(s.sd) else (f"{100 * s.sd:.2f}", f"{low:.2f} to {high:.2f}")
        cells = (f"{s.images:,}", _size(s.bytes), f"{100 * s.mean:.2f} %")
        lines.append((s.set, s.arch, *cells, *spread, str(len(s.top1))))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    rows = ["| " + " | ".join(_cell(i, line[i], widths[i]) for i in range(len(HEADINGS))) + " |" for line in lines]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < 2 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def _size(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _cell(column: int, text: str, width: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)
