"""Exact greedy GraphCut (ADQ eq. 1 and 2): bins, and selection with a budget.

With S the set being filled, V what was there when it was empty, s = |S|, A = sum of S, T = sum of V, eq. 2 with a weight
lam on the second sum is, up to terms that are the same for every x,

    v(x) = (2 s - lam |V|) |x|^2 - 2 x . (2 A - lam T)                                    (lam = 1: eq. 2 itself)

so a step needs one product of the rows with one vector, and a pick p changes every value by 2 |x|^2 - 4 x . p: one row of
a Gram matrix. No N x N kernel is ever made.

Exactness. Rows are rounded once to multiples of 2^-40 (times a power of two for raw vectors), so the sums A and T are exact
integers and do not depend on the order of addition. The deciding value of a row is one fixed float64 expression of that
row and the sums (`_Rows.decide`), evaluated row by row, so that equal rows have equal values. Everything faster is a
filter: it keeps every row whose value could be the largest within `margin`, a bound of the float64 rounding errors. Ties go
to the lowest index.

The lazy step. A refresh computes v for all rows and keeps the best M as candidates, whose values are then updated by their Gram
matrix. After k picks with sum P, any vector c, any vector m and Q = P - k c, an outsider y has

    v_k(y) = v_0(y) + 2 k |y|^2 - 4 y . P <= v_0(y) + k (2 |y|^2 - 4 y . c) - 4 m . Q + 4 |y - m| |Q|      (Cauchy-Schwarz)

The first two terms are a convex function of k in their maximum over the outsiders, so below the chord between k = 0 and k = H.
A pick is certain while it beats that bound; when it does not, refresh. c is the mean of the best candidates, m of all rows.
"""

import hashlib
from collections.abc import Callable

import numpy as np

FIXED_POINT_BITS = 40
CANDIDATES = 2048
MAX_ROWS = 1 << (62 - FIXED_POINT_BITS)
UNIT = 2.0**-53


