"""What notebook 15 comes to: its numbers in one table, and the sentence that is made of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from saelib.interpret.damage import damage_at
from saelib.study.circuit_tables import PREVIOUS, Case, rank_correlation

MEDIAN_RATIO = "median damage against the parent's"
RATIO = "damage against the parent's"


def damage_table(case: Case) -> pd.DataFrame:
    """`Case.damage` and strength: at which multiple of its ablation each way has the effect at which they are compared."""
    table, at = case.damage(), {}
    for way in case.ways if len(table) else ():
        curve = case.curves(way)
        effect = curve.fall[case.test.in_class].mean(0)
        at[way.name] = float(damage_at(effect[None], np.array([curve.strengths]), case.level)[0])
    return table.assign(strength=table["object"].map(at))


def summary_table(
    sources: pd.DataFrame, effects: pd.DataFrame, damage: pd.DataFrame, many: pd.DataFrame
) -> pd.DataFrame:
    """What the page rests on, one row a number: question (`source`, `effect`, `action`, `prediction`), context, object, family,
    what, value, low, high, n; of a source amount and contrast (value is their ratio), of an action strength."""
    parts = sources[sources["component"] != PREVIOUS].groupby(["context", "object"])["amount"].sum()
    rows: list[dict[str, Any]] = [
        {**_named("source", row), "what": row["component"], "value": row["share"], **_ends(row), "amount": row["amount"],
         "contrast": parts[row["context"], row["object"]]}
        for row in sources[sources["component"].isin([PREVIOUS, "linearisation error"])].to_dict("records")
    ]  # fmt: skip
    for row in effects.to_dict("records"):
        rows.append(
            {**_named("effect", row), "what": f"measured, {row['side']}", "value": row["measured"], **_ends(row)}
        )
        rows.append({**_named("effect", row), "what": f"predicted, {row['side']}", "value": row["predicted"]})
    for row in damage.to_dict("records"):
        ends = {"low": row["ratio_low"], "high": row["ratio_high"], "strength": row["strength"]}
        rows.append({**_named("action", row), "what": RATIO, "value": row["ratio"], **ends})
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
    columns = [
        "question",
        "context",
        "object",
        "family",
        "what",
        "value",
        "low",
        "high",
        "n",
        "amount",
        "contrast",
        "strength",
    ]
    return pd.DataFrame(rows).reindex(columns=columns)


def _named(question: str, row: dict[Any, Any]) -> dict[str, Any]:
    return {"question": question, **{name: row[name] for name in ("context", "object", "family")}}


def _ends(row: dict[Any, Any]) -> dict[str, Any]:
    return {"low": row["low"], "high": row["high"]}


Rows = dict[tuple[str, str, str, str], dict[Any, Any]]
"""The first row of each question, context, family and what: of one feature alone."""


def answer(table: pd.DataFrame) -> str:
    """Notebook 15's answer, from `summary_table` (or from the CSV it was written to): a sentence a section of the page."""
    keys = ["question", "context", "family", "what"]
    alone = table.drop_duplicates(keys).to_dict("records")
    rows: Rows = {tuple(row[key] for key in keys): row for row in alone}
    names = list(dict.fromkeys(row["context"] for row in alone if row["question"] == "source"))
    acted = [_acted(rows, name, table) for name in names if ("action", name, "parent", RATIO) in rows]
    found = {row["what"]: row for row in alone if row["question"] == "prediction"}
    row, smallest = found["rank correlation with the saving"], found["smallest correlation to be seen"]["value"]
    sentences = [
        f"Damage to sibling classes at equal effect, as a share of the parent's: {'; '.join(acted)}."
        if acted
        else "No behaviour of the hyphen's classes could be acted on: the question was not asked.",
        f"Over {int(row['n'])} parents the best child does {_with_ends(found[MEDIAN_RATIO])} of the parent's damage (median), "
        f"and what a split adds goes with the saving at rank correlation {_with_ends(row)}; {smallest:.2f} could have been seen."
        if math.isfinite(float(row["value"]))
        else f"Only {int(row['n'])} parents could be compared: too few to say whether what a split adds predicts the saving.",
        f"Of the contrast with the siblings the previous token carries: {_told(rows, names, _carried)}.",
        f"Ablation changes the log-probability of what follows, on the class and on siblings, by: {_told(rows, names, _did)}.",
    ]
    return " ".join(sentences)


def _acted(rows: Rows, name: str, table: pd.DataFrame) -> str:
    """Each way's damage in one context, how many random directions get there, and the parent's strength."""
    ways = (("child", "the best child"), ("wide", "the best wide feature"), ("neuron", "the best neuron"))
    told = [
        f"{way} {_with_ends(rows[key])}" for family, way in ways if (key := ("action", name, family, RATIO)) in rows
    ]
    random = table[(table["question"] == "action") & (table["context"] == name) & (table["family"] == "rotation")][
        "value"
    ]
    there = sorted(random.dropna())
    ends = " to ".join(dict.fromkeys(_short(value) for value in there[:1] + there[-1:]))
    told.append(f"{len(there)} of {len(random)} random directions get there{f' ({ends})' if ends else ''}")
    strength = float(rows["action", name, "parent", RATIO]["strength"])
    at = f"gets there at {strength:.1f} times its ablation" if math.isfinite(strength) else "never gets there"
    return f"{name}: {', '.join(told)}; the parent {at}"


def _told(rows: Rows, names: list[str], words: Callable[[Rows, str, str], str]) -> str:
    pairs = itertools.product(names, ("parent", "child"))
    return "; ".join(f"{name}, {family} {told}" for name, family in pairs if (told := words(rows, name, family)))


def _carried(rows: Rows, name: str, family: str) -> str:
    """The share of the contrast; where its interval is wider than 1, as of a contrast near 0, the amounts."""
    row = rows.get(("source", name, family, PREVIOUS))
    if row is None or row["high"] - row["low"] < 1:
        return _with_ends(row) if row else ""
    return f"{_short(row['amount'])} of {_short(row['contrast'])} (too uncertain for a share)"


def _did(rows: Rows, name: str, family: str) -> str:
    one, other = (rows.get(("effect", name, family, f"measured, {side}")) for side in ("class", "siblings"))
    return f"{_with_ends(one)} and {_short(other['value'])}" if one and other else ""


def _with_ends(row: dict[Any, Any]) -> str:
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    if not math.isfinite(value):
        return "not reached"
    if value == low == high:
        return f"exactly {_short(value)}"
    if max(abs(end) for end in (value, low, high)) < 0.005:
        return "below 0.005"
    return f"{_short(value)} (95% {_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "?"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
