"""What notebook 15 comes to: its numbers in one table, and the sentence that is made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from saelib.study.circuit_tables import PREVIOUS, rank_correlation

MEDIAN_RATIO = "median damage against the parent's"


def summary_table(
    sources: pd.DataFrame, effects: pd.DataFrame, damage: pd.DataFrame, many: pd.DataFrame
) -> pd.DataFrame:
    """What the page rests on, one row a number: question (`source`, `effect`, `action`, `prediction`), context, object, family,
    what, value, low, high, n."""
    rows: list[dict[str, Any]] = [
        {**_named("source", row), "what": row["component"], "value": row["share"], **_ends(row)}
        for row in sources[sources["component"].isin([PREVIOUS, "linearisation error"])].to_dict("records")
    ]
    for row in effects.to_dict("records"):
        rows.append(
            {**_named("effect", row), "what": f"measured, {row['side']}", "value": row["measured"], **_ends(row)}
        )
        rows.append({**_named("effect", row), "what": f"predicted, {row['side']}", "value": row["predicted"]})
    for row in damage.to_dict("records"):
        ends = {"low": row["ratio_low"], "high": row["ratio_high"]}
        rows.append({**_named("action", row), "what": "damage against the parent's", "value": row["ratio"], **ends})
    found = rank_correlation(many["added_2"].to_numpy(dtype=float), many["saving"].to_numpy(dtype=float))
    smallest = found.pop("smallest")
    prediction = {"question": "prediction", "context": "many parents", "object": "added_2", "family": "child"}
    rows.append({**prediction, "what": "rank correlation with the saving", **found})
    rows.append({**prediction, "what": "smallest correlation to be seen", "value": smallest, "n": found["n"]})
    ratios = (1 - many["saving"]).dropna().to_numpy(dtype=float)
    if len(ratios):
        draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
        median = {"value": float(np.median(ratios)), "low": float(low), "high": float(high), "n": len(ratios)}
        rows.append({**prediction, "what": MEDIAN_RATIO, **median})
    columns = ["question", "context", "object", "family", "what", "value", "low", "high", "n"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _named(question: str, row: dict[Any, Any]) -> dict[str, Any]:
    return {"question": question, **{name: row[name] for name in ("context", "object", "family")}}


def _ends(row: dict[Any, Any]) -> dict[str, Any]:
    return {"low": row["low"], "high": row["high"]}


def answer(table: pd.DataFrame) -> str:
    """Notebook 15's answer, from `summary_table` (or from the CSV it was written to)."""

    def first(question: str, family: str, what: str) -> list[str]:
        part = table[(table["question"] == question) & (table["family"] == family) & (table["what"] == what)]
        part = part.drop_duplicates("context")
        return [f"{row['context']} {_with_ends(row)}" for row in part.to_dict("records")]

    ways = (("child", "the best child"), ("wide", "the best feature of the wide SAE"), ("neuron", "the best neuron"))
    ratios = {name: first("action", family, "damage against the parent's") for family, name in ways}
    told = "; ".join(f"{name}: {', '.join(found)}" for name, found in ratios.items() if found)
    acted = (
        f"Damage to sibling classes at equal effect, as a share of the parent's: {told}."
        if told
        else "No behaviour of the hyphen's classes could be acted on: the question was not asked."
    )
    found = {row["what"]: row for row in table[table["question"] == "prediction"].to_dict("records")}
    row, smallest = found["rank correlation with the saving"], found["smallest correlation to be seen"]["value"]
    many = (
        f"Over {int(row['n'])} parents the best child does {_with_ends(found[MEDIAN_RATIO])} of the parent's damage (median), "
        f"and what a split adds goes with the saving at rank correlation {_with_ends(row)}; {smallest:.2f} could have been seen."
        if math.isfinite(float(row["value"]))
        else f"Only {int(row['n'])} parents could be compared: too few to say whether what a split adds predicts the saving."
    )
    parent, child = (first("source", family, PREVIOUS) for family in ("parent", "child"))
    came = (
        f" The previous token carries of the contrast: parent {'; '.join(parent)}, child {'; '.join(child)}."
        if parent
        else ""
    )
    return f"{acted} {many}{came}"


def _with_ends(row: dict[Any, Any]) -> str:
    if not math.isfinite(float(row["value"])):
        return "not reached"
    value, low, high = (_short(float(row[name])) for name in ("value", "low", "high"))
    return f"{value} (95% {low} to {high})"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "?"
    return f"{value:.2f}" if abs(value) >= 0.005 or value == 0 else f"{value:.1g}"
