"""Do children of different seeds fire on the same tokens? Matched one to one, by the overlap of where they fire.

IoU(i, j) = tokens on which both fire / tokens on which either fires
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment


def iou(a: Bool[np.ndarray, "n j"], b: Bool[np.ndarray, "n k"]) -> Float[np.ndarray, "j k"]:
    """Intersection over union of where two sets of features fire; 0 where neither does."""
    both = a.T.astype(np.float64) @ b
    either = a.sum(0)[:, None] + b.sum(0)[None] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def matched_iou(a: Bool[np.ndarray, "n j"], b: Bool[np.ndarray, "n k"]) -> Float[np.ndarray, " j"]:
    """For each feature of `a`, its IoU with the feature of `b` that it is matched to, one to one (Hungarian); 0 without one."""
    overlap = iou(a, b)
    rows, columns = linear_sum_assignment(-overlap)
    out = np.zeros(a.shape[1])
    out[rows] = overlap[rows, columns]
    return out


def stability(
    fires: Bool[np.ndarray, "n j"], others: Sequence[Bool[np.ndarray, "n _"]]
) -> Float[np.ndarray, " j"] | None:
    """Each child's matched IoU, mean over the other seeds; None where there is no other."""
    return np.mean([matched_iou(fires, other) for other in others], axis=0) if others else None


def overall(each: Float[np.ndarray, " j"] | None, fires: Bool[np.ndarray, "n j"]) -> float | None:
    """The mean over children, each weighted by how often it fires."""
    if each is None:
        return None
    weight = fires.sum(0).astype(np.float64)
    return float(each @ weight / weight.sum()) if weight.sum() else 0.0
