"""Statistics against values worked out elsewhere."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy.stats import binomtest

from saelib.base import stats


def test_wilson_interval_of_six_of_seven() -> None:
    # z = 1.96: centre (6 + 1.92) / (7 + 3.84), half width 1.96 sqrt(6/7 1/7 7 + 0.96) / 10.84
    low, high = stats.wilson_interval(6 / 7, 7)
    assert (low, high) == (pytest.approx(0.4869, abs=1e-3), pytest.approx(0.9743, abs=1e-3))
    assert stats.wilson_interval(0.0, 0.0) == (0, 1), "without trials nothing is known"
    assert stats.wilson_interval(0.4, 20.0, z=3.0)[1] > stats.wilson_interval(0.4, 20.0)[1]


@pytest.mark.parametrize(("successes", "trials"), [(0, 4), (8, 20), (20, 20), (3, 4000)])
def test_wilson_interval_is_scipy_s_where_trials_are_whole(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert stats.wilson_interval(successes / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_a_t_interval_by_hand() -> None:
    # mean 3, s = sqrt((4 + 1 + 0 + 1 + 4) / 4) = 1.5811, s / sqrt(5) = 0.70711, t.975 with 4 df = 2.7764
    found = stats.t_test([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found[:3] == pytest.approx((3.0, 3 - 1.96324, 3 + 1.96324), abs=1e-4)
    # t = 3 / 0.70711 = 4.2426; with 4 df P(|T| > 4.2426) = 0.01324
    assert found.p == pytest.approx(0.01324, abs=1e-4)
    assert stats.t_test([1.0, 2.0, 3.0, 4.0, 5.0], against=3.0).p == 1.0
    assert stats.t_test([0.5, 0.5]) == (0.5, 0.5, 0.5, 0.0) and math.isnan(stats.t_test([1.0]).low)


def test_the_smallest_effect_by_hand() -> None:
    # 12 values, s = 1: (t.975 + t.80 with 11 df) / sqrt(12) = (2.2010 + 0.8755) / 3.4641
    values = [-1.0, 1.0] * 6
    s = math.sqrt(12 / 11)
    assert stats.smallest_effect(values) == pytest.approx(s * (2.2010 + 0.8755) / 3.4641, abs=1e-3)
    assert math.isnan(stats.smallest_effect([1.0]))


def test_equivalence_by_hand() -> None:
    # mean 0, s / sqrt(n) = 0.01 / sqrt(4) = 0.005 s.d. of the mean; (0.1 - 0) / error is far out, (0.01 - 0) / error = 1.732
    values = [-0.01, -0.01, 0.01, 0.01]
    error = 0.01 * math.sqrt(4 / 3) / 2
    assert stats.equivalence_p(values, 0.1) < 0.001
    # with 3 df P(T > 0.01 / 0.0057735) = P(T > 1.7321) = 0.0908
    assert 0.01 / error == pytest.approx(1.7321, abs=1e-4)
    assert stats.equivalence_p(values, 0.01) == pytest.approx(0.0908, abs=1e-3)
    assert stats.equivalence_p([0.3, 0.31, 0.29], 0.1) > 0.99 and stats.equivalence_p([0.0, 0.0], 0.1) == 0.0


def test_holm_by_hand() -> None:
    # sorted 0.01 0.02 0.03 0.04: 4 x 0.01, 3 x 0.02, 2 x 0.03 = 0.06, then 0.04, which may not be below 0.06
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    some = stats.holm([0.6, math.nan, 0.7])
    assert some[0] == some[2] == 1.0 and math.isnan(some[1])


def test_tokens_to_a_level_and_censoring() -> None:
    history = pd.DataFrame({"tokens": [0, 10, 20, 30], "loss": [9.0, 6.0, 3.0, 3.0]})
    assert stats.first_at_or_below(history, "loss", 6.0) == 20  # running mean (9 + 6 + 3) / 3
    assert math.isnan(stats.first_at_or_below(history, "loss", 1.0))
    assert stats.censored_median(pd.Series([10.0, 20.0, math.nan])) == 20
    assert math.isnan(stats.censored_median(pd.Series([10.0, math.nan, math.nan])))
    assert stats.median_text(pd.Series([math.nan])) == "not within the tokens given"
