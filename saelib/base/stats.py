"""The few statistics the reports quote: intervals, the t-test over blocks with Holm's correction, tokens to a goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats has the same numbers and takes 0.3 s to import


def wilson_interval(share: float, n: float | int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share of n trials, at z standard errors (95% at the default); (0, 1) without trials.

        (share + z^2 / 2n  +-  z sqrt(share (1 - share) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    n need not be whole: trials that are weighted, or means over seeds.
    """
    if n <= 0:
        return 0.0, 1.0
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)


class TTest(NamedTuple):
    """A mean with its 95% interval and the two-sided p of Student's t-test against 0."""

    mean: float
    low: float
    high: float
    p: float


def t_test(values: Sequence[float] | np.ndarray, against: float = 0.0) -> TTest:
    """mean +- t.975 s / sqrt(n), with n - 1 degrees of freedom; p is that of the mean being `against`.

    NaN for fewer than two values. Values that are all alike have an interval of no width.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2 or not np.isfinite(x).all():
        return TTest(float(x.mean()) if n else math.nan, math.nan, math.nan, math.nan)
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean - against) / error)) if error else float(mean == against)
    return TTest(mean, mean - half, mean + half, p)


def equivalence_p(values: Sequence[float] | np.ndarray, margin: float) -> float:
    """p of the mean lying within +-margin: the larger of the two one-sided t-tests against its ends."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        return math.nan
    error, room = float(x.std(ddof=1)) / math.sqrt(len(x)), margin - abs(float(x.mean()))
    return float(stdtr(len(x) - 1, -room / error)) if error else float(room <= 0)


def smallest_effect(values: Sequence[float] | np.ndarray) -> float:
    """(t.975 + t.80) s / sqrt(n): the effect that a t-test at 5% sees with 80% power; NaN for fewer than two values."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return math.nan
    quantiles = stdtrit(len(x) - 1, [0.975, 0.80]).sum()
    return float(quantiles * x.std(ddof=1) / math.sqrt(len(x)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p: the i-th smallest of m times m - i + 1, never below the one before it, at most 1; NaN stays out."""
    order = sorted((i for i, value in enumerate(p) if math.isfinite(value)), key=lambda i: p[i])
    adjusted, before = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        before = max(before, min(p[i] * (len(order) - rank), 1.0))
        adjusted[i] = before
    return adjusted


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
