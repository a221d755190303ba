"""Does a more specific feature help to find a circuit (the 2024 post's next step 4)? The hyphen's parent, and many in summary.

The summary asks of each of many parents: at the same effect on one of its contexts, how much less damage to the siblings does the
best child do than the parent (saving = 1 - damage of the child / damage of the parent), and does what the split adds
(`added_2`, see `saelib.split.separation`) predict it?
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from saelib.acts.store import POSITIONS
from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.table import plain_value
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.parent import LEAST_ON, TAU_SHARE
from saelib.split.result import Split
from saelib.study import selection, study, texts, trainings
from saelib.study.children_rows import split_config
from saelib.study.circuit_cases import one_layer
from saelib.study.circuit_tables import Case
from saelib.study.profiles import Profile, get_profile

CLASSES = ("number", "count")
"""The hyphen's classes that are asked about."""
COMMON = 0.02
"""A parent above tau on a larger share of tokens is no candidate."""
RARE = 5e-4
"""Nor one on a smaller share (or on too few tokens of train to be split)."""
PARENT_K, PARENT_STEPS = 32, 600
"""Children and steps of each parent of the summary; the profile's own numbers where it names some."""
PARENT_CONTEXTS, PARENT_TRIED = 6, 8
"""Contexts of each kind that it is split by, and how many of the judged ones are tried, the most frequent first, until on select
the behaviour is there and both parent and child have an effect on it."""
_DENSITY_CONTEXTS = 2000
_CODE = (
    "interpret.circuits", "interpret.damage", "sae.sae", "split.children", "split.contexts", "split.detectors", "split.engine",
    "split.exported", "split.probe", "split.separation", "split.work", "split.yardstick",
    "study.circuit_cases", "study.circuit_tables", "study.circuits",
)  # fmt: skip


def hyphen_split(profile: Profile) -> Split:
    """The study's parent, split by the hyphen's classes."""
    chosen = selection.parent(profile)
    cfg = split_config(profile, chosen, 0, profile.children_K, seeds=1, controls=False)
    return split_feature(study.narrow_sae(profile).sae, chosen.feature, texts.of_profile(profile), cfg)


def wide_sae(profile: Profile) -> SAE:
    """The plain wide SAE of the study: all data, random start."""
    return trainings.trained_run(profile, 13).sae


def hyphen_cases(profile: Profile) -> dict[str, Case]:
    """A case a class of `CLASSES` that has tokens on every split.

    Raises:
        UserError: neither has, or the model has more than one layer.
    """
    split, wide, found = hyphen_split(profile), wide_sae(profile), {}
    one_layer(split)  # else no class could be asked about
    for c, context in enumerate(split.contexts):
        if context.name in CLASSES:
            try:
                found[context.name] = Case(split, c, wide, profile.circuits_tokens)
            except UserError:  # too little text for this class
                continue
    if not found:
        raise UserError(f"one of {' and '.join(CLASSES)} must have tokens on every split", 0, "use more text")
    return found


# --- many parents --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def parents(profile: Profile) -> tuple[int, ...]:
    """Features of the narrow SAE that exceed tau on between `RARE` and `COMMON` of select tokens: `circuits_parents` of them,
    drawn at random by the profile's seed; the hyphen's parent is left out."""
    sae, store = study.narrow_sae(profile).sae, study.activations(profile, "select")
    n = min(store.n_tokens, _DENSITY_CONTEXTS * POSITIONS)
    size = block_rows(sae.cfg.d_sae)

    def blocks() -> Any:
        return (sae.encode(store.read(np.arange(i, min(i + size, n))).float()) for i in range(0, n, size))

    largest = functools.reduce(torch.maximum, (acts.amax(0) for acts in blocks()))
    density = sum(((acts > TAU_SHARE * largest).sum(0) for acts in blocks()), torch.zeros(sae.cfg.d_sae)) / n
    least = max(RARE, 1.5 * LEAST_ON / study.activations(profile, "train").n_tokens)
    fits = (largest > 0) & (density >= least) & (density <= COMMON)
    fits[selection.parent(profile).feature] = False
    found = fits.nonzero()[:, 0].numpy()
    count = min(profile.circuits_parents, len(found))
    return tuple(sorted(np.random.default_rng(profile.seed).choice(found, count, replace=False).tolist()))


