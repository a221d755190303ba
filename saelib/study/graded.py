"""Separation of the study's dictionaries: how far their features tell the hyphen's classes apart (see `saelib.split.separation`).

P is fixed by the text: every hyphen that joins two words (number, count, compound), on train, select and test, whatever the
parent fires on. All runs, arms and narrow SAEs are measured on the same tokens; the parent's size only sets the floor.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array, vstack
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows
from saelib.split.contexts import Labels, hyphen_contexts
from saelib.split.separation import KS, Separation, measure
from saelib.split.tokens import SPLITS, TokenSet
from saelib.split.yardstick import Yardstick, make_yardstick
from saelib.study import study
from saelib.study.profiles import Profile

SEPARATION_CODE = (
    "sae.sae", "split.classes", "split.contexts", "split.detectors", "split.probe", "split.separation", "split.tokens",
    "split.yardstick", "study.graded",
)  # fmt: skip
"""What computes a kept separation."""
GRADED_CLASSES = ("number", "count")
"""The classes that are averaged into S_k. `compound` is most of P and what remains: no single feature marks it anywhere."""
GRADED = (
    *(f"S_{k}{end}" for k in KS for end in ("", "_low", "_high")),
    *(f"mcc_{k}_{name}" for name in GRADED_CLASSES for k in KS),
    *(f"{what}_{name}" for what in ("ceiling", "floor") for name in GRADED_CLASSES),
)
"""The names of the numbers that `separation` gives, in order."""


def study_activations(profile: Profile) -> Activations:
    """The study's activations of all splits, as `saelib.split` takes them."""
    stores = {split: study.activations(profile, split) for split in SPLITS}
    tokens = study.tokens(profile)
    return Activations(study.language_model(profile), stores, {split: (tokens, split) for split in SPLITS})


def separation(profile: Profile, chosen: study.Parent, sae: SAE) -> dict[str, float]:
    """How far an SAE's features tell the hyphens that join words apart: the numbers of `GRADED`, kept in the cache.

    S_1, S_2, S_4 with the ends of their 95% intervals; for number and count the MCC of 1, 2 and 4 features, of the probe
    (ceiling) and of the parent's own size (floor). NaN where the text has too few such hyphens.
    """
    narrow = study.narrow_sae(profile).sae
    key = content_key(
        stores=[study.activations(profile, split).key for split in SPLITS],
        sae=study.sae_key(sae),
        parent=[study.sae_key(narrow), chosen.feature],
        code=code_version(*SEPARATION_CODE),
    )

    def compute() -> dict[str, float | None]:
        found = graded_numbers(measured(profile, chosen, sae))
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    kept = kept_json("separations", key, compute)
    return {name: math.nan if kept[name] is None else float(kept[name]) for name in GRADED}


def measured(profile: Profile, chosen: study.Parent, sae: SAE) -> Separation | None:
    """The separation with all of its contexts and draws; None where the text has too few hyphens that join words."""
    found = yardstick(profile, chosen)
    if found is None:
        return None
    tokens = _hyphen_tokens(profile)
    return measure(found, {split: _encoded(sae, tokens[split].where(found.used[split]).x) for split in SPLITS})


def graded_numbers(found: Separation | None) -> dict[str, float]:
    """The numbers of `GRADED`; all NaN for None."""
    numbers = dict.fromkeys(GRADED, math.nan)
    if found is None:
        return numbers
    for k, (value, low, high) in found.S.items():
        numbers |= {f"S_{k}": value, f"S_{k}_low": low, f"S_{k}_high": high}
    for context in found.contexts:
        if context.context in GRADED_CLASSES:
            numbers |= {f"mcc_{k}_{context.context}": value.value for k, value in context.mcc.items()}
            numbers[f"ceiling_{context.context}"] = context.ceiling.value
            numbers[f"floor_{context.context}"] = context.floor.value
    return numbers


@functools.lru_cache(maxsize=2)
def yardstick(profile: Profile, chosen: study.Parent) -> Yardstick | None:
    """What the hyphens allow whatever the dictionary; None where the text has too few of them."""
    try:
        return make_yardstick(hyphen_tokens(profile, chosen), _labels(profile))
    except UserError:
        return None


@torch.no_grad()
def hyphen_tokens(profile: Profile, chosen: study.Parent) -> dict[str, TokenSet]:
    """P: for each split every hyphen that joins two words, with the narrow parent's activation on it."""
    narrow = study.narrow_sae(profile).sae

    def with_parent(part: TokenSet) -> TokenSet:
        fields: dict[str, Any] = vars(part) | {"parent": narrow.encode_feature(part.x, chosen.feature).numpy()}
        return TokenSet(**fields)

    return {split: with_parent(part) for split, part in _hyphen_tokens(profile).items()}


@functools.lru_cache(maxsize=1)
def _hyphen_tokens(profile: Profile) -> dict[str, TokenSet]:
    """P without a parent (its activation 0)."""
    acts, found = study_activations(profile), {}
    for split, store in acts.stores.items():
        rows, _ = study.joining_hyphens(profile, split)
        found[split] = TokenSet(
            rows=rows,
            x=store.read(rows).float(),
            parent=np.zeros(len(rows), dtype=np.float32),
            document=acts.documents(split, rows),
            previous=acts.beside(split, rows, -1),
            current=acts.beside(split, rows, 0),
            next=acts.beside(split, rows, 1),
        )
    return found


def _labels(profile: Profile) -> Labels:
    contexts = {split: np.asarray(study.activations(profile, split).contexts) for split in SPLITS}
    return hyphen_contexts(study.language_model(profile), _hyphen_tokens(profile), contexts)


@torch.no_grad()
def _encoded(sae: SAE, x: Float[Tensor, "n d_in"]) -> csr_array:
    """An SAE's activations as a sparse matrix, made a block of tokens at a time."""
    size = block_rows(sae.cfg.d_sae)
    return vstack([csr_array(sae.encode(x[i : i + size]).numpy()) for i in range(0, len(x), size)])
