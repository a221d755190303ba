"""The page of the benchmark: who tells a parent's contexts apart, at what cost, on which parents; and where all of them fail."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pandas as pd

from saelib.base.cache import atomic_path
from saelib.bench.aggregate import CEILING, OURS, PLAIN, best_wide, break_even, by_parent, false_splits, leaderboard
from saelib.bench.table import ROW
from saelib.report.charts import _GREY, _svg, _text
from saelib.report.children_charts import strip
from saelib.report.html_view import HtmlView, table
from saelib.report.page import show, show_seconds
from saelib.report.views import NEGATIVE, PALETTE, POSITIVE
from saelib.split.methods import get_method

SIDE_WORDS = {
    "test": "Test parents: SAEs, seeds and a model on which nothing was tuned",
    "dev": "Development parents: on these methods were tuned, and the best wide SAE is chosen",
    "known": "Made-up parents whose true children are known",
}
MOST_PARENTS = 10
"""Best and worst parents that are shown."""
KINDS = {"local": POSITIVE, "wide": NEGATIVE, "readout": _GREY}
UNBROKEN = "\u2011"
"""A hyphen at which no line ends."""
LABELLED = 16
"""Methods whose names are written into the picture."""


def bench_page(rows: pd.DataFrame) -> HtmlView:
    """The page of a finished table (columns of `saelib.bench.table.ROW`)."""
    ours, plain = present(rows)
    chosen = best_wide(rows) or plain
    real = rows[rows["stratum"] == "separable"]
    sides = [
        _side(real[real["side"] == side], side, ours, chosen) for side in SIDE_WORDS if (real["side"] == side).any()
    ]
    counted = {side: int(rows.loc[rows["side"] == side, "parent"].nunique()) for side in SIDE_WORDS}
    refused = rows[rows["reason"].notna()]
    context = {
        "sides": sides,
        "wrong": table(false_splits(rows), WRONG, percent=("missed", "false"))
        if rows["verdict"].notna().any()
        else None,
        "even": [
            (name, show(round(value, 1)))
            for name, value in break_even(real, plain, ours).items()
            if math.isfinite(value)
        ],
        "ours": ours,
        "plain": plain,
        "refused": [
            (short(str(method)), reason, len(part)) for (method, reason), part in refused.groupby(["method", "reason"])
        ][:30],
        "methods": _methods(rows),
        "columns": list(ROW.items()),
        "counted": [(side, n) for side, n in counted.items() if n],
        "n_none": int(rows.loc[rows["stratum"] == "none", "parent"].nunique()),
    }
    return HtmlView(
        template="bench.html.j2",
        title="Which way of splitting a feature tells its contexts apart, and at what cost?",
        context=context,
        record={
            "ours": ours, "plain": plain, "best_wide_on_dev": best_wide(rows), "parents": counted,
            "methods": sorted(rows["method"].unique()), "scorer": sorted(map(str, rows["scorer"].dropna().unique())),
            "leaderboard": {side["side"]: side["record"] for side in sides},
            "best_wide": {s["side"]: row for s in sides for row in s["record"] if row["method"] == chosen},
        },
        kicker="SplitBench",
        answer=_answer(sides, ours, chosen),
    )  # fmt: skip


WRONG = {
    "method": "method",
    "missed": "true splits missed",
    "missed_n": "of",
    "false": "false splits",
    "false_high": "95% upper end",
    "false_n": "of",
}


def present(rows: pd.DataFrame) -> tuple[str, str]:
    """The rows that stand for our method and for the plain wide SAE, in this table."""
    there = list(rows["method"].unique())
    ours = OURS if OURS in there else next((m for m in sorted(there) if m.startswith("children")), there[0])
    return ours, PLAIN if PLAIN in there else next(iter(rows.loc[rows["kind"] == "wide", "method"].unique()), "rest")


def write_bench(rows: pd.DataFrame, folder: Path) -> Path:
    """Write `index.html` with its `.json`, and `leaderboard.csv` (one row a side and method). Returns the page."""
    ours, plain = present(rows)
    real = rows[rows["stratum"] == "separable"]
    boards = [
        leaderboard(part, ours, best_wide(rows) or plain).assign(side=side)
        for side, part in real.groupby("side", sort=True)
    ]
    with atomic_path(folder / "leaderboard.csv") as temporary:
        pd.concat(boards or [pd.DataFrame()]).to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return bench_page(rows).save(folder / "index.html")


def _answer(sides: Sequence[dict[str, Any]], ours: str, wide: str) -> str:
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
        said += f" Over the best wide SAE it gains {_between(own, 'over_plain')} on the {n} that both have."
    first = next(row for row in shown["record"] if row["method"] != CEILING)
    if first["method"] not in (ours, wide):
        more = _between(first, "over_ours")
        said += f" {short(first['method'])} comes first, {more} above ours on the {first['parents']} that both have."
    if CEILING in board:
        reached = _between(board[CEILING], "S_2")
        said += f" Encoders that are given the contexts ({CEILING}) reach {reached} in the children's place."
    return said


def _between(row: Mapping[str, Any], name: str) -> str:
    return f"{_number(row[name])} ({_number(row[f'{name}_low'])} to {_number(row[f'{name}_high'])})"


def short(method: str) -> str:
    """A method's name; of an SAE in a folder the last part of its path."""
    return f"sae:{Path(method).name}" if method.startswith("sae:") else method


