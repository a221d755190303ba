"""From the runs of the arms to verdicts on claims: by hand, and the arms as data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from saelib.base.errors import UserError
from saelib.base.stats import TTest
from saelib.base.table import as_row, frame_of
from saelib.report.claim_views import claims_headline, early_and_late, long_enough
from saelib.split.verdict import Verdict
from saelib.study import arms, claims
from saelib.study.arms import EARLY, END, ArmRun
from saelib.study.claims import CLAIMS, Claim, ClaimVerdict, Kind, Measure, block_effects, claim_verdict, judge_claims
from saelib.study.graded import Graded
from saelib.study.outcome import Outcome, Strict
from saelib.study.profiles import MINI
from saelib.study.runs import ARMS, get_run


def run(arm: str, block: int, seed: int, S_2: float, at: str = END, verdict: Verdict = Verdict.NOT_SPLIT) -> ArmRun:
    strict = Strict(verdict, 2 * (verdict is Verdict.SPLIT), 2, "", 1, 2, 3)
    outcome = Outcome(Graded(S_2=S_2), strict, 10.0)
    return ArmRun(arm, block, seed, at, 100, 5, 0.9, 0.9, 1.0, outcome, S_2_permuted=0.01 * (block - 1))


def arm(name: str, blocks: list[tuple[float, float]], at: str = END) -> list[ArmRun]:
    """Two seeds on each block."""
    return [run(name, b, 2 * b + i, S_2, at) for b, pair in enumerate(blocks) for i, S_2 in enumerate(pair)]


FIRST = Claim("a beats b", Kind.PUBLISHED, "seen", ("a", END), ("b", END))


def test_a_blocks_effect_is_the_difference_of_its_means_and_narrow_saes_are_the_unit() -> None:
    runs = arm("a", [(0.5, 0.7), (0.6, 0.6), (0.8, 0.6)]) + arm("b", [(0.3, 0.5), (0.5, 0.5), (0.4, 0.4)])
    # block means 0.6 0.6 0.7 less 0.4 0.5 0.4: 0.2 0.1 0.3
    np.testing.assert_allclose(block_effects(FIRST, runs), [0.2, 0.1, 0.3])
    (row,) = judge_claims(runs, [FIRST])
    # mean 0.2, s = 0.1, t.975 with 2 df = 4.3027, half width 4.3027 x 0.1 / sqrt(3) = 0.24842
    assert (row.effect, row.low, row.high) == pytest.approx((0.2, -0.04842, 0.44842), abs=1e-4)
    assert (row.blocks, row.seeds, row.arms) == (3, 2, "a - b")
    assert row.first_S_2 == pytest.approx(1.9 / 3) and row.second_S_2 == pytest.approx(1.3 / 3)
    # t = 0.2 / 0.057735 = 3.4641; with 2 df P(|T| > 3.4641) = 0.07418
    assert row.p == row.p_holm == pytest.approx(0.07418, abs=1e-4)
    # t.80 with 2 df = 1.0607
    assert row.smallest_effect == pytest.approx((4.3027 + 1.0607) * 0.1 / math.sqrt(3), abs=1e-4)
    assert row.verdict is ClaimVerdict.UNDECIDED


def test_the_verdict_is_read_off_the_interval() -> None:
    def verdict(low: float, high: float, within: bool = False, p_holm: float = math.nan) -> str:
        return claim_verdict(TTest((low + high) / 2, low, high, 0.5), p_holm, within).value

    assert verdict(0.01, 0.3) == "supported"
    assert verdict(0.01, 0.05) == "supported"  # the effect is there, if small: the table says how large
    assert verdict(0.01, 0.05, p_holm=0.04) == "supported"
    assert verdict(0.01, 0.05, p_holm=0.16) == "not supported"  # and no effect that matters
    assert verdict(0.01, 0.3, p_holm=0.16) == verdict(-0.05, 0.09, within=True, p_holm=0.16) == "undecided"
    assert verdict(-0.05, 0.09) == "not supported"
    assert verdict(-0.3, -0.2) == "not supported"
    assert verdict(-0.05, 0.11) == "undecided"
    assert verdict(math.nan, math.nan) == "undecided"
    assert verdict(-0.05, 0.09, within=True) == "supported"
    assert verdict(0.11, 0.2, within=True) == verdict(-0.3, -0.11, within=True) == "not supported"
    assert verdict(0.05, 0.2, within=True) == "undecided"


def test_holm_is_over_the_claims_and_leaves_controls_out() -> None:
    runs = arm("a", [(0.60, 0.60), (0.62, 0.62), (0.61, 0.61)]) + arm("b", [(0.4, 0.4), (0.41, 0.41), (0.4, 0.4)])
    runs += arm("c", [(0.58, 0.58), (0.64, 0.64), (0.6, 0.6)])
    second = Claim("a beats c", Kind.OURS, "", ("a", END), ("c", END))
    control = Claim("c beats b", Kind.CONTROL, "", ("c", END), ("b", END))
    one, two, three = judge_claims(runs, [FIRST, second, control])
    assert one.p_holm == pytest.approx(2 * one.p) and two.p_holm == pytest.approx(max(two.p, 2 * one.p))
    assert math.isnan(three.p_holm) and three.p < 0.05
    assert (one.verdict, two.verdict) == (ClaimVerdict.SUPPORTED, ClaimVerdict.NOT_SUPPORTED)


def test_spread_permuted_labels_and_times() -> None:
    runs = arm("a", [(0.5, 0.52), (0.6, 0.6), (0.7, 0.66)]) + arm("a", [(0.3, 0.3)] * 3, EARLY)
    spread = Claim("seeds agree", Kind.PUBLISHED, "", ("a", END), measure=Measure.SPREAD, within=True)
    np.testing.assert_allclose(block_effects(spread, runs), [0.02, 0.0, 0.04])
    permuted = Claim("nothing", Kind.CONTROL, "", ("a", END), measure=Measure.PERMUTED, within=True)
    np.testing.assert_allclose(block_effects(permuted, runs), [-0.01, 0.0, 0.01])
    late = Claim("late", Kind.OURS, "", ("a", END), ("a", EARLY))
    np.testing.assert_allclose(block_effects(late, runs), [0.21, 0.3, 0.38])
    rows = judge_claims(runs, [spread, permuted, late])
    assert [row.verdict.value for row in rows] == ["supported"] * 3
    assert [row.arms for row in rows] == ["a, spread of seeds", "a, permuted labels", "a - a (early)"]
    one_seed = [run("a", b, b, 0.5) for b in range(3)]
    assert judge_claims(one_seed, [spread])[0].verdict is ClaimVerdict.UNDECIDED, "one seed has no spread"


def test_the_strict_verdict_stands_beside() -> None:
    runs = [
        run("a", b, 2 * b + i, 0.5, verdict=Verdict.SPLIT if i else Verdict.PARTIAL) for b in range(2) for i in range(2)
    ]
    (row,) = judge_claims(runs + arm("b", [(0.3, 0.3)] * 2), [FIRST])
    assert (row.first_strict, row.second_strict, row.first_passed, row.second_passed) == (0.5, 0.0, 1.0, 0.0)


def test_the_page_says_which_parents_are_hyphens_and_whether_runs_are_long_enough() -> None:
    runs = arm("a", [(0.5, 0.52), (0.6, 0.62)]) + arm("a", [(0.45, 0.45), (0.55, 0.55)], EARLY)
    runs += arm("b", [(0.5, 0.6), (0.6, 0.5)]) + arm("b", [(0.53, 0.53), (0.53, 0.53)], EARLY)
    frame = frame_of(ArmRun, map(as_row, runs))
    frame.loc[frame["block"] == 1, "recall"] = 0.7
    # a: 0.56 - 0.50 = 0.06, two seeds differ by 0.02; b: 0.55 - 0.53 = 0.02 and 0.1
    frame.loc[frame["at"] == EARLY, "tokens"] = 25
    told = (
        "From 25% of a run to its end S_2 changes by +0.02 to +0.06, in 1 of 2 arms by more than two seeds differ (a)."
    )
    assert long_enough(early_and_late(frame)) == told
    found = claims_headline(MINI, judge_claims(runs, [FIRST]), frame)
    assert (found["parents_of_hyphens"], found["purity_lowest"], found["recall_lowest"]) == (1, 0.9, 0.7)
    assert found["long_enough"] == told and found["claims"] == {"undecided": 1}


def test_arms_are_the_rows_of_the_run_table_they_stand_for() -> None:
    for one in ARMS:
        for number in one.runs:
            mine, theirs = one.spec(7), get_run(number)
            for name in ("size", "init_from_narrow", "normalised", "filtered", "zero_parent"):
                if name == "normalised" and not theirs.init_from_narrow:
                    continue  # normalising at the start means nothing without a warm start
                assert getattr(mine, name) == getattr(theirs, name), (one.name, number, name)
    assert len({one.spec(0).run for one in ARMS}) == len(ARMS)
    with pytest.raises(UserError, match="arm must be one of"):
        arms.get_arm("lukewarm")


def test_every_claim_compares_arms_that_are_run_with_the_power_that_is_asked() -> None:
    known = {one.name for one in ARMS} | {"children", "random decoder"}
    for one in CLAIMS:
        assert {which[0] for which in (one.first, one.second) if which} <= known
        assert all(name in arms.WATCHED for name, at in filter(None, (one.first, one.second)) if at == EARLY)
    assert (MINI.claim_blocks, MINI.claim_wide_seeds, claims.MATTERS) == (12, 2, 0.10)
    seeds = [seed for block in range(12) for seed in arms.seeds_of(MINI, block)]
    assert len(set(seeds)) == 24
    assert [arms.block_profile(MINI, block).seed for block in (0, 3)] == [MINI.seed, MINI.seed + 3]


def test_the_coefficient_is_calibrated_by_secants() -> None:
    # L0 falls as the coefficient to the power 2: from L0 80 at 1 to a target of 10 the scale is sqrt(8)
    def l0_at(scale: float) -> float:
        return math.log(80) - 2 * scale

    first = arms._next_scale([(0.0, math.log(80))], math.log(10), l0_at)
    assert math.exp(first[0]) == pytest.approx(4), "8 if L0 were inverse to the coefficient, but no step is above 4"
    second = arms._next_scale([(0.0, math.log(80)), first], math.log(10), l0_at)
    assert math.exp(second[0]) == pytest.approx(math.sqrt(8)) and math.exp(second[1]) == pytest.approx(10)
