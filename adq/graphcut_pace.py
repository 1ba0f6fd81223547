"""When the greedy does what: measured in seconds a pick, since it depends on the data, the bin and the machine.

Nothing here changes a pick; it only decides when work is done, and how much of it at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Seconds at home before a trial that was in vain is made again, in its seconds: at first, and later.
TRIAL, PATIENCE = 8, 64
FEW = 256  # picks
BETTER = 0.9
SHORT, LONG = 0.1, 2.0  # seconds after which a trial that is worse, and a cycle at home, are ended


@dataclass
class Statistics:
    """What the greedy did, for progress and benchmarks."""

    picks: int = 0
    passes: int = 0  # over all rows
    choices: int = 0  # of candidates, each with its Gram matrix
    stints: int = 0  # picks between two valuations of the pool
    verified: int = 0  # picks compared with every row of the pool
    exact: int = 0  # picks that needed the deciding values of all near rows


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
    """A size that suits the moment: now and then another is tried for one cycle, and kept where its picks cost less.

    Args:
        sizes: from small to large. Beside the two neighbours the largest is tried where cycles last for few picks: near
            the end of a bin it may be the only one that helps.
        start: the place of the first.
    """

    def __init__(self, sizes: Sequence[int], start: int):
        self.sizes, self.home, self.place = sizes, start, start
        self.cost: float | None = None  # at home, seconds a pick
        self.since, self.turn = 0.0, 0
        self.few = False  # whether cycles last for few picks
        self.trials: dict[
            int, float
        ] = {}  # seconds to wait for in each place's next trial: more with every one in vain

    @property
    def now(self) -> int:
        return self.sizes[self.place]

    def due(self, cycle: Cycle) -> bool:
        """Whether a cycle has gone on long enough to be judged: a trial whose picks cost more, a long time at home."""
        running = cycle.seconds - cycle.setup
        if self.place == self.home:
            return running > LONG and self._next(cycle.seconds) is not None
        return self.cost is not None and running > max(SHORT, self.cost * cycle.picks)

    def _next(self, seconds: float = 0.0) -> int | None:
        """The place to try, where it is time: one whose last trial was dear has to wait longer."""
        places = [self.home + 1, self.home - 1] + ([len(self.sizes) - 1] if self.few else [])
        for turn in range(self.turn, self.turn + len(places)):
            place = places[turn % len(places)]
            if 0 <= place < len(self.sizes) and place != self.home:
                return place if self.since + seconds >= self.trials.get(place, 0.0) else None
        return None

    def judge(self, cycle: Cycle) -> None:
        """A cycle is over: stay, try another place, or move to the one that was tried."""
        if not cycle.seconds:
            return
        cost = cycle.seconds / max(cycle.picks, 1)
        if self.place == self.home:
            self.cost = cost if self.cost is None else 0.5 * (self.cost + cost)
            self.since, self.few = self.since + cycle.seconds, cycle.picks < FEW
            following = self._next()
            self.place = self.home if following is None else following
            return
        self.since = 0.0
        if self.cost is None or cost < BETTER * self.cost:
            self.home, self.cost, self.trials = self.place, cost, {}
        else:
            self.trials[self.place] = max(
                TRIAL * cycle.seconds, 2.0 * min(self.trials.get(self.place, 0.0), PATIENCE * cycle.seconds)
            )
            self.place, self.turn = self.home, self.turn + 1
