"""Exact greedy GraphCut (ADQ eq. 1 and 2): bins, and selection with a budget.

With S the set being filled, V what was there when it was empty, s = |S|, A = sum of S, T = sum of V, eq. 2 with a weight
lam on the second sum is, up to terms that are the same for every x,

    v(x) = (2 s - lam |V|) |x|^2 - 2 x . (2 A - lam T)                                    (lam = 1: eq. 2 itself)

so a step needs one product of the rows with one vector, and a pick p changes every value by 2 |x|^2 - 4 x . p: one row of
a Gram matrix. No N x N kernel is ever made.

Exactness (`fixed_point`). Rows are rounded once to multiples of 2^-40 (times a power of two for raw vectors), so the
sums A and T are exact integers and do not depend on the order of addition. The deciding value of a row is one fixed
float64 expression of that row and the sums, evaluated row by row, so that equal rows have equal values; ties go to the
lowest index. Everything faster is a filter: a pick is made without the deciding value only where it leads by more than
the error bounds of both sides; else all rows within those bounds are compared by it.

The lazy steps (`graphcut_greedy`). A pass values all rows and keeps the best of them at hand, the pool. The best M of the
pool are candidates, whose values are updated by their Gram matrix, pick by pick. Between two stints of picks the pool alone
is valued anew. What is no candidate is bounded: after k picks with sum P, any vector c, any vector m and Q = P - k c, such
a row y has

    v_k(y) = v_0(y) + 2 k |y|^2 - 4 y . P = [v_0(y) + k (2 |y|^2 - 4 y . c)] - 4 m . Q - 4 (y - m) . Q
          <= [v_0(y) + k (2 |y|^2 - 4 y . c)] - 4 m . Q + 4 |y - m| |Q|                             (Cauchy-Schwarz)

The maximum of the bracket over such rows is convex in k, so below its chord between k = 0 and k = H. A pick is certain
while it beats that bound, for the rest of the pool and for the rows outside it. c is the pick to expect (a mean of the last
picks), m the mean of V.

Near the end of a bin all remaining rows have nearly the same value, and Cauchy-Schwarz allows one or two picks. There the
candidates' next picks p_1, p_2, ... are verified instead: one product of the pool with all of them gives every value
v_0(y) + 2 k |y|^2 - 4 y . (p_1 + ... + p_k) that the pool would have, and the picks before the first value that is not
beaten are certain. How many candidates, how large a pool, and which of both ways, is decided by seconds a pick as measured
(`graphcut_pace`); at last the pool is all rows.

Error bounds. A product of n terms in float32, added up in any order, is off by at most about n 2^-24 |x| |y|. A valuation
adds to x . A only the product with the picks since the last one: its part along the mean of V is known in float64, the
rest is added up in float32 over 128 columns at a time and in float64 beyond. The Gram matrix is that of the candidates
minus their mean. Both bounds are summed over the picks, and that of the products y . c is counted k times; when they have
grown so far that deciding values are needed again and again, all rows are valued anew from the exact sums, in float64.

The blocks of rows may lie anywhere: in memory, on a GPU, in the actors of a cluster (`ray_jobs`). What decides does not
depend on it.
"""

from collections.abc import Callable

import numpy as np

from adq.fixed_point import MAX_ROWS, Grid, check_rows, largest_entry, make_grid, tame
from adq.graphcut_block import Block
from adq.graphcut_blocks import Blocks, LocalBlocks
from adq.graphcut_gradient import gradient_bins, gradient_select
from adq.graphcut_greedy import CANDIDATES, Greedy

KERNELS = ("cosine", "l2", "gradient")


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
    device: str = "cpu",
    errors: np.ndarray | None = None,
    save: Callable[[np.ndarray], None] | None = None,
    resume: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a data set into `num_bins` bins by greedy GraphCut (ADQ eq. 1 and 2).

    Args:
        embeddings: float32 or float64 [N, d]; rows in the order of the keys, since ties go to the lowest index. They
            are not copied.
        labels: int [N]; needed in scope "class".
        num_bins: m >= 1.
        scope: "class" runs inside each class (bin n is the union over the classes), "global" over all rows.
        kernel: "cosine" (rows are L2-normalised), "l2" (raw), or, in scope "class", "gradient" (of the last layer; needs `errors`).
        on_step: called with the number of picks just made.
        candidates: rows whose Gram matrix is held; it changes the time, never the result.
        device: where products run: "cpu", "cuda", "cuda:1". It changes the time, never the result.
        errors: float [N, C], softmax of the logits minus the one-hot label: what the gradient kernel multiplies.
        save: called now and then with all picks so far, int64 in order; a copy of them given as `resume` goes on there
            (scope "global").

    Returns:
        bin int64 [N], and rank int64 [N]: the order of the pick in its scope; in the last bin, index order.

    Raises:
        ValueError: a zero, NaN or infinite row (named), fewer samples than bins, an unknown scope or kernel.
    """
    embeddings = _rows(embeddings)
    count = len(embeddings)
    if num_bins < 1 or count < num_bins:
        raise ValueError(f"{count} samples cannot fill {num_bins} bins; lower --bins")
    if scope not in ("class", "global"):
        raise ValueError(f"scope {scope!r}: expected 'class' or 'global'")
    if scope == "class" and (labels is None or len(labels) != count):
        raise ValueError("scope 'class' needs one label for every row")
    if kernel == "gradient":
        if scope != "class":
            raise ValueError("kernel 'gradient' needs the similarities of all pairs, so it runs in scope 'class' alone")
        return gradient_bins(embeddings, errors, labels, num_bins, bin_sizes, on_step)
    check_rows(embeddings, kernel == "cosine")
    largest = largest_entry(embeddings) if kernel == "l2" else 1.0
    if scope == "class":
        return class_bins(embeddings, labels, num_bins, kernel, largest, on_step, candidates, device)
    blocks = LocalBlocks([block_of(embeddings, np.arange(count), kernel, largest, device, resume)])
    return blocks_bins(blocks, make_grid(kernel, largest), count, num_bins, on_step, candidates, device, save, resume)


def class_bins(
    embeddings: np.ndarray,
    labels: np.ndarray,
    num_bins: int,
    kernel: str,
    largest: float,
    on_step: Callable[[int], None] | None = None,
    candidates: int = CANDIDATES,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """`graphcut_bins` in scope "class" for whole classes, which need not be all. largest: the largest entry of all rows."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(np.asarray(labels)[order])) + 1)
    bins, ranks = np.empty(len(labels), dtype=np.int64), np.empty(len(labels), dtype=np.int64)
    grid = make_grid(kernel, largest)
    for members in groups:
        blocks = LocalBlocks([block_of(embeddings[members], np.arange(len(members)), kernel, largest, device)])
        bins[members], ranks[members] = blocks_bins(blocks, grid, len(members), num_bins, on_step, candidates, device)
    return bins, ranks


