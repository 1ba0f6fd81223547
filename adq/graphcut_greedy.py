"""The greedy itself: picks from any number of blocks of rows, wherever they are."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from adq.fixed_point import Grid
from adq.graphcut_block import STEADY
from adq.graphcut_blocks import BlockLost, Blocks
from adq.graphcut_messages import Answer, Bound, Request
from adq.graphcut_pace import Cycle, Size, Statistics
from adq.graphcut_window import Outside, State, Window
from adq.process import one_thread

CANDIDATES = 2048
SIZES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # of the candidates, times their number
POOLS = (1 / 4, 4, 16, 64, 2**40)  # of the pool, times the number of candidates; the last is all rows
SHARP = 64  # passes between two valuations from the sums themselves, at least
VERIFIED = 256  # picks at most whose products with the whole pool are made at once
SHORTEST, LONGEST = 8, 8192  # horizons of a stint, in picks
MEMORY = 512  # picks of earlier passes that weigh as much as those of the last, where these are fewer
NEAR, FAR = 0, 1  # the bounds of what is no candidate: in the pool, and outside it
JOINED = ("rows", "lengths", "norms", "indices")


class Greedy:
    """Picks one by one the row with the largest value of eq. 2, bin after bin.

    A pass values all rows and keeps the best of them at hand: the pool. From the pool candidates are chosen, with their
    Gram matrix. Stints of picks are made among the candidates, as far as the bounds reach; between two stints the pool
    is valued anew, which is cheap. When stints become short, candidates are chosen again; when that pays no more, or
    when the bound of what is not in the pool is reached, a pass is made.

    Args:
        blocks: all rows; what was taken before is not among them.
        lam: weight of the second sum.
        candidates: rows whose Gram matrix is held; it changes the time, never the result.
        chosen: indices of picks of the bin that is begun (a run that goes on).
    """

    def __init__(
        self, blocks: Blocks, grid: Grid, lam: float = 1.0, candidates: int = CANDIDATES, device: str = "cpu",
        chosen: np.ndarray | None = None,
    ):  # fmt: skip
        self.blocks, self.grid, self.lam, self.limit, self.device = blocks, grid, lam, candidates, torch.device(device)
        sums = blocks.sums()
        self.chosen = np.zeros_like(sums[0][0])
        self.size = 0
        if chosen is not None and len(chosen):
            self.chosen, self.size = np.sum(blocks.sums_of(chosen), axis=0), len(chosen)
        self.total = np.sum([total for total, _ in sums], axis=0) + self.chosen
        self.count = sum(count for _, count in sums) + self.size
        self.bin = 0
        self.taken: list[list[int]] = [[] for _ in sums]
        self.window, self.complete, self.fresh, self.follow = None, False, False, None
        self.since_pass, self.picks_since_pass, self.picks_since_choice = None, 0, candidates
        self.stint = 64
        self.recent, self.recent_picks = np.zeros(len(self.total)), 0.0  # of this bin's last picks, older ones fading
        self._sizes()
        self.pass_cycle, self.choice_cycle = Cycle(), Cycle()
        self.verify_seconds: dict[int, float] = {}  # of a pick's verification, by the size of the pool
        self.pool_seconds = 0.0  # of the last valuation of the pool
        self.statistics = Statistics()
        self.anchored = 0, 0  # passes and exact comparisons when rows were last valued anew

    def next_bin(self) -> None:
        """S becomes empty, V what remains."""
        self.total, self.count = self.total - self.chosen, self.count - self.size
        self.chosen, self.size = np.zeros_like(self.chosen), 0
        self.bin += 1
        self.recent_picks = 0.0
        self._sizes()
        if self.complete:
            self.window.begin(self._state())
        else:
            self.window = None

    def _sizes(self) -> None:
        self.breadth = Size([max(1, int(part * self.limit)) for part in SIZES], SIZES.index(1))
        self.lasted: dict[int, int] = {}  # picks of the last pass, by the size of the pool
        self.pool = Size([max(1, int(part * self.limit)) for part in POOLS], POOLS.index(16))

    def run(self, picks: int, on_pick: Callable[[np.ndarray], None] | None = None) -> np.ndarray:
        """The next picks, in order: int64 [picks]. `on_pick` gets those of each stint."""
        parts: list[np.ndarray] = []
        left = picks
        with one_thread(self.device.type):
            while left:
                try:
                    part = self._stint(left)
                except BlockLost:  # only before a stint, so that no pick is lost with it
                    self.window, self.taken = None, [[] for _ in self.taken]
                    continue
                if len(part):
                    parts.append(part)
                    left -= len(part)
                    if on_pick:
                        on_pick(part)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _state(self) -> State:
        return State(self.total, self.chosen, self.size, self.count, self.lam)

    def _stint(self, left: int) -> np.ndarray:
        """Picks until a bound is reached, and what must be done before the next."""
        if self.window is None:
            self._pass(left)
        elif self.follow is not None:
            self._follow(self.follow, left)
        begin, state = time.perf_counter(), self._state()
        limit = left if self.complete else min(left, self.stint)
        places, ended = self.window.pick(state, limit, self._outside(), self._verify)
        picked, picks = np.array(self.window.picked, dtype=np.int64), len(places)
        self.statistics.stints += 1
        if picks:
            self._add(self.window.exact_sum(places), picks)
            for place in places if not self.complete else ():
                number, local = self.where[place]
                self.taken[number].append(local)
        if self.complete:
            return picked
        if not picks and self.fresh:
            return self._exactly(state)
        if ended is None and picks == self.stint:
            self.stint = min(2 * self.stint, LONGEST)
        elif picks < left:
            self.stint = int(np.clip(1.5 * picks, SHORTEST, LONGEST))
        self.fresh, self.picks_since_choice = False, self.picks_since_choice + picks
        spent = time.perf_counter() - begin + self.follow_seconds
        going_on = self.choice_cycle.pays(spent, picks)
        self.choice_cycle.add(spent, picks)
        self.pass_cycle.add(spent, picks)
        if ended == FAR or not (picks or self.picks_since_choice) or self.pool.due(self.pass_cycle):
            self.window = None
        elif picks < left:
            if not going_on and not self.pass_cycle.pays(self.choice_cycle.seconds, self.choice_cycle.picks):
                self.window = None
            else:
                self.follow = 0 if going_on and not self.breadth.due(self.choice_cycle) else self.breadth.sizes[-1]
        return picked

    def _pass(self, left: int) -> None:
        """Value all rows, and choose candidates."""
        begin, self.follow = time.perf_counter(), None
        fading = 0.0
        if self.size >= self.picks_since_pass > 0:  # all of this bin
            self.lasted[self.pool.now] = self.picks_since_pass
            fading = MEMORY / (MEMORY + self.picks_since_pass) if self.recent_picks else 0.0
            self.recent = fading * self.recent + self.since_pass
            self.recent_picks = fading * self.recent_picks + self.picks_since_pass
        self.pool.judge(self.pass_cycle)
        expect = "recent" if self.recent_picks >= SHORTEST else "chosen" if self.size else "mean"
        self.horizon = int(np.clip(2 * self.lasted.get(self.pool.now, LONGEST), 256, 16 * LONGEST))
        request = Request(
            self.bin, self.total, self.chosen, self.size, self.lam, self.count, self.since_pass, self.recent,
            self.recent_picks, fading, expect, self._blurred(), self.horizon, self.stint, self.pool.now, self.breadth.sizes[-1],
        )  # fmt: skip
        self.answers = self.blocks.refresh(request, self.taken)
        self.taken = [[] for _ in self.answers]
        scale = self.grid.scale
        self.mean = self.total * (scale / self.count)
        self.far_expected = {
            "recent": lambda: self.recent / self.recent_picks, "chosen": lambda: self.chosen * (scale / self.size),
            "mean": lambda: self.mean,
        }[expect]()  # fmt: skip
        self.statistics.passes += 1
        self.since_pass, self.picks_since_pass = np.zeros(len(self.total)), 0
        self.pass_cycle.begin()
        self.pass_cycle.add(time.perf_counter() - begin, 0)
        self._choose(self.answers, left)
        self.fresh = not self.complete

    def _blurred(self) -> bool:
        """Whether the errors of many updates have made too many exact comparisons necessary."""
        passes, exact = (
            now - then for now, then in zip((self.statistics.passes, self.statistics.exact), self.anchored, strict=True)
        )
        blurred = passes >= SHARP and exact * SHARP >= passes
        if blurred:
            self.anchored = self.statistics.passes, self.statistics.exact
        return blurred

    def _choose(self, answers: Sequence[Answer], left: int) -> None:
        """The best of the pool become candidates."""
        begin = time.perf_counter()
        self.breadth.judge(self.choice_cycle)
        found = self.blocks.candidates(self._share(answers), self.stint)
        rows, lengths, norms, indices = (np.concatenate([getattr(part, name) for part in found]) for name in JOINED)
        copies, self.where = {}, []
        for number, part in enumerate(found):
            copies |= {len(self.where) + place: further for place, further in part.copies.items()}
            self.where += [(number, local) for local in part.local.tolist()]
        self.near, self.far = _worst([part.near for part in found]), _worst([part.far for part in found])
        self.complete = self.near.start == self.far.start == -np.inf
        # Where all are candidates, they serve all bins.
        expected = len(rows) if self.complete else min(left, 2 * self.picks_since_choice)
        self.window = Window(rows, lengths, norms, indices, copies, self.grid, self.device, expected)
        self.window.begin(self._state())
        self._valued()
        self.picks_since_choice = 0
        self.statistics.choices += 1
        self.choice_cycle.begin()
        self.choice_cycle.add(time.perf_counter() - begin, 0)
        self.pass_cycle.add(time.perf_counter() - begin, 0)

    def _follow(self, limit: int, left: int) -> None:
        """Value the pool anew; with a limit, choose candidates from it."""
        begin, self.follow = time.perf_counter(), None
        answers = self.blocks.follow(self.since_valued, self.picks_since_valued, self.taken, self.stint, limit)
        self.taken = [[] for _ in self.taken]
        self.near = _worst([near for near, _ in answers])
        if limit and not any(len(answer.best) for _, answer in answers):  # all of the pool is picked
            self._pass(left)
        elif limit:
            self._choose([answer for _, answer in answers], left)
        else:
            self._valued()
            self.follow_seconds = self.pool_seconds = time.perf_counter() - begin

    def _verify(self, rows: Callable[[int], np.ndarray], picks: int, certain: int) -> np.ndarray | None:
        """Upper bounds of the pool's other rows before each of some picks, where that pays: float64 [at most VERIFIED].

        Args:
            rows: the first picks, exact.
            picks: how many there are.
            certain: how many are certain without.
        """
        if self.since_valued.any() or not self._verification_pays(certain):
            return None
        picks = min(picks, VERIFIED)
        begin = time.perf_counter()
        bounds = np.max(self.blocks.verify(rows(picks - 1)), axis=0)
        self.statistics.verified += picks
        self.verify_seconds[self.pool.now] = (time.perf_counter() - begin) / picks
        return bounds

    def _verification_pays(self, certain: int) -> bool:
        """Whether so many picks and a valuation of the pool cost more than as many picks verified."""
        known = self.verify_seconds.get(self.pool.now)
        return certain < SHORTEST if known is None else known * max(certain, 1) < self.pool_seconds

    def _valued(self) -> None:
        self.near_horizon, self.follow_seconds = self.stint, 0.0
        self.near_expected = (self.far_expected * STEADY + self.since_pass) / (STEADY + self.picks_since_pass)
        self.since_valued, self.picks_since_valued = np.zeros_like(self.mean), 0

    def _outside(self) -> list[Outside]:
        """The bounds of the pool's other rows, and of the far ones."""
        if self.complete:
            return []
        near = Outside(
            *self.near, self.near_horizon, self.near_expected, self.mean, self.picks_since_valued, self.since_valued
        )
        far = Outside(*self.far, self.horizon, self.far_expected, self.mean, self.picks_since_pass, self.since_pass)
        return [near, far]

    def _add(self, total: np.ndarray, picks: int) -> None:
        self.chosen, self.size = self.chosen + total, self.size + picks
        picked = total * self.grid.scale
        self.since_pass, self.picks_since_pass = self.since_pass + picked, self.picks_since_pass + picks
        self.since_valued, self.picks_since_valued = self.since_valued + picked, self.picks_since_valued + picks
        self.statistics.picks += picks

    def _share(self, answers: Sequence[Answer]) -> list[int]:
        """How many of the best rows each block has among the best of all."""
        owner = np.concatenate([np.full(len(answer.best), number) for number, answer in enumerate(answers)])
        best = np.concatenate([answer.best for answer in answers])
        chosen = np.argsort(-best, kind="stable")[: self.breadth.now]
        return np.bincount(owner[chosen], minlength=len(answers)).tolist()

    def _exactly(self, state: State) -> np.ndarray:
        """The next pick right after a pass, from the deciding values of all rows near the maximum: int64 [1]."""
        begin = time.perf_counter()
        floor = max(answer.highest - answer.error for answer in self.answers)
        weight, direction = state.weight(), state.direction(self.grid.scale)
        near = self.blocks.best_of_near([floor - answer.error for answer in self.answers], weight, direction)
        number, best = max(
            ((number, found) for number, found in enumerate(near) if found), key=lambda f: (f[1].value, -f[1].index)
        )
        self._add(self.grid.total(best.row[None]), 1)
        self.taken[number].append(best.local)
        self.statistics.exact += 1
        self.pass_cycle.add(time.perf_counter() - begin, 1)
        self.window = None
        return np.array([best.index], dtype=np.int64)


def _worst(bounds: Sequence[Bound]) -> Bound:
    """One bound for the rows of all."""
    return Bound(*(max(values) for values in zip(*bounds, strict=True)))
