"""What the greedy and its blocks of rows tell each other: small, wherever the rows are."""

from typing import NamedTuple

import numpy as np


class Bound(NamedTuple):
    """Largest value now, largest value after `horizon` picks were they all c, largest distance from the mean of V."""

    start: float
    end: float
    radius: float
    error: float  # of every value


NOTHING = Bound(-np.inf, -np.inf, 0.0, 0.0)


class Candidates(NamedTuple):
    """The best rows of a block, and what bounds the others: the near ones, in the pool, and the far ones."""

    rows: np.ndarray  # [M, d], as they are
    lengths: np.ndarray  # float64 [M], their L2 norms
    norms: np.ndarray  # float64 [M], squared lengths on the grid
    indices: np.ndarray  # int64 [M], the lowest index left of each row
    copies: dict[int, list[int]]  # further indices of rows that occur more than once, by place among the M
    local: np.ndarray  # int64 [M], their names inside the block
    near: Bound
    far: Bound


class Request(NamedTuple):
    """What a block needs to know for a pass over its rows; enough to begin with, so that a block made anew goes on."""

    bin: int
    total: np.ndarray  # int64 [d], the exact sum of V
    chosen: np.ndarray  # int64 [d], of S
    size: int  # |S|
    lam: float
    count: int  # |V|
    picked: np.ndarray | None  # float64 [d], the sum of the picks since the last pass
    recent: np.ndarray  # float64 [d], the sum of the last picks of this bin, older ones fading
    recent_picks: float  # their number
    fading: float  # what is left of the recent ones before `picked`
    expect: (
        str  # c, the pick to expect: the mean of the "recent" ones, of what was "chosen" in this bin, or of V, "mean"
    )
    anchor: bool  # value all rows from the sums themselves, in float64: the errors of many updates end
    horizon: int  # picks until the next pass, at most
    stint: int  # picks until the pool is valued anew, at most
    pool: int  # rows to keep at hand until then
    limit: int  # candidates


class Answer(NamedTuple):
    """How good the rows of a block are."""

    best: np.ndarray  # float64, falling: the best of max(value now, value after `horizon` picks of c)
    highest: float  # the largest value now
    error: float  # bound on the error of every value


class Near(NamedTuple):
    """The exact best of the rows near the maximum."""

    value: float
    index: int
    local: int
    row: np.ndarray  # float64 [d], exact
