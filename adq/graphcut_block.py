"""One block of rows for the greedy: where the rows are, what is known of each, its best candidates.

A block lives where its rows are: in this process, on a GPU, in an actor of its own. What it answers is small: the
values of its best rows, those rows, and how good any row left outside can become. Nothing here decides a pick, except
`best_of_near`, by the exact expression.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adq.fixed_point import EXACT_ROWS, UNIT_64, Grid, deciding_values
from adq.graphcut_messages import NOTHING, Answer, Bound, Candidates, Near, Request
from adq.graphcut_rows import CHUNK, Rows, bound, equal_rows, measure, product

COLUMNS = 128  # float32 products are added up over so many columns, then in float64
STEADY = 64  # picks that the expected pick of a pass weighs against those made since
COMPACT, COMPACT_ALL = 0.75, 0.9  # share of living rows below which the dead are dropped; when all are the pool


class Block:
    """Rows of one place.

    Args:
        rows: float32 or float64 [n, d], tame (`fixed_point.tame`); kept as they are, not copied, where that is possible.
        indices: int64 [n], increasing: the rows' places in the whole.
        device: where products run.
        taken: indices that are no longer there (a run that goes on).
    """

    def __init__(
        self, rows: np.ndarray, indices: np.ndarray, grid: Grid, device: str = "cpu", taken: np.ndarray | None = None
    ):
        self.grid, self.device = grid, torch.device(device)
        self.indices = np.array(indices, dtype=np.int64)
        alive = np.ones(len(rows), dtype=bool)
        if taken is not None and len(taken):
            alive[np.isin(self.indices, taken)] = False
        self.total, lengths, norms = measure(rows, grid, alive)
        self.count = int(alive.sum())
        self.more: dict[int, list[int]] = {}
        for group in equal_rows(rows, alive):
            self.more[group[0]] = [int(self.indices[i]) for i in group[1:]]
            alive[group[1:]] = False
        with warnings.catch_warnings():  # rows may be read-only: they are written to only when they are our own
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.rows = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)
        self.owned = False
        self.round_off = torch.finfo(self.rows.dtype).eps / 2
        self.alive = torch.from_numpy(alive).to(self.device)
        self.lengths, self.norms = torch.from_numpy(lengths).to(self.device), torch.from_numpy(norms).to(self.device)
        self.longest = float(np.sqrt(norms.max(initial=0.0)))
        self.bin, self.dot_total = 0, None

    def sum(self) -> tuple[np.ndarray, int]:
        """The exact sum of the rows that are there, int64 [d] in units of the scale, and their number (copies counted)."""
        return self.total, self.count

    def sum_of(self, indices: np.ndarray) -> np.ndarray:
        """The exact sum of some rows of this block, whether taken or not; other indices are left out. Before the first refresh."""
        places = np.flatnonzero(np.isin(self.indices, indices))
        rows = [self.grid.rows(self.rows[places[s : s + CHUNK]].cpu().numpy()) for s in range(0, len(places), CHUNK)]
        return np.sum([self.grid.total(part) for part in rows], axis=0) if rows else np.zeros_like(self.total)

    def refresh(self, request: Request, taken: Sequence[int]) -> Answer:
        """A pass over all rows: take note of the picks since the last one, value every row anew, keep the best at hand.

        Args:
            taken: this block's rows among the picks since it was last told, once for each copy.
        """
        if self.dot_total is None:  # the first pass, or a block made anew: what was taken it knows already
            self._anchor(request.total, request.chosen)
            self.bin = request.bin
            self.dot_recent = self._product(self.everything, request.recent)
            self.recent_error = self.everything.error
        else:
            self._take(taken)
            before = self.everything.error
            products = self._product(self.everything, request.picked)
            self.dot_chosen += products
            self.dot_recent.mul_(request.fading).add_(products)
            self.recent_error = request.fading * self.recent_error + self.everything.error - before
        if request.bin != self.bin:
            self.dot_total -= self.dot_chosen
            self.dot_chosen.zero_()
        if request.anchor:
            self._anchor(request.total, request.chosen)
        living = int(self.alive.sum())
        if living < (COMPACT if living > request.pool else COMPACT_ALL) * len(self.rows):
            self._compact()
        self.bin = request.bin
        self._value(request)
        return self._rank(request.stint, request.limit)

    def _anchor(self, total: np.ndarray, chosen: np.ndarray) -> None:
        """Products with the sums of V and S in float64: the error bound starts anew."""
        total, chosen = total * self.grid.scale, chosen * self.grid.scale
        length = float(np.linalg.norm(total))
        self.axis = total / length if length else np.zeros(len(total))
        sums = torch.from_numpy(np.stack([total, chosen, self.axis], axis=1)).to(self.device)
        products = torch.empty(len(self.rows), 3, dtype=torch.float64, device=self.device)
        for start in range(0, len(self.rows), EXACT_ROWS):
            products[start : start + EXACT_ROWS] = self.rows[start : start + EXACT_ROWS].double() @ sums
        if self.grid.unit:
            products /= self.lengths[:, None]
        self.dot_total, self.dot_chosen, self.along = (products[:, i].clone() for i in range(3))
        self.everything = Rows(self.rows, self.lengths, self.along, 0.0)
        self.whole = reach = float(np.linalg.norm(chosen)) + length
        self.everything.error = self._rounding(reach) + (len(total) + 16) * UNIT_64 * self.longest * reach

    def _rounding(self, length):
        """How much a product with a vector of this length differs between a row and its exact form."""
        return 0.5 * self.grid.scale * float(np.sqrt(len(self.axis))) * length

    def _take(self, taken: Sequence[int]) -> None:
        gone = []
        for row in taken:
            copies = self.more.get(row)
            if copies:
                self.indices[row] = copies.pop(0)
            else:
                gone.append(row)
        self.alive[gone] = False

    def _product(self, which: "Rows", vector: np.ndarray) -> Tensor:
        """Rows times a vector, float64 [n]. The part along the mean is known; the rest is added up in the rows' own precision
        over blocks of columns, and in float64 over the blocks: so its error bound is that of a short sum and a short vector."""
        along = float(vector @ self.axis)
        across = vector - along * self.axis
        rows = which.rows
        out = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        narrow = torch.from_numpy(across).to(self.device, rows.dtype)
        for start in range(0, rows.shape[1], COLUMNS):
            columns, part = rows[:, start : start + COLUMNS], narrow[start : start + COLUMNS]
            out += product(columns, part)
        size, length = float(np.linalg.norm(across)), float(np.linalg.norm(vector))
        which.error += (COLUMNS + 16) * self.round_off * size * self.longest + self._rounding(length)
        # Products and sums are rounded in float64, too.
        which.error += 8 * UNIT_64 * self.longest * (length + self.whole)
        return (out.div_(which.lengths) if self.grid.unit else out).add_(which.along, alpha=along)

    def _value(self, request: Request) -> None:
        """Values of all rows; the best become the pool."""
        size, lam, count = request.size, request.lam, request.count
        values = self.norms * (2.0 * size - lam * count)
        values.add_(self.dot_chosen, alpha=-4.0).add_(self.dot_total, alpha=2.0 * lam)
        values.masked_fill_(~self.alive, -torch.inf)
        rounding = 8 * UNIT_64 * (2.0 * size + lam * count) * 4.0 * self.longest**2
        error = 4.0 * (1.0 + lam) * self.everything.error + rounding
        expected, self.expected_error = {
            "recent": lambda: (self.dot_recent / request.recent_picks, self.recent_error / request.recent_picks),
            "chosen": lambda: (self.dot_chosen / size, self.everything.error / size),
            "mean": lambda: (self.dot_total / count, self.everything.error / count),
        }[request.expect]()  # fmt: skip
        later = self.norms.mul(2.0).add_(expected, alpha=-4.0).add_(4.0 * self.expected_error)
        later.mul_(request.horizon).add_(values)
        mean = request.total * (self.grid.scale / count)
        spread = (self.norms - self.dot_total * (2.0 / count)).add_(float(mean @ mean)).clamp_(min=0)
        spread = (spread + 2.0 * self.everything.error / count).sqrt_()
        self.values, self.error = values, error
        self._fill_pool(request, values, later, spread, expected)
        self.pool_picked, self.pool_picks = torch.zeros_like(self.pool_values), 0

    def _fill_pool(self, request: Request, values: Tensor, later: Tensor, spread: Tensor, expected: Tensor) -> None:
        known = (values.clone(), self.norms, spread, expected)
        if request.pool >= int(self.alive.sum()):  # all rows, not copied
            self.local, self.far = torch.arange(len(values), device=self.device), NOTHING
            self.pool = Rows(self.rows, self.lengths, self.along, 0.0)
            self.pool_values, self.pool_norms, self.pool_spread, self.pool_expected = known
            return
        soon = torch.lerp(values, later, min(1.0, 8 * request.stint / request.horizon))
        reach = torch.maximum(values, soon).masked_fill_(~self.alive, -torch.inf)
        order = torch.topk(reach, min(request.pool, len(values))).indices
        self.local = order[values[order] > -torch.inf]
        far = self.alive.clone()
        far[self.local] = False
        self.far = bound(values, later, spread, far, self.error)
        self.pool = Rows(self.rows[self.local], self.lengths[self.local], self.along[self.local], 0.0)
        self.pool_values, self.pool_norms, self.pool_spread, self.pool_expected = (x[self.local] for x in known)

    def follow(
        self, picked: np.ndarray, picks: int, taken: Sequence[int], horizon: int, limit: int
    ) -> tuple[Bound, Answer | None]:
        """Value the pool anew after some picks.

        Args:
            picked: their sum, float64 [d].
            horizon: picks until the next time, at most.
            limit: how many of the best values to give, where candidates are to be chosen anew; 0: none.

        Returns:
            The bound of the pool's rows that are no candidates.
        """
        self._take(taken)
        products = self._product(self.pool, picked)
        self.pool_picked += products
        self.pool_picks += picks
        self.pool_values.add_(self.pool_norms, alpha=2.0 * picks).add_(products, alpha=-4.0)
        return self._near(horizon), self._rank(horizon, limit) if limit else None

    def verify(self, picks: np.ndarray) -> np.ndarray:
        """The largest value among the pool's rows that are no candidates, before each of the next picks and after the last.

        Args:
            picks: exact rows that may be picked next, in order, float64 [k, d]; nothing is taken note of.

        Returns:
            Upper bounds of the values, float64 [k + 1].
        """
        along = picks @ self.axis
        across = picks - along[:, None] * self.axis
        narrow = torch.from_numpy(across.T.copy()).to(self.device, self.rows.dtype)
        steps = torch.arange(len(picks) + 1, dtype=torch.float64, device=self.device)
        whole = torch.from_numpy(np.concatenate([[0.0], np.cumsum(along)])).to(self.device)
        best = torch.full((len(picks) + 1,), -torch.inf, dtype=torch.float64, device=self.device)
        for start in range(0, len(self.local), CHUNK):
            part = slice(start, start + CHUNK)
            products = product(narrow.T, self.pool.rows[part].T)
            sums = torch.zeros(len(picks) + 1, products.shape[1], dtype=torch.float64, device=self.device)
            torch.cumsum(products.double(), dim=0, out=sums[1:])
            if self.grid.unit:
                sums /= self.pool.lengths[part]
            values = self.pool_values[part] - 4.0 * (sums + whole[:, None] * self.pool.along[part])
            values += 2.0 * steps[:, None] * self.pool_norms[part]
            values[:, ~self.outside[part]] = -torch.inf
            torch.maximum(best, values.max(dim=1).values, out=best)
        lengths, sizes = np.linalg.norm(picks, axis=1), np.linalg.norm(across, axis=1)
        each = (picks.shape[1] + 16) * self.round_off * sizes * self.longest + self._rounding(lengths)
        each += 8 * UNIT_64 * self.longest * (lengths * (1 + np.arange(len(picks))) + self.whole)
        error = self.error + 4.0 * (self.pool.error + np.concatenate([[0.0], np.cumsum(each)]))
        return best.cpu().numpy() + error

    def _later(self, horizon: int) -> Tensor:
        expected = (self.pool_expected * STEADY + self.pool_picked) / (STEADY + self.pool_picks)
        error = (self.expected_error * STEADY + self.pool.error) / (STEADY + self.pool_picks)
        step = self.pool_norms.mul(2.0).add_(expected, alpha=-4.0).add_(4.0 * error)
        return step.mul_(horizon).add_(self.pool_values)

    def _near(self, horizon: int) -> Bound:
        error = self.error + 4.0 * self.pool.error
        return bound(self.pool_values, self._later(horizon), self.pool_spread, self.outside, error)

    def _rank(self, horizon: int, limit: int) -> Answer:
        """The best rows of the pool."""
        alive = self.alive[self.local]
        reach = torch.maximum(self.pool_values, self._later(min(horizon, limit // 4))).masked_fill_(~alive, -torch.inf)
        top = torch.topk(reach, min(limit, len(reach)))
        self.best = top.indices[top.values > -torch.inf]
        highest = float(self.pool_values[alive].max()) if bool(alive.any()) else -np.inf
        values, error = top.values[: len(self.best)].cpu().numpy(), self.error + 4.0 * self.pool.error
        return Answer(values, max(highest, self.far.start), error)

    def candidates(self, number: int, horizon: int) -> Candidates:
        """The best `number` rows of the last ranking, and bounds for the others."""
        inside = self.best[:number]
        self.outside = self.alive[self.local]
        self.outside[inside] = False
        rows = self.local[inside]
        local = rows.cpu().numpy()
        copies = {place: list(self.more[row]) for place, row in enumerate(local.tolist()) if self.more.get(row)}
        return Candidates(
            self.pool.rows[inside].cpu().numpy(), self.lengths[rows].cpu().numpy(), self.norms[rows].cpu().numpy(),
            self.indices[local], copies, local, self._near(horizon), self.far,
        )  # fmt: skip

    def best_of_near(self, threshold: float, weight: float, direction: np.ndarray) -> Near | None:
        """Right after a pass: of the rows valued at least `threshold`, the one with the largest deciding value."""
        near = torch.nonzero(self.values >= threshold)[:, 0]
        best = None
        for start in range(0, len(near), CHUNK):
            which = near[start : start + CHUNK]
            rows = self.grid.rows(self.rows[which].cpu().numpy(), self.lengths[which].cpu().numpy())
            values = deciding_values(rows, weight, direction)
            local = which.cpu().numpy()
            ties = np.flatnonzero(values == values.max())
            place = int(ties[np.argmin(self.indices[local[ties]])])
            found = Near(float(values[place]), int(self.indices[local[place]]), int(local[place]), rows[place])
            if best is None or (found.value, -found.index) > (best.value, -best.index):
                best = found
        return best

    def _compact(self) -> None:
        """Drop the dead rows: into memory of our own the first time, in place after."""
        living = torch.nonzero(self.alive)[:, 0]
        if not self.owned:
            self.rows, self.owned = self.rows[living], True
        else:
            for start in range(0, len(living), EXACT_ROWS):  # a row never moves down, so nothing is overwritten unread
                which = living[start : start + EXACT_ROWS]
                self.rows[start : start + len(which)] = self.rows[which]
            self.rows = self.rows[: len(living)]
        places = {int(row): place for place, row in enumerate(living.tolist())} if self.more else {}
        self.more = {places[row]: copies for row, copies in self.more.items() if row in places}
        self.indices = self.indices[living.cpu().numpy()]
        for name in ("alive", "lengths", "norms", "dot_total", "dot_chosen", "along", "dot_recent"):
            setattr(self, name, getattr(self, name)[living])
        self.everything = Rows(self.rows, self.lengths, self.along, self.everything.error)
