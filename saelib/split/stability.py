"""Do children of different seeds fire on the same tokens? Matched one to one, by the overlap of where they fire.

IoU(i, j) = tokens on which both fire / tokens on which either fires
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment


def iou(a: Bool[np.ndarray, "n j"], b: Bool[np.ndarray, "n k"]) -> Float[np.ndarray, "j k"]:
    """Intersection over union of where two sets of features fire; 0 where neither does."""
    both = a.T.astype(np.float64) @ b
    either = a.sum(0)[:, None] + b.sum(0)[None] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def matched_iou(a: Bool[np.ndarray, "n j"], b: Bool[np.ndarray, "n k"]) -> float:
    """Mean IoU of features matched one to one (Hungarian), each pair weighted by how often the first fires."""
    overlap = iou(a, b)
    rows, columns = linear_sum_assignment(-overlap)
    weight = a[:, rows].sum(0).astype(np.float64)
    return float((overlap[rows, columns] * weight).sum() / weight.sum()) if weight.sum() else 0.0
