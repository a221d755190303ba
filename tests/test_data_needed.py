"""Data needed, by hand: points of a curve, levels with censoring, what filtered data cost and from which share on they pay."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from saelib.base.errors import UserError
from saelib.lm.model import load_embedded
from saelib.study import data_needed, price
from saelib.study.data_needed import ARMS, snapshot_steps
from saelib.study.data_tables import answer, first_at_least, levels_table, priced, priced_at
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


def test_a_level_is_reached_at_the_first_point_that_is_as_high(table: pd.DataFrame) -> None:
    run = table[(table["arm"] == "random, all") & (table["seed"] == 1)]
    assert first_at_least(run, 0.5) == 200
    assert math.isnan(first_at_least(run, 0.51))


def test_levels_with_censoring(table: pd.DataFrame) -> None:
    found = levels_table(table, {"half": 0.5, "nine tenths": 0.9}).set_index(["arm", "level"])
    plain, token = found.loc[("random, all", "half")], found.loc[("random, tokens", "half")]
    assert (plain["tokens"], plain["reached"], plain["seeds"]) == (400, 2, 3) and math.isnan(plain["high"])
    assert (token["tokens"], token["reached"]) == (100, 3)
    assert math.isnan(found.loc[("random, all", "nine tenths"), "tokens"])


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
    assert found.share == pytest.approx(300 / 1400) and found.here == 0.5
    assert found.ratio == pytest.approx(100 * (2 + 6) / 1600) and found.pays
    at = break_even(100.0, Source(300 / 1400, math.inf, 2.0), 400.0, everything, 3.0)
    assert at.ratio == pytest.approx(1.0)
    assert not break_even(100.0, Source(0.2, math.inf, 2.0), 400.0, everything, 3.0).pays
    never = break_even(100.0, Source(1.0, math.inf, 20.0), 400.0, everything, 3.0)
    assert never.share == math.inf and not never.pays  # training alone costs 2,000 s


@pytest.mark.parametrize("seed", range(20))
def test_the_formula_agrees_with_the_costs_it_stands_for(seed: int) -> None:
    n_f, n_a, s_f, s_a, read, q = np.random.default_rng(seed).uniform(0.01, 1, 6).tolist()
    found = break_even(n_f, Source(q, math.inf, s_f), n_a, Source(1.0, math.inf, s_a), read)
    costs = seconds(n_f, Source(q, math.inf, s_f), read), seconds(n_a, Source(1.0, math.inf, s_a), read)
    assert found.pays == (costs[0] < costs[1]) == (q > found.share)


def test_priced_levels(table: pd.DataFrame) -> None:
    sources = {"random, all": Source(1.0, 10_000.0, 1.0), "random, tokens": Source(0.01, 80.0, 1.0)}
    levels = levels_table(table, {"half": 0.5, "three quarters": 0.75})
    found = priced(levels, sources, lm_second=0.5).set_index(["arm", "level"])
    token = found.loc[("random, tokens", "half")]
    assert token["lm_tokens"] == 8000 and token["seconds_in_all"] == 100 + 4000
    assert token["break_even"] == pytest.approx(100 * 0.5 / (400 * 1.5 - 100)) and not token["at_least"]
    assert math.isnan(found.loc[("random, all", "half"), "break_even"])
    later = found.loc[("random, tokens", "three quarters")]  # all data never got there in 400 tokens
    assert later["tokens"] == 400 and later["at_least"]
    assert token["ratio_seen_again"] == pytest.approx((100 + 4000) / (400 + 200))
    text = answer(found.reset_index())
    assert "To get to S_2 = 0.75 (three quarters)" in text and "random, all: not within what was given (0 of 3)" in text
    assert "random, tokens: 400 tokens" in text and "at this machine's rates and S_2 = 0.50 (half)" in text
    assert "random, tokens does not pay: 8.5 times the cost (6.8 times where tokens are seen again" in text
    assert "it breaks even where 10.0% of tokens pass, and 1.0% do" in text


def test_prices_at_the_rates_of_another_machine(table: pd.DataFrame) -> None:
    sources = {"random, all": Source(1.0, 10_000.0, 1.0), "random, tokens": Source(0.01, 80.0, 1.0)}
    levels = levels_table(table, {"half": 0.5})
    found = priced_at(levels, sources, 4.0, 2.0)  # reading takes a quarter of a second, training half of one
    assert found is not None and found.set_index("arm").loc["random, tokens", "seconds_in_all"] == 100 / 2 + 8000 / 4
    assert priced_at(levels, sources, None, 2.0) is None and priced_at(levels, sources, 4.0, None) is None


def test_an_answer_without_a_level_or_without_a_price(table: pd.DataFrame) -> None:
    sources = {"random, all": Source(1.0, 10_000.0, 1.0), "random, tokens": Source(0.01, 80.0, 1.0)}
    none = priced(levels_table(table, {"nine tenths": 0.9}), sources, lm_second=0.5)
    assert answer(none).startswith("No arm reached any of the levels")
    alone = priced(levels_table(table, {"three quarters": 0.75}), sources, lm_second=0.5)
    assert answer(alone).endswith("so there is no price to compare.")


def test_reading_takes_time() -> None:
    model = load_embedded()
    assert 0 < price.reading_second(model, np.full((2, 128), 5), least=1) < 1
