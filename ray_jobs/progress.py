"""What a person sees while a stage works: images done, rate, time left. Quiet where the output is no terminal."""

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


class Progress:
    """One stage's line: rewritten while it works, left as a summary when it is done."""

    def __init__(self, name: str, total: int | None = None, unit: str = "images"):
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.started = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def add(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if not self.live or now - self.shown < 0.2:
            return
        self.shown = now
        rate = self.done / max(now - self.started, 1e-9)
        text = f"{self.name:<10} {self.done:,}"
        if self.total:
            left = (self.total - self.done) / rate if rate else 0
            text += f" of {self.total:,} {self.unit}  {rate:,.0f}/s  {clock(left)} left"
        else:
            text += f" {self.unit}  {rate:,.0f}/s"
        sys.stderr.write(f"\r\033[K{text}  {note}")
        sys.stderr.flush()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def close(self, text: str) -> None:
        """Leave one line on standard output."""
        if self.live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        print(f"{self.name:<10} {text}", flush=True)
