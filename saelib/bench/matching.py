"""Children against true children, where these are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy.optimize import linear_sum_assignment

FOUND = 0.7
"""A true child is found when the F1 of the child matched with it is at least this."""
FALSE = 0.3
"""A child is false when its F1 with every true feature, child or background, is below this."""


@dataclass(frozen=True)
class Matched:
    """Children against true children."""

    f1: float
    """Mean over true children of the F1 of the child matched with it one to one; NaN where there are none."""
    found: float
    """Share of true children found."""
    false: float
    """Share of the children that are false; 0 where there are no children."""


def match(
    fires: Bool[np.ndarray, "n K"],
    truth: Bool[np.ndarray, "n m"],
    background: Bool[np.ndarray, "n b"],
    least: float = 0.005,
) -> Matched:
    """Match children with true ones by F1 of where they fire on P; children on fewer than `least` of the tokens are left out.

    F1(j, c) = 2 |fires_j & true_c| / (|fires_j| + |true_c|)

    Args:
        background: the features that are there beside the parent's children: a child that marks one of them is no false one.
    """
    fires = fires[:, fires.mean(0) >= least] if len(fires) else fires
    m, K = truth.shape[1], fires.shape[1]
    every = np.concatenate([truth, background], axis=1)
    both = 2.0 * (fires.T.astype(np.float64) @ every)
    total = fires.sum(0)[:, None] + every.sum(0)[None]
    scores = np.divide(both, total, out=np.zeros_like(both), where=total > 0)
    false, f1 = float((scores.max(1, initial=0.0) < FALSE).mean()) if K else 0.0, scores[:, :m]
    if m == 0:
        return Matched(float("nan"), float("nan"), false)
    rows, columns = linear_sum_assignment(-f1)
    matched = np.zeros(m)
    matched[columns] = f1[rows, columns]
    return Matched(float(matched.mean()), float((matched >= FOUND).mean()), false)
