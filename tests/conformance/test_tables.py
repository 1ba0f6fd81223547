"""Tables of bins and classes, and support points, by plain readings of README.md: nothing is taken from Tessera."""

import itertools
import math

import numpy as np
import pytest

from tests.conformance.test_conformance import INPUTS, STORED, hashed, nested

Table = list[list[int]]
UNLIMITED = 10**9
reached: set[str] = set()  # which branches the cases have gone through


def expected(counts: Table, rows: list[int], columns: list[float]) -> list[list[float]]:
    """Cells in proportion inside each bin, then fitted to both margins in turn."""
    m, classes = len(counts), len(columns)
    cells = [[counts[n][c] * rows[n] / max(sum(counts[n]), 1) for c in range(classes)] for n in range(m)]
    for _ in range(100):
        before = [list(row) for row in cells]
        for c in range(classes):
            factor = columns[c] / max(sum(row[c] for row in cells), 1e-12)
            for n in range(m):
                cells[n][c] = min(cells[n][c] * factor, counts[n][c])
        for n in range(m):
            factor = rows[n] / max(sum(cells[n]), 1e-12)
            cells[n] = [min(cell * factor, most) for cell, most in zip(cells[n], counts[n], strict=True)]
        if (
            max(abs(x - y) for one, other in zip(cells, before, strict=True) for x, y in zip(one, other, strict=True))
            < 1e-7
        ):
            break
    for cell in (cell for row in cells for cell in row):
        assert not 1e-10 < abs(cell - round(cell)) < 1e-8, "too near to a whole number: another table, please"
    return cells


def fit(
    cells: list[list[float]], rows: list[int], low: Table, high: Table, columns: list[float], seed: int
) -> tuple[Table, bool]:
    """Whole counts: six steps of greed and of augmenting paths, the limits looser from step to step."""
    m, classes = len(low), len(columns)
    places = [(n, c) for n in range(m) for c in range(classes)]
    least, most = [math.floor(s + 1e-9) for s in columns], [math.ceil(s - 1e-9) for s in columns]

    def clipped(change, add: float) -> Table:
        return [[min(max(change(cells[n][c] + add), low[n][c]), high[n][c]) for c in range(classes)] for n in range(m)]

    floors, ceilings, none = clipped(math.floor, 1e-9), clipped(math.ceil, -1e-9), [UNLIMITED] * classes
    table = [list(row) for row in low]
    steps = ((floors, most), (ceilings, least), (ceilings, most), (high, least), (high, most), (high, none))
    for limits, column_limits in steps:
        limits = [[max(limits[n][c], table[n][c]) for c in range(classes)] for n in range(m)]
        exact = sorted(cells[n][c] - table[n][c] for n, c in places)
        near = [x for x, y in itertools.pairwise(exact) if y - x < 2e-9]
        assert all(abs(x * 1e9 % 1 - 0.5) > 1e-3 for x in near), (
            "arithmetic could decide a ninth decimal: another table, please"
        )
        below = {(n, c): round(cells[n][c] - table[n][c], 9) for n, c in places}
        for n, c in sorted(places, key=lambda at: (-below[at], hashed(seed, "cell", str(at[0]), str(at[1])))):
            room = column_limits[c] - sum(row[c] for row in table)
            table[n][c] += max(0, min(limits[n][c] - table[n][c], rows[n] - sum(table[n]), room))
        for n in range(m):
            while sum(table[n]) < rows[n] and (path := shortest(table, n, low, limits, column_limits)):
                reached.add("path" if len(path) > 1 else "cell")
                for k, (row, column) in enumerate(path):
                    table[row][column] += 1
                    if k:
                        table[row][path[k - 1][1]] -= 1
        if [sum(row) for row in table] == rows:
            break
    totals = [sum(row[c] for row in table) for c in range(classes)]
    return table, all(a <= total <= b for a, total, b in zip(least, totals, most, strict=True))


