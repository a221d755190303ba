"""From two splits of labelled tokens and a dictionary to a verdict, and the controls a verdict is shown beside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.cluster.vq import kmeans2, vq
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saelib.sae.sae import SAE
from saelib.split.evidence import HeldOutEvidence, SelectEvidence, Tokens
from saelib.split.score import BOOTSTRAP_DRAWS, BOUNDS, Bounds, Score, best_threshold, judge, precision_recall_f1


class SelectSummary(NamedTuple):
    """What the select split says of a dictionary."""

    children: list[int | None]
    candidates: np.ndarray
    parent_thresholds: list[float]
    """For each class, where the parent's own activation best marks it."""
    best_features: list[int]
    """For each class, the feature with the highest F1, candidate or not: how near the dictionary comes at all."""


def choose(
    sae: SAE,
    any_tokens: Iterable[Tokens],
    parent_tokens: Iterable[Tokens],
    n_classes: int,
    tau: float,
    bounds: Bounds = BOUNDS,
) -> SelectSummary:
    """Choose the children on the select split.

    Args:
        any_tokens: tokens of every kind, for how often a feature fires without the parent.
        parent_tokens: tokens to score; those with the parent at or below tau are left out.
    """
    evidence = SelectEvidence(sae, n_classes, tau)
    for block in any_tokens:
        evidence.any_tokens(block.x, block.parent)
    parent, label = [np.zeros(0, dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
    for block in parent_tokens:
        evidence.parent_tokens(block)
        keep = (block.parent > tau).numpy() & (block.label >= 0)
        parent.append(block.parent.numpy()[keep])
        label.append(block.label[keep])
    values, labels = np.concatenate(parent), np.concatenate(label)
    thresholds = [best_threshold(values, labels == c) if len(values) else math.inf for c in range(n_classes)]
    candidates = evidence.candidates(bounds.candidate_precision, bounds.candidate_share)
    best = [int(j) for j in evidence.f1().argmax(1)]
    return SelectSummary(evidence.children(candidates), candidates, thresholds, best)


def score_split(
    sae: SAE,
    names: Sequence[str],
    chosen: SelectSummary,
    test_tokens: Iterable[Tokens],
    tau: float,
    *,
    W_U: Float[Tensor, "d_in d_vocab"] | None = None,
    warm_parent: int | None = None,
    bounds: Bounds = BOUNDS,
    draws: int = BOOTSTRAP_DRAWS,
) -> Score:
    """Measure the chosen children on the test split and judge them; `W_U` as in `judge`."""
    evidence = HeldOutEvidence(sae, chosen.children, chosen.candidates, tau, chosen.best_features)
    for block in test_tokens:
        evidence.add(block)
    return judge(
        evidence.columns(),
        names,
        chosen.children,
        sae.W_dec,
        n_candidates=len(chosen.candidates),
        parent_thresholds=chosen.parent_thresholds,
        W_U=W_U,
        warm_parent=warm_parent,
        bounds=bounds,
        draws=draws,
    )


# --- controls: what a verdict must beat ----------------------------------------------------------------------------------


def clusters_as_children(
    select: Tokens, test: Tokens, n_classes: int, tau: float, *, k: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """K-means on the parent's tokens instead of an SAE: if it ties with the children, the SAE added nothing.

    Two ways: on the parent's activation alone (one number a token) and on the whole activation vectors. Clusters are
    made on select, given to classes by Hungarian assignment on F1 there, and measured on test. Columns: clustered,
    class, precision, recall, f1.
    """
    rows = []
    select, test = select.where((select.parent > tau).numpy()), test.where((test.parent > tau).numpy())
    for name in ("parent activation", "activation vector"):
        data = [_clustered(part, name) for part in (select, test)]
        if len(data[0]) < (k or n_classes):
            continue
        centres, assigned = kmeans2(data[0], k or n_classes, seed=seed, minit="++", missing="warn")
        on_test = vq(data[1], centres)[0]
        table = np.array([[_f1(assigned == j, select.label, c) for j in range(len(centres))] for c in range(n_classes)])
        for c, j in zip(*linear_sum_assignment(-table), strict=True):
            labelled = test.label >= 0
            scores = precision_recall_f1(on_test[labelled] == j, test.label[labelled] == c)
            rows.append([name, int(c), *scores])
    return pd.DataFrame(rows, columns=["clustered", "class", "precision", "recall", "f1"])


def _clustered(tokens: Tokens, name: str) -> np.ndarray:
    data = tokens.parent[:, None] if name == "parent activation" else tokens.x
    return data.to(torch.float64).numpy()


def _f1(fires: np.ndarray, label: np.ndarray, c: int) -> float:
    labelled = label >= 0
    return precision_recall_f1(fires[labelled], label[labelled] == c)[2]
