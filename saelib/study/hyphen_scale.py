"""Separation of many dictionaries on some of the study's hyphens: what a curve of hundreds of SAEs can afford.

The same tokens, contexts and judge as `saelib.study.graded`, on at most `MOST` tokens a split, without intervals over documents:
curves have theirs from seeds.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.split.contexts import hyphen_contexts
from saelib.split.separation import measure
from saelib.split.tokens import SPLITS, TokenSet
from saelib.split.yardstick import Yardstick, make_yardstick
from saelib.study import graded, selection, study
from saelib.study.profiles import Profile

MOST = 5000
"""Hyphens used a split."""
_CODE = (
    "sae.sae", "split.classes", "split.contexts", "split.detectors", "split.probe", "split.separation", "split.tokens",
    "split.yardstick", "study.graded", "study.hyphen_scale",
)  # fmt: skip


def separation_of(profile: Profile, chosen: selection.Parent, sae: SAE) -> dict[str, float]:
    """`S_1` and `S_2` of an SAE (see `saelib.split.separation`), kept in the cache; NaN where the text has too few hyphens."""
    narrow = study.narrow_sae(profile).sae
    key = content_key(
        stores=[study.activations(profile, split).key for split in SPLITS], sae=sae_key(sae), most=MOST,
        parent=[sae_key(narrow), chosen.feature], code=code_version(*_CODE),
    )  # fmt: skip

    def compute() -> dict[str, float | None]:
        found = _measured(profile, chosen, sae)
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    kept = kept_json("separations", key, compute)
    return {name: math.nan if value is None else float(value) for name, value in kept.items()}


@torch.no_grad()
def _measured(profile: Profile, chosen: selection.Parent, sae: SAE) -> dict[str, float]:
    scale = _scale(profile, chosen)
    if scale is None:
        return {"S_1": math.nan, "S_2": math.nan}
    yardstick, used = scale
    found = measure(yardstick, {split: sae.encode(part.x) for split, part in used.items()})
    return {f"S_{k}": found.S[k].value for k in (1, 2)}


@functools.lru_cache(maxsize=1)
def _scale(profile: Profile, chosen: selection.Parent) -> tuple[Yardstick, dict[str, TokenSet]] | None:
    """The yardstick and the tokens that it uses."""
    tokens = graded.hyphen_tokens(profile, chosen)
    contexts = {split: np.asarray(study.activations(profile, split).contexts) for split in SPLITS}
    try:
        labels = hyphen_contexts(study.language_model(profile), tokens, contexts)
        yardstick = make_yardstick(tokens, labels, most=MOST, draws=2)
    except UserError:
        return None
    return yardstick, {split: tokens[split].where(yardstick.used[split]) for split in SPLITS}
