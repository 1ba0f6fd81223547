"""Adaptive sampling (ADQ eq. 9 and 10): how many images of each bin and class are kept, and which."""

import numpy as np

from adq.randomness import key_order, seed_of
from adq.rounding import joint_rounding, largest_remainder, nested_counts

ALLOCATIONS = ("share", "literal", "code")
BALANCES = ("class", "none")
NESTED_FROM = 8  # images a class by which two totals differ when their draws are surely nested


def kept(keep: float, count: int) -> int:
    """Images that a keep ratio leaves: round(keep * count). Raises ValueError outside (0, 1], or where none is left."""
    if not 0 < keep <= 1:
        raise ValueError(f"--keep {keep}: expected a share of the images above 0 and up to 1, e.g. 0.1")
    if round(keep * count) < 1:
        raise ValueError(f"--keep {keep} of {count} images keeps none; raise it")
    return round(keep * count)


def shares(importance: np.ndarray, sizes: np.ndarray, total: float, alpha: float) -> np.ndarray:
    """Real-valued quotas before rounding: rho N_n [alpha I_n / Ibar + (1 - alpha)], capped at N_n.

    What the cap cuts is given to the others in proportion. alpha = 0, or importance all 0, is DQ.

    Returns:
        float64 [m], summing to `total`.
    """
    sizes, importance = np.asarray(sizes, dtype=np.float64), np.asarray(importance, dtype=np.float64)
    mean = (sizes * importance).sum() / sizes.sum()
    weights = sizes * (alpha * importance / mean + (1 - alpha)) if mean > 0 else sizes.copy()
    out, open_bins, left = np.zeros_like(sizes), sizes > 0, float(total)
    while left > 1e-9 and open_bins.any():
        # Bins of no weight share what is left, by size, once every other bin is full.
        weight = np.where(open_bins, weights, 0.0)
        if weight.sum() == 0:
            weight = np.where(open_bins, sizes, 0.0)
        wanted = left * weight / weight.sum()
        full = open_bins & (wanted >= sizes)
        if not full.any():
            return out + wanted
        out[full] = sizes[full]
        open_bins &= ~full
        left = float(total) - out.sum()
    return out


def literal_shares(importance: np.ndarray, sizes: np.ndarray, alpha: float) -> np.ndarray:
    """Eq. 10 as printed, before rounding: the share of each bin's images that is kept, float64 [m], in 0 to 1."""
    return np.minimum(alpha * importance + (1 - alpha) * sizes / sizes.sum(), 1.0)


