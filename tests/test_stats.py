"""Statistics against values worked out elsewhere."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from saelib.base import stats


def test_wilson_interval_of_six_of_seven() -> None:
    # z = 1.96: centre (6 + 1.92) / (7 + 3.84), half width 1.96 sqrt(6/7 1/7 7 + 0.96) / 10.84
    low, high = stats.wilson_interval(6, 7)
    assert (low, high) == (pytest.approx(0.4869, abs=1e-3), pytest.approx(0.9743, abs=1e-3))
    assert all(math.isnan(end) for end in stats.wilson_interval(0, 0))


def test_fisher_p_of_the_published_table() -> None:
    # 6 of 7 against 1 of 3: 1 - P(5 or fewer in the first row's margin) = 0.1833 by hand
    p = stats.fisher_p(6, 7, 1, 3)
    assert p == pytest.approx(22 / 120, abs=1e-3)
    assert math.isnan(stats.fisher_p(0, 0, 1, 3))


def test_rate_table_has_one_row_an_arm() -> None:
    table = stats.rate_table({"a": [True, False], "none": []})
    assert table.loc["a", "rate"] == 0.5 and table.loc["none", "runs"] == 0 and math.isnan(table.loc["none", "rate"])


def test_tokens_to_a_level_and_censoring() -> None:
    history = pd.DataFrame({"tokens": [0, 10, 20, 30], "loss": [9.0, 6.0, 3.0, 3.0]})
    assert stats.first_at_or_below(history, "loss", 6.0) == 20  # running mean (9 + 6 + 3) / 3
    assert math.isnan(stats.first_at_or_below(history, "loss", 1.0))
    assert stats.censored_median(pd.Series([10.0, 20.0, math.nan])) == 20
    assert math.isnan(stats.censored_median(pd.Series([10.0, math.nan, math.nan])))
    assert stats.median_text(pd.Series([math.nan])) == "not within the tokens given"
