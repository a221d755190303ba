"""What the 2024 post left open, answered: its four next steps, each with one sentence read back from the CSV beside its page."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import markupsafe
import pandas as pd

from saelib.report.page import environment

NOT_RUN = "Not run here."
OUTDATED = "Its table is of an older version: run it again."
OURS = "children-64"
"""The method of splitbench.csv that stands for ours."""


@dataclass(frozen=True)
class OpenAnswer:
    """One next step of the post."""

    question: str
    answer: str
    """`NOT_RUN` where its table is not there."""
    page: str
    """The page it stands on; empty where it is not there."""


def left_open(folder: Path) -> list[OpenAnswer]:
    """The four answers, from the tables in a report's folder (that of SplitBench may lie beside it)."""
    from saelib.study import circuit_answer, data_tables, replacing_tables

    bench = folder if (folder / "splitbench.csv").is_file() else folder.parent / "splitbench"
    asked: list[tuple[str, Path, Callable[[pd.DataFrame], str]]] = [
        ("Does it generalise to other features?", bench / "splitbench", _other_features),
        (
            "How much data does it take, and is filtering worth its price?",
            folder / "13_data_needed",
            data_tables.answer,
        ),
        (
            "Who takes over from the parent after a warm start, and when?",
            folder / "14_replacing",
            replacing_tables.answer,
        ),
        ("Does a more specific feature help to find a circuit?", folder / "15_circuits", circuit_answer.answer),
    ]
    return [_answered(folder, *one) for one in asked]


def _answered(folder: Path, question: str, stem: Path, answer: Callable[[pd.DataFrame], str]) -> OpenAnswer:
    table = stem.with_suffix(".csv")
    if not table.is_file():
        return OpenAnswer(question, NOT_RUN, "")
    pages = [path for path in (stem.with_suffix(".html"), stem.parent / "index.html") if path.is_file()]
    elsewhere = [path for path in pages if path != folder / "index.html"]
    page = os.path.relpath(elsewhere[0], folder) if elsewhere else ""
    try:
        found = answer(pd.read_csv(table))
    except (KeyError, ValueError):  # columns it does not have
        found = OUTDATED
    return OpenAnswer(question, found, page)


def _other_features(table: pd.DataFrame) -> str:
    """From splitbench.csv, a row a parent, method and seed: our method on the parents that nothing was chosen on."""
    ours = table[(table["method"] == OURS) & (table["side"] == "test")]
    values = ours.groupby("parent")["added_2"].mean().dropna()
    if not len(values):
        return "No parent was measured."
    low, middle, high = values.quantile([0.25, 0.5, 0.75])
    return (
        f"Over {len(values)} parents children add {middle:.2f} of what the rest of the SAE leaves to a linear probe "
        f"(median; half of the parents between {low:.2f} and {high:.2f})."
    )


def left_open_html(folder: Path) -> markupsafe.Markup:
    """The section of the index; empty where none of it was run."""
    answers = left_open(folder)
    if all(one.answer == NOT_RUN for one in answers):
        return markupsafe.Markup("")
    return markupsafe.Markup(environment().get_template("left_open.html.j2").render(answers=answers))
