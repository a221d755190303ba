"""How well one to four features tell a context apart: thresholds by Matthews correlation, and forward selection.

    MCC = (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN))

`mcc_1` is the best single feature with its threshold, chosen on select. `mcc_k+1` adds to `mcc_k` the best of the ten
features with the largest score statistic on train, in a logistic model whose weights are at least 0: with negative weights,
"not A and not B" would count as a feature of C. A feature that does not raise the select MCC is not added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csc_array
from scipy.special import expit

from saelib.base.kernels import compiled

KS = (1, 2, 4)
"""How many features a detector may have, where separation is reported."""
CANDIDATES = 10
"""Features that are tried at each step of the forward selection."""
RIDGE = 1e-2
"""Penalty on half the squared weights of a detector (features scaled to unit root mean square), against a summed loss."""


class Threshold(NamedTuple):
    """A cut `value > t` and how well it marks the class where it was chosen."""

    t: float
    mcc: float


class Path(NamedTuple):
    """A forward selection for one context."""

    features: tuple[int, ...]
    """The chosen features in order; fewer than four where another would not have raised the select MCC."""
    select_mcc: dict[int, float]
    """For each of `KS`, MCC on select."""
    fires: dict[int, Bool[np.ndarray, " n_test"]]
    """For each of `KS`, the test tokens on which the detector fires."""


def mcc(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> Float[np.ndarray, ...]:
    """Matthews correlation from counts of any shape; 0 where a margin is empty."""
    tp, fp, fn, tn = (np.asarray(count, dtype=np.float64) for count in (tp, fp, fn, tn))
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return np.divide(tp * tn - fp * fn, np.sqrt(square), out=np.zeros_like(square), where=square > 0)


def best_threshold(values: Float[np.ndarray, " n"], member: Bool[np.ndarray, " n"]) -> Threshold:
    """The t at which `value > t` has the highest MCC; t = inf with MCC 0 where no cut is above 0.

    t is one of the values, the largest below the cut: equal values are never parted.
    """
    n, total = len(values), int(member.sum())
    above = np.flatnonzero(values > values.min(initial=np.inf))  # the others are all alike and need no sorting
    if not len(above):
        return Threshold(np.inf, 0.0)
    order = above[np.argsort(-values[above], kind="stable")]
    ordered, tp = values[order], np.cumsum(member[order])
    fp = np.arange(1, len(order) + 1) - tp
    score = mcc(tp, fp, total - tp, n - total - fp)
    parts = np.append(ordered[1:] < ordered[:-1], True)  # below the last of them come the smallest
    score[~parts] = 0
    best = int(np.argmax(score))
    if not score[best] > 0:
        return Threshold(np.inf, 0.0)
    return Threshold(float(ordered[best + 1] if best + 1 < len(ordered) else values.min()), float(score[best]))


def feature_mcc(acts: csc_array, member: Bool[np.ndarray, "n m"]) -> Float[np.ndarray, "F m"]:
    """For each feature and context, the MCC at the best threshold t >= 0; at least 0.

    Only positive activations are sorted, once for all contexts: O(nnz log nnz + m nnz).
    """
    n, F = acts.shape
    out = np.zeros((F, member.shape[1]))
    sizes = np.diff(acts.indptr)
    live = np.flatnonzero(sizes)
    if not len(live):
        return out
    column = np.repeat(np.arange(F), sizes)
    order = np.lexsort((-acts.data, column))  # columns stay together, largest first
    values, rows = acts.data[order], acts.indices[order]
    begins = acts.indptr[live]
    fired = np.arange(1, len(values) + 1) - acts.indptr[column]
    last = np.append((column[1:] != column[:-1]) | (values[1:] < values[:-1]), True)  # equal values are never parted
    for c in range(member.shape[1]):
        hits = np.cumsum(member[rows, c])
        before = np.where(begins > 0, hits[begins - 1], 0)
        tp = hits - np.repeat(before, sizes[live])
        total = int(member[:, c].sum())
        score = mcc(tp, fired - tp, total - tp, n - total - fired + tp)
        out[live, c] = np.maximum.reduceat(np.where(last, score, 0), begins)
    return out.clip(min=0)


def no_path(n_test: int) -> Path:
    """No feature, which fires nowhere."""
    return Path((), dict.fromkeys(KS, 0.0), {k: np.zeros(n_test, dtype=bool) for k in KS})


def forward_path(
    acts: Mapping[str, csc_array], member: Mapping[str, Bool[np.ndarray, " n"]], single: Float[np.ndarray, " F"]
) -> Path:
    """Detectors of one to four features for one context.

    Args:
        acts: for train, select and test, activations (n, F), at least 0, in compressed columns.
        member: for train and select, whether each token is in the context.
        single: each feature's MCC on select (see `feature_mcc`).
    """
    if not len(single) or single.max() <= 0:
        return no_path(acts["test"].shape[0])
    chosen = [int(np.argmax(single))]
    cut = best_threshold(_column(acts["select"], chosen[0]), member["select"])
    score, fires = cut.mcc, _column(acts["test"], chosen[0]) > cut.t
    select_mcc, on_test = {1: score}, {1: fires}
    weights = _fit(_columns(acts["train"], chosen), member["train"], np.zeros(2))
    rising = True
    for k in range(2, max(KS) + 1):
        if rising:
            tried = _candidates(acts["train"], member["train"], chosen, weights)
            models = [_extended(acts, member, [*chosen, j], weights) for j in tried]
            best = max(models, key=lambda model: model.cut.mcc, default=None)
            rising = best is not None and best.cut.mcc > score
            if best is not None and rising:
                chosen, weights, score = best.features, best.weights, best.cut.mcc
                fires = _columns(acts["test"], chosen) @ weights[1:] > best.cut.t
        select_mcc[k], on_test[k] = score, fires
    return Path(tuple(chosen), {k: select_mcc[k] for k in KS}, {k: on_test[k] for k in KS})


class _Model(NamedTuple):
    features: list[int]
    weights: Float[np.ndarray, " k1"]
    cut: Threshold


def _extended(
    acts: Mapping[str, csc_array], member: Mapping[str, np.ndarray], features: list[int], before: np.ndarray
) -> _Model:
    """The logistic model refitted with one more feature, its threshold chosen on select."""
    weights = _fit(_columns(acts["train"], features), member["train"], np.append(before, 0))
    score = _columns(acts["select"], features) @ weights[1:]
    return _Model(features, weights, best_threshold(score, member["select"]))


def _candidates(train: csc_array, member: np.ndarray, chosen: list[int], weights: np.ndarray) -> list[int]:
    """The features with the largest score statistic (x'r) / sd(x'r) given the model; those that would get a weight below 0
    are left out."""
    design = np.column_stack([np.ones(len(member)), _columns(train, chosen)])
    p = expit(design @ weights)
    w = p * (1 - p)
    slope = train.T @ (member - p)
    squares = csc_array((train.data**2, train.indices, train.indptr), shape=train.shape)
    cross = train.T @ (w[:, None] * design)  # (F, 1 + k)
    inner = design.T @ (w[:, None] * design) + 1e-9 * np.eye(design.shape[1])
    variance = squares.T @ w - np.einsum("fi,fi->f", cross @ np.linalg.inv(inner), cross)
    allowed = (slope > 0) & (variance > 1e-9)
    allowed[chosen] = False
    statistic = np.divide(slope, np.sqrt(variance.clip(min=1e-9)), out=np.full(len(slope), -np.inf), where=allowed)
    best = np.argsort(-statistic, kind="stable")[:CANDIDATES]
    return [int(j) for j in best if np.isfinite(statistic[j])]


def _fit(x: Float[np.ndarray, "n k"], member: np.ndarray, start: Float[np.ndarray, " k1"]) -> Float[np.ndarray, " k1"]:
    """Logistic regression with weights >= 0 and a free intercept (first), by projected Newton steps.

    Tokens on which no feature fires are alike: they enter as two rows with their counts.
    """
    some = np.flatnonzero(np.logical_or.reduce(x.T))
    rows, y = np.ascontiguousarray(x[some]), member[some]
    n_in = int(member.sum() - y.sum())
    n_out = len(x) - len(some) - n_in
    scale = np.sqrt(np.square(rows).sum(0) / len(x)).clip(min=1e-12)
    rows /= scale
    beta = np.append(start[0], start[1:] * scale)
    value, gradient, hessian = _terms(rows, y, n_in, n_out, beta)
    for _ in range(50):
        free = (beta > 0) | (gradient < 0)
        free[0] = True
        if np.abs(gradient[free]).max() < 1e-5 * np.sqrt(len(x)):
            break
        step = np.zeros_like(beta)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        moved, after = beta, (value, gradient, hessian)
        for size in 0.5 ** np.arange(20):
            moved = beta - size * step
            moved[1:] = moved[1:].clip(min=0)
            after = _terms(rows, y, n_in, n_out, moved)
            if after[0] < value:
                break
        gained = value - after[0]
        if not gained > 0:
            break
        beta, (value, gradient, hessian) = moved, after
        if not gained > 1e-6:
            break
    return np.append(beta[0], beta[1:] / scale)


def _terms(
    x: np.ndarray, y: np.ndarray, n_in: int, n_out: int, beta: np.ndarray
) -> tuple[float, Float[np.ndarray, " k1"], Float[np.ndarray, "k1 k1"]]:
    """Summed logistic loss with its ridge at some weights, gradient and Hessian; `n_in` and `n_out` tokens have no feature on."""
    gradient, hessian = np.zeros(len(beta)), np.zeros((len(beta), len(beta)))
    loss = _logistic(x, y, beta, gradient, hessian)
    p = expit(beta[0])
    loss += n_in * np.logaddexp(0, -beta[0]) + n_out * np.logaddexp(0, beta[0]) + 0.5 * RIDGE * beta @ beta
    gradient[0] += (n_in + n_out) * p - n_in
    hessian[0, 0] += (n_in + n_out) * p * (1 - p)
    return (
        float(loss),
        gradient + RIDGE * beta,
        hessian + hessian.T - np.diag(hessian.diagonal()) + RIDGE * np.eye(len(beta)),
    )


@compiled
@no_type_check
def _logistic(x, y, beta, gradient, hessian):
    """Sum over rows of log(1 + exp(z)) - y z, z = beta[0] + x beta[1:]; adds to the gradient and the Hessian's upper half.

    log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|)), and of the latter a thousand are multiplied before a logarithm is taken.
    """
    n, k = x.shape
    loss, product = 0.0, 1.0
    for i in range(n):
        z = beta[0]
        for a in range(k):
            z += beta[a + 1] * x[i, a]
        e = np.exp(-abs(z))
        product *= 1.0 + e
        loss += max(z, 0.0) - (z if y[i] else 0.0)
        if i % 1000 == 999:
            loss += np.log(product)
            product = 1.0
        share = 1.0 / (1.0 + e)
        p = share if z >= 0 else e * share
        off, w = p - (1.0 if y[i] else 0.0), e * share * share
        gradient[0] += off
        hessian[0, 0] += w
        for a in range(k):
            gradient[a + 1] += off * x[i, a]
            wx = w * x[i, a]
            hessian[0, a + 1] += wx
            for b in range(a, k):
                hessian[a + 1, b + 1] += wx * x[i, b]
    return loss + np.log(product)


def _column(acts: csc_array, j: int) -> Float[np.ndarray, " n"]:
    out = np.zeros(acts.shape[0])
    part = slice(acts.indptr[j], acts.indptr[j + 1])
    out[acts.indices[part]] = acts.data[part]
    return out


def _columns(acts: csc_array, features: list[int]) -> Float[np.ndarray, "n k"]:
    return np.stack([_column(acts, j) for j in features]).T