class _Rows:
    """Distinct rows, rounded to the fixed point, each with its indices in increasing order."""

    def __init__(self, rows: np.ndarray, scale: float):
        self.scale = scale
        digests = [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
        first: dict[bytes, int] = {}
        group = np.fromiter((first.setdefault(d, len(first)) for d in digests), dtype=np.int64, count=len(digests))
        order = np.argsort(group, kind="stable")
        self.copies = np.split(order, np.cumsum(np.bincount(group))[:-1])
        self.rows = rows if len(first) == len(rows) else rows[[copies[0] for copies in self.copies]]
        self.norms = np.einsum("nd,nd->n", self.rows, self.rows)
        self.taken = np.zeros(len(self.copies), dtype=np.int64)
        self.lowest = np.array([copies[0] for copies in self.copies], dtype=np.int64)
        self.counts = np.array([len(copies) for copies in self.copies], dtype=np.int64)

    @property
    def remaining(self) -> int:
        return int((self.counts - self.taken).sum())

    def alive(self) -> np.ndarray:
        return np.flatnonzero(self.taken < self.counts)

    def take(self, row: int) -> int:
        """The lowest index left of a row; the next one moves up."""
        index = int(self.lowest[row])
        self.taken[row] += 1
        if self.taken[row] < self.counts[row]:
            self.lowest[row] = self.copies[row][self.taken[row]]
        return index

    def integers(self, row: int) -> np.ndarray:
        return np.rint(self.rows[row] / self.scale).astype(np.int64)

    def total(self) -> np.ndarray:
        """The exact sum of what remains, in units of the scale: int64 [d]."""
        total = np.zeros(self.rows.shape[1], dtype=np.int64)
        alive = self.alive()
        for start in range(0, len(alive), 4096):
            block = alive[start : start + 4096]
            integers = np.rint(self.rows[block] / self.scale).astype(np.int64)
            total += (integers * (self.counts - self.taken)[block, None]).sum(axis=0)
        return total

    def decide(self, rows: np.ndarray, weight: float, direction: np.ndarray) -> int:
        """Of a few rows, the one with the largest deciding value; ties go to the lowest index left.

        The reduction runs along each contiguous row, in the same order whatever the number of rows.
        """
        block = self.rows[rows]
        values = weight * (block * block).sum(axis=1) - 2.0 * (block * direction).sum(axis=1)
        best = rows[values == values.max()]
        return int(best[np.argmin(self.lowest[best])])


class _Picker:
    """Greedy picks from what remains of some rows, with the sums of eq. 2 kept exactly."""

    def __init__(self, rows: _Rows, lam: float, candidates: int):
        self.rows, self.lam, self.limit = rows, lam, candidates
        self.count = rows.remaining
        self.total = rows.total()
        self.chosen = np.zeros_like(self.total)
        self.size = 0
        self.horizon = 512

    def _state(self) -> tuple[float, np.ndarray]:
        """(weight, direction) of v(x) = weight |x|^2 - 2 x . direction."""
        if self.lam == 1.0:
            direction = (2 * self.chosen - self.total).astype(np.float64) * self.rows.scale
        else:
            scale = self.rows.scale
            direction = 2.0 * (self.chosen * scale) - self.lam * (self.total * scale)
        return 2.0 * self.size - self.lam * self.count, direction

    def _margin(self, weight: float, direction: np.ndarray, picks: int) -> float:
        """Twice the rounding error of a filter value and of a deciding value together, after some updates."""
        longest = float(np.sqrt(self.rows.norms.max(initial=0.0)))
        terms = self.rows.rows.shape[1] + 8
        size = abs(weight) * longest**2 + 2.0 * longest * float(np.linalg.norm(direction)) + 8.0 * picks * longest**2
        return 4.0 * terms * UNIT * size * (1 + picks / terms)

    def _take(self, row: int) -> int:
        self.chosen += self.rows.integers(row)
        self.size += 1
        return self.rows.take(row)

    def run(self, picks: int, on_pick: Callable[[int], None] | None = None) -> np.ndarray:
        """The next picks, in order: int64 [picks]."""
        out: list[int] = []
        while len(out) < picks:
            before = len(out)
            self._window(picks, out)
            if on_pick:
                on_pick(len(out) - before)
        return np.array(out, dtype=np.int64)

    def _window(self, picks: int, out: list[int]) -> None:
        """One refresh, then picks until the bound fails."""
        rows, horizon = self.rows, self.horizon
        alive = rows.alive()
        weight, direction = self._state()
        mean = self.total * (rows.scale / max(self.count, 1))
        norms = rows.norms[alive]
        values = weight * norms - 2.0 * self._product(alive, direction)
        margin = self._margin(weight, direction, horizon)
        # The first pick of a window compares with every row, so each window makes progress.
        first = rows.decide(alive[values >= values.max() - margin], weight, direction)
        if len(alive) > self.limit:
            leaders = np.argpartition(-values, min(64, self.limit))[: min(64, self.limit)]
            centre = rows.rows[alive[leaders]].mean(axis=0)
            slope = 2.0 * norms - 4.0 * self._product(alive, centre)
            reach = np.maximum(values, values + horizon * slope)
            order = np.argpartition(-reach, self.limit)
            inside, outside = order[: self.limit], order[self.limit :]
            start, end = values[outside].max(), (values[outside] + horizon * slope[outside]).max()
            spread = norms[outside] - 2.0 * self._product(alive[outside], mean) + mean @ mean
            radius = float(np.sqrt(max(spread.max(), 0.0))) * (1 + 1e-9)
        else:
            inside = np.arange(len(alive))
            centre, start, end, radius = mean, -np.inf, -np.inf, 0.0
        candidates, values = alive[inside], values[inside]
        block = rows.rows[candidates]
        gram = block @ block.T
        place = {int(row): i for i, row in enumerate(candidates)}
        done, drift = 0, np.zeros_like(mean)
        while len(out) < picks:
            if done == 0:
                row = first
            elif (
                done >= horizon
                or (row := self._certain(candidates, values, margin, start, end, done, mean, drift, radius)) is None
            ):
                break
            out.append(self._take(row))
            done += 1
            at = place.get(row)
            if at is None:
                break  # the exact comparison preferred a row outside the candidates
            drift += block[at] - centre
            values += 2.0 * rows.norms[candidates] - 4.0 * gram[at]
            if rows.taken[row] == rows.counts[row]:
                values[at] = -np.inf
        self.horizon = int(np.clip(2 * done, 32, 4096))

    def _certain(self, candidates, values, margin, start, end, done, mean, drift, radius) -> int | None:
        """The next pick where it beats every outsider, else None."""
        best = values.max()
        if best == -np.inf:
            return None
        if start > -np.inf:
            line = start + (end - start) * (done / self.horizon)
            bound = line - 4.0 * (mean @ drift) + 4.0 * radius * float(np.sqrt(drift @ drift))
            if best <= bound + margin:
                return None
        near = np.flatnonzero(values >= best - margin)
        if len(near) == 1:
            return int(candidates[near[0]])
        return self.rows.decide(candidates[near], *self._state())

    def _product(self, which: np.ndarray, vector: np.ndarray) -> np.ndarray:
        if len(which) * 2 > len(self.rows.rows):
            return (self.rows.rows @ vector)[which]
        return np.concatenate([self.rows.rows[which[s : s + 8192]] @ vector for s in range(0, len(which), 8192)])


def _prepare(embeddings: np.ndarray, kernel: str) -> tuple[np.ndarray, float]:
    """Rows as float64 multiples of a power of two, and that power."""
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"embeddings have shape {embeddings.shape}; expected [N, d] with N >= 1")
    if len(embeddings) > MAX_ROWS:
        raise ValueError(f"{len(embeddings)} rows: exact sums hold at most {MAX_ROWS}; use scope 'class'")
    rows = embeddings.astype(np.float64)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(f"row {int(np.argmax(bad))} of the embeddings has a NaN or infinite value")
    if kernel == "cosine":
        norms = np.sqrt((rows * rows).sum(axis=1))
        if not norms.all():
            raise ValueError(f"row {int(np.argmin(norms))} of the embeddings is all zeros: it has no direction; "
                             "remove it, or use raw vectors (--normalize none)")  # fmt: skip
        rows /= norms[:, None]
        scale = 2.0**-FIXED_POINT_BITS
    elif kernel == "l2":
        largest = np.abs(rows).max()
        scale = 2.0 ** (np.ceil(np.log2(largest)) - FIXED_POINT_BITS) if largest else 1.0
    else:
        raise ValueError(f"kernel {kernel!r}: expected 'cosine' or 'l2'")
    return np.rint(rows / scale) * scale, scale


