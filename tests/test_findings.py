"""Findings are made from the numbers, and fall on the side the numbers say."""

from __future__ import annotations

import pandas as pd

from saelib.report.findings import findings
from saelib.split.classes import CLASSES
from saelib.study.runs import RUNS


def table(passes: set[int], f1_filtered: float = 0.5) -> pd.DataFrame:
    rows = []
    for spec in RUNS:
        good = spec.run in passes
        row: dict[str, object] = {"run": spec.run, "verdict": "yes" if good else "no"}
        for name in CLASSES:
            row |= {f"words_{name}": good, f"prompt_{name}": good, f"test_hyphens_{name}": 100}
            row[f"f1_{name}"] = f1_filtered if spec.filtered else 0.4
        rows.append(row)
    return pd.DataFrame(rows)


EFFICIENCY = {
    "level": 1.0, "warm_reached": 4, "warm_runs": 4, "random_reached": 1, "random_runs": 3, "warm_median_tokens": 1000.0,
    "random_median_tokens": None, "parent_top_peak_zeroed": [0.8, 0.9], "parent_top_peak_standard": [0.8, 0.9],
    "parent_still_top_zeroed": [0.0, 0.1], "parent_still_top_standard": [0.2, 0.9],
}  # fmt: skip


def test_each_finding_is_on_the_side_of_its_numbers() -> None:
    share = {
        "kept_by_context": 0.25,
        "enrichment_by_context": 4.0,
        "kept_by_token": 0.006,
        "enrichment_by_token": 160.0,
    }
    seen, unseen = findings(table({4}), {"03_filter": share, "06_training_efficiency": EFFICIENCY})
    assert any("1 of 14 wide runs (runs 4)" in text for text in seen)
    assert any("Filtering alone helps" in text and "0.500" in text for text in seen)
    assert any("kept 25.0% of the tokens" in text for text in seen)
    assert any("median 1,000 tokens against more tokens than were given" in text for text in seen)
    assert any("zeroed in the loss, is replaced" in text for text in seen)
    assert any("under the standard loss, is replaced" in text and "20% to 90%" in text for text in unseen)


def test_nothing_seen_is_said_in_full() -> None:
    slow = {**EFFICIENCY, "random_median_tokens": 500.0}
    seen, unseen = findings(table(set(), f1_filtered=0.4), {"06_training_efficiency": slow})
    assert any("0 of 14 wide runs." in text for text in unseen)
    assert sum("the child passes on held-out words" in text for text in unseen) == 3
    assert any("overlap or point the other way" in text for text in unseen)
    assert any("A warm start reaches the same loss sooner" in text for text in unseen)
    assert len(seen) == 1  # the zeroed parent's replacement


def test_without_runs_or_numbers_there_is_nothing_to_say() -> None:
    assert findings(pd.DataFrame({"run": [], "verdict": []}), {}) == ([], [])
    assert findings(pd.DataFrame({"run": [1], "steps": [40]}), {}) == ([], [])


def test_a_parent_that_was_never_on_top_is_not_replaced() -> None:
    never = {**EFFICIENCY, "parent_top_peak_zeroed": [0.0, 0.0], "parent_top_peak_standard": [0.0, 0.0]}
    seen, unseen = findings(table(set()), {"06_training_efficiency": never})
    assert not any("is replaced" in text for text in seen)
    assert sum("is replaced" in text for text in unseen) == 2
