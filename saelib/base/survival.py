"""Times to a goal that some never reach within what they are given: Kaplan and Meier's curve, and its quantiles with intervals.

    S(t) = product over event times t_i <= t of (1 - d_i / n_i)        d_i events, n_i still at risk
    var of log(-log S) = sum d_i / (n_i (n_i - d_i)) / (log S)^2       (Greenwood), which gives S^exp(+-1.96 sd)

A quantile's interval holds the times at which the interval of S holds 1 - q (Brookmeyer and Crowley).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from saelib.base.errors import UserError


def kaplan_meier(
    times: Shaped[np.ndarray, " n"] | Sequence[float | int], limit: float | int | Shaped[np.ndarray, " n"]
) -> pd.DataFrame:
    """One row an event time: time, at_risk, events, survival (share that has not got there), low, high (95%).

    Args:
        times: when each got there; NaN for one that did not.
        limit: how far each was watched; those with NaN are censored there.

    Raises:
        UserError: a time below 0 or beyond its limit.
    """
    reached = np.asarray(times, dtype=np.float64)
    ends = np.broadcast_to(np.asarray(limit, dtype=np.float64), reached.shape)
    seen = np.isfinite(reached)
    if (reached[seen] < 0).any() or (reached[seen] > ends[seen]).any():
        raise UserError(
            "times must be from 0 to the limit", reached[seen].tolist(), "pass NaN for what was not reached"
        )
    last = np.where(seen, reached, ends)
    rows, survival, greenwood = [], 1.0, 0.0
    for time in np.unique(reached[seen]):
        at_risk, events = int((last >= time).sum()), int((reached == time).sum())
        survival *= 1 - events / at_risk
        greenwood += events / (at_risk * (at_risk - events)) if at_risk > events else math.inf
        low, high = _interval(survival, greenwood)
        rows.append(
            {"time": float(time), "at_risk": at_risk, "events": events, "survival": survival, "low": low, "high": high}
        )
    return pd.DataFrame(rows, columns=["time", "at_risk", "events", "survival", "low", "high"])


def _interval(survival: float, greenwood: float) -> tuple[float, float]:
    if survival <= 0 or survival >= 1:
        return survival, survival
    spread = 1.959964 * math.sqrt(greenwood) / abs(math.log(survival))
    low, high = survival ** math.exp(spread), survival ** math.exp(-spread)
    return low, high


class TimeTo(NamedTuple):
    """When a share has got there. NaN: not within what was watched."""

    value: float
    low: float
    high: float
    reached: int
    """How many got there."""
    n: int
    """Of how many."""


def time_to(
    times: Shaped[np.ndarray, " n"] | Sequence[float | int],
    limit: float | int | Shaped[np.ndarray, " n"],
    share: float = 0.5,
) -> TimeTo:
    """The time by which a share has got there, with its 95% interval; arguments and errors as in `kaplan_meier`.

    Raises:
        UserError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError("share must be in (0, 1]", share, "pass for example 0.5")
    curve = kaplan_meier(times, limit)

    def first(column: str) -> float:
        below = curve.loc[curve[column] <= 1 - share + 1e-12, "time"]
        return float(below.iloc[0]) if len(below) else math.nan

    return TimeTo(first("survival"), first("low"), first("high"), int(curve["events"].sum()), len(times))
