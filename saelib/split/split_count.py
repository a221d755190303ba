"""How many features a context is split over, by k-sparse probes (Chanin et al., arXiv 2409.14507): a number people know.

For a context, features are ranked by the difference of their means inside and outside it (in units of their standard
deviation, on train). A logistic probe on the first k gives F1_k on select; k grows while F1 rises by more than 0.03 and stops at
the first failure. The count is that k: 1 says that one feature holds the context.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csc_array
from scipy.special import expit

RISE = 0.03
MOST = 10
"""Largest k that is tried."""
_RIDGE = 1e-2


def split_count(
    acts: Mapping[str, csc_array], member: Mapping[str, Bool[np.ndarray, " n"]], most: int = MOST
) -> tuple[int, float]:
    """The count for one context, and F1 on select there; (0, 0) where no feature's mean is larger inside it.

    Args:
        acts: activations on train and select, (n, F), in compressed columns.
        member: for train and select, whether each token is in the context.
    """
    ranked = _ranked(acts["train"], member["train"])[:most]
    best, count = 0.0, 0
    for k in range(1, len(ranked) + 1):
        chosen = ranked[:k]
        train, select = (np.asarray(acts[split][:, chosen].toarray()) for split in ("train", "select"))
        weights = _logistic(train, member["train"])
        score = f1(select @ weights[1:] + weights[0] > 0, member["select"])
        if k > 1 and score - best <= RISE:
            break
        best, count = score, k
    return count, best


def f1(fires: Bool[np.ndarray, " n"], member: Bool[np.ndarray, " n"]) -> float:
    """2 hits / (fired + marked); 0 where neither is anything."""
    total = int(fires.sum() + member.sum())
    return 2 * int((fires & member).sum()) / total if total else 0.0


def _ranked(acts: csc_array, member: np.ndarray) -> np.ndarray:
    """Features whose mean is larger inside, the largest difference in standard deviations first."""
    n, inside = acts.shape[0], max(int(member.sum()), 1)
    total = np.asarray(acts.sum(0)).ravel()
    within = np.asarray(acts.T @ member.astype(np.float64)).ravel()
    squares = np.asarray(acts.multiply(acts).sum(0)).ravel()
    spread = np.sqrt((squares / n - (total / n) ** 2).clip(min=0))
    gap = within / inside - (total - within) / max(n - inside, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(spread > 0, gap / spread, 0.0)
    order = np.argsort(-score, kind="stable")
    return order[score[order] > 0]


def _logistic(x: Float[np.ndarray, "n k"], member: np.ndarray) -> Float[np.ndarray, " k1"]:
    """Ridge logistic regression by Newton's method; intercept first. Both classes weigh the same: F1 of a rare context would
    otherwise be 0 at the cut of one half."""
    scale = np.sqrt((x**2).mean(0)).clip(min=1e-12)
    design = np.column_stack([np.ones(len(x)), x / scale])
    y = member.astype(np.float64)
    share = y.mean().clip(1e-9, 1 - 1e-9)
    weight = np.where(member, 0.5 / share, 0.5 / (1 - share))
    beta = np.zeros(design.shape[1])
    ridge = np.full(len(beta), _RIDGE * len(x) / 1000)
    for _ in range(30):
        p = expit(design @ beta)
        gradient = design.T @ (weight * (p - y)) + ridge * beta
        hessian = design.T @ ((weight * p * (1 - p))[:, None] * design) + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        beta = beta - step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-6:
            break
    return np.append(beta[0], beta[1:] / scale)
