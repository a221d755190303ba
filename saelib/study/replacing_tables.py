"""The tables of notebook 14: when the parent is replaced on each class, by whom, and what each intervention does to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelib.base.stats import t_test
from saelib.base.survival import time_to
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
    """Notebook 14's answer, from `summary_table` or the CSV it was written to: when each arm's parent is replaced, by whom, and
    which arm ends with the highest separation."""
    when: dict[str, list[str]] = {}
    for arm, part in summary.groupby("arm", sort=False):
        when.setdefault(_when(part), []).append(str(arm))
    told = "; ".join(f"{', '.join(arms)}: {text}" for text, arms in when.items())
    ends = summary.drop_duplicates("arm").set_index("arm")
    warm, best = (pd.Series(ends.loc[str(arm)]) for arm in ("warm", ends["S_2"].fillna(-np.inf).idxmax()))
    who = "copies of other features of the narrow SAE" if summary["by_copy"].mean() > 0.5 else "fresh features"
    return (
        f"When the parent stops being the largest feature on half of a class's tokens, {int(warm['seeds'])} seeds an arm: "
        f"{told}. "
        f"Mostly {who} take over. S_2 afterwards is highest with {best.name}, {_interval(best, 'S_2')}, against "
        f"{_interval(warm, 'S_2')} of a plain warm start; FVU on P is {best['fvu_on']:.2f} against {warm['fvu_on']:.2f}."
    )


def _when(part: pd.DataFrame) -> str:
    """Median steps of an arm's classes, with their widest interval."""
    steps = part["steps"].dropna()
    if steps.empty:
        return "not within the steps watched"
    if steps.max() == 0 and len(steps) == len(part):
        return "at once"
    span = " to ".join(dict.fromkeys(f"{value:.0f}" for value in (steps.min(), steps.max())))
    of = "" if len(steps) == len(part) else f" on {len(steps)} of {len(part)} classes"
    return f"after {span} steps{of} (medians of the classes; 95% {part['low'].min():.0f} to {part['high'].max():.0f})"


def _interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} (95% {row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"
