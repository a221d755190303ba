"""The tables of a split page, as plain values for its templates: bars, contexts, verdicts, relations, swap, controls, cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from saelib.report.children_charts import (
    contexts_svg,
    finite,
    relation_cells,
    strip,
)
from saelib.report.children_words import PRODUCT, cell_value, child_names, leaks, verdict_sentence
from saelib.report.page import show, show_count, show_seconds
from saelib.split.again import AGAIN
from saelib.split.detectors import mcc
from saelib.split.effects import MOST_CHILDREN
from saelib.split.result import Split

MOST_BARS, MOST_CARDS, MOST_RELATED = 20, MOST_CHILDREN, 12


def verdict_parts(split: Split) -> dict[str, str]:
    """The verdict: a pill, its colour and a sentence."""
    name = split.verdict.name
    colour = {"SPLIT": "yes", "PARTIAL": "partial", "UNDECIDED": "partial", "GRADED": "partial"}.get(name, "no")
    return {"pill": name.lower().replace("_", " "), "class": colour, "sentence": verdict_sentence(split)}


def headline_parts(split: Split) -> list[tuple[str, str, str]]:
    """Name, number and a note under it."""
    S = split.separation[PRODUCT].S[2] if PRODUCT in split.separation else None
    added = split.added.get(2)
    after, before = (_at(split.swap, "on P", f"fvu_{when}") for when in ("after", "before"))
    cost = {name: show_seconds(split.cost.get(name)) for name in ("seconds", "seconds_training")}
    shown = [
        ("children", show(len(split.children)), ""),
        ("share of all test tokens", f"{100 * split.parent.rate:.2g}%", f"{split.parent.n_on['test']:,} tokens"),
        ("separation S₂ (0 free, 1 probe)", *_parted(S)),
        ("children add, of what the rest lacks", *_parted(added)),
        ("FVU on P, after the swap", f"{after:.3f}" if finite(after) else "", f"{before:.3f} before"),
        ("time in all", cost["seconds"], f"{cost['seconds_training']} training"),
        ("seeds agree (IoU on P)", "" if split.stability is None else f"{split.stability:.2f}", _come_back(split)),
    ]
    return [(name, text, note) for name, text, note in shown if text]


def _come_back(split: Split) -> str:
    back = int((split.children["stability"] >= AGAIN).sum())
    return f"{back} of {len(split.children)} children come back (≥ {AGAIN})"


def _at(frame: pd.DataFrame, row: str, column: str) -> float:
    """A cell, NaN where it is not there."""
    return float(frame[column].to_dict().get(row, np.nan)) if column in frame else float("nan")


def _parted(value: Any) -> tuple[str, str]:
    """A value and, apart, its interval."""
    text, _, interval = _interval(value).partition(" (")
    return text, interval.rstrip(")")


def _interval(value: Any) -> str:
    if value is None or not finite(value[0]):
        return ""
    text, low, high = (f"{number:z.2f}" for number in value)
    return f"{text} ({low} to {high})" if finite(value[1], value[2]) else text


def bars(children: pd.DataFrame) -> list[dict[str, Any]]:
    """A bar a child, in the order of `Split.children`: what the template's `made_of` shows."""
    widest = max(float(children["share"].max()), 1e-9) if len(children) else 1.0
    shown: list[dict[str, Any]] = []
    for j, (name, (_, row)) in enumerate(zip(child_names(children), children.iterrows(), strict=True)):
        added = tuple(cell_value(row, column) for column in ("added", "added_low", "added_high"))
        text, no_more = added_text(row)
        shown.append(
            {
                "anchor": f"child-{int(row['feature'])}" if j < MOST_CARDS else "",
                "feature": int(row["feature"]),
                "name": name,
                "name_mcc": cell_value(row, "name_mcc"),
                "rest_mcc": cell_value(row, "rest_mcc"),
                "share": float(row["share"]),
                "width": float(row["share"]) / widest,
                "mcc": cell_value(row, "mcc"),
                "added": text,
                "no_more": no_more,
                "strip": strip(*added, scale=(-0.25, 1.0)) if text else "",
                "leak": cell_value(row, "leak"),
                "leaks": leaks(row),
                "copy_of": int(row["copy_of"]) if "copy_of" in row and int(row["copy_of"]) >= 0 else None,
            }
        )
    return shown


def added_text(row: pd.Series) -> tuple[str, str]:
    """What a child adds with its interval, or in words why there is no number to show."""
    value = tuple(cell_value(row, column) for column in ("added", "added_low", "added_high"))
    if not finite(*value):
        return "", "–"
    to = f" to {row['context']}" if "context" in row else ""
    return ("", f"nothing{to}") if value[2] <= 0 else (f"{_interval(value)}{to}", "")


def context_rows(split: Split) -> dict[str, Any]:
    """Floor, ceiling, rest and product of every context, the judged first, best told first."""
    both, rest = split.separation.get(PRODUCT), split.separation.get("rest")
    if both is None:
        return {"svg": "", "more": "", "unjudged": []}
    of_rest = {c.context: c for c in rest.contexts} if rest is not None else {}
    rows: list[dict[str, Any]] = [
        {
            "name": c.context, "n_test": c.n_test, "floor": c.floor.value, "ceiling": c.ceiling.value, "judged": c.judged,
            "primary": c.primary, "reason": c.reason,
            "both": c.mcc[2].value, "both_low": c.mcc[2].low, "both_high": c.mcc[2].high,
            "rest": of_rest[c.context].mcc[2].value if c.context in of_rest else float("nan"),
        }
        for c in both.contexts
    ]  # fmt: skip
    judged = sorted((r for r in rows if r["judged"]), key=lambda r: (not r["primary"], -np.nan_to_num(r["both"])))
    return {
        "svg": contexts_svg(judged[:16]),
        "beside": any(not r["primary"] for r in judged),
        "more": contexts_svg(judged[16:]),
        "n_more": len(judged[16:]),
        "unjudged": [r for r in rows if not r["judged"]],
    }


