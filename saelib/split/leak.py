"""Leak: how often a child fires where its parent is silent, at the text's natural rates.

A child fires above theta. Of its firings on all tokens - P, the parent's weaker tokens, and those on which it is silent -
    missed  = share where the parent is silent and the token is in the child's context    (the parent missed it: harmless)
    foreign = share where the parent is silent and the token is not
Each sampled token counts for as many tokens of the text as its sample stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.sparse import csr_array

from saelib.base.errors import UserError
from saelib.base.stats import wilson_interval
from saelib.split.detectors import mcc
from saelib.split.tokens import ParentTokens
from saelib.split.yardstick import DRAWS, Documents, Interval

SAMPLES = ("on", "weak", "off")
MOST_FOREIGN = 0.05
"""A child's threshold is the lowest at which its foreign leak on select is at most this."""
QUANTILES = tuple(np.arange(0, 1, 0.05).round(2).tolist())
"""Candidate thresholds: 0, then these quantiles of the child's positive activations on P."""


@dataclass(frozen=True)
class Firings:
    """Activations of children on one split's tokens: P, the parent's weaker tokens, and those on which it is silent."""

    acts: dict[str, Float[np.ndarray, "_ K"]]
    """For each of `SAMPLES`, the children's activations."""
    document: dict[str, Integer[np.ndarray, " _"]]
    """For each of `SAMPLES`, the document of each token."""
    weight: dict[str, float]
    """For each of `SAMPLES`, how many tokens of the text one sampled token stands for."""
    in_context: Bool[np.ndarray, "n_off K"]
    """Whether each token on which the parent is silent is in each child's context."""

    @staticmethod
    def of(
        tokens: ParentTokens,
        split: str,
        acts: Mapping[str, Float[np.ndarray, "_ K"]],
        in_context: Bool[np.ndarray, "n_off K"],
    ) -> Firings:
        """The firings on one split of a parent's tokens.

        Raises:
            UserError: activations that are not of these tokens.
        """
        parts = {name: getattr(tokens, name)[split] for name in SAMPLES}
        got = [len(acts[name]) for name in SAMPLES] + [len(in_context)]
        if got != (expected := [len(parts[name]) for name in SAMPLES] + [len(parts["off"])]):
            raise UserError(f"activations need a row a token, {expected}", got, "encode the tokens that are judged")
        return Firings(
            acts=dict(acts),
            document={name: part.document for name, part in parts.items()},
            weight={n: getattr(tokens, f"n_{n}")[split] / max(len(part), 1) for n, part in parts.items()},
            in_context=in_context,
        )

    def with_all_silent(
        self, acts: Float[np.ndarray, "n K"], document: Integer[np.ndarray, " n"], in_context: Bool[np.ndarray, "n K"]
    ) -> Firings:
        """The same with all silent tokens on which some child fires in place of the sample; each stands for itself."""
        return Firings(
            {**self.acts, "off": acts}, {**self.document, "off": document}, {**self.weight, "off": 1.0}, in_context
        )


@dataclass(frozen=True)
class Leak:
    """Where children fire without their parent; one entry a child."""

    foreign: tuple[Interval, ...]
    """Share of firings that are foreign; the upper end is the larger of the bootstrap's and Wilson's. 0 where it never fires."""
    missed: tuple[Interval, ...]
    """Share of firings that are missed."""
    firings: Float[np.ndarray, " K"]
    """Tokens of the text on which each child fires."""
    n: Float[np.ndarray, " K"]
    """Firings in units of one sampled off-parent token: Wilson's number of trials."""
    draws: Float[np.ndarray, "draws K"] = field(repr=False)
    """The foreign share: of all documents, then in every draw of them."""