def parent_row(profile: Profile, feature: int) -> dict[str, Any]:
    """One parent, kept in the cache.

    feature; context (of the judged primary ones with the most test tokens the first that can be asked about); added_2;
    log_odds with low and high on test; damage_parent, damage_child, saving; `reason` where something could not be asked.
    """
    narrow = study.narrow_sae(profile).sae
    key = content_key(
        stores=[study.activations(profile, split).key for split in ("train", "select", "test")], code=code_version(*_CODE),
        parent=[sae_key(narrow), feature], wide=sae_key(wide_sae(profile)),
        sizes=[profile.circuits_tokens, profile.context_least, profile.children_K, profile.children_steps],
    )  # fmt: skip
    kept: dict[str, Any] = kept_json("circuits", key, lambda: _parent_row(profile, narrow, feature))
    return {name: math.nan if value is None else value for name, value in kept.items()}


def _parent_row(profile: Profile, narrow: SAE, feature: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(
        ("added_2", "log_odds", "log_odds_low", "log_odds_high", "damage_parent", "damage_child", "saving")
    )
    row = {"feature": feature, "context": "", **row, "reason": ""}
    cfg = SplitConfig(
        contexts="automatic", least=profile.context_least, most=PARENT_CONTEXTS, K=profile.children_K or PARENT_K, seeds=1,
        controls=False, children=ChildrenConfig(n_steps=profile.children_steps or PARENT_STEPS),
    )  # fmt: skip
    try:
        split = split_feature(narrow, feature, texts.of_profile(profile), cfg)
        judged = [(c.n_test, i) for i, c in enumerate(split.separation["rest"].contexts) if c.judged and c.primary]
        if not judged:
            return row | {"reason": "no context is judged"}
        frequent = [i for _, i in sorted(judged, reverse=True)[:PARENT_TRIED]]
        most = max(profile.circuits_tokens // 2, 1)
        case = first_asked(lambda i: Case(split, i, wide_sae(profile), most), frequent)
    except UserError as error:
        return row | {"reason": f"{error.rule}; got {error.got}"}
    odds = case.odds("test")
    row |= {"context": case.name, "log_odds": odds.value, "log_odds_low": odds.low, "log_odds_high": odds.high}
    row["added_2"] = split.added[2].value
    damage = case.damage(("parent", "child"))
    if damage.empty:
        reason = "log-odds not above 0" if not case.odds("select").low > 0 else "parent or child has no effect"
        return dict(plain_value(row | {"reason": reason}))
    of = {one["family"]: float(one["damage"]) for one in damage[damage["count"] == 1].to_dict("records")}
    row |= {"damage_parent": of["parent"], "damage_child": of["child"]}
    row["saving"] = 1 - row["damage_child"] / row["damage_parent"] if row["damage_parent"] > 0 else math.nan
    if not math.isfinite(row["saving"]):
        row["reason"] = "parent does no damage" if row["damage_parent"] == 0 else "effect not reached on test"
    return dict(plain_value(row))


def first_asked(make: Callable[[int], Case], contexts: Sequence[int]) -> Case:
    """The first context that the question can be asked of, else the first that has the tokens; refuses where none has."""
    first, refused = None, UserError("a parent must have a context", 0, "choose another")
    for i in contexts:
        try:
            case = make(i)
        except UserError as error:
            refused = error
            continue
        if math.isfinite(case.level):
            return case
        first = first or case
    if first is None:
        raise refused
    return first


def run_part_job(profile: str, part: int, parts: int) -> dict[str, int]:
    """Every `parts`-th parent of the summary: the work behind notebook 15, one process a part."""
    settings = get_profile(profile)
    torch.set_num_threads(settings.threads_per_run)
    mine = parents(settings)[part::parts]
    for i, feature in enumerate(mine):
        parent_row(settings, feature)
        report_progress(f"circuits, part {part + 1} of {parts}", i + 1, len(mine))
    return {"parents": len(mine)}


def parents_table(profile: Profile) -> pd.DataFrame:
    """The rows of `parent_row` for all of `parents`."""
    columns = [
        "feature", "context", "added_2", "log_odds", "log_odds_low", "log_odds_high", "damage_parent", "damage_child",
        "saving", "reason",
    ]  # fmt: skip
    return pd.DataFrame([parent_row(profile, feature) for feature in parents(profile)], columns=columns)