def _number(value: Any) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _side(rows: pd.DataFrame, side: str, ours: str, plain: str) -> dict[str, Any]:
    board = leaderboard(rows, ours, plain)
    order = by_parent(rows, ours, plain)
    shown = {
        "parent": "parent",
        ours: "ours",
        "rest": "rest alone",
        plain: "wide",
        "best": "best method",
        "gain": "ours − rest",
    }
    order = order.loc[:, [*dict.fromkeys(shown)]]
    order["best"] = order["best"].map(short, na_action="ignore")
    return {
        "side": side,
        "words": SIDE_WORDS[side],
        "n": int(rows["parent"].nunique()),
        "n_saes": int(rows["origin"].nunique()),
        "rows": [_board_row({str(k): v for k, v in row.items()}, ours) for row in board.to_dict("records")],
        "plain": short(plain),
        "picture": cost_svg(board),
        "known": bool(board["matched_f1"].notna().any()),
        "best": table(order.head(MOST_PARENTS).reset_index(drop=True), shown),
        "worst": table(order.tail(MOST_PARENTS).iloc[::-1].reset_index(drop=True), shown),
        "all": table(order.reset_index(drop=True), shown),
        "parents": [_brief(rows[rows["parent"] == name], str(name)) for name in order["parent"]],
        "record": board.replace({np.nan: None}).to_dict("records"),
    }


BRIEF = {
    "method": "method",
    "S_2": "S_2",
    "added_2": "added_2",
    "S_2_current": "S_2 current",
    "fvu_on_P": "FVU on P",
    "leak": "leak",
    "features": "features",
    "verdict": "verdict",
    "seconds": "seconds",
}


