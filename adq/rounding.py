"""Real-valued shares to whole images: exact in the rows, fair to the classes, and nested in the total.

Plain largest remainder can take an image away from a bin when the total grows (the Alabama paradox). So every total K is reached by
halving the interval [0, N]: the counts at its middle are rounded between the counts at its two ends, and never fall when K
grows. Where that leaves a class too far from its share, K itself may use a wider interval, of at most `slack` images: totals
that lie further apart than `slack` stay nested.
"""

from collections import deque
from collections.abc import Callable

import numpy as np


def midpoints(total: int, whole: int, unit: int = 1) -> list[int]:
    """The totals passed on the way to `total` when [0, whole] is halved, multiples of `unit` first; `total` is the last."""
    low, high, out = 0, whole, []
    while not out or out[-1] != total:
        middle = (low + high) // 2
        coarse = round(middle / unit) * unit
        out.append(coarse if low < coarse < high else middle)
        low, high = (out[-1], high) if total > out[-1] else (low, out[-1])
    return out


Rounding = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, bool]]


def nested_counts(round_between: Rounding, sizes: np.ndarray, total: int, unit: int = 1, slack: int = 0) -> np.ndarray:
    """Whole counts that sum to `total` and grow with it.

    Args:
        round_between: (total, low, high) -> counts between low and high, and whether they are fair.
        sizes: int, what there is.
        unit: totals that are its multiples are decided first, so that they come out best.
        slack: the widest interval, in images, that may be used for a fair result.

    Returns:
        int64 counts of the shape of `sizes`.
    """
    low, high, whole = np.zeros_like(sizes), sizes.copy(), int(sizes.sum())
    if not 0 < total < whole:
        return low if total <= 0 else high
    intervals = []
    for middle in midpoints(total, whole, unit):
        counts, fair = round_between(middle, low, high)
        intervals.append((low, high))
        low, high = (counts, high) if total > middle else (low, counts)
    for wider_low, wider_high in reversed(intervals[:-1]):
        if fair or wider_high.sum() - wider_low.sum() > slack:
            break
        wider, fair = round_between(total, wider_low, wider_high)
        counts = wider if fair else counts
    return counts


def largest_remainder(
    total: int, targets: np.ndarray, low: np.ndarray, high: np.ndarray, ties: np.ndarray
) -> np.ndarray:
    """Largest remainder between two bounds: floors first, then one by one to what is furthest below its target.

    Args:
        targets: float [m]. low, high: int [m], with low.sum() <= total <= high.sum(). ties: int [m], lower goes first.

    Returns:
        int64 [m], summing to `total`.
    """
    counts = np.clip(np.floor(targets + 1e-9).astype(np.int64), low, high)
    while (missing := total - int(counts.sum())) != 0:
        room = counts < high if missing > 0 else counts > low
        short = np.where(room, (targets - counts) * np.sign(missing), -np.inf)
        order = np.lexsort((ties, -np.round(short, 9)))[: min(abs(missing), int(room.sum()))]
        counts[order] += np.sign(missing)
    return counts


def joint_rounding(
    targets: np.ndarray,
    rows: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    columns: tuple[np.ndarray, np.ndarray],
    ties: np.ndarray,
) -> tuple[np.ndarray, bool]:
    """Round a table so that each row sums to its count and each column stays between two counts wherever supply allows.

    A flow from rows to columns: bulk by the targets' floors, then single images along augmenting paths, with the limits
    loosened step by step: cells up to their ceiling and columns up to their lower count, columns up to their upper count,
    cells up to what there is, and at last any column.

    Args:
        targets: float [m, C]. rows: int [m]. low, high: int [m, C] bounds of the cells. columns: (int [C], int [C]).
        ties: int [m, C], lower goes first.

    Returns:
        int64 [m, C] with exact row sums, and whether every column is between its two counts.
    """
    table = low.copy()
    floors = np.clip(np.floor(targets + 1e-9).astype(np.int64), low, high)
    ceilings = np.clip(np.ceil(targets - 1e-9).astype(np.int64), low, high)
    least, most = columns
    anything = np.full_like(most, np.iinfo(np.int64).max // 2)
    for cells, limit in (
        (floors, most), (ceilings, least), (ceilings, most), (high, least), (high, most), (high, anything),
    ):  # fmt: skip
        _fill(table, targets, rows, np.maximum(cells, table), limit, ties)
        if (table.sum(axis=1) == rows).all():
            break
        _augment(table, rows, low, np.maximum(cells, table), limit)
    if (table.sum(axis=1) != rows).any():
        raise ValueError("the rows ask for more images than there are")
    totals = table.sum(axis=0)
    return table, bool(((least <= totals) & (totals <= most)).all())


def _fill(table, targets, rows, cells, limit, ties) -> None:
    """Greedy: what is furthest below its target first."""
    missing, room = rows - table.sum(axis=1), limit - table.sum(axis=0)
    if not missing.any():
        return
    where = np.argwhere(table < cells)
    if not len(where):
        return
    n, c = where.T
    for i, j in where[np.lexsort((ties[n, c], -np.round((targets - table)[n, c], 9)))]:
        step = min(cells[i, j] - table[i, j], missing[i], room[j])
        if step > 0:
            table[i, j] += step
            missing[i] -= step
            room[j] -= step


def _augment(table, rows, low, cells, limit) -> None:
    """Augmenting paths row -> column -> row ... for the images that greed could not place."""
    for start in np.flatnonzero(table.sum(axis=1) < rows):
        while table[start].sum() < rows[start] and (path := _path(table, int(start), low, cells, limit)):
            for i, j, step in path:
                table[i, j] += step


def _path(table, start, low, cells, limit) -> list[tuple[int, int, int]] | None:
    """The shortest path from a row to a column with room: (row, column, +1 or -1) steps; None where there is none."""
    room = limit - table.sum(axis=0)
    came_to_column: dict[int, int] = {}
    came_to_row: dict[int, int] = {start: -1}
    queue = deque([start])
    while queue:
        row = queue.popleft()
        for column in np.flatnonzero(table[row] < cells[row]):
            column = int(column)
            if column in came_to_column:
                continue
            came_to_column[column] = row
            if room[column] > 0:
                return _walk_back(column, came_to_column, came_to_row)
            for other in np.flatnonzero(table[:, column] > low[:, column]):
                if int(other) not in came_to_row:
                    came_to_row[int(other)] = column
                    queue.append(int(other))
    return None


def _walk_back(column: int, came_to_column: dict[int, int], came_to_row: dict[int, int]) -> list[tuple[int, int, int]]:
    steps = []
    while column != -1:
        row = came_to_column[column]
        steps.append((row, column, 1))
        column = came_to_row[row]
        if column != -1:
            steps.append((row, column, -1))
    return steps
