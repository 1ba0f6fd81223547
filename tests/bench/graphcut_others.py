"""GraphCut as it is had elsewhere: the plain quadratic greedy, and the published tools where they can be imported."""

from collections.abc import Callable

import numpy as np

from adq.graphcut import bin_sizes


def quadratic(rows: np.ndarray, bins: int) -> np.ndarray:
    """Picks of all bins but the last from the N x N kernel in float64: what is written in an afternoon."""
    unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    kernel = (1 + unit @ unit.T) / 2
    left, picks = np.ones(len(rows), dtype=bool), []
    for size in bin_sizes(len(rows), bins)[:-1]:
        gains = kernel[:, left].sum(axis=1)
        gains[~left] = -np.inf
        for _ in range(size):
            pick = int(gains.argmax())
            picks.append(pick)
            gains -= 2 * kernel[pick]
            gains[pick] = -np.inf
            left[pick] = False
    return np.array(picks)


def with_tool(rows: np.ndarray, bins: int, select: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Picks of all bins but the last with a tool that fills one bin from a kernel."""
    unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    kernel = (1 + unit @ unit.T) / 2
    left, picks = np.arange(len(rows)), []
    for size in bin_sizes(len(rows), bins)[:-1]:
        chosen = select(kernel[np.ix_(left, left)], int(size))
        picks.append(left[chosen])
        left = np.delete(left, chosen)
    return np.concatenate(picks)


def tools() -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """Other GraphCuts that can be imported here."""
    found: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {}
    try:
        from apricot import GraphCutSelection

        for optimizer in ("naive", "lazy"):
            found[f"apricot {optimizer}"] = lambda kernel, size, o=optimizer: np.asarray(
                GraphCutSelection(size, metric="precomputed", alpha=1, optimizer=o).fit(kernel).ranking
            )
    except ImportError as error:
        print(f"  apricot cannot be imported: {error}")
    try:
        from submodlib import GraphCutFunction

        for optimizer in ("NaiveGreedy", "LazyGreedy"):
            found[f"submodlib {optimizer}"] = lambda kernel, size, o=optimizer: np.array([
                pick for pick, _ in GraphCutFunction(
                    n=len(kernel), mode="dense", lambdaVal=1.0, separate_rep=False, ggsijs=kernel
                ).maximize(size, optimizer=o, show_progress=False)
            ])  # fmt: skip
    except ImportError as error:
        print(f"  submodlib cannot be imported: {error}")
    return found


def agreement(mine: np.ndarray, theirs: np.ndarray, bins: int) -> float:
    """Share of the rows that are in the same bin."""
    pairs = zip(np.array_split(mine, bins - 1), np.array_split(theirs, bins - 1), strict=True)
    return float(np.mean([np.isin(a, b).mean() for a, b in pairs]))