def _brief(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """One parent: every method, the best first; seeds are averaged, the verdict is the first seed's."""
    numbers = [column for column in BRIEF if column not in ("method", "verdict")]
    each = rows.groupby("method")[numbers].mean()
    each["verdict"] = rows.groupby("method")["verdict"].first()
    each = (
        each.sort_values("S_2", ascending=False, na_position="last")
        .rename(index=short)
        .rename_axis("method")
        .reset_index()
    )
    return {"name": name, "table": table(each, BRIEF), "judged": show(rows["judged"].max())}


def _board_row(row: dict[str, Any], ours: str) -> dict[str, Any]:
    def gap(name: str) -> str:
        value, low, high = (row.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
        return f"{value:+.2f} ({low:+.2f} to {high:+.2f})" if math.isfinite(value) and math.isfinite(low) else ""

    rank = f"{row['rank']:.0f}" if math.isfinite(row["rank"]) else ""
    if rank and math.isfinite(row["rank_low"]):
        rank += f" ({row['rank_low']:.0f}–{row['rank_high']:.0f})"
    cost = row["seconds"] + row["seconds_shared"]
    return {
        "rank": rank,
        "method": short(row["method"]),
        "ours": row["method"] == ours,
        "parents": row["parents"],
        "S_2": strip(row["S_2"], row["S_2_low"], row["S_2_high"], ours=row["kind"] == "local"),
        "value": _cell(row["S_2"]),
        "over_plain": gap("over_plain"),
        "over_ours": gap("over_ours"),
        "numbers": [_cell(row[name]) for name in ("leak", "fvu_on_P", "added_2", "S_1", "S_4", "S_2_current")]
        + [_cell(row[name]) for name in ("l0_on_P", "loss_recovered_on_P", "stability", "split_count")],
        "known": [_cell(row[name]) for name in ("matched_f1", "found", "false")],
        "seconds": show_seconds(cost) if math.isfinite(cost) else "",
        "shared": row["seconds_shared"] > 0,
    }


def _cell(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:z.2f}"


def cost_svg(board: pd.DataFrame, width: int = 900, height: int = 420) -> markupsafe.Markup:
    """Mean S_2 over the seconds that the first parent costs (log axis): a wide SAE's training counts in full."""
    frame = board.assign(cost=(board["seconds"] + board["seconds_shared"]).clip(lower=0.01))
    frame = frame[frame["S_2"].notna() & frame["cost"].notna()]
    if frame.empty:
        return markupsafe.Markup("")
    low, high = math.floor(math.log10(frame["cost"].min())), math.ceil(math.log10(frame["cost"].max()) + 1e-9)
    high = max(high, low + 1)
    bottom, top = min(0.0, float(frame["S_2"].min())), max(1.0, float(frame["S_2"].max()))
    left, right, upper, lower = 46, 150, 26, 34

    def x(seconds: float) -> float:
        return left + (width - left - right) * (math.log10(seconds) - low) / (high - low)

    def y(value: float) -> float:
        return upper + (height - upper - lower) * (top - value) / (top - bottom)

    marks = []
    for power in range(low, high + 1):
        at = x(10.0**power)
        marks.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{upper}" y2="{height - lower}" stroke="#dfe2e5"/>')
        marks.append(_text(at, height - lower + 14, f"{10.0**power:g} s"))
    for tick in np.arange(math.ceil(bottom * 5) / 5, top + 1e-9, 0.2):
        marks.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#eef0f2"/>')
        marks.append(_text(left - 6, y(tick) + 4, f"{tick:.1f}", "end"))
    marks.append(_text(left, 14, "mean S_2 (0 is free, 1 is a linear probe)", "start"))
    marks.append(_text(width - right, height - 4, "seconds for the first parent", "end"))
    for i, (kind, colour) in enumerate(KINDS.items()):
        marks.append(f'<circle cx="{width - right + 18}" cy="{upper + 10 + 18 * i}" r="5" fill="{colour}"/>')
        marks.append(_text(width - right + 28, upper + 14 + 18 * i, kind, "start"))
    written: list[tuple[float, float]] = []
    for i, row in enumerate(frame.to_dict("records")):
        at, up = x(row["cost"]), y(row["S_2"])
        words = f"{short(row['method'])}: S_2 {row['S_2']:.2f}, {show_seconds(row['cost'])}"
        marks.append(
            f'<circle cx="{at:.1f}" cy="{up:.1f}" r="5" fill="{KINDS.get(row["kind"], PALETTE[3])}" stroke="#fff">'
            f"<title>{html.escape(words)}</title></circle>"
        )
        if i < LABELLED:
            beside = up + 4
            while any(abs(at - a) < 110 and abs(beside - b) < 11 for a, b in written):
                beside += 11
            written.append((at, beside))
            marks.append(_text(at + 8, beside, short(str(row["method"])), "start", "#1c1e21"))
    return markupsafe.Markup(_svg(width, height, "separation against seconds", marks))


def _methods(rows: pd.DataFrame) -> list[tuple[str, str]]:
    found = []
    for name in dict.fromkeys(rows["method"]):
        try:
            found.append((short(name), get_method(name).about))
        except ValueError:  # a function that is not on this machine
            found.append((short(name), ""))
    return found
