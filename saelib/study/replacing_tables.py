"""The tables of notebook 14: when the parent is replaced on each class, by whom, and what each intervention does to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelib.base.stats import t_test
from saelib.base.survival import TimeTo, time_to
from saelib.split.classes import CLASSES
from saelib.study.profiles import Profile
from saelib.study.replacing import ARMS, end_measures, watch_arm


def replaced_at(share: Float[np.ndarray, " steps"] | Sequence[float], below: float = 0.5) -> float:
    """The first step from which on the parent's share stays below `below`; NaN where it does not.

    Args:
        share: the parent's share after 0, 1, 2 ... steps.
    """
    held = np.asarray(share, dtype=np.float64)
    if not len(held) or not held[-1] < below:
        return math.nan
    above = np.flatnonzero(~(held < below))
    return float(above[-1] + 1) if len(above) else 0.0


def runs_table(profile: Profile) -> pd.DataFrame:
    """One row a seed of an arm: arm, seed; for each class `steps_<c>` (NaN: not within), `by_<c>` (`copy` or `fresh`, whichever
    leads on more of its tokens at the end), `cosine_<c>` (of the winner, at the end); `first` (the class replaced first; empty
    where none is or two are together); then `end_measures`."""
    return pd.DataFrame(
        [
            run_row(arm.name, seed, watch_arm(profile, arm, seed).history) | end_measures(profile, arm, seed)
            for arm in ARMS
            for seed in range(profile.replacing_seeds)
        ]
    )


def run_row(arm: str, seed: int, history: pd.DataFrame) -> dict[str, Any]:
    """The columns of `runs_table` that come from one recorded training."""
    row: dict[str, Any] = {"arm": arm, "seed": seed}
    last = history.iloc[-1]
    for name in CLASSES:
        row[f"steps_{name}"] = replaced_at(history[f"parent_{name}"].to_numpy())
        row[f"by_{name}"] = "copy" if last[f"copy_{name}"] > last[f"fresh_{name}"] else "fresh"
        row[f"cosine_{name}"] = float(last[f"winner_cosine_{name}"])
    steps = {name: row[f"steps_{name}"] for name in CLASSES if math.isfinite(row[f"steps_{name}"])}
    soonest = [name for name, step in steps.items() if step == min(steps.values())]
    return row | {"first": soonest[0] if len(soonest) == 1 else ""}


def summary_table(runs: pd.DataFrame, n_steps: int) -> pd.DataFrame:
    """One row an arm and class: arm, class; steps (median over seeds) with low and high (95%, censored at the last record),
    reached, seeds; by_copy (share of seeds in which a copy leads at the end), cosine (mean), first (share of seeds in which this
    class is replaced before the others); then the arm's means of `end_measures` with 95% t intervals."""
    rows = []
    for arm, part in runs.groupby("arm", sort=False):
        ends = {
            name: value
            for column in ("S_2", "fvu_on", "fvu_off")
            for name, value in _mean(part[column], column).items()
        }
        for name in CLASSES:
            found = time_to(part[f"steps_{name}"].to_numpy(dtype=float), n_steps - 1)
            rows.append(
                {
                    "arm": arm, "class": name, "steps": found.value, "low": found.low, "high": found.high,
                    "reached": found.reached, "seeds": found.n, "by_copy": float((part[f"by_{name}"] == "copy").mean()),
                    "cosine": float(part[f"cosine_{name}"].mean()), "first": float((part["first"] == name).mean()), **ends,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _mean(values: pd.Series, name: str) -> dict[str, float]:
    found = t_test(values.to_numpy(dtype=float))
    return {name: float(values.mean()), f"{name}_low": found.low, f"{name}_high": found.high}


def mean_curves(profile: Profile) -> pd.DataFrame:
    """Means over the seeds after every step: arm, step, the shares of `Watch` for each class, loss_P, fvu_P."""
    frames = []
    for arm in ARMS:
        histories = [watch_arm(profile, arm, seed).history for seed in range(profile.replacing_seeds)]
        names = [f"{kind}_{name}" for name in CLASSES for kind in ("parent", "copy", "fresh", "none")]
        mean = pd.concat(histories).groupby("step")[[*names, "loss_P", "fvu_P"]].mean().reset_index()
        frames.append(mean.assign(arm=arm.name))
    return pd.concat(frames, ignore_index=True)


def answer(summary: pd.DataFrame) -> str:
    """Notebook 14's answer in one or two sentences, from `summary_table` (or from the CSV it was written to)."""

    def steps(arm: str, name: str) -> str:
        row = summary[(summary["arm"] == arm) & (summary["class"] == name)].iloc[0]
        return TimeTo(row["steps"], row["low"], row["high"], int(row["reached"]), int(row["seeds"])).words("steps")

    warm = summary[summary["arm"] == "warm"]
    told = "; ".join(f"{name}: {steps('warm', name)}" for name in warm["class"])
    first = warm.iloc[int(warm["first"].to_numpy().argmax())]
    ahead = (
        f"{first['class']} first in {first['first']:.0%} of {int(first['seeds'])} seeds"
        if first["first"] > 0
        else "on no class before the others"
    )
    who = "copies of other features" if warm["by_copy"].mean() > 0.5 else "fresh features"
    faster = [
        str(arm)
        for arm, part in summary.groupby("arm", sort=False)
        if arm != "warm" and (part["steps"].fillna(np.inf).to_numpy() < warm["steps"].fillna(np.inf).to_numpy()).any()
    ]
    return (
        f"After a warm start the parent stops being the largest feature on half of a class's tokens after ({told}); {who} "
        f"take over, {ahead}. "
        f"With the decoder row drawn anew: {'; '.join(f'{n}: ' + steps('decoder', n) for n in warm['class'])}. "
        + (f"Sooner for some class: {', '.join(faster)}." if faster else "Nothing that was tried is sooner.")
    )
