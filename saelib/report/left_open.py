"""What the 2024 post left open, answered: its four next steps, each with one sentence read back from the CSV beside its page."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import markupsafe
import pandas as pd

from saelib.base.cache import atomic_path
from saelib.bench.aggregate import OURS, best_wide, leaderboard
from saelib.report.page import environment

NOT_RUN = "Not run here."
OUTDATED = "Its table is of an older version: run it again."
_SECTION = re.compile(r'<h2 id="left-open">.*?</dl>', re.DOTALL)
_BEFORE = "<h2>Pages</h2>"
"""What comes after the section."""


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
    """From splitbench.csv, a row a parent, method and seed: the leaderboard of the parents that nothing was chosen on."""
    test = table[(table["side"] == "test") & (table["stratum"] == "separable")]
    wide, for_one = (best_wide(table, per_parent=alone) or "" for alone in (False, True))
    board = leaderboard(test, plain=wide).to_dict("records")
    found: dict[str, dict[str, Any]] = {row["method"]: {str(k): v for k, v in row.items()} for row in board}
    if OURS not in found:
        return "No parent was measured."
    ours = found[OURS]

    def between(name: str, of: dict[str, Any] = ours) -> str:
        return f"{of[name]:.2f} (95% {of[f'{name}_low']:.2f} to {of[f'{name}_high']:.2f})"

    said = f"On {ours['parents']} parents on which nothing was tuned mean S_2 is {between('S_2')} with children"
    said += f", {found['rest']['S_2']:.2f} without" if "rest" in found else ""
    if wide in found:
        said += (
            f"; over the best wide SAE that serves all parents they gain {between('over_plain')} on the "
            f"{found[wide]['parents']} that both have"
        )
    if (one := found.get(for_one)) and math.isfinite(one["over_ours"]):
        above = between("over_ours", one)
        said += f"; a whole wide SAE for each parent ({for_one}) stands {above} above them on {one['parents']}"
    return f"{said}."


def left_open_html(folder: Path) -> markupsafe.Markup:
    """The section of the index; empty where none of it was run."""
    answers = left_open(folder)
    if all(one.answer == NOT_RUN for one in answers):
        return markupsafe.Markup("")
    return markupsafe.Markup(environment().get_template("left_open.html.j2").render(answers=answers))


def renew_left_open(folder: Path) -> None:
    """Write the section of a report's index again, after one of its notebooks was run; nothing where there is no index yet."""
    index = folder / "index.html"
    if not index.is_file():
        return
    page, section = index.read_text(encoding="utf-8"), str(left_open_html(folder)).strip()
    found = _SECTION.search(page)
    with atomic_path(index) as temporary:
        if found:
            page = page.replace(found[0], section, 1)
        else:
            page = page.replace(_BEFORE, f"{section}\n\n{_BEFORE}", 1)
        temporary.write_text(page, encoding="utf-8")