def quotas(
    importance: np.ndarray,
    sizes: np.ndarray,
    keep: float,
    alpha: float = 0.65,
    allocation: str = "share",
    seed: int = 0,
) -> np.ndarray:
    """Images kept of every bin (ADQ eq. 9 and 10).

    Args:
        importance: float [m], eq. 8. sizes: int [m], N_n. keep: the keep ratio rho in (0, 1].
        alpha: 0 is exactly DQ for every rho; 1 is the published code's rule.
        allocation: "share" (ours), "code" (alpha = 1), or "literal": eq. 10 as printed,
            floor(N_n (alpha I_n + (1 - alpha) N_n / N)), which does not know rho.
        seed: breaks ties.

    Returns:
        int64 [m], summing to round(keep * sum(sizes)), except in "literal"; no bin's count falls when keep grows.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    importance = np.asarray(importance, dtype=np.float64)
    if sizes.shape != importance.shape or sizes.ndim != 1 or (sizes < 0).any() or not sizes.sum():
        raise ValueError(f"sizes {sizes} and importance {importance} must be two lists [m], sizes not negative")
    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha {alpha}: expected 0 (DQ) to 1")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError(f"importance {importance} must be finite and not negative")
    total = kept(keep, int(sizes.sum()))
    if allocation == "literal":
        return np.floor(literal_shares(importance, sizes, alpha) * sizes + 1e-9).astype(np.int64)
    if allocation not in ALLOCATIONS:
        raise ValueError(f"--allocation {allocation}: expected one of {', '.join(ALLOCATIONS)}")
    alpha = 1.0 if allocation == "code" else alpha
    ties = np.array([seed_of(seed, "quota", n) for n in range(len(sizes))])

    def round_between(k: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, bool]:
        return largest_remainder(k, shares(importance, sizes, k, alpha), low, high, ties), True

    return nested_counts(round_between, sizes, total)


def class_table(
    importance: np.ndarray,
    counts: np.ndarray,
    keep: float,
    alpha: float = 0.65,
    allocation: str = "share",
    balance: str = "class",
    seed: int = 0,
) -> np.ndarray:
    """Images kept of every bin and class: the quotas of `quotas`, rounded jointly with the classes' totals.

    Args:
        importance: float [m]. counts: int [m, C], images of each bin and class.
        balance: "class" keeps each class's total at its share of the data set, wherever supply allows; "none" leaves a class
            what its share of the bins gives.

    Returns:
        int64 [m, C]; rows sum to the quotas; each class's total is within one of its expected count wherever supply allows; no
        count falls when the total grows by more than NESTED_FROM images a class.
    """
    if balance not in BALANCES:
        raise ValueError(f"--balance {balance}: expected one of {', '.join(BALANCES)}")
    counts = np.asarray(counts, dtype=np.int64)
    sizes, classes = counts.sum(axis=1), counts.sum(axis=0)
    whole = int(sizes.sum())
    ties = np.array([[seed_of(seed, "cell", n, c) for c in range(counts.shape[1])] for n in range(len(counts))])

    def round_between(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, bool]:
        fixed = classes * (rows.sum() / whole) if balance == "class" else None
        targets = _expected(counts, rows.astype(np.float64), fixed)
        expected = targets.sum(axis=0) if fixed is None else fixed
        limits = np.floor(expected + 1e-9).astype(np.int64), np.ceil(expected - 1e-9).astype(np.int64)
        return joint_rounding(targets, rows, low, high, limits, ties)

    def at_total(total: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, bool]:
        return round_between(quotas(importance, sizes, total / whole, alpha, allocation, seed), low, high)

    if allocation == "literal":
        return round_between(quotas(importance, sizes, keep, alpha, allocation, seed), np.zeros_like(counts), counts)[0]
    return nested_counts(at_total, counts, kept(keep, whole), unit=counts.shape[1], slack=NESTED_FROM * counts.shape[1])


def _expected(counts: np.ndarray, rows: np.ndarray, columns: np.ndarray | None, rounds: int = 100) -> np.ndarray:
    """Expected counts of every bin and class: in proportion inside a bin, then, where class totals are fixed, fitted to
    both margins in turn (iterative proportional fitting), never above what there is."""
    table = counts * (rows / np.maximum(counts.sum(axis=1), 1))[:, None]
    if columns is None:
        return table
    for _ in range(rounds):
        before = table
        table = np.minimum(table * (columns / np.maximum(table.sum(axis=0), 1e-12))[None, :], counts)
        table = np.minimum(table * (rows / np.maximum(table.sum(axis=1), 1e-12))[:, None], counts)
        if np.abs(table - before).max() < 1e-7:
            break
    return table


def moved(quota: np.ndarray, dq_quota: np.ndarray) -> float:
    """Total variation between two allocations: the share of the images that adaptive sampling moves between bins."""
    quota, dq_quota = np.asarray(quota, dtype=np.float64), np.asarray(dq_quota, dtype=np.float64)
    return float(0.5 * np.abs(quota / quota.sum() - dq_quota / dq_quota.sum()).sum())


def draw(keys: list[str], bins: np.ndarray, labels: np.ndarray, table: np.ndarray, seed: int = 0) -> np.ndarray:
    """The images kept: of every (bin, class) the head of one fixed random permutation of its keys.

    The permutation is the order of a seeded hash of the key, so draws do not depend on workers or on the order of the
    shards, and methods share all images but those that they move.

    Args:
        keys: N keys. bins, labels: int [N]. table: int [m, C].

    Returns:
        bool [N].
    """
    order = key_order(keys, seed, "draw")
    cell = (np.asarray(bins) * table.shape[1] + np.asarray(labels))[order]
    grouped = order[np.argsort(cell, kind="stable")]
    sorted_cell = np.sort(cell, kind="stable")
    place = np.arange(len(keys)) - np.searchsorted(sorted_cell, sorted_cell)
    chosen = np.zeros(len(keys), dtype=bool)
    chosen[grouped] = place < table.ravel()[sorted_cell]
    return chosen
