"""Importance of the bins (ADQ eq. 6 to 8): each score normalised over the bins, then added."""

import numpy as np


def normalize(scores: np.ndarray, how: str = "minmax") -> np.ndarray:
    """A score over the m bins on a common scale (ADQ eq. 6 and 7).

    Args:
        scores: float [m].
        how: "minmax" to [0, 1], all zero where the range is zero; "zscore", shifted so that the lowest is 0.

    Returns:
        float64 [m], never negative.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite numbers of shape [m], not {scores}")
    spread = scores.max() - scores.min()
    if spread == 0:
        return np.zeros_like(scores)
    if how == "minmax":
        return (scores - scores.min()) / spread
    if how == "zscore":
        return (scores - scores.min()) / scores.std()
    raise ValueError(f"score norm {how!r}: expected 'minmax' or 'zscore'")


def importance(
    representativeness: np.ndarray, diversity: np.ndarray, how: str = "minmax", scores: str = "both"
) -> np.ndarray:
    """Importance I of every bin (ADQ eq. 8): the sum of both normalised scores.

    Args:
        representativeness: float [m], eq. 3 averaged over the bin.
        diversity: float [m], eq. 5.
        how: see `normalize`.
        scores: "both", or "texture" or "diversity" alone (the paper's ablation).

    Returns:
        float64 [m], never negative.
    """
    if len(representativeness) != len(diversity):
        raise ValueError(f"{len(representativeness)} representativeness scores, {len(diversity)} diversity scores")
    if scores not in ("both", "texture", "diversity"):
        raise ValueError(f"scores {scores!r}: expected 'both', 'texture' or 'diversity'")
    total = np.zeros(len(representativeness))
    if scores in ("both", "texture"):
        total += normalize(representativeness, how)
    if scores in ("both", "diversity"):
        total += normalize(diversity, how)
    return total
