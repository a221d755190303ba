"""A child's name, from text alone: the tokens beside (or at) which it fires, with how well that name marks it on held-out text.

For each place (previous, next, current token) tokens are added, those with the largest share of firings first, while the
MCC of "the token is one of them" with "the child fires" rises on select; the place with the best MCC gives the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.sparse import csc_array

from saelib.lm.model import LanguageModel
from saelib.split.detectors import best_threshold, feature_mcc, mcc
from saelib.split.tokens import TokenSet

PLACES = {"previous": "after", "next": "before", "current": "is"}
LEAST = 3
"""A token is part of a name when the child fires on at least this many of its select tokens."""
SHOWN = 4
NAMELESS = "no pattern in the neighbouring tokens"


class Rule(NamedTuple):
    """Tokens at a place beside which, or at which, a child fires."""

    place: str
    ids: list[int]
    """The tokens, those on which it fires most often first."""
    mcc: float
    """Of "the token there is one of them" with "the child fires", on the tokens the rule was found on."""

    def says(self, tokens: TokenSet) -> Bool[np.ndarray, " n"]:
        """Where it says that the child fires."""
        return np.isin(getattr(tokens, self.place), self.ids)


class Name(NamedTuple):
    """What a child is called, and how well that says when it fires."""

    name: str
    mcc: float
    """On test: "the token beside it is one of the name's" against "the child fires", over P."""
    says: dict[str, Bool[np.ndarray, " n"]]
    """For select and test, the tokens of P that the name means."""


def name_child(model: LanguageModel, tokens: dict[str, TokenSet], fires: dict[str, np.ndarray]) -> Name:
    """Name one child from its firings on P of select; the score is on test."""
    rule = best_rule(tokens["select"], fires["select"])
    if rule is None:
        return Name(NAMELESS, 0.0, {split: np.zeros(len(fires[split]), dtype=bool) for split in ("select", "test")})
    shown = list(dict.fromkeys(_word(model.vocabulary[i]) for i in rule.ids))
    words = ", ".join(f"“{word}”" for word in shown[:SHOWN]) + (" …" if len(shown) > SHOWN else "")
    says = {split: rule.says(tokens[split]) for split in ("select", "test")}
    return Name(f"{PLACES[rule.place]} {words}", _mcc(says["test"], fires["test"]), says)


def best_rule(tokens: TokenSet, fires: Bool[np.ndarray, " n"]) -> Rule | None:
    """The place and tokens that say best where a child fires; None where no token has `LEAST` firings."""
    best: Rule | None = None
    for place in PLACES:
        ids, found = _greedy(getattr(tokens, place), fires)
        if ids and found > (best.mcc if best else 0.0) + 1e-9:
            best = Rule(place, ids, found)
    return best


def best_other(
    acts: Mapping[str, csc_array], says: Mapping[str, Bool[np.ndarray, "n K"]]
) -> tuple[Integer[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """For each name the one of other features that marks its tokens best on select, with its MCC for them on test.

    Args:
        acts: for select and test, the other features' activations on P, (n, F).
        says: for select and test, the tokens that each name means.
    """
    best = feature_mcc(acts["select"], says["select"]).argmax(0)
    found = np.zeros(len(best))
    for j, feature in enumerate(best):
        values = {split: acts[split][:, [feature]].toarray()[:, 0] for split in acts}
        found[j] = _mcc(values["test"] > best_threshold(values["select"], says["select"][:, j]).t, says["test"][:, j])
    return best, found


def _greedy(beside: np.ndarray, fires: np.ndarray) -> tuple[list[int], float]:
    """Tokens by falling share of firings, as many as give the best MCC; in the order of how often they are fired on."""
    there = beside >= 0
    ids, index = np.unique(beside[there], return_inverse=True)
    if not len(ids):
        return [], 0.0
    count = np.bincount(index)
    hits = np.bincount(index, weights=fires[there])
    keep = np.flatnonzero(hits >= LEAST)
    order = keep[np.lexsort((-hits[keep], -(hits[keep] / count[keep])))]
    if not len(order):
        return [], 0.0
    tp, named = np.cumsum(hits[order]), np.cumsum(count[order])
    positive, n = fires.sum(), len(fires)
    values = mcc(tp, named - tp, positive - tp, n - named - (positive - tp))
    end = int(np.argmax(values)) + 1
    chosen = order[:end]
    return [int(ids[i]) for i in chosen[np.argsort(-hits[chosen], kind="stable")]], float(values[end - 1])


def _mcc(a: np.ndarray, b: np.ndarray) -> float:
    return float(
        mcc(*(np.array([float(v)]) for v in ((a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum())))[0]
    )


def _word(text: str) -> str:
    return text.strip() or repr(text)[1:-1]
