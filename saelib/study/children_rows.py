"""The children method beside the study's wide runs: the narrow SAE with its parent split into children, over three seeds.

Each is what `saelib.split` returns (see `saelib.split.engine`), with the hyphen's classes as contexts and the study's parent
and tau. What is measured is the exported SAE, rest and children together, on the same hyphens as every run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.tokens import SPLITS
from saelib.study import graded, study
from saelib.study.profiles import Profile

SEEDS = (0, 1, 2)
COLUMNS = (
    "seed", "K", "children", *graded.GRADED, "S_2_on_P", "fvu", "fvu_on_P", "fvu_on_P_before", "l0", "loss_recovered", "tokens",
    "seconds", "seconds_in_all", "reason",
)  # fmt: skip
"""The columns of the rows; `saelib.report.children_csv` says what each means."""
CHILDREN_CODE = (
    *graded.SEPARATION_CODE, *study.QUALITY_CODE, "split.children", "split.engine", "split.exported", "split.leak",
    "split.parent", "split.swap", "study.children_rows",
)  # fmt: skip
"""What computes the rows."""


def children_rows(profile: Profile, chosen: study.Parent) -> pd.DataFrame:
    """One row a seed with the columns of `COLUMNS`; kept in the cache.

    Where the parent or the hyphen's classes have too few tokens the numbers are NaN, and `reason` says so.
    """
    narrow = study.narrow_sae(profile).sae
    key = content_key(
        stores=[study.activations(profile, split).key for split in SPLITS],
        parent=[study.sae_key(narrow), chosen.feature, chosen.tau],
        seeds=SEEDS,
        sizes=[profile.evaluate_contexts, profile.children_K, profile.children_steps],
        code=code_version(*CHILDREN_CODE),
    )

    def compute() -> list[dict[str, Any]]:
        try:
            rows = _measure(profile, chosen)
        except UserError as error:
            rows = [{"seed": seed, "reason": f"{error.rule}; got {error.got}"} for seed in SEEDS]
        return [{name: _plain(row.get(name)) for name in COLUMNS} for row in rows]

    frame = pd.DataFrame(kept_json("children_rows", key, compute), columns=[*COLUMNS])
    numbers = frame.drop(columns="reason").apply(pd.to_numeric)
    return numbers.assign(reason=frame["reason"].fillna(""))[[*COLUMNS]]


def _measure(profile: Profile, chosen: study.Parent) -> list[dict[str, Any]]:
    """One split a seed; how many children are trained is chosen with the first."""
    narrow, acts = study.narrow_sae(profile).sae, graded.study_activations(profile)
    training = ChildrenConfig() if profile.children_steps is None else ChildrenConfig(n_steps=profile.children_steps)
    K, rows = profile.children_K, []
    for seed in SEEDS:
        cfg = SplitConfig(contexts="hyphen", tau=chosen.tau, K=K, seeds=1, controls=False, seed=seed, children=training)
        split = split_feature(narrow, chosen.feature, acts, cfg)
        if K is None:
            K = int(split.k_curve.loc[split.k_curve["chosen"], "K"].iloc[0])
        quality = study.quality_of(profile, split.sae)
        on_P = split.swap.loc["on P"]
        rows.append(
            {
                "seed": seed, "K": K, "children": len(split.children), **graded.separation(profile, chosen, split.sae),
                "S_2_on_P": split.separation["rest + children"].S[2].value,
                "fvu": quality.fvu, "fvu_on_P": on_P["fvu_after"], "fvu_on_P_before": on_P["fvu_before"],
                "l0": quality.l0, "loss_recovered": quality.loss_recovered,
                "tokens": split.cost["tokens_sae"], "seconds": split.cost["seconds_training"],
                "seconds_in_all": split.cost["seconds"],
            }
        )  # fmt: skip
    return rows


def _plain(value: Any) -> Any:
    """A value as JSON holds it: what is not finite is null."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
