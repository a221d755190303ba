"""The few statistics the reports quote: intervals for rates, a test between two, tokens to a goal with censoring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, fisher_exact


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


def median_text(values: pd.Series) -> str:
    """The censored median as words."""
    median = censored_median(values)
    return f"{median:,.0f}" if math.isfinite(median) else "not within the tokens given"