def leak(firings: Firings, theta: Float[np.ndarray, " K"], draws: int = DRAWS, seed: int = 0) -> Leak:
    """The leak of children that fire above `theta`, with intervals over documents."""
    sizes, K = [len(firings.document[name]) for name in SAMPLES], len(theta)
    every = Documents.drawn(np.concatenate([firings.document[name] for name in SAMPLES]), draws, seed)
    index = dict(zip(SAMPLES, np.split(every.index, np.cumsum(sizes)[:-1]), strict=True))

    def sums(name: str, fired: np.ndarray) -> np.ndarray:
        counts = csr_array(fired).astype(np.float64)
        return firings.weight[name] * Documents(index[name], every.weights).sums(counts)

    fired = {name: firings.acts[name] > theta for name in SAMPLES}
    total = np.sum([sums(name, fired[name]) for name in SAMPLES], axis=0)
    missed = sums("off", fired["off"] & firings.in_context)
    foreign = sums("off", fired["off"] & ~firings.in_context)
    missed, foreign = (np.divide(p, total, out=np.zeros_like(p), where=total > 0) for p in (missed, foreign))
    n = total[0] / max(firings.weight["off"], 1.0)
    return Leak(
        foreign=tuple(share_interval(foreign[:, j], n[j]) for j in range(K)),
        missed=tuple(share_interval(missed[:, j], n[j]) for j in range(K)),
        firings=total[0],
        n=n,
        draws=foreign,
    )


def foreign_share(firings: Firings) -> float:
    """Foreign share of all firings of all children together; 0 where none fires."""
    fired = {name: acts > 0 for name, acts in firings.acts.items()}
    total = sum(firings.weight[name] * np.count_nonzero(each) for name, each in fired.items())
    foreign = firings.weight["off"] * np.count_nonzero(fired["off"] & ~firings.in_context)
    return float(foreign / total) if total else 0.0


def choose_theta(
    firings: Firings,
    inside: Integer[np.ndarray, "n_on K"] | None = None,
    most: float = MOST_FOREIGN,
    strict: bool = False,
) -> Float[np.ndarray, " K"]:
    """Each child's threshold on select, of the candidates at which its foreign leak is at most `most`: the one with the highest
    MCC for the child's context (the lowest, without `inside`). Where there is none, the candidate with the least leak; infinity
    if `strict`.
    A child that fires nowhere on P gets 0.

    Args:
        inside: whether each token of P is in each child's context: 1, 0, or -1 where it takes no part.
    """
    out = np.zeros(firings.in_context.shape[1])
    for j in range(len(out)):
        column = {name: np.ascontiguousarray(firings.acts[name][:, j]) for name in SAMPLES}
        positive = {name: np.sort(column[name][column[name] > 0]) for name in SAMPLES}
        if not len(positive["on"]):
            continue
        foreign = ~firings.in_context[:, j]
        positive["foreign"] = np.sort(column["off"][(column["off"] > 0) & foreign])
        theta = np.append(0, np.quantile(positive["on"], QUANTILES[1:]).astype(column["on"].dtype))
        above = {name: _above(values, theta) for name, values in positive.items()}
        total = sum(firings.weight[name] * above[name] for name in SAMPLES)
        share = np.divide(firings.weight["off"] * above["foreign"], total, out=np.ones(len(theta)), where=total > 0)
        allowed = share <= most
        if not allowed.any():
            out[j] = np.inf if strict else theta[share.argmin()]
            continue
        if inside is None:
            out[j] = theta[allowed.argmax()]
            continue
        tp, fp = (_above(np.sort(column["on"][inside[:, j] == kind]), theta) for kind in (1, 0))
        n_in, n_out = ((inside[:, j] == kind).sum() for kind in (1, 0))
        marks = mcc(tp, fp, n_in - tp, n_out - fp)
        out[j] = theta[np.where(allowed, marks, -np.inf).argmax()]
    return out


def _above(ordered: Float[np.ndarray, " n"], theta: Float[np.ndarray, " t"]) -> Integer[np.ndarray, " t"]:
    return len(ordered) - np.searchsorted(ordered, theta, side="right")


def share_interval(draws: Float[np.ndarray, " draws"], n: float) -> Interval:
    """A share with the wider ends of its bootstrap over documents and of Wilson's interval: none seen is not none."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    wilson_low, wilson_high = wilson_interval(float(draws[0]), n)
    return Interval(float(draws[0]), min(float(low), wilson_low), max(float(high), wilson_high))
