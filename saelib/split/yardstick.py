"""What a parent's contexts allow, whatever the dictionary: ceiling, floor, which contexts are judged, which documents are drawn.

    ceiling   MCC on test of a linear probe on x           floor   MCC of the parent's activation alone, either direction;
                                                                    for previous / next contexts also of the current token
A context is judged where ceiling - floor >= 0.3 *on select*. Documents are drawn once; every interval uses the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.sparse import csr_array, issparse

from saelib.base.errors import UserError
from saelib.split.contexts import Context, Labels
from saelib.split.detectors import best_threshold, mcc
from saelib.split.probe import Marked, probe
from saelib.split.tokens import SPLITS, TokenSet

DRAWS = 500
MOST = 20_000
"""Tokens of P used a split; of a larger P, a uniform sample by the seed."""
LEAST_GAIN = 0.3
"""Ceiling less floor on select from which a context is judged."""
LEAST_TOKENS = 30
"""A context with fewer tokens on select or on test is not judged."""


class Reason(StrEnum):
    """Why a context is not judged, or no child is required for it."""

    NONE = ""
    TOO_FEW = "too few tokens"
    NOT_SEPARABLE = "not separable by a linear probe"
    TOLD_BY_SIZE = "told by the parent's own size or the token itself"
    TOLD_APART = "already told apart by the rest"


class Interval(NamedTuple):
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def interval(draws: Float[np.ndarray, " draws"]) -> Interval:
    """The value (first entry: every document once) and the 2.5 and 97.5% points of the other draws."""
    if not np.isfinite(draws[0]):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high))


@dataclass(frozen=True)
class Documents:
    """Draws of documents with replacement: one set for everything that is compared."""

    index: Integer[np.ndarray, " n"]
    """The document of each token, 0 to n_documents - 1."""
    weights: Float[np.ndarray, "draws n_documents"]
    """How often each draw holds each document; the first row holds every document once."""

    @staticmethod
    def drawn(document: Integer[np.ndarray, " n"], draws: int = DRAWS, seed: int = 0) -> Documents:
        """Draw the documents of some tokens."""
        names, index = np.unique(document, return_inverse=True)
        return Documents(index, _draws_of(max(len(names), 1), draws, seed))

    def sums(self, counts: np.ndarray | csr_array) -> Float[np.ndarray, "draws k"]:
        """Sums over the drawn documents of a number a token, (n, k)."""
        n, n_documents = len(self.index), self.weights.shape[1]
        place = csr_array((np.ones(n), (self.index, np.arange(n))), shape=(n_documents, n))
        each = place @ counts  # (n_documents, k)
        return np.asarray(self.weights @ (each.toarray() if issparse(each) else each))

    def mcc(self, fires: Bool[np.ndarray, "n m"], member: Bool[np.ndarray, "n m"]) -> Float[np.ndarray, "draws m"]:
        """MCC in every draw, from each document's (TP, FP, FN, TN)."""
        kinds = (fires & member, fires & ~member, ~fires & member, ~fires & ~member)
        return mcc(*np.split(self.sums(np.concatenate(kinds, axis=1)), 4, axis=1))


@lru_cache(maxsize=4)
def _draws_of(count: int, draws: int, seed: int) -> Float[np.ndarray, "draws count"]:
    """The weights of so many documents: one parent's leak is measured several times, on the same tokens."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    weights = np.vstack([np.ones((1, count)), drawn])
    weights.flags.writeable = False
    return weights


@dataclass(frozen=True)
class Yardstick:
    """Made once a parent; any number of dictionaries are measured against it."""

    contexts: tuple[Context, ...]
    """What is to be told apart."""
    n_tokens: dict[str, int]
    """For each split, the tokens of P that were labelled."""
    used: dict[str, Integer[np.ndarray, " _"]]
    """For each split, which of them are used: those that take part, at most `MOST`, ascending."""
    member: dict[str, Bool[np.ndarray, "_ m"]]
    """For each split, the contexts of the used tokens."""
    documents: Documents
    """Draws of the used test tokens' documents."""
    ceiling: Marked
    """The probe's select MCC and test predictions."""
    floor: Marked
    """Those of the parent's size or the current token, whichever is better on select."""
    ceiling_draws: Float[np.ndarray, "draws m"]
    """MCC of the ceiling on test in every draw of documents."""
    floor_draws: Float[np.ndarray, "draws m"]
    """MCC of the floor."""
    reasons: tuple[Reason, ...]
    """Why each context is not judged; `NONE` where it is."""

    @property
    def judged(self) -> Bool[np.ndarray, " m"]:
        """Contexts that are judged."""
        return np.array([reason is Reason.NONE for reason in self.reasons], dtype=bool)

    @property
    def averaged(self) -> Bool[np.ndarray, " m"]:
        """Contexts that are judged and primary: those in S_k."""
        return self.judged & np.array([context.primary for context in self.contexts], dtype=bool)


