"""The calibration of the verdict for one profile: synthetic parents, and implants in its own parent's activations.

Every case is judged once and kept, keyed by the code that judges it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.progress import report_progress
from saelib.sae.kept import sae_key
from saelib.split import calibration
from saelib.split.implants import Implant
from saelib.split.parent import gather
from saelib.split.synthetic import IMPOSTORS, TRUE
from saelib.split.tokens import ParentTokens
from saelib.study import selection, study, texts
from saelib.study.profiles import Profile, get_profile

_CODE = (
    "base.stats", "split.calibration", "split.children", "split.detectors", "split.engine", "split.exported", "split.how_many",
    "split.implants", "split.leak", "split.probe", "split.separation", "split.stability", "split.synthetic", "split.verdict",
    "split.work", "split.yardstick",
)  # fmt: skip
"""What decides the verdict of a case."""


@dataclass(frozen=True)
class SyntheticCase:
    """One synthetic parent."""

    name: str
    effect: float
    seed: int
    parent_tokens: int


def synthetic_plan(seeds: int) -> list[SyntheticCase]:
    """Sensitivity over effects and sizes; impostors and clusters at several effects. With one seed, the stated point alone."""
    stated, n = calibration.STATED_EFFECT, calibration.STATED_TOKENS
    if seeds == 1:
        return [SyntheticCase(name, stated, 0, n) for name in (*TRUE, *IMPOSTORS)]
    trees = [("tree", effect, n) for n in calibration.PARENT_TOKENS for effect in calibration.EFFECTS]
    others = [(name, effect, n) for name in (*TRUE[1:], *IMPOSTORS) for effect in (3.0, stated, 8.0)]
    return [SyntheticCase(name, effect, seed, n) for name, effect, n in trees + others for seed in range(seeds)]


def implants_plan(seeds: int) -> list[Implant]:
    """Every strength and share; twice as many seeds where nothing is put. With one seed, nothing and the strongest."""
    if seeds == 1:
        return [Implant(delta, 0.2, 0) for delta in (0.0, calibration.DELTAS[-1])]
    return [
        Implant(delta, share, seed)
        for share in calibration.IMPLANT_SHARES
        for delta in calibration.DELTAS
        for seed in range(seeds if delta else 2 * seeds)
    ]


def synthetic_table(profile: Profile) -> pd.DataFrame:
    """The rows of `calibration.synthetic_row`."""
    return pd.DataFrame([_synthetic(case) for case in synthetic_plan(profile.calibration_seeds)])


def implants_table(profile: Profile) -> pd.DataFrame:
    """The rows of `calibration.implant_row`, in the activations of the profile's parent."""
    judged = _implants(profile)
    return pd.DataFrame([judged(implant) for implant in implants_plan(profile.calibration_seeds)])


def run_part_job(profile: str, part: int, parts: int) -> dict[str, int]:
    """Judge every `parts`-th case: the work behind notebook 08, one process a part."""
    settings = get_profile(profile)
    torch.set_num_threads(1)
    judged = _implants(settings)
    seeds = settings.calibration_seeds
    every: list[Implant | SyntheticCase] = [*implants_plan(seeds), *synthetic_plan(seeds)]
    for i, case in enumerate(cases := every[part::parts]):
        if isinstance(case, Implant):
            judged(case)
        else:
            _synthetic(case)
        report_progress(f"calibration, part {part + 1} of {parts}", i + 1, len(cases))
    return {"cases": len(cases)}


def _synthetic(case: SyntheticCase) -> dict[str, Any]:
    key = content_key(case=vars(case), code=code_version(*_CODE))
    row: dict[str, Any] = kept_json(
        "calibration", key, lambda: calibration.synthetic_row(case.name, case.effect, case.seed, case.parent_tokens)
    )
    return row


def _implants(profile: Profile) -> Callable[[Implant], dict[str, Any]]:
    """What judges an implant in the profile's parent; its tokens are gathered when first needed."""
    chosen, sae = selection.parent(profile), study.narrow_sae(profile).sae
    store = study.activations(profile, "train").key
    held: list[ParentTokens] = []

    def row(implant: Implant) -> dict[str, Any]:
        if not held:
            held.append(gather(texts.of_profile(profile), sae, chosen.feature, chosen.tau))
        return calibration.implant_row(sae, held[0], implant)

    def kept(implant: Implant) -> dict[str, Any]:
        key = content_key(
            implant=implant._asdict(), sae=sae_key(sae), store=store, parent=chosen.feature, tau=chosen.tau,
            code=code_version(*_CODE),
        )  # fmt: skip
        found: dict[str, Any] = kept_json("calibration", key, lambda: row(implant))
        return found

    return kept
