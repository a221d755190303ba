"""Is a feature cleaner to act on? Damage to sibling tokens at equal effect on the tokens that are meant.

A behaviour is the log-odds of one set of next tokens against another:

    log_odds(x) = logsumexp(logits[own]) - logsumexp(logits[other])

Acting at strength s takes s times a vector away from the residual stream at each token: for a feature its activation times its
decoder row. The effect is the mean fall of the log-odds on tokens of the class, the damage the mean KL divergence
KL(before || after) of the next-token distribution on its siblings. Two ways of acting are compared where their effects are equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelib.base.errors import UserError
from saelib.lm.model import OneLayerModel

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Strengths at which curves are measured; 1 is ablation."""
CONTINUATIONS = 20
"""Next tokens on each side of a behaviour, at most."""
_BATCH = 128


@dataclass(frozen=True)
class Behaviour:
    """The next tokens of a class against those of its siblings."""

    own: Int[Tensor, " a"]
    """Token ids that follow the class more often than its siblings."""
    other: Int[Tensor, " b"]
    """Token ids that follow the siblings more often."""


def behaviour(
    next_token: Int[np.ndarray, " n"], in_class: Bool[np.ndarray, " n"], most: int = CONTINUATIONS
) -> Behaviour:
    """The next tokens whose shares among the class and among its siblings differ most, on text used for nothing else.

    Args:
        next_token: the token after each; -1 where the context ends.

    Raises:
        UserError: no token follows the class more often, or none its siblings.
    """
    known = next_token >= 0
    ids = np.unique(next_token[known])
    shares = [
        np.bincount(np.searchsorted(ids, next_token[known & part]), minlength=len(ids)) / max((known & part).sum(), 1)
        for part in (in_class, ~in_class)
    ]
    gain = shares[0] - shares[1]
    order = np.argsort(-gain, kind="stable")
    own = ids[order[: min(most, int((gain > 0).sum()))]]
    other = ids[order[::-1][: min(most, int((gain < 0).sum()))]]
    if not len(own) or not len(other):
        got = f"{len(own)} and {len(other)}"
        raise UserError("a class and its siblings must differ in what follows them", got, "choose another class")
    return Behaviour(torch.from_numpy(own.astype(np.int64)), torch.from_numpy(other.astype(np.int64)))


def log_odds(model: OneLayerModel, residual: Float[Tensor, "n d"], of: Behaviour) -> Float[Tensor, " n"]:
    """logsumexp(logits[own]) - logsumexp(logits[other]) at each token; differentiable."""
    logits = model.logits(residual)
    return logits[:, of.own].logsumexp(1) - logits[:, of.other].logsumexp(1)


def log_odds_gradient(model: OneLayerModel, residual: Float[Tensor, "n d"], of: Behaviour) -> Float[Tensor, "n d"]:
    """The gradient of the log-odds in the residual stream: what a vector that is taken away is worth to first order."""
    found = []
    for r in residual.split(_BATCH):
        at = r.detach().clone().requires_grad_()
        found.append(torch.autograd.grad(log_odds(model, at, of).sum(), at)[0])
    return torch.cat(found) if found else torch.zeros_like(residual)


@dataclass(frozen=True)
class Curves:
    """Acting at each strength, token by token."""

    strengths: tuple[float, ...]
    """The strengths."""
    fall: Float[np.ndarray, "n s"]
    """How far the log-odds fall (nats)."""
    kl: Float[np.ndarray, "n s"]
    """KL(before || after) of the next token (nats)."""


@torch.no_grad()
def curves(
    model: OneLayerModel,
    residual: Float[Tensor, "n d"],
    removed: Float[Tensor, "n d"],
    of: Behaviour,
    strengths: Sequence[float] = STRENGTHS,
) -> Curves:
    """Take `s * removed` away from the residual stream at every strength s.

    Raises:
        UserError: strengths that do not ascend from above 0.
    """
    steps = tuple(strengths)
    if not steps or steps[0] <= 0 or any(b <= a for a, b in itertools.pairwise(steps)):
        raise UserError("strengths must ascend from above 0", steps, "pass for example (0.5, 1, 2)")
    n = len(residual)
    fall, kl = np.zeros((n, len(steps))), np.zeros((n, len(steps)))
    for begin in range(0, n, _BATCH):
        rows = slice(begin, begin + _BATCH)
        before = model.logits(residual[rows]).log_softmax(-1)
        odds = before[:, of.own].logsumexp(1) - before[:, of.other].logsumexp(1)
        for i, strength in enumerate(steps):
            after = model.logits(residual[rows] - strength * removed[rows]).log_softmax(-1)
            now = after[:, of.own].logsumexp(1) - after[:, of.other].logsumexp(1)
            fall[rows, i] = (odds - now).double().numpy()
            kl[rows, i] = (before.exp() * (before - after)).sum(1).double().numpy()
    return Curves(steps, fall, kl)


def damage_at(
    effect: Float[np.ndarray, "draws s"], damage: Float[np.ndarray, "draws s"], level: float
) -> Float[np.ndarray, " draws"]:
    """The damage where the effect first reaches a level, by straight lines between the strengths, from (0, 0) on; NaN where it
    never does.

    Raises:
        UserError: a level that is not above 0.
    """
    if not level > 0:
        raise UserError("level must be above 0", level, "pass the effect at which ways of acting are compared")
    out = np.full(len(effect), np.nan)
    for d in range(len(effect)):
        x, y = np.concatenate([[0.0], effect[d]]), np.concatenate([[0.0], damage[d]])
        reached = np.flatnonzero(x >= level)
        if len(reached):
            i = int(reached[0])
            out[d] = y[i - 1] + (level - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])
    return out


def best_features(
    worth: Float[Tensor, "n F"], in_class: Bool[np.ndarray, " n"], count: int = 1
) -> Int[Tensor, " count"]:
    """The features worth most on the class less what they are worth, either way, on its siblings.

    Args:
        worth: activation times (decoder row . log-odds gradient) at each token.

    Raises:
        UserError: `count` is not one of 1 to the number of features.
    """
    if not 1 <= count <= worth.shape[1]:
        raise UserError(f"count must be in [1, {worth.shape[1]}]", count, "pass how many features act together")
    chosen = torch.from_numpy(in_class)
    score = worth[chosen].mean(0) - worth[~chosen].abs().mean(0)
    return score.topk(count).indices
