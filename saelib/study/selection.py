"""Which feature is split: the parent, its threshold, how well it marks hyphens, and parents of other kinds."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.acts.store import ActivationStore
from saelib.base.cache import cache_dir, content_key, kept_folder, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.interpret.feature_f1 import Cut, best_cut, best_feature_f1, cut_at, feature_f1
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.sae.stream import feature_activations
from saelib.split.kinds import tokens_of_kind
from saelib.study import study
from saelib.study.profiles import Profile

LEAST_FIT = 0.8
"""A parent of lower purity or recall on test is not the feature of the hyphens that join words."""


def rank_parents(profile: Profile, sae: SAE) -> pd.DataFrame:
    """Features of the narrow SAE ranked by how well they mark hyphens that join words, each at its threshold of best F1.

    The columns of `saelib.interpret.feature_f1.best_feature_f1`, over all tokens of the select split; the best first.
    """
    store = study.activations(profile, "select")
    key = content_key(
        store=store.key,
        sae=sae_key(sae),
        marked="joining hyphens",
        code=code_version("interpret.feature_f1", "sae.sae", "split.classes"),
    )

    def columns() -> dict[str, Any]:
        found = best_feature_f1(store, sae, study.joins(profile, "select"))
        return {str(name): values.tolist() for name, values in found.items()}

    found = pd.DataFrame(kept_json("parents", key, columns))
    return found.sort_values("f1", ascending=False, kind="stable").reset_index(drop=True)


def rank_marking(profile: Profile, sae: SAE, kind: str) -> pd.DataFrame:
    """Features ranked by F1 on the select split: columns as in `saelib.interpret.feature_f1.feature_f1`, and `token`.

    Args:
        kind: `hyphen`, `digit` or `code`, as in `saelib.split.kinds.find_kind`. Each token of code is ranked
            alone: its pairs of token and feature are in one table.
    """
    store, which = study.activations(profile, "select"), sae_key(sae)
    tables = []
    for name, ids in tokens_of_kind(study.language_model(profile), kind):
        key = content_key(store=store.key, sae=which, tokens=ids, code=code_version("interpret.feature_f1", "sae.sae"))
        columns = kept_json("parents", key, functools.partial(_marking_columns, store, sae, ids))
        tables.append(pd.DataFrame(columns).assign(token=name))
    return pd.concat(tables).sort_values("f1", ascending=False, kind="stable").reset_index(drop=True)


def _marking_columns(store: ActivationStore, sae: SAE, tokens: list[int]) -> dict[str, Any]:
    return {str(name): values.tolist() for name, values in feature_f1(store, sae, tokens).items()}


def parents_of_other_kinds(profile: Profile, sae: SAE) -> pd.DataFrame:
    """Two parents beside the hyphen's: the feature that best marks digits, and the one that best marks a token of code.

    Best is the highest F1 on the select split, with the hyphen's parent left out. One row a kind: kind, then the columns of
    `rank_marking`.
    """
    taken = [int(rank_parents(profile, sae)["feature"].iloc[0])]
    rows = []
    for kind in ("digit", "code"):
        ranking = rank_marking(profile, sae, kind)
        row = ranking[~ranking["feature"].isin(taken)].iloc[0]
        taken.append(int(row["feature"]))
        rows.append({"kind": kind, **row.to_dict()})
    return pd.DataFrame(rows)


def parent_of_kind(parents: pd.DataFrame, kind: str) -> pd.Series:
    """The row of one kind in what `parents_of_other_kinds` returned.

    Raises:
        UserError: there is none.
    """
    row = parents[parents["kind"] == kind]
    if row.empty:
        raise UserError(f"kind must be one of {', '.join(parents['kind'])}", repr(kind), "pass one of these")
    return row.iloc[0]


class Parent(NamedTuple):
    """The parent feature and the threshold above which it counts as active."""

    feature: int
    tau: float
    max_activation: float
    """The largest activation on the select split."""


@functools.lru_cache(maxsize=4 * study.HELD)
def parent(profile: Profile, feature: int | None = None, tau: float | None = None) -> Parent:
    """The parent of the study: the feature that best marks hyphens that join words, above its threshold of best F1.

    Both are chosen on the select split, over all its tokens: for every feature the threshold of best F1, then the feature
    whose F1 is best there. A profile that names its SAE's parent and tau is followed, where that SAE is at hand. A feature
    that is named, or one chosen where no feature fires on such a hyphen, has the 2024 post's threshold: `tau_fraction` of
    its largest activation (2 of 9.23).
    """
    sae = study.narrow_sae(profile).sae
    if feature is None and study.given_narrow(profile) is not None and profile.parent is not None:
        feature, tau = profile.parent, profile.tau if tau is None else tau
    ruled = feature is None
    if feature is None:
        feature = int(rank_parents(profile, sae)["feature"].iloc[0])
    values = parent_on(profile, "select", feature)
    largest = float(values.max())
    if tau is None:
        best = best_cut(values, study.joins(profile, "select")) if ruled else None
        tau = best.tau if best is not None and best.f1 > 0 else profile.tau_fraction * largest
    return Parent(feature, tau, largest)


def parent_fit(profile: Profile, chosen: Parent, split: str = "test") -> Cut:
    """How well the parent, above tau, marks the hyphens of a split that join words: F1, purity and recall.

    purity = share of the tokens above tau that are such hyphens,   recall = share of such hyphens that are above tau
    """
    return cut_at(parent_on(profile, split, chosen.feature), study.joins(profile, split), chosen.tau)


def is_hyphens(fit: Cut) -> bool:
    """Whether purity and recall are those of the feature of the hyphens that join words: at least `LEAST_FIT` each."""
    return min(fit.purity, fit.recall) >= LEAST_FIT


def parent_on(profile: Profile, split: str, feature: int) -> np.ndarray:
    """The parent's activation on every row of a split."""
    return feature_on(profile, split, study.narrow_sae(profile).sae, feature)


def feature_on(profile: Profile, split: str, sae: SAE, feature: int) -> np.ndarray:
    """One feature's activation on every row of a split; kept in the cache, since every run asks for the parent's."""
    store = study.activations(profile, split)
    key = content_key(store=store.key, sae=sae_key(sae), feature=feature, code=code_version("sae.stream", "sae.sae"))

    def make(folder: Path) -> None:
        file = io.BytesIO()  # numpy's error on a full disk would not say that it is full
        np.save(file, feature_activations(store, sae, feature))
        (folder / "values.npy").write_bytes(file.getvalue())

    return np.load(kept_folder(cache_dir() / "features" / f"{split}-{key}", make) / "values.npy")
