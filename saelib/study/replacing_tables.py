"""The tables of notebook 14: when the parent is replaced on each class, by whom, and what each intervention does to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelib.base.stats import smallest_effect, t_test
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
    reached, seeds, watched (steps); by_copy (share of the seeds in which it is replaced in which a copy leads at the end),
    cosine (mean), first (share of seeds in which this class is replaced before the others); then the arm's means of
    `end_measures` with 95% t intervals, and smallest (the difference in S_2 from a plain warm start, seed by seed, that so many
    seeds show with 80% power)."""
    rows = []
    plain = runs[runs["arm"] == "warm"].set_index("seed")["S_2"]
    for arm, part in runs.groupby("arm", sort=False):
        ends = {
            name: value
            for column in ("S_2", "fvu_on", "fvu_off")
            for name, value in _mean(part[column], column).items()
        }
        ends["smallest"] = smallest_effect((part.set_index("seed")["S_2"] - plain).dropna().to_numpy())
        for name in CLASSES:
            by = part.loc[part[f"steps_{name}"].notna(), f"by_{name}"]
            found = time_to(part[f"steps_{name}"].to_numpy(dtype=float), n_steps - 1)
            rows.append(
                {
                    "arm": arm, "class": name, "steps": found.value, "low": found.low, "high": found.high,
                    "reached": found.reached, "seeds": found.n, "watched": n_steps, "by_copy": float((by == "copy").mean()),
                    "cosine": float(part[f"cosine_{name}"].mean()), "first": float((part["first"] == name).mean()), **ends,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _mean(values: pd.Series, name: str) -> dict[str, float]:
    found = t_test(values.to_numpy(dtype=float))
    return {name: float(values.mean()), f"{name}_low": found.low, f"{name}_high": found.high}


def mean_curves(profile: Profile) -> pd.DataFrame:
    """After every step: arm, step, then the shares of `Watch` for each class, loss_P and fvu_P, means over the seeds; of these
    `<name>_low` and `<name>_high`, the least and the largest."""
    names = [*(f"{kind}_{name}" for name in CLASSES for kind in ("parent", "copy", "fresh", "none")), "loss_P", "fvu_P"]
    frames = []
    for arm in ARMS:
        histories = [watch_arm(profile, arm, seed).history for seed in range(profile.replacing_seeds)]
        steps = pd.concat(histories).groupby("step")[names]
        parts = (steps.mean(), steps.min().add_suffix("_low"), steps.max().add_suffix("_high"))
        frames.append(pd.concat(parts, axis=1).reset_index().assign(arm=arm.name))
    return pd.concat(frames, ignore_index=True)


def answer(summary: pd.DataFrame) -> str:
    """Notebook 14's answer, from `summary_table` or the CSV it was written to: when each arm's parent is replaced, by whom, and
    which arm ends with the highest separation."""
    ends = summary.drop_duplicates("arm").set_index("arm")
    warm, best = (pd.Series(ends.loc[str(arm)]) for arm in ("warm", ends["S_2"].fillna(-np.inf).idxmax()))
    return (
        f"When the parent stops being the largest feature on half of a class's tokens, {warm['seeds']:.0f} seeds an arm, "
        f"{warm['watched']:.0f} steps watched: {_grouped(summary, _when)}. Who takes over: {_grouped(summary, _by)}. "
        f"S_2 afterwards is highest with {best.name}, {_interval(best, 'S_2')}, against {_interval(warm, 'S_2')} of a plain warm "
        f"start (a difference of {ends['smallest'].max():.3f} would have been seen in any arm); FVU on P is {best['fvu_on']:.2f} "
        f"against {warm['fvu_on']:.2f}."
    )


def _grouped(summary: pd.DataFrame, words: Callable[[pd.DataFrame], str]) -> str:
    """What is said of each arm; arms of which the same is said together, those of which nothing is said left out."""
    found: dict[str, list[str]] = {}
    for arm, part in summary.groupby("arm", sort=False):
        found.setdefault(words(part), []).append(str(arm))
    return (
        "; ".join(f"{', '.join(arms)}: {text}" for text, arms in found.items() if text) or "unknown: no arm is replaced"
    )


def _when(part: pd.DataFrame) -> str:
    """Median steps of an arm's classes, with their widest interval; on how many classes, in how many seeds, where not in all."""
    known = part[part["steps"].notna()]
    if known.empty:
        return f"not within these ({part['reached'].max()} of {part['seeds'].max()} seeds)"
    steps, reached, seeds = known["steps"], known["reached"].min(), known["seeds"].max()
    of = "" if len(known) == len(part) else f" on {len(known)} of {len(part)} classes"
    of += "" if reached == seeds else f" in {reached} of {seeds} seeds"
    if steps.max() == 0:
        return f"at once{of}"
    span = " to ".join(dict.fromkeys(f"{value:.0f}" for value in (steps.min(), steps.max())))
    low, high = known["low"].min(), known["high"].max(skipna=False)
    ends = f"{low:.0f} to {high:.0f}" if math.isfinite(high) else f"{low:.0f} to not within"
    return f"after {span} steps{of} (medians of the classes; 95% {ends})"


def _by(part: pd.DataFrame) -> str:
    """Who leads on the classes that are replaced; empty where none is."""
    known = part.dropna(subset="by_copy")
    copies = known["by_copy"] > 0.5
    sides = {"a copy of another narrow feature": copies, "a fresh feature": ~copies}
    told = {
        who: "" if side.all() else f" on {', '.join(known['class'][side])}" for who, side in sides.items() if side.any()
    }
    return " and ".join(who + where for who, where in told.items())


def _interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} (95% {row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"