def shortest(
    table: Table, start: int, low: Table, limits: Table, column_limits: list[int]
) -> list[tuple[int, int]] | None:
    """The cells that take one more, from `start` on; each row after the first gives back one of the column before."""
    paths, seen_rows, seen_columns = [(start, [])], {start}, set()
    for row, path in paths:  # grows as it is read: breadth first
        for column in range(len(column_limits)):
            if column in seen_columns or table[row][column] >= limits[row][column]:
                continue
            seen_columns.add(column)
            here = [*path, (row, column)]
            if sum(other[column] for other in table) < column_limits[column]:
                return here
            for other in range(len(table)):
                if other not in seen_rows and table[other][column] > low[other][column]:
                    seen_rows.add(other)
                    paths.append((other, here))
    return None


def class_table(case: dict, total: int) -> Table:
    counts, classes = case["counts"], len(case["counts"][0])
    sizes, whole = [sum(row) for row in counts], sum(map(sum, counts))

    def at(total: int, low: Table, high: Table) -> tuple[Table, bool]:
        rows = nested({**case, "sizes": sizes, "allocation": "share"}, total)
        columns = [sum(row[c] for row in counts) * (total / whole) for c in range(classes)]
        return fit(expected(counts, rows, columns), rows, low, high, columns, case["seed"])

    (a, low), (b, high), passed, table, fair = (0, [[0] * classes for _ in counts]), (whole, counts), [], None, False
    middle = None
    while middle != total:
        passed.append((low, high, b - a))
        middle = (a + b) // 2
        coarse = round(middle / classes) * classes
        middle = coarse if a < coarse < b else middle
        table, fair = at(middle, low, high)
        if total > middle:
            a, low = middle, table
        else:
            b, high = middle, table
    for low, high, width in reversed(passed[:-1]):
        if fair or width > 8 * classes:
            break
        reached.add("wider")
        wider, fair = at(total, low, high)
        table = wider if fair else table
    return table


@pytest.mark.parametrize("name", sorted({case["case"] for case in STORED["class_table"]}))
def test_tables_of_bins_and_classes_by_halving(name):
    for case in (case for case in STORED["class_table"] if case["case"] == name):
        total = round(case["keep"] * sum(map(sum, case["counts"])))
        assert class_table(case, total) == case["table"], case
        assert sum(map(sum, case["table"])) == total


def test_the_tables_go_through_every_branch():
    for case in STORED["class_table"]:
        class_table(case, round(case["keep"] * sum(map(sum, case["counts"]))))
    assert reached >= {"path", "wider"}


@pytest.mark.parametrize("case", STORED["support_points"], ids=lambda case: f"{case['total']}-{case['depth']:.2f}")
def test_support_points_in_whole_numbers(case):
    labels, order = INPUTS["labels"], STORED["graphcut_bins"][0]
    assert (order["scope"], order["kernel"], order["num_bins"]) == ("class", "cosine", 10)
    counts = np.bincount(labels).tolist()
    (totals,) = class_table({"importance": [0.0], "counts": [counts], "alpha": 0.0, "seed": 0}, case["total"])
    picks = []
    for label, (count, wanted) in enumerate(zip(counts, totals, strict=True)):
        mine = np.flatnonzero(labels == label).tolist()
        ranked = sorted(mine, key=lambda n: (order["bin"][n], order["rank"][n]))
        head = sorted(ranked[: max(wanted, math.ceil(case["depth"] * count))])
        rows = [grid(INPUTS["embeddings"][n].tolist()) for n in head]
        away = [[distance(x, y) for y in rows] for x in rows]
        taken: list[int] = []
        while len(taken) < wanted:
            k = len(taken) + 1
            value = {
                i: k * sum(away[i]) - len(head) * sum(away[i][p] for p in taken)
                for i in range(len(head))
                if i not in taken
            }
            taken.append(min(value, key=lambda i: (value[i], i)))
        picks += [head[i] for i in taken]
    assert picks == case["indices"]


def grid(row: list[float]) -> list[int]:
    """A unit vector in units of 2^-25."""
    length = math.sqrt(math.fsum(x * x for x in row))
    scaled = [x / length * 2**25 for x in row]
    assert all(abs(x % 1 - 0.5) > 1e-6 for x in scaled), "too near to a half: other embeddings, please"
    return [round(x) for x in scaled]


def distance(x: list[int], y: list[int]) -> int:
    """In units of 2^-24: the products are whole numbers of 2^-50."""
    product = sum(a * b for a, b in zip(x, y, strict=True))
    return round(math.sqrt(max(2**51 - 2 * product, 0) / 2**50) * 2**24)