def bin_sizes(count: int, num_bins: int) -> np.ndarray:
    """Sizes of the bins of a scope of `count` samples: N / m by largest remainder, earlier bins first. int64 [m]."""
    sizes = np.full(num_bins, count // num_bins, dtype=np.int64)
    sizes[: count % num_bins] += 1
    return sizes


def graphcut_bins(
    embeddings: np.ndarray,
    labels: np.ndarray | None = None,
    num_bins: int = 10,
    scope: str = "class",
    kernel: str = "cosine",
    on_step: Callable[[int], None] | None = None,
    candidates: int = CANDIDATES,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a data set into `num_bins` bins by greedy GraphCut (ADQ eq. 1 and 2).

    Args:
        embeddings: float [N, d]; rows in the order of the keys, since ties go to the lowest index.
        labels: int [N]; needed in scope "class".
        num_bins: m >= 1.
        scope: "class" runs inside each class (bin n is the union over the classes), "global" over all rows.
        kernel: "cosine" (rows are L2-normalised) or "l2" (raw).
        on_step: called with the number of picks just made.
        candidates: rows whose Gram matrix is held; it changes the time, never the result.

    Returns:
        bin int64 [N], and rank int64 [N]: the order of the pick in its scope; in the last bin, index order.

    Raises:
        ValueError: a zero, NaN or infinite row (named), fewer samples than bins, an unknown scope.
    """
    count = len(embeddings)
    if num_bins < 1 or count < num_bins:
        raise ValueError(f"{count} samples cannot fill {num_bins} bins; lower --bins")
    if scope not in ("class", "global"):
        raise ValueError(f"scope {scope!r}: expected 'class' or 'global'")
    if scope == "class" and (labels is None or len(labels) != count):
        raise ValueError("scope 'class' needs one label for every row")
    rows, scale = _prepare(embeddings, kernel)
    groups = [np.arange(count)]
    if scope == "class":
        order = np.argsort(labels, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(np.asarray(labels)[order])) + 1)
    bins, ranks = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for members in groups:
        left = _Rows(rows[members] if scope == "class" else rows, scale)
        sizes = bin_sizes(len(members), num_bins)
        rank = 0
        for number, size in enumerate(sizes[:-1]):
            picked = members[_Picker(left, 1.0, candidates).run(int(size), on_step)] if size else []
            bins[picked], ranks[picked] = number, rank + np.arange(size)
            rank += int(size)
        chosen = np.zeros(len(members), dtype=bool)
        for copies, taken in zip(left.copies, left.taken, strict=True):
            chosen[copies[:taken]] = True
        rest = members[~chosen]
        bins[rest], ranks[rest] = num_bins - 1, rank + np.arange(len(rest))
        if on_step:
            on_step(len(rest))
    return bins, ranks


def graphcut_select(
    embeddings: np.ndarray, budget: int, kernel: str = "cosine", lam: float = 1.0, candidates: int = CANDIDATES
) -> np.ndarray:
    """Greedy GraphCut with a budget: lam * sum of similarities to all rows - sum of similarities among the chosen.

    Args:
        embeddings: float [N, d].
        budget: rows to choose, 1 to N.
        kernel: "cosine" ((1 + cos) / 2) or "l2" (minus the squared distance).
        lam: weight of the first sum; 1 is eq. 1 of ADQ.

    Returns:
        int64 [budget], row indices in the order of the picks.

    Raises:
        ValueError: a budget outside 1 to N; a zero, NaN or infinite row (named).
    """
    if not 1 <= budget <= len(embeddings):
        raise ValueError(f"budget {budget}: expected 1 to {len(embeddings)}")
    rows, scale = _prepare(embeddings, kernel)
    return _Picker(_Rows(rows, scale), float(lam), candidates).run(budget)
