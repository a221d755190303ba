"""From rows to a leaderboard: means over parents, intervals that draw SAEs and then parents, ranks, paired differences.

Seeds of a method on a parent are averaged first. A draw takes SAEs with replacement, then as many parents of each as it has;
every method sees the same draws, so a difference is paired. A method that is run on some parents only is compared with
ours on those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelib.base.stats import wilson_interval
from saelib.bench.table import TIMES
from saelib.split.wide import RECIPES

OURS = "children-64"
"""The row that stands for our method: fixed, so that the best K is not picked on test."""
PLAIN = "all-data"
CEILING = "supervised"
"""A row that is given the contexts: what encoders reach in the children's place, no competitor."""
MADE_FOR_ONE = tuple(name for name, (recipe, _) in RECIPES.items() if recipe.per_parent)
"""Wide methods that train an SAE for each parent."""
DRAWS = 2000
MEANS = (
    "S_1", "S_4", "added_2", "S_2_current", "mcc_2", "ceiling", "S_2_alone", "fvu_on_P", "l0_on_P", "loss_recovered_on_P",
    "leak", "missed", "sibling_iou", "stability", "split_count", "matched_f1", "found", "false", "tokens_sae", "tokens_lm",
    "arithmetic", *TIMES,
)  # fmt: skip
"""Columns of which the leaderboard shows the mean."""


@dataclass(frozen=True)
class Values:
    """One measure by method and parent."""

    methods: tuple[str, ...]
    parents: tuple[str, ...]
    origins: tuple[str, ...]
    """The SAE of each parent."""
    value: Float[np.ndarray, "methods parents"]
    """Mean over seeds; NaN where there is none."""


def values_of(rows: pd.DataFrame, measure: str) -> Values:
    """A measure as a table; methods in the order of their mean, the best first."""
    each = rows.groupby(["method", "parent"], sort=True)[measure].mean().unstack()
    parents = list(each.columns)
    origins = rows.drop_duplicates("parent").set_index("parent")["origin"]
    return Values(tuple(each.index), tuple(parents), tuple(origins[p] for p in parents), each.to_numpy(np.float64))


def drawn(origins: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws parents"]:
    """How often each parent is in each draw of SAEs, then of parents within them; the first row holds all once."""
    names, index = np.unique(np.asarray(origins), return_inverse=True)
    members = [np.flatnonzero(index == k) for k in range(len(names))]
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws + 1, len(origins)))
    weights[0] = 1
    for row in weights[1:]:
        for k in rng.integers(len(names), size=len(names)):
            np.add.at(row, rng.choice(members[k], size=len(members[k])), 1)
    return weights


def means(
    values: Float[np.ndarray, "m parents"], weights: Float[np.ndarray, "draws parents"]
) -> Float[np.ndarray, "draws m"]:
    """Weighted means over the parents that have a value; NaN where a draw holds none of them."""
    there = np.isfinite(values)
    total = weights @ np.where(there, values, 0.0).T
    count = weights @ there.T.astype(np.float64)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def leaderboard(rows: pd.DataFrame, ours: str = OURS, plain: str = PLAIN, measure: str = "S_2") -> pd.DataFrame:
    """One row a method, the best first.

    Columns: method, kind, parents, `measure` with `_low` and `_high`, rank with `rank_low` and `rank_high`, `over_plain` and
    `over_ours` (paired, with ends), then the means of `MEANS`. A rank is that of the difference to ours on the parents that both
    have, so that a method run on few parents is not ranked by which these are; the ceiling has none and stands last.
    """
    table = values_of(rows, measure)
    weights = drawn(table.origins)
    value = means(table.value, weights)
    out = pd.DataFrame({"method": table.methods})
    kinds = rows.drop_duplicates("method").set_index("method")["kind"]
    out["kind"] = [kinds[name] for name in table.methods]
    out["parents"] = np.isfinite(table.value).sum(1)
    out[measure], out[f"{measure}_low"], out[f"{measure}_high"] = _ends(value)
    relative = value
    for name, other in (("over_plain", plain), ("over_ours", ours)):
        if other in table.methods:
            gap = means(table.value - table.value[table.methods.index(other)], weights)
            out[name], out[f"{name}_low"], out[f"{name}_high"] = _ends(gap)
            relative = gap if name == "over_ours" else relative
    relative = np.where(out["method"] == CEILING, np.nan, relative)
    comparable = np.where(np.isfinite(relative), relative, -np.inf)
    order = (-comparable).argsort(1, kind="stable").argsort(1, kind="stable") + 1.0
    order[~np.isfinite(relative)] = np.nan
    out["rank"], out["rank_low"], out["rank_high"] = _ends(order)
    for name in MEANS:
        if name != measure:
            seeds = rows.groupby(["method", "parent"])[name].mean()
            out[name] = [float(seeds.loc[m].mean()) for m in table.methods]
    return out.sort_values(["rank", "method"], kind="stable", na_position="last").reset_index(drop=True)


