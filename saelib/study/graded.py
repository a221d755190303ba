"""Separation of the study's dictionaries: how far their features tell the hyphen's classes apart (see `saelib.split.separation`).

P is fixed by the text: every hyphen that joins two words (number, count, compound), on train, select and test, whatever the
parent fires on. All runs, arms and narrow SAEs are measured on the same tokens; the parent's size only sets the floor.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_array

from saelib.base.errors import UserError
from saelib.base.table import column
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows, sparse_acts
from saelib.split.contexts import Labels, hyphen_contexts
from saelib.split.parent import token_set
from saelib.split.separation import Separation, in_room_of, measure
from saelib.split.tokens import SPLITS, TokenSet
from saelib.split.yardstick import Yardstick, make_yardstick
from saelib.study import selection, study, texts
from saelib.study.profiles import Profile

GRADED_CLASSES = ("number", "count")
"""The classes that are averaged into S_k. `compound` is most of P and what remains: no single feature marks it anywhere."""

_S = "separation: how far the best {} a class (number, count) tell hyphens apart; 0 as the parent's own size, 1 as a probe"
_LOW, _HIGH = "lower end of its 95% interval (documents drawn anew)", "upper end of its 95% interval"
_MCC = "Matthews correlation of {} with “-” after a {}, on test"


@dataclass(frozen=True)
class Graded:
    """The graded outcome of one dictionary; every choice on select, every number from test; NaN where hyphens are too few."""

    S_1: float = column(_S.format("feature"), default=math.nan)
    S_1_low: float = column(_LOW, default=math.nan)
    S_1_high: float = column(_HIGH, default=math.nan)
    S_2: float = column(_S.format("two features"), default=math.nan)
    S_2_low: float = column(_LOW, default=math.nan)
    S_2_high: float = column(_HIGH, default=math.nan)
    S_4: float = column(_S.format("four features"), default=math.nan)
    S_4_low: float = column(_LOW, default=math.nan)
    S_4_high: float = column(_HIGH, default=math.nan)
    mcc_1_number: float = column(_MCC.format("the best feature", "number"), default=math.nan)
    mcc_2_number: float = column(_MCC.format("the best two features", "number"), default=math.nan)
    mcc_4_number: float = column(_MCC.format("the best four features", "number"), default=math.nan)
    mcc_1_count: float = column(_MCC.format("the best feature", "count word"), default=math.nan)
    mcc_2_count: float = column(_MCC.format("the best two features", "count word"), default=math.nan)
    mcc_4_count: float = column(_MCC.format("the best four features", "count word"), default=math.nan)
    ceiling_number: float = column(_MCC.format("a linear probe", "number"), default=math.nan)
    ceiling_count: float = column(_MCC.format("a linear probe", "count word"), default=math.nan)
    floor_number: float = column(_MCC.format("the parent's own size", "number"), default=math.nan)
    floor_count: float = column(_MCC.format("the parent's own size", "count word"), default=math.nan)

    @staticmethod
    def of(found: Separation | None) -> Graded:
        """The numbers of a separation."""
        if found is None:
            return Graded()
        numbers: dict[str, float] = {}
        for k, (value, low, high) in found.S.items():
            numbers |= {f"S_{k}": value, f"S_{k}_low": low, f"S_{k}_high": high}
        for context in found.contexts:
            if context.context in GRADED_CLASSES:
                numbers |= {f"mcc_{k}_{context.context}": value.value for k, value in context.mcc.items()}
                numbers[f"ceiling_{context.context}"] = context.ceiling.value
                numbers[f"floor_{context.context}"] = context.floor.value
        return Graded(**numbers)


def measured(profile: Profile, chosen: selection.Parent, sae: SAE, without: int | None = None) -> Separation | None:
    """The separation with all of its contexts and draws; None where the text has too few hyphens that join words.

    Args:
        without: a feature that is left out.
    """
    found = yardstick(profile, chosen)
    return None if found is None else measure(found, _on_used(profile, found, sae, without))


def permuted_S_2(profile: Profile, chosen: selection.Parent, sae: SAE, seed: int = 0) -> float:
    """S_2 under labels in random order, in units of the true labels' room: what is read into labels that mean nothing."""
    found = yardstick(profile, chosen)
    if found is None:
        return math.nan
    shuffled = make_yardstick(hyphen_tokens(profile, chosen), _labels(profile).permuted(seed))
    return in_room_of(found, measure(shuffled, _on_used(profile, shuffled, sae)), shuffled).S[2].value


@torch.no_grad()
def l0_on_hyphens(profile: Profile, sae: SAE) -> float:
    """Features active on a hyphen that joins words, mean over the select split: where arms are matched and measured."""
    x = _hyphen_tokens(profile)["select"].x
    size = block_rows(sae.cfg.d_sae)
    return sum(int((sae.encode(x[i : i + size]) > 0).sum()) for i in range(0, len(x), size)) / max(len(x), 1)


@functools.lru_cache(maxsize=2)
def yardstick(profile: Profile, chosen: selection.Parent) -> Yardstick | None:
    """What the hyphens allow whatever the dictionary; None where the text has too few of them."""
    try:
        return make_yardstick(hyphen_tokens(profile, chosen), _labels(profile))
    except UserError:
        return None


@torch.no_grad()
def hyphen_tokens(profile: Profile, chosen: selection.Parent) -> dict[str, TokenSet]:
    """P: for each split every hyphen that joins two words, with the narrow parent's activation on it."""
    narrow = study.narrow_sae(profile).sae
    parts = _hyphen_tokens(profile).items()
    return {split: replace(part, parent=narrow.encode_feature(part.x, chosen.feature).numpy()) for split, part in parts}


@study.once_a_text
def _hyphen_tokens(profile: Profile) -> dict[str, TokenSet]:
    """P without a parent (its activation 0)."""
    acts, found = texts.of_profile(profile), {}
    for split in SPLITS:
        rows, _ = study.joining_hyphens(profile, split)
        found[split] = token_set(acts, split, rows, np.zeros(len(rows), dtype=np.float32))
    return found


def _labels(profile: Profile) -> Labels:
    contexts = {split: np.asarray(study.activations(profile, split).contexts) for split in SPLITS}
    return hyphen_contexts(study.language_model(profile), _hyphen_tokens(profile), contexts)


def _on_used(profile: Profile, found: Yardstick, sae: SAE, without: int | None = None) -> dict[str, csr_array]:
    """An SAE's activations on the tokens that a yardstick uses."""
    tokens = _hyphen_tokens(profile)
    return {split: sparse_acts(sae, tokens[split].where(found.used[split]).x, without) for split in SPLITS}
