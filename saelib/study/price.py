"""What filtered data cost: to get n tokens that pass a filter, the language model must read n / share of them.

    cost(n) = n s + l min(n, N) / q        s, l seconds an SAE token trains and a language-model token reads; q share that passes;
                                           N tokens that pass in all the text: seen again, they are not read again

Filtering pays where cost_f < cost_a, for the tokens that each needs for the same result. Without repeats:

    n_f (s_f + l / q) < n_a (s_a + l)      <=>      q > q* = n_f l / (n_a (s_a + l) - n_f s_f)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from saelib.base.device import finish
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel


@dataclass(frozen=True)
class Source:
    """Where an arm's training tokens come from."""

    share: float
    """Share of all tokens that pass its filter; 1 for all data."""
    available: float
    """Tokens that pass in all the text at hand; infinity where none is seen twice."""
    sae_second: float
    """Seconds a token of training takes."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError("share must be in (0, 1]", self.share, "pass the share of tokens that pass the filter")


def lm_tokens(n: float, source: Source) -> float:
    """Tokens that the language model reads for n tokens of training."""
    return min(n, source.available) / source.share


def seconds(n: float, source: Source, lm_second: float) -> float:
    """Reading and training, for n tokens of training; `lm_second` is what a token takes to read."""
    return n * source.sae_second + lm_tokens(n, source) * lm_second


@dataclass(frozen=True)
class BreakEven:
    """From which share on filtering pays, against all data, where nothing is read twice."""

    share: float
    """q*: filtering pays where more passes. Above 1, or infinite: never."""
    ratio: float
    """cost_f / cost_a here: filtering pays below 1."""


def break_even(n_filtered: float, filtered: Source, n_all: float, everything: Source, lm_second: float) -> BreakEven:
    """The share at which filtered and unfiltered training cost the same for the same result.

    Args:
        n_filtered, n_all: training tokens that each needs for it.
    """
    room = n_all * (everything.sae_second + lm_second) - n_filtered * filtered.sae_second
    share = n_filtered * lm_second / room if room > 0 else math.inf
    cost = n_filtered * (filtered.sae_second + lm_second / filtered.share)
    return BreakEven(share, cost / (n_all * (everything.sae_second + lm_second)))


@torch.no_grad()
def reading_second(model: LanguageModel, contexts: np.ndarray, least: int = 2) -> float:
    """Seconds a token of text takes to read up to the model's hook: the fastest of `least` passes over some contexts."""
    bulk, tokens, best = model.bulk(), torch.from_numpy(contexts.astype(np.int64)), math.inf
    for _ in range(least):
        began = time.perf_counter()
        for part in tokens.split(model.contexts_at_a_time):
            bulk(part)
        finish(model.device)
        best = min(best, time.perf_counter() - began)
    return best / tokens.numel()


def scales(sources: Mapping[str, Source], lm_second: float) -> dict[str, Callable[[float, str], float]]:
    """What n tokens of an arm cost, in the three currencies of the pictures."""
    return {
        "SAE tokens": lambda n, arm: n,
        "language-model tokens": lambda n, arm: lm_tokens(n, sources[arm]),
        "seconds": lambda n, arm: seconds(n, sources[arm], lm_second),
    }
