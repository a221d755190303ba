"""A child's name, from text alone: the tokens beside (or at) which it fires, with how well that name marks it on held-out text.

For each place (previous, next, current token) tokens are added, those with the largest share of firings first, while the
MCC of "the token is one of them" with "the child fires" rises on select; the place with the best MCC gives the name.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saelib.lm.model import LanguageModel
from saelib.split.detectors import mcc
from saelib.split.tokens import TokenSet

PLACES = {"previous": "after", "next": "before", "current": "is"}
LEAST = 3
"""A token is part of a name when the child fires on at least this many of its select tokens."""
SHOWN = 4


class Name(NamedTuple):
    """What a child is called, and how well that says when it fires."""

    name: str
    mcc: float
    """On test: "the token beside it is one of the name's" against "the child fires", over P."""


def name_child(model: LanguageModel, tokens: dict[str, TokenSet], fires: dict[str, np.ndarray]) -> Name:
    """Name one child from its firings on P of select; the score is on test."""
    best: tuple[float, str, list[int]] = (0.0, "", [])
    for place in PLACES:
        ids, select_mcc = _greedy(getattr(tokens["select"], place), fires["select"])
        if ids and select_mcc > best[0] + 1e-9:
            best = (select_mcc, place, ids)
    _, place, ids = best
    if not ids:
        return Name("no pattern in the neighbouring tokens", 0.0)
    shown = list(dict.fromkeys(_word(model.vocabulary[i]) for i in ids))
    words = ", ".join(f"“{word}”" for word in shown[:SHOWN]) + (" …" if len(shown) > SHOWN else "")
    inside = np.isin(getattr(tokens["test"], place), ids)
    return Name(f"{PLACES[place]} {words}", _mcc(inside, fires["test"]))


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
