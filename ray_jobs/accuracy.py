"""What an evaluation says: means over seeds with their spread, as a table for a person."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from scipy.special import stdtrit

HEADINGS = ("set", "network", "images", "payload", "as tars", "top-1", "sd", "95 % interval", "n")


@dataclass(frozen=True)
class Accuracy:
    """One network on one set: top-1 over the seeds, as shares."""

    set: str
    arch: str
    images: int
    bytes: int  # of the images and the labels that are trained on
    tars: int  # bytes, by `ray_jobs.payload.tar_bytes`
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
        return t_half_interval(self.top1)


def t_half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % t-interval of a mean; NaN with one value."""
    n = len(values)
    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan


def accuracies(table: pa.Table) -> list[Accuracy]:
    """The rows of `evaluate`'s table, one a set and network, in its order."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["set"], row["arch"]), []).append(row)
    return [
        Accuracy(
            name, arch, rows[0]["images"], rows[0]["bytes"], rows[0]["tar_bytes"], tuple(row["top1"] for row in rows)
        )
        for (name, arch), rows in groups.items()
    ]


def as_text(found: list[Accuracy]) -> str:
    """A Markdown table that also reads well on a terminal; top-1, its spread and its interval in per cent."""
    lines = [HEADINGS]
    for s in found:
        low, high = 100 * (s.mean - s.half_interval), 100 * (s.mean + s.half_interval)
        spread = ("-", "-") if math.isnan(s.sd) else (f"{100 * s.sd:.2f}", f"{low:.2f} to {high:.2f}")
        cells = (f"{s.images:,}", as_bytes(s.bytes), as_bytes(s.tars), f"{100 * s.mean:.2f} %")
        lines.append((s.set, s.arch, *cells, *spread, str(len(s.top1))))
    return markdown(lines, left=2)


def per_cent(share: float, half: float = math.nan, sign: bool = False) -> str:
    """A share, or a difference of shares with its `sign`, in per cent, and half of its interval; empty where the share is NaN."""
    if math.isnan(share):
        return ""
    told = round(100 * share, 1) + 0.0  # no -0.0
    return f"{told:{'+' if sign else ''}.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def markdown(lines: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose columns are as wide as their widest cell.

    Args:
        lines: the headings first. left: columns that are set to the left; the others are numbers, set to the right.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "| "
        + " | ".join(
            text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def as_bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
