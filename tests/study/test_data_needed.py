"""Data needed, by hand: points of a curve, levels with censoring, what filtered data cost and from which share on they pay."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from saelib.base.errors import UserError
from saelib.lm.model import load_embedded
from saelib.report.study_figures import data_figure
from saelib.study import data_needed, price
from saelib.study.data_needed import ARMS, snapshot_steps
from saelib.study.data_tables import (
    answer,
    at_one_rate,
    at_rate,
    differences,
    drawn_medians,
    levels_table,
    priced,
    reached_at,
    tokens_ratio,
)  # fmt: skip
from saelib.study.price import Source, break_even, lm_tokens, seconds
from saelib.study.profiles import MINI, SMOKE


def test_points_are_even_in_the_logarithm_from_the_first_tokens_to_the_last_step() -> None:
    assert snapshot_steps(10, 100, 11, 3) == (2, 14, 100)  # ceil(1.1) = 2; sqrt(200) = 14.1
    assert snapshot_steps(10, 3, 10, 9) == (1, 2, 3)
    for batch, n, first, k in ((10, 100, 1001, 3), (10, 100, 10, 1)):
        with pytest.raises(UserError, match="two points or more"):
            snapshot_steps(batch, n, first, k)


def test_the_default_has_ten_points_from_fifty_thousand_tokens_on() -> None:
    steps = snapshot_steps(MINI.batch_size, MINI.data_steps, MINI.data_first_tokens, MINI.data_points)
    assert len(steps) >= 10 and 50_000 <= steps[0] * MINI.batch_size < 55_000 and MINI.data_seeds >= 6
    assert len(snapshot_steps(SMOKE.batch_size, SMOKE.data_steps, SMOKE.data_first_tokens, SMOKE.data_points)) == 3


def test_arms_are_runs_of_their_own() -> None:
    specs = {arm.name: arm.spec(3) for arm in ARMS}
    assert len({spec.run for spec in specs.values()}) == len(ARMS) and min(spec.run for spec in specs.values()) > 200
    warm, plain = specs["warm, contexts"], specs["random, all"]
    assert (warm.seed, warm.init_from_narrow, warm.normalised, warm.filtered) == (3, True, False, True)
    assert (plain.init_from_narrow, plain.normalised, plain.filtered, plain.zero_parent) == (False, True, False, False)
    with pytest.raises(UserError, match="arm must be one of"):
        data_needed.points(SMOKE, "cold", 0)


# --- levels ---------------------------------------------------------------------------------------------------------------


def curve(arm: str, seed: int, S_2: list[float], seconds_: float = 1.0) -> pd.DataFrame:
    tokens = [100 * 2**i for i in range(len(S_2))]
    return pd.DataFrame({"arm": arm, "seed": seed, "tokens": tokens, "seconds": seconds_, "S_1": S_2, "S_2": S_2})


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.concat(
        [
            curve("random, all", 0, [0.1, 0.2, 0.6]), curve("random, all", 1, [0.1, 0.5, 0.4]),
            curve("random, all", 2, [0.1, 0.2, 0.3]), curve("random, tokens", 0, [0.6, 0.8, 0.8]),
            curve("random, tokens", 1, [0.5, 0.5, math.nan]), curve("random, tokens", 2, [0.1, 0.6, 0.8]),
        ],
        ignore_index=True,
    )  # fmt: skip


def test_a_level_is_reached_from_where_the_curve_stays_as_high() -> None:
    """An SAE that is hardly trained may be above the level, and fall back."""
    dip = curve("random, all", 0, [0.6, 0.2, 0.5, 0.7])
    assert reached_at(dip, 0.5) == 400 and reached_at(dip, 0.2) == 100
    assert math.isnan(reached_at(dip, 0.71)) and math.isnan(reached_at(curve("a", 0, [0.9, 0.4]), 0.5))
    assert math.isnan(reached_at(curve("a", 0, [0.9, math.nan]), 0.5))


def test_levels_with_censoring(table: pd.DataFrame) -> None:
    found = levels_table(table, {"half": 0.5, "nine tenths": 0.9}).set_index(["arm", "level"])
    plain, token = found.loc[("random, all", "half")], found.loc[("random, tokens", "half")]
    assert math.isnan(plain["tokens"]) and (plain["reached"], plain["seeds"], plain["first"]) == (1, 3, 100)
    assert (token["tokens"], token["reached"]) == (200, 2)
    assert math.isnan(found.loc[("random, all", "nine tenths"), "tokens"])


def test_the_smallest_difference_is_of_pairs_of_seeds(table: pd.DataFrame) -> None:
    row = differences(table[table["seed"] != 1]).iloc[0]  # 0.8 less 0.6, 0.8 less 0.3
    assert (row["arm"], row["against"], row["seeds"]) == ("random, tokens", "random, all", 2)
    assert row["difference"] == pytest.approx(0.35)
    assert row["smallest"] == pytest.approx((12.7062 + 1.3764) * 0.15, abs=1e-3)


# --- the price ---------------------------------------------------------------------------------------------------------------


def test_a_filtered_token_costs_one_over_its_share_to_find_and_nothing_to_see_again() -> None:
    source = Source(share=0.1, available=500.0, sae_second=2.0)
    assert lm_tokens(300.0, source) == 3000 and lm_tokens(900.0, source) == 5000
    assert seconds(900.0, source, lm_second=3.0) == 900 * 2 + 5000 * 3
    with pytest.raises(UserError, match="share must be in"):
        Source(0.0, 1.0, 1.0)


def test_the_break_even_share_by_hand() -> None:
    """100 filtered tokens at 2 s against 400 at 1 s, 3 s to read one: 100 (2 + 3 / q) = 400 (1 + 3) at q = 300 / 1400."""
    everything = Source(1.0, math.inf, 1.0)
    found = break_even(100.0, Source(0.5, math.inf, 2.0), 400.0, everything, 3.0)
    assert found.share == pytest.approx(300 / 1400)
    assert found.ratio == pytest.approx(100 * (2 + 6) / 1600)
    at = break_even(100.0, Source(300 / 1400, math.inf, 2.0), 400.0, everything, 3.0)
    assert at.ratio == pytest.approx(1.0)
    assert break_even(100.0, Source(0.2, math.inf, 2.0), 400.0, everything, 3.0).ratio > 1
    never = break_even(100.0, Source(1.0, math.inf, 20.0), 400.0, everything, 3.0)
    assert never.share == math.inf and never.ratio > 1  # training alone costs 2,000 s


@pytest.mark.parametrize("seed", range(20))
def test_the_formula_agrees_with_the_costs_it_stands_for(seed: int) -> None:
    n_f, n_a, s_f, s_a, read, q = np.random.default_rng(seed).uniform(0.01, 1, 6).tolist()
    found = break_even(n_f, Source(q, math.inf, s_f), n_a, Source(1.0, math.inf, s_a), read)
    costs = seconds(n_f, Source(q, math.inf, s_f), read), seconds(n_a, Source(1.0, math.inf, s_a), read)
    assert (found.ratio < 1) == (costs[0] < costs[1]) == (q > found.share)


SOURCES = {"random, all": Source(1.0, 10_000.0, 1.0), "random, tokens": Source(0.01, 80.0, 1.0)}


def test_priced_levels(table: pd.DataFrame) -> None:
    levels = {"run 9": 0.3, "half": 0.5, "three quarters": 0.75, "nine tenths": 0.9}
    found = priced(table, levels, SOURCES, lm_second=0.5).set_index(["arm", "level"])
    token = found.loc[("random, tokens", "run 9")]  # at 100, 200 and (seed 1) not, against 400, 200 and 400
    assert token["tokens"] == 200 and token["lm_tokens"] == 8000 and token["seconds_in_all"] == 200 + 4000
    assert token["break_even"] == pytest.approx(200 * 0.5 / (400 * 1.5 - 200))
    assert token["ratio"] == pytest.approx(200 * (1 + 0.5 / 0.01) / (400 * 1.5)) and token["bound"] == ""
    assert token["ratio_low"] == 0 and token["ratio_high"] == math.inf and token["verdict"] == "undecided"
    assert token["ratio_seen_again"] == pytest.approx((200 + 4000) / (400 + 200))
    assert math.isnan(found.loc[("random, all", "run 9"), "break_even"])
    later = found.loc[("random, tokens", "half")]  # all data never got there in 400 tokens: its cost is a lower end
    assert (later["tokens"], later["bound"], later["verdict"]) == (200, "at most", "undecided")
    assert pd.isna(found.loc[("random, tokens", "nine tenths"), "verdict"])
    text = answer(found.reset_index())
    assert text.startswith(
        "S_2 = 0.75 (three quarters of the way to the probe) is reached, within up to 400 SAE tokens, by "
        "random, tokens after 400 tokens (95% 200 to not within), no other arm."
    )
    assert text.endswith("open where the curves do not say): by token, 17.0 (open to open): undecided.")
    assert text.count(". ") == 1


def test_where_both_arms_are_there_at_their_first_point_nothing_is_decided() -> None:
    table = pd.concat([curve(arm, seed, [0.8, 0.8]) for arm in SOURCES for seed in (0, 1)])
    row = (
        priced(table, {"run 9": 0.5, "three quarters": 0.75}, SOURCES, 0.5)
        .set_index("arm")
        .loc["random, tokens"]
        .iloc[0]
    )
    assert row["ratio"] == pytest.approx(34) and (row["ratio_low"], row["ratio_high"]) == (0, math.inf)
    assert row["bound"] == "either way"
    assert row["verdict"] == "undecided"
    text = answer(priced(table, {"run 9": 0.5, "three quarters": 0.75}, SOURCES, 0.5))
    assert "random, tokens after at most 100 tokens (95% at most 100 to at most 100)" in text
    assert text.endswith("by token, 34.0 (open to open): undecided.")


@pytest.mark.parametrize(
    ("S_2", "verdict"), [([0.2, 0.2, 0.6, 0.6], "does not pay"), ([0.6, 0.6, 0.6, 0.6], "undecided")]
)
def test_the_verdict_is_the_interval_s(S_2: list[float], verdict: str) -> None:
    """All data are there after 200 tokens; the filtered ones, whose token costs 51 / 1.5 as much, after 400 or at most 100."""
    filtered = [curve("random, tokens", seed, S_2) for seed in range(6)]
    everything = [curve("random, all", seed, [0.2, 0.6, 0.6, 0.6]) for seed in range(6)]
    found = priced(pd.concat([*filtered, *everything]), {"run 9": 0.5}, SOURCES, 0.5).set_index("arm")
    assert found.loc["random, tokens", "verdict"] == verdict


def test_the_interval_of_a_ratio_is_open_where_an_end_is_not_known() -> None:
    def interval(filtered: list[float], everything: list[float]) -> tuple[float, float]:
        watched, rng = {"first": 100.0, "given": 1000.0}, np.random.default_rng(0)
        return tokens_ratio(*(drawn_medians(np.array(times), watched, rng) for times in (filtered, everything)))

    assert interval([600.0] * 6, [200.0] * 6) == (3, 3)
    assert interval([200.0, 400, 800], [200.0] * 3) == (1, 4)
    assert interval([100.0] * 6, [200.0] * 6) == (0, 0.5)  # there since when?
    assert interval([200.0] * 6, [100.0] * 6) == (2, math.inf)
    assert interval([math.nan] * 6, [200.0] * 6) == (5, math.inf)  # 1,000 or more
    assert interval([200.0] * 6, [math.nan] * 6) == (0, 0.2)
    assert interval([100.0] * 6, [100.0] * 6) == (0, math.inf)


def test_wide_arms_share_a_rate_and_the_children_keep_theirs_as_a_part_of_it_elsewhere() -> None:
    arms = {"random, all": 3.0, "warm, all": 2.0, "random, tokens": 1.0, "children": 0.2}
    here = at_one_rate({arm: Source(1.0, 1.0, second) for arm, second in arms.items()})
    assert [source.sae_second for source in here.values()] == [2, 2, 2, 0.2]
    there = at_rate(here, 4.0)
    assert [source.sae_second for source in there.values()] == pytest.approx([0.25, 0.25, 0.25, 0.025])


def test_an_answer_without_a_level_or_without_a_price(table: pd.DataFrame) -> None:
    text = answer(priced(table, {"run 9": 0.9, "three quarters": 0.9}, SOURCES, lm_second=0.5))
    assert "by no arm." in text and "by token, unknown, for the level is not reached (0 of 3 seeds)" in text


def test_the_picture_has_both_scores_and_the_study_s_own_runs_as_points(table: pd.DataFrame) -> None:
    runs = pd.DataFrame({"arm": ["random, all"], "seed": [10], "tokens": [800], "S_1": [0.5], "S_2": [0.7]})
    figure = data_figure(table, {"SAE tokens": lambda n, arm: n, "twice": lambda n, arm: 2 * n}, runs)
    assert [axis.get_ylabel() for axis in figure.axes] == ["S_2", "", "S_1", ""]
    points = [line.get_xydata().tolist() for axis in figure.axes[:2] for line in axis.lines if line.get_marker() == "o"]
    assert points == [[[800, 0.7]], [], [[1600, 0.7]], []]
    plt.close(figure)


def test_reading_takes_time() -> None:
    model = load_embedded()
    assert 0 < price.reading_second(model, np.full((2, 128), 5), least=1) < 1