def blocks_bins(
    blocks: Blocks,
    grid: Grid,
    count: int,
    num_bins: int,
    on_step: Callable[[int], None] | None = None,
    candidates: int = CANDIDATES,
    device: str = "cpu",
    save: Callable[[np.ndarray], None] | None = None,
    resume: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`graphcut_bins` in scope "global" over blocks of rows, wherever they are. The blocks have left out what `resume` holds.

    Raises:
        ValueError: more rows than exact sums hold.
    """
    if count > MAX_ROWS:
        raise ValueError(f"{count} rows: exact sums hold at most {MAX_ROWS}; use scope 'class'")
    sizes = bin_sizes(count, num_bins)
    ends = np.cumsum(sizes)
    picks = np.empty(int(ends[-2]) if num_bins > 1 else 0, dtype=np.int64)
    done = 0 if resume is None else len(resume)
    picks[:done] = resume if done else 0
    begun_bin = int(np.searchsorted(ends, done, side="right"))
    begun = picks[int(ends[begun_bin - 1]) if begun_bin else 0 : done]
    greedy = Greedy(blocks, grid, 1.0, candidates, device, begun)

    def on_pick(part: np.ndarray) -> None:
        nonlocal done
        picks[done : done + len(part)] = part
        done += len(part)
        if on_step:
            on_step(len(part))
        if save:
            save(picks[:done])

    if on_step and done:
        on_step(done)
    for number in range(begun_bin, num_bins - 1):
        greedy.run(int(ends[number]) - done, on_pick)
        greedy.next_bin()
    bins, ranks = np.full(count, num_bins - 1, dtype=np.int64), np.empty(count, dtype=np.int64)
    bins[picks], ranks[picks] = np.repeat(np.arange(num_bins - 1), sizes[:-1]), np.arange(len(picks))
    rest = np.ones(count, dtype=bool)
    rest[picks] = False
    ranks[rest] = len(picks) + np.arange(count - len(picks))
    if on_step:
        on_step(count - len(picks))
    return bins, ranks


def graphcut_select(
    embeddings: np.ndarray,
    budget: int,
    kernel: str = "cosine",
    lam: float = 1.0,
    candidates: int = CANDIDATES,
    device: str = "cpu",
    errors: np.ndarray | None = None,
) -> np.ndarray:
    """Greedy GraphCut with a budget: lam * sum of similarities to all rows - sum of similarities among the chosen.

    Args:
        embeddings: float [N, d].
        budget: rows to choose, 1 to N.
        kernel: "cosine" ((1 + cos) / 2), "l2" (minus the squared distance), or "gradient" (of the last layer; needs `errors`).
        lam: weight of the first sum; 1 is eq. 1 of ADQ.
        errors: float [N, C], softmax of the logits minus the one-hot label.

    Returns:
        int64 [budget], row indices in the order of the picks.

    Raises:
        ValueError: a budget outside 1 to N; a zero, NaN or infinite row (named); an unknown kernel.
    """
    embeddings = _rows(embeddings)
    if not 1 <= budget <= len(embeddings):
        raise ValueError(f"budget {budget}: expected 1 to {len(embeddings)}")
    if len(embeddings) > MAX_ROWS:
        raise ValueError(f"{len(embeddings)} rows: exact sums hold at most {MAX_ROWS}")
    if kernel == "gradient":
        return gradient_select(embeddings, errors, budget, lam)
    check_rows(embeddings, kernel == "cosine")
    largest = largest_entry(embeddings) if kernel == "l2" else 1.0
    blocks = LocalBlocks([block_of(embeddings, np.arange(len(embeddings)), kernel, largest, device)])
    return Greedy(blocks, make_grid(kernel, largest), float(lam), candidates, device).run(budget)


def block_of(
    rows: np.ndarray,
    indices: np.ndarray,
    kernel: str,
    largest: float,
    device: str = "cpu",
    taken: np.ndarray | None = None,
) -> Block:
    """A block of some of the rows. largest: the largest entry of all rows, which may be elsewhere."""
    grid = make_grid(kernel, largest)
    return Block(tame(rows, grid.unit, largest), indices, grid, device, taken)


def _rows(embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"embeddings have shape {embeddings.shape}; expected [N, d] with N >= 1")
    if embeddings.dtype not in (np.float32, np.float64):
        embeddings = embeddings.astype(np.float32 if embeddings.dtype == np.float16 else np.float64)
    return np.ascontiguousarray(embeddings)