def _ends(draws: Float[np.ndarray, "draws m"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The value (first row), and 2.5 and 97.5% of the draws."""
    low, high = np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    for j in range(draws.shape[1]):
        finite = draws[1:, j][np.isfinite(draws[1:, j])]
        if len(finite) and np.isfinite(draws[0, j]):
            low[j], high[j] = np.percentile(finite, [2.5, 97.5])
    return draws[0], low, high


def by_model(rows: pd.DataFrame, models: Mapping[str, str], measure: str = "S_2") -> pd.DataFrame:
    """A method a row: for each model of `models` (SAE -> model), `parents_<model>` and `<measure>_<model>` with `_low`, `_high`.

    Where a model has one SAE the ends draw parents alone.
    """
    out = pd.DataFrame(index=pd.Index([], name="method"))
    for model, part in rows.groupby(rows["origin"].map(models)):
        table = values_of(part, measure)
        name, own = f"{measure}_{model}", pd.DataFrame(index=pd.Index(table.methods, name="method"))
        own[f"parents_{model}"] = np.isfinite(table.value).sum(1)
        own[name], own[f"{name}_low"], own[f"{name}_high"] = _ends(means(table.value, drawn(table.origins)))
        out = out.join(own, how="outer")
    return out.reset_index()


def best_wide(rows: pd.DataFrame, per_parent: bool | None = None) -> str | None:
    """The wide method with the highest mean S_2 on the development side: chosen there and nowhere else; None without one.

    Args:
        per_parent: only those whose SAE is trained for one parent (True), or only those whose SAE serves all (False).
    """
    dev = rows[(rows["side"] == "dev") & (rows["stratum"] == "separable") & (rows["kind"] == "wide")]
    if per_parent is not None:
        dev = dev[dev["method"].isin(MADE_FOR_ONE) == per_parent]
    if dev["S_2"].notna().sum() == 0:
        return None
    return str(dev.groupby("method")["S_2"].mean().idxmax())


def break_even(rows: pd.DataFrame, wide: str = PLAIN, ours: str = OURS) -> dict[str, float]:
    """How many parents a wide SAE must serve before it is cheaper than one training of ours each.

    n = seconds of the wide SAE, once / mean seconds of ours on the parents it has         (and the same in tokens, arithmetic)

    Made-up parents do not count: their text and their SAE are a fraction of real ones.
    """
    out = {}
    rows = rows[rows["side"] != "known"]
    served = rows.loc[(rows["method"] == wide) & rows["S_2"].notna(), "parent"]
    rows = rows[rows["parent"].isin(served)]
    for name, shared, own in (
        ("seconds", "seconds_shared", "seconds"), ("tokens", "tokens_sae", "tokens_sae"), ("arithmetic",) * 3,
    ):  # fmt: skip
        once = rows.loc[rows["method"] == wide, shared].mean()
        each = rows.loc[rows["method"] == ours, own].mean()
        out[name] = float(once / each) if each > 0 and np.isfinite(once) else float("nan")
    return out


def false_splits(rows: pd.DataFrame) -> pd.DataFrame:
    """How often a split is wrong where the truth is known, a local method a row, with Wilson intervals over parents.

    method, missed (share of worlds with children judged neither `split` nor `partial`), given (share of impostors for which it
    gives children at all), false (share of impostors and of parents without any judged context where a context passes: none can,
    as only judged contexts pass), each with _low, _high and _n. Seeds of a parent are averaged: they are not independent.
    """
    out: list[dict[str, Any]] = []
    for name, part in rows[rows["verdict"].notna()].groupby("method"):
        impostor, nothing = part["true_children"] == 0, part["true_children"].isna() & (part["judged"] == 0)
        row: dict[str, Any] = {"method": name}
        for key, where, wrong in (
            ("missed", part["true_children"] > 0, ~part["verdict"].isin(["split", "partial"])),
            ("given", impostor, part["features"] > 0),
            ("false", impostor | nothing, part["passed"] > 0),
        ):
            each = wrong[where].groupby(part.loc[where, "parent"]).mean()
            share = float(each.mean()) if len(each) else np.nan
            low, high = wilson_interval(share, len(each)) if len(each) else (np.nan, np.nan)
            row |= {key: share, f"{key}_low": low, f"{key}_high": high, f"{key}_n": len(each)}
        out.append(row)
    return pd.DataFrame(out)


def by_parent(rows: pd.DataFrame, ours: str = OURS, plain: str = PLAIN) -> pd.DataFrame:
    """One row a parent, by what ours gains over the rest, the largest first: parent, side, stratum, judged (contexts), S_2 of
    ours, rest, plain, best (method), gain."""
    each = rows.groupby(["parent", "method"])["S_2"].mean().unstack()
    facts = rows.drop_duplicates("parent").set_index("parent")[["origin", "side", "stratum"]]
    facts["judged"] = rows.groupby("parent")["judged"].max()
    out = facts.join(each.reindex(columns=list(dict.fromkeys([ours, "rest", plain]))))
    best = each.drop(columns=[c for c in ("permuted", CEILING) if c in each], errors="ignore")
    some = best.notna().any(axis=1)
    out["best"] = best[some].idxmax(axis=1).reindex(out.index)
    out["gain"] = out[ours] - out["rest"]
    return out.sort_values("gain", ascending=False, na_position="last").reset_index()
