"""The page of the benchmark: who tells a parent's contexts apart, at what cost, on which parents; and where all of them fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saelib.base.cache import atomic_path
from saelib.base.table import plain_value
from saelib.bench.aggregate import (
    CEILING,
    OURS,
    PLAIN,
    best_wide,
    break_even,
    by_model,
    by_parent,
    false_splits,
    leaderboard,
)  # fmt: skip
from saelib.bench.table import ROW, first_parent_seconds
from saelib.report.bench_charts import cost_svg, l0_figure, short
from saelib.report.children_charts import strip
from saelib.report.html_view import HtmlView, table
from saelib.report.page import show, show_seconds
from saelib.split.methods import get_method

SIDE_WORDS = {
    "test": "Test parents: SAEs, seeds and a model on which nothing was tuned",
    "dev": "Development parents: on these methods were tuned, and the best wide SAE is chosen",
    "known": "Made-up parents whose true children are known",
}
BRIEF_BEST = 4
"""Methods that are shown of each parent, beside ours, the rest and the wide SAE."""
MOST_PARENTS = 10
"""Best and worst parents that are shown."""
SEES = dict.fromkeys(("named", "named-128", "named-clean"), "sees the words") | {CEILING: "sees the contexts"}
"""Methods that are given more than activations."""
MORE = {
    "S_1": ("S_1", 1.0), "S_4": ("S_4", 1.0), "added_2": ("added_2", 1.0), "S_2_current": ("S_2 current", 1.0),
    "mcc_2": ("raw MCC_2", 1.0), "ceiling": ("probe's MCC", 1.0), "fvu_on_P": ("FVU on P", 1.0),
    "l0_on_P": ("L0 on P", 1.0), "loss_recovered_on_P": ("loss recov. on P", 1.0), "missed": ("missed", 1.0),
    "sibling_iou": ("sibling IoU", 1.0), "stability": ("stability", 1.0), "split_count": ("split count", 1.0),
    "matched_f1": ("F1 of true children", 1.0), "found": ("found", 1.0), "false": ("false", 1.0),
    "tokens_sae": ("SAE tokens, M", 1e6), "tokens_lm": ("model tokens, M", 1e6), "arithmetic": ("10^12 FLOP", 1e12),
    "peak_memory": ("peak GB", 1e9),
}  # fmt: skip
"""Measures of the second table: their headings, and what they are divided by."""
UNBROKEN = "\u2011"
"""A hyphen at which no line ends."""


def bench_page(rows: pd.DataFrame, models: Mapping[str, str] | None = None) -> HtmlView:
    """The page of a finished table (columns of `saelib.bench.table.ROW`); `models` is the model of each SAE."""
    ours, plain = present(rows)
    for_all, for_one = (best_wide(rows, per_parent=alone) for alone in (False, True))
    chosen = for_all or plain
    real = rows[rows["stratum"] == "separable"]
    sides = [
        _side(real[real["side"] == side], ours, chosen, models or {})
        for side in SIDE_WORDS
        if (real["side"] == side).any()
    ]
    even = {name: value for name, value in break_even(real, chosen, ours).items() if math.isfinite(value)}
    counted = {side: int(rows.loc[rows["side"] == side, "parent"].nunique()) for side in SIDE_WORDS}
    contexts = real[real["side"] != "known"].groupby("parent")["judged"].max()
    refused, made_on = rows[rows["reason"].notna()], rows["device"].value_counts().sort_index()
    context = {
        "sides": sides,
        "wrong": table(false_splits(rows), WRONG, percent=("missed", "given", "false"))
        if rows["verdict"].notna().any()
        else None,
        "even": [(name, show(round(value, 1))) for name, value in even.items()],
        "ours": ours,
        "plain": short(chosen),
        "refused": [
            (short(str(method)), reason, len(part)) for (method, reason), part in refused.groupby(["method", "reason"])
        ][:30],
        "methods": _methods(rows),
        "columns": list(ROW.items()),
        "counted": [(side, n) for side, n in counted.items() if n],
        "on_gpu": int(made_on.drop("cpu", errors="ignore").sum()),
        "n_none": int(rows.loc[rows["stratum"] == "none", "parent"].nunique()),
    }
    return HtmlView(
        template="bench.html.j2",
        title="Which way of splitting a feature tells its contexts apart, and at what cost?",
        context=context,
        record={
            "ours": ours, "plain": plain, "parents": counted,
            "best_wide_on_dev": for_all, "best_made_for_one_on_dev": for_one,
            "methods": sorted(rows["method"].unique()), "scorer": sorted(map(str, rows["scorer"].dropna().unique())),
            "rows_by_device": {str(name): int(n) for name, n in made_on.items()},
            "leaderboard": {side["side"]: side["record"] for side in sides},
            "parents_with_three_contexts": int((contexts >= 3).sum()), "with_fewer": int((contexts < 3).sum()),
            "break_even": even,
            "best_wide": {s["side"]: row for s in sides for row in s["record"] if row["method"] == chosen},
            "best_made_for_one": {s["side"]: row for s in sides for row in s["record"] if row["method"] == for_one},
        },
        kicker="SplitBench",
        answer=_answer(sides, ours, chosen, for_one),
    )  # fmt: skip


WRONG = {
    "method": "method",
    "missed": "true splits missed",
    "missed_high": "95% upper end",
    "missed_n": "of worlds",
    "given": "impostors given children",
    "given_n": "of impostors",
    "false": "a context passes",
    "false_n": "of parents",
}


def present(rows: pd.DataFrame) -> tuple[str, str]:
    """The rows that stand for our method and for the plain wide SAE, in this table."""
    there = list(rows["method"].unique())
    ours = OURS if OURS in there else next((m for m in sorted(there) if m.startswith("children")), there[0])
    return ours, PLAIN if PLAIN in there else next(iter(rows.loc[rows["kind"] == "wide", "method"].unique()), "rest")


def write_bench(rows: pd.DataFrame, folder: Path, models: Mapping[str, str] | None = None) -> Path:
    """Write `index.html` with its `.json`, and `leaderboard.csv` (one row a side and method). Returns the page."""
    page = bench_page(rows, models)
    boards = [pd.DataFrame(board).assign(side=side) for side, board in sorted(page.record["leaderboard"].items())]
    with atomic_path(folder / "leaderboard.csv") as temporary:
        pd.concat(boards or [pd.DataFrame()]).to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return page.save(folder / "index.html")


def _answer(sides: Sequence[dict[str, Any]], ours: str, wide: str, for_one: str | None) -> str:
    shown = next((side for side in sides if side["side"] == "test"), sides[0] if sides else None)
    if shown is None:
        return "No parent with separable contexts was run."
    board = {row["method"]: row for row in shown["record"]}
    where = {"test": "test", "dev": "development", "known": "made-up"}[shown["side"]]
    own = board[ours]
    words = [
        f"{name} {_between(board[method], 'S_2')}"
        for name, method in ((f"our {ours.replace('-', UNBROKEN)}", ours), ("the SAE without the parent", "rest"))
        if method in board
    ]
    said = f"Mean S_2 on {own['parents']} {where} parents, where 0 is free and 1 is a linear probe: {', '.join(words)}."
    if wide in board and own.get("over_plain") is not None and wide != ours:
        n = board[wide]["parents"]
        gain = _between(own, "over_plain")
        said += f" Over the best wide SAE that serves all parents it gains {gain} on the {n} that both have."
    ranked = [row for row in shown["record"] if row["method"] != CEILING]
    leads = False
    if (one := board.get(for_one or "")) and one.get("over_ours") is not None:
        leads = ranked[0] is one
        verb = "comes first," if leads else "stands"
        said += (
            f" A whole wide SAE for each parent ({for_one}) {verb} {_between(one, 'over_ours')} above ours on the "
            f"{one['parents']} that both have; {one['leak']:.0%} of what its features fire is not the parent's."
        )
    first, place = (ranked[1], "next") if leads else (ranked[0], "first")
    if first["method"] not in (ours, wide):
        more = _between(first, "over_ours")
        given = f", which {SEES[first['method']]}," if first["method"] in SEES else ""
        said += f" {short(first['method'])}{given} comes {place}, {more} above ours on the {first['parents']} that both have."
    if CEILING in board:
        reached = _between(board[CEILING], "S_2")
        said += f" Encoders that are given the contexts ({CEILING}) reach {reached} in the children's place."
    return said


def _between(row: Mapping[str, Any], name: str) -> str:
    return f"{_number(row[name])} ({_number(row[f'{name}_low'])} to {_number(row[f'{name}_high'])})"


def _number(value: Any) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _side(rows: pd.DataFrame, ours: str, plain: str, models: Mapping[str, str]) -> dict[str, Any]:
    side, board = str(rows["side"].iloc[0]), leaderboard(rows, ours, plain)
    there = sorted(set(rows["origin"].map(models).dropna()))
    if len(there) > 1:
        board = board.merge(by_model(rows, models), on="method", how="left")
    else:
        there = []
    no_wide = [m for m in there if not board.loc[board["kind"] == "wide", f"parents_{m}"].fillna(0).any()]
    order = by_parent(rows, ours, plain)
    shown = {
        "parent": "parent",
        "judged": "contexts",
        ours: "ours",
        "rest": "rest alone",
        plain: "wide",
        "best": "best method",
        "gain": "ours − rest",
    }
    order = order.loc[:, [*dict.fromkeys(shown)]]
    order["best"] = order["best"].map(short, na_action="ignore")
    few = min(MOST_PARENTS, len(order) // 2)
    figure = l0_figure(rows)
    return {
        "side": side,
        "words": SIDE_WORDS[side],
        "n": int(rows["parent"].nunique()),
        "n_saes": int(rows["origin"].nunique()),
        "rows": [_board_row({str(k): v for k, v in row.items()}, ours, there) for row in board.to_dict("records")],
        "models": [(model, int(board[f"parents_{model}"].max())) for model in there],
        "no_wide": no_wide,
        "more": _more(board),
        "plain": short(plain),
        "picture": cost_svg(board),
        "untimed": [short(m) for m in board.loc[board["S_2"].notna() & board["seconds"].isna(), "method"]],
        "l0": figure,
        "brief_best": BRIEF_BEST,
        "best": table(order.head(few).reset_index(drop=True), shown),
        "worst": table(order.tail(few).iloc[::-1].reset_index(drop=True), shown),
        "all": table(order.reset_index(drop=True), shown),
        "parents": [_brief(rows[rows["parent"] == name], str(name), {ours, plain, "rest"}) for name in order["parent"]],
        "record": plain_value(board.infer_objects().round(5).to_dict("records")),
    }


BRIEF = {
    "method": "method",
    "S_2": "S_2",
    "added_2": "added_2",
    "fvu_on_P": "FVU on P",
    "leak": "leak",
    "verdict": "verdict",
    "seconds": "seconds",
}


def _brief(rows: pd.DataFrame, name: str, always: set[str]) -> dict[str, Any]:
    """One parent: its `BRIEF_BEST` best methods and those of `always`; seeds are averaged, the verdict is the first seed's."""
    numbers = [column for column in BRIEF if column not in ("method", "verdict")]
    each = rows.groupby("method")[numbers].mean()
    each["verdict"] = rows.groupby("method")["verdict"].first()
    each = (
        each.sort_values("S_2", ascending=False, na_position="last")
        .loc[lambda best: (np.arange(len(best)) < BRIEF_BEST) | best.index.isin(list(always))]
        .rename(index=short)
        .rename_axis("method")
        .reset_index()
    )
    return {"name": name, "table": table(each, BRIEF), "judged": show(rows["judged"].max())}