def judged_rows(split: Split) -> list[dict[str, Any]]:
    """What the verdict rests on: a row a context for which a child is required."""
    K = len(split.numbers)
    names = dict(zip(split.numbers, child_names(split.children), strict=True))
    places = sorted(split.numbers)  # the order of the dictionary that was judged
    rows = []
    for c in split.judgement.contexts:
        if c.passed is None:
            continue
        number = places[c.child] if c.child is not None and c.child < K else None
        rows.append(
            {
                "context": c.context,
                "child": f"{number} {names[number]}" if number is not None else "none",
                "added": _interval(c.added),
                "precision": _interval(c.precision),
                "foreign": _interval(c.foreign),
                "passed": c.passed,
                "failed": ", ".join(c.failed),
            }
        )
    return sorted(rows, key=lambda row: not row["passed"])


def mark_rows(split: Split, values: np.ndarray) -> list[dict[str, Any]]:
    """The contexts a child marks best, by its firing on the test tokens of P, from the text's own labels."""
    labels = split.labels
    counts = labels.counts["test"]
    member, fired = labels.member["test"][counts], (values > 0)[counts]
    tp = (member & fired[:, None]).sum(0)
    fp, fn = fired.sum() - tp, member.sum(0) - tp
    score = mcc(tp, fp, fn, len(fired) - tp - fp - fn)
    rows = []
    for c in np.argsort(-score, kind="stable")[:3]:
        if score[c] > 0.05:
            precision, recall = tp[c] / max(tp[c] + fp[c], 1), tp[c] / max(member[:, c].sum(), 1)
            rows.append(
                {"context": labels.contexts[c].name, "mcc": float(score[c]), "precision": precision, "recall": recall}
            )
    return rows


def percent_text(value: float) -> str:
    """A share as a percentage; nothing where it is not known."""
    return f"{100 * value:.3g}%" if finite(value) else ""


def relation_parts(split: Split, names: Sequence[str]) -> dict[str, Any] | None:
    """Overlap and cosine of the first children, and the closest pairs of all; None for fewer than two."""
    iou, cosine = (np.asarray(split.relations[key], dtype=float) for key in ("iou", "cosine"))
    n = min(len(names), MOST_RELATED)
    if n < 2:
        return None
    a, b = np.triu_indices(len(names), 1)
    closest = np.argsort(-np.maximum(iou[a, b], cosine[a, b]), kind="stable")[:5]
    return {
        "names": list(names[:n]),
        "cells": relation_cells(iou[:n, :n], cosine[:n, :n], names[:n]),
        "closest": [(names[a[i]], names[b[i]], f"{iou[a[i], b[i]]:.2f}", f"{cosine[a[i], b[i]]:.2f}") for i in closest],
        "median_iou": f"{np.median(iou[a, b]):.2f}",
        "n_all": len(names),
    }


def swap_rows(swap: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a measure: on P and overall, before and after, and whether that is better."""
    rows = []
    for measure, words, better, digits in (
        ("fvu", "variance left unexplained (FVU)", -1, 3),
        ("loss_recovered", "language-model loss recovered", 1, 3),
        ("l0", "active features a token (L0)", 0, 1),
    ):
        cells = []
        for where in ("on P", "overall"):
            before, after = (_at(swap, where, f"{measure}_{when}") for when in ("before", "after"))
            change = after - before
            gain = change * better
            judged = "yes" if gain > 1e-4 else "no" if gain < -1e-4 else ""
            shown = (f"{before:.{digits}f}", f"{after:.{digits}f}", judged, f"{change:+.{digits}f}")
            cells.append(shown if finite(before, after) else ("", "", "", ""))
        rows.append({"words": words, "cells": cells})
    return rows


def control_list(split: Split) -> list[dict[str, Any]]:
    """A row a dictionary: S_1, S_2, S_4 with intervals, FVU on P, leak; the product first and highlighted."""
    rows = []
    frame = split.controls
    low = float(frame["S_2_low"].fillna(0.0).to_numpy(dtype=float).min(initial=0.0))
    scale = (max(low, -0.5), 1.0)
    height = frame["S_2"].fillna(-9.0).to_numpy(dtype=float)
    order = sorted(range(len(frame)), key=lambda i: (frame["name"].iloc[i] != PRODUCT, -height[i]))
    for i in order:
        row = frame.iloc[i]
        ours = row["name"] == PRODUCT
        values = tuple(cell_value(row, f"S_2{end}") for end in ("", "_low", "_high"))
        rows.append(
            {
                "name": row["name"],
                "ours": ours,
                "strip": strip(*values, scale=scale, ours=ours, width=210),
                "S": [
                    _interval(tuple(cell_value(row, f"S_{k}{end}") for end in ("", "_low", "_high"))) for k in (1, 2, 4)
                ],
                "fvu": f"{cell_value(row, 'fvu_on_p'):.3f}" if finite(cell_value(row, "fvu_on_p")) else "",
                "leak": percent_text(cell_value(row, "leak")),
            }
        )
    return rows


def cost_rows(split: Split) -> list[tuple[str, str]]:
    """Seconds and tokens, in words."""
    cost = split.cost
    shown = [
        ("everything, once activations are there", show_seconds(cost.get("seconds"))),
        ("of it training", show_seconds(cost.get("seconds_training"))),
        ("tokens children were trained on", show_count(cost.get("tokens_sae"))),
        ("tokens the language model read", show_count(cost.get("tokens_lm"))),
    ]
    return [(name, text) for name, text in shown if text]