def make_yardstick(
    tokens: Mapping[str, TokenSet], labels: Labels, most: int = MOST, draws: int = DRAWS, seed: int = 0
) -> Yardstick:
    """Ceiling, floor and draws for one parent's tokens.

    Args:
        tokens: P of train, select and test (`ParentTokens.on`).
        labels: its contexts, over the same tokens.
        most: tokens used a split.

    Raises:
        UserError: the labels are not those of the tokens, or no token of a split takes part.
    """
    used = {}
    for split in SPLITS:
        if len(labels.counts[split]) != len(tokens[split]):
            got = f"{len(labels.counts[split])} labels, {len(tokens[split])} tokens of {split}"
            raise UserError("every token needs one row of labels", got, "label the tokens that are judged")
        rows = np.flatnonzero(labels.counts[split])
        if not len(rows):
            raise UserError(f"some {split} tokens of the parent must be in a context", 0, "choose other contexts")
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        used[split] = rows
    parts = {split: tokens[split].where(used[split]) for split in SPLITS}
    member = {split: labels.member[split][used[split]] for split in SPLITS}
    ceiling = probe({split: parts[split].x for split in SPLITS}, member)
    floor = baseline(parts, member, labels.contexts)
    documents = Documents.drawn(parts["test"].document, draws, seed)
    return Yardstick(
        contexts=labels.contexts,
        n_tokens={split: len(tokens[split]) for split in SPLITS},
        used=used,
        member=member,
        documents=documents,
        ceiling=ceiling,
        floor=floor,
        ceiling_draws=documents.mcc(ceiling.fires, member["test"]),
        floor_draws=documents.mcc(floor.fires, member["test"]),
        reasons=tuple(_reason(c, ceiling, floor, member) for c in range(len(labels.contexts))),
    )


def require_separable(yardstick: Yardstick) -> None:
    """Refuse contexts that were asked for by name when none of them counts: there is nothing to judge children by.

    Raises:
        UserError: each context has too few tokens or more than half of them, or is one that a linear probe does not find or
            that needs no feature.
    """
    if yardstick.averaged.any():
        return
    found = [
        f"{context.name}: {reason or 'what most of the tokens are'} (MCC {best:.2f})"
        for context, reason, best in zip(
            yardstick.contexts, yardstick.reasons, yardstick.ceiling.select_mcc, strict=True
        )
    ]
    rule = "at least one context must be told apart by a linear probe on the parent's tokens, and hold at most half of them"
    raise UserError(rule, "; ".join(found), "choose other contexts, or another parent")


def _reason(c: int, ceiling: Marked, floor: Marked, member: Mapping[str, np.ndarray]) -> Reason:
    if min(member["select"][:, c].sum(), member["test"][:, c].sum()) < LEAST_TOKENS:
        return Reason.TOO_FEW
    if ceiling.select_mcc[c] - floor.select_mcc[c] >= LEAST_GAIN:
        return Reason.NONE
    if ceiling.select_mcc[c] < LEAST_GAIN:
        return Reason.NOT_SEPARABLE
    return Reason.TOLD_BY_SIZE


def baseline(
    parts: Mapping[str, TokenSet], member: Mapping[str, Bool[np.ndarray, "_ m"]], contexts: tuple[Context, ...]
) -> Marked:
    """What needs no feature: the parent's activation, high or low, and for previous / next contexts the current token.

    The token's rule is the share of the context among the train tokens that are this token (one more token at the
    overall share is added to each, so that a token never seen has that share). The rule that is best on select is kept.
    """
    select_mcc = np.zeros(len(contexts))
    fires = np.zeros((len(parts["test"]), len(contexts)), dtype=bool)
    for c, context in enumerate(contexts):
        scores = [{split: sign * parts[split].parent for split in ("select", "test")} for sign in (1, -1)]
        if context.kind in ("previous", "next"):
            scores.append(_token_rates(parts, member["train"][:, c]))
        for score in scores:
            cut = best_threshold(score["select"], member["select"][:, c])
            if cut.mcc > select_mcc[c]:
                select_mcc[c], fires[:, c] = cut.mcc, score["test"] > cut.t
    return Marked(select_mcc, fires)


def _token_rates(parts: Mapping[str, TokenSet], member: np.ndarray) -> dict[str, np.ndarray]:
    names, index = np.unique(parts["train"].current, return_inverse=True)
    seen = np.bincount(index, minlength=len(names))
    overall = float(member.mean())
    rates = (np.bincount(index, weights=member, minlength=len(names)) + overall) / (seen + 1)
    out = {}
    for split in ("select", "test"):
        place = np.searchsorted(names, parts[split].current).clip(max=len(names) - 1)
        out[split] = np.where(names[place] == parts[split].current, rates[place], overall)
    return out