def _board_row(row: dict[str, Any], ours: str, models: Sequence[str]) -> dict[str, Any]:
    def ends(name: str, how: str = "z.2f") -> tuple[str, str]:
        value, low, high = (row.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
        if not math.isfinite(value):
            return "", ""
        return f"{value:{how}}", f"{low:{how}} to {high:{how}}" if math.isfinite(low) else ""

    cost, itself = first_parent_seconds(row), row["method"] == ours
    return {
        "rank": ends("rank", ".0f"),
        "method": short(row["method"]),
        "sees": SEES.get(row["method"], ""),
        "ours": itself,
        "parents": row["parents"],
        "S_2": strip(row["S_2"], row["S_2_low"], row["S_2_high"], ours=row["kind"] == "local", width=110),
        "values": [ends("S_2"), *(ends(f"S_2_{model}") for model in models)],
        "gaps": [("", "") if row.get(name) == 0 else ends(name, "+z.2f") for name in ("over_plain", "over_ours")],
        "leak": _cell(row["leak"]),
        "seconds": show_seconds(cost) if math.isfinite(cost) else "",
        "shared": row["seconds_shared"] > 0,
    }


def _more(board: pd.DataFrame) -> dict[str, Any]:
    """The second table: what of `MORE` was measured, a method a row."""
    there = [name for name in MORE if board[name].notna().any()]
    rows = [
        (short(row["method"]), row["method"], [_cell(row[name] / MORE[name][1]) for name in there])
        for row in board.to_dict("records")
    ]
    return {"head": [MORE[name][0] for name in there], "rows": rows}


def _cell(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:z.2f}"


def _methods(rows: pd.DataFrame) -> list[tuple[str, str]]:
    found = []
    for name in dict.fromkeys(rows["method"]):
        try:
            found.append((short(name), get_method(name).about))
        except ValueError:  # a function that is not on this machine
            found.append((short(name), ""))
    return found
