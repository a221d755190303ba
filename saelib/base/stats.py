"""The few statistics the reports quote: intervals for rates, a test between two, tokens to a goal with censoring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, fisher_exact, mannwhitneyu


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate; NaN without trials."""
    if trials == 0:
        return math.nan, math.nan
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def rate_table(arms: Mapping[str, Sequence[bool]]) -> pd.DataFrame:
    """One row an arm: successes, runs, rate, and the ends of its Wilson 95% interval."""
    rows = {}
    for name, outcomes in arms.items():
        low, high = wilson_interval(sum(outcomes), len(outcomes))
        rate = sum(outcomes) / len(outcomes) if outcomes else math.nan
        rows[name] = {"successes": sum(outcomes), "runs": len(outcomes), "rate": rate, "low": low, "high": high}
    return pd.DataFrame(rows).T.astype({"successes": int, "runs": int})


def fisher_p(a_yes: int, a_all: int, b_yes: int, b_all: int) -> float:
    """Two-sided p of Fisher's exact test of `a_yes` of `a_all` against `b_yes` of `b_all`; NaN for an empty arm."""
    if not a_all or not b_all:
        return math.nan
    return float(fisher_exact([[a_yes, a_all - a_yes], [b_yes, b_all - b_yes]]).pvalue)


def newcombe_interval(a_yes: int, a_all: int, b_yes: int, b_all: int) -> tuple[float, float]:
    """95% interval of the difference of two rates, a less b: Newcombe's (1998), from the two Wilson intervals."""
    if not a_all or not b_all:
        return math.nan, math.nan
    a, b = a_yes / a_all, b_yes / b_all
    (a_low, a_high), (b_low, b_high) = wilson_interval(a_yes, a_all), wilson_interval(b_yes, b_all)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def bootstrap_difference(a: np.ndarray, b: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of mean(a) - mean(b), drawing each sample with replacement; NaN for an empty one."""
    if not len(a) or not len(b):
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = [rng.choice(x, size=(draws, len(x))).mean(axis=1) for x in (a, b)]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(low), float(high)


def first_at_or_below(history: pd.DataFrame, column: str, level: float) -> float:
    """Tokens at the first logged step where the running mean of three is at or below `level`; NaN if never (censored)."""
    smooth = history[column].rolling(3, min_periods=1).mean()
    reached = history.loc[smooth <= level, "tokens"]
    return float(reached.iloc[0]) if len(reached) else math.nan


def censored_median(values: pd.Series) -> float:
    """The median where NaN means "later than all others"; NaN when the median itself is censored."""
    ordered = np.sort(values.fillna(np.inf).to_numpy())
    middle = ordered[[(len(ordered) - 1) // 2, len(ordered) // 2]].mean() if len(ordered) else math.nan
    return float(middle) if np.isfinite(middle) else math.nan


def censored_rank_p(a: pd.Series, b: pd.Series) -> float:
    """Two-sided p of the Mann-Whitney test of two samples in which NaN means "later than all others"; NaN for an empty one."""
    if not len(a) or not len(b):
        return math.nan
    latest = float(np.nanmax([*a, *b, 0.0])) + 1
    return float(mannwhitneyu(a.fillna(latest), b.fillna(latest)).pvalue)


def median_text(values: pd.Series) -> str:
    """The censored median as words."""
    median = censored_median(values)
    return f"{median:,.0f}" if math.isfinite(median) else "not within the tokens given"
