"""The children beside whole wide SAEs: means and ranges by hand, the sentence whichever way it comes out, nothing trained."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from saelib.base.table import as_row, frame_of
from saelib.report.run_views import split_headline
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.train import TrainResult
from saelib.split.verdict import Verdict
from saelib.study import rows_to_beat, selection, trainings
from saelib.study.children_rows import CHILDREN, RANDOM_DECODER, ChildrenResult
from saelib.study.graded import Graded
from saelib.study.outcome import Outcome, Strict
from saelib.study.profiles import MINI, SMOKE, Profile
from saelib.study.results import RunResult
from saelib.study.rows_to_beat import BY_TOKEN, OURS, PLAIN, RANDOM, REST, TOKEN_ARM, WIDE, RowToBeat, beside, who_leads
from saelib.study.runs import RUNS, RunSpec

ZEROED, WARM = "wide, warm, all data, parent zeroed", "wide, warm, filtered by context"


def outcome(S_2: float) -> Outcome:
    found = Graded(S_1=S_2 - 0.1, S_2=S_2, S_2_low=S_2 - 0.05, S_2_high=S_2 + 0.06, S_4=S_2 + 0.1)
    return Outcome(found, Strict(Verdict.NOT_SPLIT, 0, 2, "", 1, 2, 3), 10.0)


def run(number: int, S_2: float, seconds: float = 80.0, tokens: int = 4000) -> RunResult:
    return RunResult(
        run=number, size="wide", d_sae=2048, seed=1, init_from_narrow=False, normalised=True, filtered=False, loss="standard",
        published="", published_classes=None, outcome=outcome(S_2), prompts=0, prompt_number=False, prompt_count=False,
        prompt_compound=False, steps=10, tokens=tokens, l0=20.0, fvu=0.1, loss_recovered=0.9, dead_share=0.0, seconds=seconds,
        weights="0123",
    )  # fmt: skip


def in_the_parents_place(children: list[float], random: list[float]) -> list[ChildrenResult]:
    shared: dict[str, Any] = {"K": 64, "fvu": 0.3, "tokens": 1000, "seconds": 6.0}
    found = []
    for seed, (ours, null) in enumerate(zip(children, random, strict=True)):
        found.append(ChildrenResult(dictionary=CHILDREN, seed=seed, children=60, outcome=outcome(ours), **shared))
        found.append(ChildrenResult(dictionary=RANDOM_DECODER, seed=seed, children=60, outcome=outcome(null), **shared))
    return found


def rows(children: list[float], random: list[float], runs: list[RunResult]) -> tuple[RowToBeat, ...]:
    return beside(outcome(0.6).graded, in_the_parents_place(children, random), runs)


def test_rows_are_means_over_trainings_with_the_range_of_S_2() -> None:
    runs = [run(13, 0.6, 70.0), run(14, 0.7, 80.0), run(15, 0.62, 90.0), run(1, 0.71), run(2, 0.69), run(9, 0.99)]
    found = rows([0.77, 0.75, 0.73], [0.66, 0.66, 0.69], [*runs, run(12, 0.98)])
    named = {row.dictionary: row for row in found}
    assert [*named] == [OURS, REST, RANDOM, PLAIN, ZEROED], "run 9 is short, run 12 narrow: neither is a row"
    ours, plain = named[OURS], named[PLAIN]
    assert (ours.runs, ours.features, ours.tokens, ours.seconds, ours.fvu) == (3, 64, 1000, 6, 0.3)
    assert (ours.S_2, ours.smallest, ours.largest) == pytest.approx((0.75, 0.73, 0.77))
    assert (ours.low, ours.high, ours.S_1, ours.S_4) == pytest.approx((0.70, 0.81, 0.65, 0.85))
    assert (plain.runs, plain.features, plain.tokens, plain.seconds) == (3, 2048, 4000, 80)
    assert (plain.S_2, plain.smallest, plain.largest, plain.l0_hyphens) == pytest.approx((0.64, 0.6, 0.7, 10))
    assert (named[ZEROED].runs, named[ZEROED].S_2) == (2, pytest.approx(0.70))
    rest = named[REST]
    assert (rest.runs, rest.features, rest.tokens, rest.seconds) == (0, 0, 0, 0)
    assert (rest.S_2, rest.low, rest.high) == pytest.approx((0.6, 0.55, 0.66)) and math.isnan(rest.fvu)
    null = named[RANDOM]
    assert (null.features, null.S_2) == (60, pytest.approx(0.67))
    assert list(frame_of(RowToBeat, map(as_row, found))["dictionary"]) == [*named]


def test_every_wide_run_of_full_length_is_in_one_row() -> None:
    numbers = [number for name, arm in WIDE.items() if name != BY_TOKEN for number in arm]
    assert sorted(numbers) == [spec.run for spec in RUNS if spec.size == "wide" and not spec.short]
    for name, arm in WIDE.items():
        for spec in RUNS:
            if spec.run in arm:
                said = ("warm" in name, "filtered" in name, "zeroed" in name)
                assert said == (spec.init_from_narrow, spec.filtered, spec.zero_parent), name


def test_the_sentence_says_who_is_ahead_and_by_how_much() -> None:
    wide = [run(13, 0.60), run(14, 0.64), run(1, 0.69), run(2, 0.71), run(TOKEN_ARM.spec(0).run, 0.66, tokens=9)]
    assert who_leads(rows([0.77, 0.75, 0.73], [0.66, 0.66, 0.69], wide)) == (
        "Rest + children are ahead of the best wide SAEs, “wide, warm, all data, parent zeroed”, by 0.05: S_2 0.75 (0.73 to "
        "0.77) against 0.70 (0.69 to 0.71); against “wide, all data” +0.13, “rest alone” +0.15, “rest + random decoder” +0.08. "
        "64 features are trained, in 6 s, where one of those has 2,048 and takes 80 s."
    )
    behind = who_leads(rows([0.48, 0.45, 0.42], [0.6, 0.6, 0.6], [run(13, 0.52), run(7, 0.84), run(8, 0.86)]))
    assert behind.startswith(
        f"Rest + children are behind the best wide SAEs, “{WARM}”, by 0.40: S_2 0.45 (0.42 to 0.48) against"
    )
    assert "; against “wide, all data” -0.07, “rest alone” -0.15, “rest + random decoder” -0.15." in behind
    level = who_leads(rows([0.70, 0.70, 0.702], [0.6, 0.6, 0.6], [run(13, 0.70)]))
    assert "are level with the best wide SAEs, “wide, all data”: S_2 0.70 (0.70 to 0.70) against 0.70; against" in level
    overlap = who_leads(rows([0.70, 0.72, 0.80], [0.6, 0.6, 0.6], [run(13, 0.68), run(14, 0.71)]))
    assert "ahead" in overlap and "by 0.04" in overlap and "; single trainings overlap; against" in overlap


def test_where_the_row_of_the_token_filter_is_missing_the_sentence_says_where_it_stands() -> None:
    where = "The wide SAE filtered by token is not among these rows: see 07_claims."
    with_it = [run(13, 0.6), run(TOKEN_ARM.spec(1).run, 0.8)]
    found = rows([0.7], [0.6], with_it)
    assert where not in who_leads(found) and f"behind the best wide SAEs, “{BY_TOKEN}”" in who_leads(found)
    assert who_leads(rows([0.7], [0.6], with_it[:1])).endswith(where)


def test_what_cannot_be_measured_leads_nothing() -> None:
    nan = math.nan
    assert who_leads(rows([nan], [nan], [run(13, 0.6)])).startswith("Nothing can be said of the children")
    assert who_leads(rows([0.7], [nan], [run(13, nan)])).startswith(
        "Rest + children have S_2 0.70; no wide SAE was measured."
    )
    partly = rows([0.7], [nan], [run(13, 0.6)])
    assert "random" not in who_leads(partly) and "against “rest alone” +0.10." in who_leads(partly)
    (ours, *_) = rows([0.7, nan], [nan, nan], [])
    assert (ours.runs, ours.S_2) == (2, pytest.approx(0.7))


def test_a_training_that_is_not_kept_is_not_made(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was begun and killed."""
    chosen, spec, opened = selection.Parent(3, 0.5, 2.0), TOKEN_ARM.spec(1), []
    plan = SimpleNamespace(name="run-203", key="0123")
    kept = TrainResult(SAE(SAEConfig(4, 8, "blocks.0.hook_mlp_out", "none")), pd.DataFrame(), 1.0, 100)

    def train_run(profile: Profile, spec: RunSpec, *given: Any) -> TrainResult:
        opened.append(spec.seed)
        return kept

    monkeypatch.setattr(trainings, "_run_plan", lambda *given: plan)
    monkeypatch.setattr(trainings, "train_run", train_run)
    assert trainings.kept_run(MINI, spec, chosen, "token", 400) is None
    folder = trainings.training_folder(plan.name, plan.key)
    (folder / "checkpoints").mkdir(parents=True)
    assert trainings.kept_run(MINI, spec, chosen, "token", 400) is None and opened == []
    (folder / "summary.json").touch()
    assert trainings.kept_run(MINI, spec, chosen, "token", 400) is kept and opened == [1]


def test_runs_filtered_by_token_are_those_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = selection.Parent(3, 0.5, 2.0)
    monkeypatch.setattr(trainings, "kept_run", lambda profile, spec, *given: None if spec.seed == 1 else spec.seed)
    monkeypatch.setattr(rows_to_beat, "run_result", lambda profile, spec, chosen, seed: run(spec.run, 0.1 * seed))
    assert [row.outcome.graded.S_2 for row in rows_to_beat.token_filtered(MINI, chosen)] == [0.0, 0.2]
    assert len(rows_to_beat.token_filtered(SMOKE, chosen)) == 1, "the smoke profile has two seeds"


def test_the_head_of_the_page_compares_what_is_measured_on_the_same_hyphens() -> None:
    found = rows([0.77, 0.75, 0.73], [0.66, 0.66, 0.69], [run(13, 0.6), run(1, 0.7)])
    head = split_headline(None, "too few tokens", run(1, 0.7), found)
    assert (head["S_2_children"], head["S_2_best_wide"], head["best_wide"]) == (pytest.approx(0.75), 0.7, ZEROED)
    assert split_headline(None, "", run(1, 0.7), rows([0.7], [0.6], []))["S_2_best_wide"] is None
