"""Kaplan and Meier by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from saelib.base.errors import UserError
from saelib.base.survival import TimeTo, kaplan_meier, time_to

NAN = math.nan


def test_the_curve_by_hand() -> None:
    """Five: events at 1, 3, 3; censored at 2 and 4. S = 4/5, then 4/5 * (1 - 2/3) with three at risk at 3."""
    curve = kaplan_meier([3, 1, NAN, 3, NAN], np.array([9, 9, 2, 9, 4]))
    assert curve["time"].tolist() == [1, 3]
    assert curve["at_risk"].tolist() == [5, 3] and curve["events"].tolist() == [1, 2]
    assert curve["survival"].tolist() == pytest.approx([0.8, 0.8 / 3])


def test_greenwood_on_the_log_log_scale_by_hand() -> None:
    """Four events: at 1, S = 3/4, variance of log S 1/(4 * 3); at 2, S = 1/2, 1/12 + 1/6 = 1/4."""
    curve = kaplan_meier([1, 2, 3, 4], 9)
    for row, s, sum_ in ((0, 0.75, 1 / 12), (1, 0.5, 1 / 4)):
        spread = 1.959964 * math.sqrt(sum_) / -math.log(s)
        assert curve.loc[row, "low"] == pytest.approx(s ** math.exp(spread))
        assert curve.loc[row, "high"] == pytest.approx(s ** math.exp(-spread))
    assert curve.loc[0, ["low", "high"]].tolist() == pytest.approx([0.128, 0.961], abs=1e-3)
    assert curve.loc[3, ["survival", "low", "high"]].tolist() == [0, 0, 0]


def test_the_median_and_its_interval() -> None:
    found = time_to([1, 2, 3, 4], 9)  # the lower band is below 1/2 at 1 already, the upper one first at 4
    assert found == TimeTo(2, 1, 4, 4, 4)


def test_what_is_not_reached_has_no_median_and_an_open_end() -> None:
    found = time_to([5, NAN, NAN, NAN], 10)
    assert math.isnan(found.value) and (found.reached, found.n) == (1, 4)
    found = time_to([2000, 5000, NAN], 10_000)
    assert found.value == 5000 and math.isnan(found.high)
    assert math.isnan(time_to([NAN, NAN], 3).value)


def test_times_beyond_the_limit_and_odd_shares_are_refused() -> None:
    with pytest.raises(UserError, match="times must be from 0 to the limit"):
        time_to([5], 4)
    with pytest.raises(UserError, match="share must be in"):
        time_to([5], 6, 0.0)
