"""When the greedy does what: measured in seconds a pick, since it depends on the data, the bin and the machine.

Nothing here changes a pick; it only decides when work is done, and how much of it at once.
"""

from collections.abc import Sequence

TRIAL = 8  # seconds at home between two trials, in seconds of a trial
BETTER = 0.9
SHORT, LONG = 0.1, 2.0  # seconds after which a trial that is worse, and a cycle at home, are ended


class Cycle:
    """Seconds and picks since something was done, and of the times before: when going on costs more a pick, it is done again."""

    def __init__(self) -> None:
        self.seconds = self.before = self.setup = 0.0  # setup: before the first pick
        self.picks = self.picks_before = 0

    def add(self, seconds: float, picks: int) -> None:
        self.setup += seconds if not (picks or self.picks) else 0.0
        self.seconds, self.picks = self.seconds + seconds, self.picks + picks

    def begin(self) -> None:
        self.before, self.picks_before = 0.8 * self.before + self.seconds, 0.8 * self.picks_before + self.picks
        self.seconds, self.setup, self.picks = 0.0, 0.0, 0

    def pays(self, seconds: float, picks: int) -> bool:
        return picks > 0 and (not self.picks_before or seconds * self.picks_before <= self.before * picks)


class Size:
    """A size that suits the moment: now and then a neighbour is tried for one cycle, and kept where its picks cost less.

    Args:
        sizes: from small to large.
        start: the place of the first.
    """

    def __init__(self, sizes: Sequence[int], start: int):
        self.sizes, self.home, self.place = sizes, start, start
        self.cost: float | None = None  # at home, seconds a pick
        self.since, self.direction = 0.0, 1
        self.trials = {-1: 0.0, 1: 0.0}  # seconds of the last trial in each direction

    @property
    def now(self) -> int:
        return self.sizes[self.place]

    def due(self, cycle: Cycle) -> bool:
        """Whether a cycle has gone on long enough to be judged: a trial whose picks cost more, a long time at home."""
        running = cycle.seconds - cycle.setup
        if self.place == self.home:
            return running > LONG and self._waited(cycle.seconds) and 0 <= self.home + self.direction < len(self.sizes)
        return self.cost is not None and running > max(SHORT, self.cost * cycle.picks)

    def _waited(self, seconds: float) -> bool:
        return self.since + seconds >= TRIAL * self.trials[self.direction]

    def judge(self, cycle: Cycle) -> None:
        """A cycle is over: stay, try a neighbour, or move to the one that was tried."""
        if not cycle.seconds:
            return
        cost = cycle.seconds / max(cycle.picks, 1)
        if self.place == self.home:
            self.cost = cost if self.cost is None else 0.5 * (self.cost + cost)
            self.since += cycle.seconds
            waited = self._waited(0.0)
        else:
            self.trials[self.direction], self.since = cycle.seconds, 0.0
            waited = self.cost is None or cost < BETTER * self.cost
            if waited:
                self.home, self.cost = self.place, cost
            else:
                self.place, self.direction = self.home, -self.direction
        following = self.home + self.direction
        if not 0 <= following < len(self.sizes):
            self.direction = -self.direction
        elif waited:
            self.place = following
