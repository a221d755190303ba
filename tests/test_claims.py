"""From scores to verdicts on claims: by hand, and the arms as data."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from saelib.base import stats
from saelib.base.errors import UserError
from saelib.study import claims
from saelib.study.profiles import MINI
from saelib.study.runs import ARMS, get_run


def table(first: str, second: str, *, verdicts: tuple[list[str], list[str]], f1: tuple[float, float]) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "step": step, "tokens": 10 * step, "verdict": verdict, "best_f1": base + seed / 1000}
        for arm, found, base in ((first, verdicts[0], f1[0]), (second, verdicts[1], f1[1]))
        for seed, verdict in enumerate(found)
        for step in (1, 2)
    ]
    return pd.DataFrame(rows)


def claim(expected: float) -> claims.Claim:
    return claims.Claim("c", "p", "a", "b", expected)


def test_a_claim_is_decided_by_the_interval_of_the_difference() -> None:
    yes, no = ["split"] * 12, ["not split"] * 12
    row = claims.compare_arms(table("a", "b", verdicts=(yes, no), f1=(0.9, 0.5)), [claim(2 / 3)]).iloc[0]
    assert row["verdict"] == "supported" and row["split"] == "12/12 against 0/12" and row["difference"] == 1
    assert row["fisher_p"] < 1e-5 and row["mann_whitney_p"] < 1e-3 and row["f1_low"] > 0.39
    nothing = claims.compare_arms(table("a", "b", verdicts=(no, no), f1=(0.5, 0.5)), [claim(2 / 3), claim(0.0)])
    assert nothing["verdict"].tolist() == ["not supported", "supported"]  # +-0.24 reaches neither 2/3 nor 0.25
    few = claims.compare_arms(table("a", "b", verdicts=(no[:3], no[:3]), f1=(0.5, 0.5)), [claim(0.5)])
    assert few["verdict"].tolist() == ["undecided"]  # three seeds an arm reach +-0.56
    unknown = claims.compare_arms(table("a", "b", verdicts=(yes, ["undecided"] * 12), f1=(0.9, 0.5)), [claim(1.0)])
    assert unknown["verdict"].tolist() == ["undecided"]


def test_verdict_of_each_side() -> None:
    assert claims.verdict_of(0.1, 0.9, 0.5) == "supported"
    assert claims.verdict_of(-0.2, 0.4, 0.5) == "not supported"
    assert claims.verdict_of(-0.2, 0.6, 0.5) == "undecided"
    assert claims.verdict_of(0.1, 0.9, 0.0) == "not supported"  # it does help
    assert claims.verdict_of(-0.9, -0.1, 0.0) == "supported"
    assert claims.verdict_of(-0.2, 0.4, math.nan) == "undecided"


def test_tokens_to_success_is_the_first_success_or_censored() -> None:
    frame = pd.DataFrame(
        {
            "arm": ["a"] * 4, "seed": [0, 0, 1, 1], "step": [1, 2, 1, 2], "tokens": [10, 20, 10, 20],
            "verdict": ["split", "split", "partial 2/3", "not split"],
        }
    )  # fmt: skip
    found = claims.tokens_to_success(frame)["tokens"]
    assert found[0] == 10 and math.isnan(found[1])


def test_arms_are_the_rows_of_the_run_table_they_stand_for() -> None:
    for arm in ARMS:
        for run in arm.runs:
            mine, theirs = arm.spec(7), get_run(run)
            for name in ("size", "init_from_narrow", "normalised", "filtered", "zero_parent"):
                if name == "normalised" and not theirs.init_from_narrow:
                    continue  # normalising at the start means nothing without a warm start
                assert getattr(mine, name) == getattr(theirs, name), (arm.name, run, name)
    assert len({arm.spec(0).run for arm in ARMS}) == len(ARMS)
    assert all(len(claims.seeds_of(MINI, arm)) >= 12 for arm in ARMS if arm.headline)
    with pytest.raises(UserError, match="arm must be one of"):
        claims.get_arm("lukewarm")


def test_newcombe_by_hand() -> None:
    # 9 of 10 against 3 of 10: Wilson (.5958, .9821) and (.1078, .6032)
    low, high = stats.newcombe_interval(9, 10, 3, 10)
    assert low == pytest.approx(0.6 - math.hypot(0.9 - 0.5958, 0.6032 - 0.3), abs=1e-3)
    assert high == pytest.approx(0.6 + math.hypot(0.9821 - 0.9, 0.3 - 0.1078), abs=1e-3)
    assert all(math.isnan(end) for end in stats.newcombe_interval(0, 0, 1, 2))


def test_bootstrap_difference_and_censored_ranks() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0])
    low, high = stats.bootstrap_difference(a, b)
    assert 0 <= low < 1 < high <= 2 and (low, high) == stats.bootstrap_difference(a, b)
    assert math.isnan(stats.bootstrap_difference(a, np.array([]))[0])
    early, never = pd.Series(np.arange(1.0, 9.0)), pd.Series([math.nan] * 8)
    assert stats.censored_rank_p(early, never) < 0.001
    assert stats.censored_rank_p(never, never) == 1.0
    assert math.isnan(stats.censored_rank_p(early, pd.Series(dtype=float)))
