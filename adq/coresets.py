"""Coreset methods to compare with, each one function of the same shape: what to look at, how many to keep, a seed.

    f(pool, total, seed) -> int64 [total], distinct positions into pool.keys

All keep the class totals of stratified draws (`class_totals`), except `graphcut_global`; DQ may be one image off in a class.
The seed of a method that draws nothing decides ties of class totals alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adq.difficulty_coresets import ccs, d2, el2n, forgetting, least_confidence
from adq.geometry_coresets import facility_location, herding, k_centre, moderate
from adq.graphcut import graphcut_select
from adq.pool import Pool, by_class, check, class_totals
from adq.prefix import prefix
from adq.prototypes import prototypes, prototypes_easy
from adq.sampling import class_table, draw
from adq.support_points import support_points

__all__ = ["METHODS", "Method", "Pool", "class_totals"]


def random(pool: Pool, total: int, seed: int) -> np.ndarray:
    """Random images of each class: those of `ray_jobs sample --method random` for the same seed.

    Returns:
        int64 [total], ascending. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total)
    one_bin = np.zeros(len(pool.keys), dtype=np.int64)
    table = class_totals(pool.labels, total, seed, pool.classes)[None]
    return np.flatnonzero(draw(pool.keys, one_bin, pool.labels, table, seed))


def dq(pool: Pool, total: int, seed: int) -> np.ndarray:
    """Dataset Quantization (Zhou et al., ICCV 2023, arXiv 2308.10524): the same share of every GraphCut bin, drawn.

    Returns:
        int64 [total], ascending. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total, "bins")
    bins, count = np.asarray(pool.bins, dtype=np.int64), len(pool.keys)
    sizes = np.zeros((int(bins.max()) + 1, len(pool.counts())), dtype=np.int64)
    np.add.at(sizes, (bins, pool.labels), 1)
    table = class_table(np.zeros(len(sizes)), sizes, total / count, alpha=0.0, seed=seed)
    return np.flatnonzero(draw(pool.keys, bins, pool.labels, table, seed))


def graphcut(pool: Pool, total: int, seed: int) -> np.ndarray:
    """GraphCut (eq. 1 and 2 of ADQ; Iyer et al., ALT 2021, arXiv 2006.15412): one bin of the wanted size inside each class.

    Returns:
        int64 [total], class after class in pick order. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total, "embeddings", direction=True)
    return by_class(pool, total, seed, lambda mine, count: graphcut_select(pool.embeddings[mine], count))


def graphcut_global(pool: Pool, total: int, seed: int) -> np.ndarray:
    """GraphCut (Iyer et al., ALT 2021, arXiv 2006.15412) over all images at once: one bin of the wanted size, whatever its classes.

    Returns:
        int64 [total], in pick order. Raises ValueError as `adq.pool.check`.
    """
    check(pool, total, "embeddings", direction=True)
    return graphcut_select(pool.embeddings, total)


@dataclass(frozen=True)
class Method:
    """A coreset method, and what it asks for."""

    function: Callable[..., np.ndarray]
    needs: frozenset[str]  # of "embeddings", "bins", "dynamics"
    draws: bool  # whether the seed decides more than ties between class totals
    paper: str
    settings: tuple[str, ...] = ()  # further arguments of the function, by name


def _method(
    function: Callable[..., np.ndarray], needs: str, draws: bool, paper: str, settings: tuple[str, ...] = ()
) -> Method:
    return Method(function, frozenset(needs.split()), draws, paper, settings)


GRAPHCUT = "Iyer et al., ALT 2021, arXiv 2006.15412; ADQ, AAAI 2025, arXiv 2412.16895, eq. 1 and 2"
PROTOTYPES = "Sorscher et al., NeurIPS 2022, arXiv 2206.14486"
METHODS: dict[str, Method] = {
    "random": _method(random, "", True, "stratified random sampling, of no paper"),
    "dq": _method(dq, "bins", True, "Zhou et al., ICCV 2023, arXiv 2308.10524"),
    "graphcut": _method(graphcut, "embeddings", False, GRAPHCUT),
    "graphcut-global": _method(graphcut_global, "embeddings", False, GRAPHCUT),
    "prefix": _method(prefix, "bins", True, "ours: a stratified draw from the head of the GraphCut order", ("depth",)),
    "support-points": _method(support_points, "embeddings bins", False, "ours, of Mak and Joseph, 2018", ("depth",)),
    "herding": _method(herding, "embeddings", False, "Welling, ICML 2009; Rebuffi et al., CVPR 2017, arXiv 1611.07725"),
    "k-centre": _method(k_centre, "embeddings", False, "Sener and Savarese, ICLR 2018, arXiv 1708.00489"),
    "moderate": _method(moderate, "embeddings", False, "Xia et al., ICLR 2023"),
    "facility-location": _method(facility_location, "embeddings", False, "Wei, Iyer, Bilmes, ICML 2015"),
    "ccs": _method(ccs, "dynamics", True, "Zheng et al., ICLR 2023, arXiv 2210.15809", ("beta",)),
    "prototypes": _method(prototypes, "embeddings", True, PROTOTYPES),
    "prototypes-easy": _method(prototypes_easy, "embeddings", True, PROTOTYPES),
    "el2n": _method(el2n, "dynamics", False, "Paul et al., NeurIPS 2021, arXiv 2107.07075"),
    "forgetting": _method(forgetting, "dynamics", True, "Toneva et al., ICLR 2019, arXiv 1812.05159"),
    "least-confidence": _method(least_confidence, "dynamics", False, "Coleman et al., ICLR 2020, arXiv 1906.11829"),
    "d2": _method(
        d2,
        "embeddings dynamics",
        False,
        "Maharana et al., ICLR 2024, arXiv 2310.07931",
        ("neighbours", "gamma_reverse"),
    ),
}
