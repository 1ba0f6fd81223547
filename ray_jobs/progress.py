"""What a person sees while a stage works: images done, rate, time left; in the log of a job a line now and then."""

import sys
import time


def clock(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def counted(number: int, noun: str) -> str:
    """1 network, 2 networks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


FIRST, LONGEST = 60.0, 600.0  # seconds between the lines of a log: at first, and at most
LIVE = 0.2  # and between two states of a terminal's line


class Progress:
    """One stage's line: rewritten while it works, left as a summary when it is done. A log has a line a minute, later fewer."""

    def __init__(self, name: str, total: int | None = None, unit: str = "images"):
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.started = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()
        self.every = LIVE if self.live else FIRST

    def add(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        rate = self.done / max(now - self.started, 1e-9)
        text = f"{self.name:<10} {self.done:,}"
        text += f" of {self.total:,} {self.unit}" if self.total else f" {self.unit}"
        text += f"  {rate:,.0f}/s" if rate >= 10 else f"  {rate:.2g}/s"
        if self.total and rate:
            text += f"  {clock((self.total - self.done) / rate)} left"
        if self.live:
            sys.stderr.write(f"\r\033[K{text}  {note}")
            sys.stderr.flush()
        else:
            print(f"{text}  {note}".rstrip(), file=sys.stderr, flush=True)
            self.every = min(LONGEST, 1.5 * self.every)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def close(self, text: str) -> None:
        """Leave one line on standard output."""
        if self.live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        print(f"{self.name:<10} {text}", flush=True)
