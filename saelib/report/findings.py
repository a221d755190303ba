"""What the study's claims look like in our runs: one sentence each, sorted into what was seen and what was not.

Every sentence is made from the numbers passed in; nothing is decided here but on which side of a stated line it falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from saelib.report.index_page import verdict_class
from saelib.split.classes import CLASSES
from saelib.study.eye_test import FIRES_ELSEWHERE_MAX, WIN_RATE_MIN
from saelib.study.runs import RUNS

Finding = tuple[bool, str] | None
"""Whether it was seen, and the sentence; None where the numbers are missing."""
KINDS = {"count": "after a count word", "number": "after a number", "compound": "in other compounds"}


def findings(results: pd.DataFrame, headlines: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """(seen, not seen), from the rows of the runs and the headline numbers of notebooks 03, 06, 07 and 08."""
    told = [_filter_share(headlines.get("03_filter", {})), *_efficiency(headlines.get("06_training_efficiency", {}))]
    told += [_claims(headlines.get("07_claims", {})), _calibration(headlines.get("08_calibration", {}))]
    if {"verdict", *(f"f1_{name}" for name in CLASSES)} <= set(results.columns):  # runs that were judged
        told = [*_runs(results.set_index("run")), *told]
    kept = [item for item in told if item is not None]
    return [text for seen, text in kept if seen], [text for seen, text in kept if not seen]


def _runs(table: pd.DataFrame) -> list[Finding]:
    wide = [spec for spec in RUNS if spec.size == "wide" and spec.run in table.index]
    return [
        _all_classes([spec.run for spec in wide], table),
        *(_one_class(name, [spec.run for spec in wide], table) for name in CLASSES),
        _filtered_against_plain(table),
    ]


def _all_classes(runs: Sequence[int], table: pd.DataFrame) -> Finding:
    if not runs:
        return None
    split = [run for run in runs if verdict_class(table.loc[run, "verdict"]) == "yes"]
    which = f" (runs {', '.join(map(str, split))})" if split else ""
    return bool(
        split
    ), f"A full split, a feature of its own for each kind of hyphen: {len(split)} of {len(runs)} wide runs{which}."


def _one_class(name: str, runs: Sequence[int], table: pd.DataFrame) -> Finding:
    if not runs or f"words_{name}" not in table:
        return None
    words, prompt = (table.loc[list(runs)][f"{test}_{name}"].eq(True) for test in ("words", "prompt"))
    f1 = table.loc[list(runs)][f"f1_{name}"]
    text = (
        f"Hyphens {KINDS[name]}: the child passes on held-out words (top on more than {WIN_RATE_MIN:.0%} of its own, firing "
        f"on at most {FIRES_ELSEWHERE_MAX:.0%} of the others) in {words.sum()} of {len(runs)} wide runs, on the study's "
        f"prompt in {prompt.sum()}, on both in {(words & prompt).sum()}; F1 {f1.min():.2f} to {f1.max():.2f} on "
        f"{int(table[f'test_hyphens_{name}'].max()):,} test hyphens."
    )
    return bool((words & prompt).any()), text


def _filter_share(headline: Mapping[str, Any]) -> Finding:
    if "kept_by_context" not in headline:
        return None
    kept, factor = headline["kept_by_context"], headline["enrichment_by_context"]
    text = (
        f"Filtering by context kept {kept:.1%} of the tokens, {factor:.1f} times richer in parent-active ones "
        f"(the study kept about 72%); by token {headline['kept_by_token']:.2%}, {headline['enrichment_by_token']:.0f} times."
    )
    return True, text


def _filtered_against_plain(table: pd.DataFrame) -> Finding:
    """Runs that differ in the filter alone: random start, standard loss."""
    same = [spec for spec in RUNS if spec.size == "wide" and not spec.init_from_narrow and spec.run in table.index]
    arms = {kept: [spec.run for spec in same if spec.filtered is kept] for kept in (True, False)}
    if not all(arms.values()):
        return None
    f1 = table[[f"f1_{name}" for name in CLASSES]].mean(axis=1)
    a, b = f1[arms[True]], f1[arms[False]]
    apart = a.min() > b.max()
    text = (
        f"Filtering alone helps (runs {_span(arms[True])} against the plain control {_span(arms[False])}): mean F1 of the "
        f"children {a.mean():.3f} ({a.min():.3f} to {a.max():.3f}) against {b.mean():.3f} ({b.min():.3f} to {b.max():.3f}), "
        f"three seeds each{'' if apart else ', which overlap or point the other way'}."
    )
    return bool(apart), text


def _claims(headline: Mapping[str, Any]) -> Finding:
    if "seeds_per_arm" not in headline:
        return None
    text = f"With {headline['seeds_per_arm']} seeds an arm and {_tokens(headline['tokens_per_run'])} a run: {headline['answer']}"
    return bool(headline["claims"].get("supported")), text


def _calibration(headline: Mapping[str, Any]) -> Finding:
    if "detection" not in headline:
        return None
    return True, f"The verdict on synthetic features with known answers: {headline['answer']}"


def _efficiency(headline: Mapping[str, Any]) -> list[Finding]:
    if "level" not in headline:
        return []
    warm, cold = (_number(headline.get(f"{start}_median_tokens")) for start in ("warm", "random"))
    faster = math.isfinite(warm) and not (math.isfinite(cold) and cold <= warm)
    text = (
        f"A warm start reaches the same loss sooner: median {_tokens(warm)} against {_tokens(cold)} for random starts "
        f"({headline['warm_reached']} of {headline['warm_runs']} and {headline['random_reached']} of "
        f"{headline['random_runs']} runs got there)."
    )
    found: list[Finding] = [(faster, text)]
    for arm, words in (("zeroed", "zeroed in the loss"), ("standard", "under the standard loss")):
        shares = headline.get(f"parent_still_top_{arm}") or []
        if shares:
            peak = headline.get(f"parent_top_peak_{arm}") or [math.nan]
            replaced = max(shares) < 0.5 < min(peak)
            found.append(
                (replaced, f"After a warm start the old parent, {words}, is replaced: at its peak on top of "
                 f"{min(peak):.0%} to {max(peak):.0%} of its hyphens, at the end of "
                 f"{min(shares):.0%} to {max(shares):.0%} ({len(shares)} runs).")
            )  # fmt: skip
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _tokens(value: float) -> str:
    return f"{value:,.0f} tokens" if math.isfinite(value) else "more tokens than were given"


def _span(runs: Sequence[int]) -> str:
    return f"{min(runs)}-{max(runs)}"
