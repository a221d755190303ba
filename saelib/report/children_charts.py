"""Charts of a split: bars, strips, contexts between floor and ceiling, a matrix, the curve over K. Inline, without a script."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

import markupsafe
import numpy as np
import pandas as pd
from jaxtyping import Float

from saelib.report.charts import GREY, svg, svg_text
from saelib.report.page import show
from saelib.report.views import NEGATIVE, POSITIVE, inert

_INK = "#1c1e21"
SPECIAL = re.compile(r"<\|\w+\|>")
"""A token that no text holds, such as the one between documents: shown as a bar."""
_LINE = "#dfe2e5"
CHILD_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6a1a", "#6a51a3")
"""Colours told apart with any common colour vision; text on them is dark."""
OTHER = "#8a9097"
"""Children that no colour is left for."""


def finite(*values: float) -> bool:
    """Whether every value is a number."""
    return all(math.isfinite(value) for value in values)


def strip(
    value: float,
    low: float,
    high: float,
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    ours: bool = True,
    width: int = 150,
) -> markupsafe.Markup:
    """A value with its interval on a line; zero is a tick. Nothing where there is no value."""
    if not finite(value):
        return markupsafe.Markup("")
    low, high = (low, high) if finite(low, high) else (value, value)
    begin, end = scale

    def x(number: float) -> float:
        return 5 + (width - 10) * min(max((number - begin) / (end - begin), 0.0), 1.0)

    words = f"{value:.2f}, 95% interval {low:.2f} to {high:.2f}"
    colour = POSITIVE if ours else GREY
    marks = [
        f"<title>{words}</title>",
        f'<line x1="5" x2="{width - 5}" y1="8" y2="8" stroke="{_LINE}" stroke-width="2"/>',
        f'<line x1="{x(0.0):.1f}" x2="{x(0.0):.1f}" y1="2" y2="14" stroke="{GREY}"/>',
        f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="8" y2="8" stroke="{colour}" stroke-width="4" stroke-opacity=".45"/>',
        f'<circle cx="{x(value):.1f}" cy="8" r="4.5" fill="{colour}" stroke="#fff"/>',
    ]
    return markupsafe.Markup(svg(width, 16, words, marks))


def contexts_svg(rows: Sequence[dict[str, Any]], width: int = 900) -> markupsafe.Markup:
    """Each context on a line from its floor to its ceiling, with the rest of the SAE and rest + children between them.

    Args:
        rows: name, n_test, floor, ceiling, rest and both (MCC by two features), both_low, both_high, primary (others are pale).
    """
    if not rows:
        return markupsafe.Markup("")
    right, top, step = 20, 34, 26
    left = 30 + 6.5 * min(max(max(len(str(row["name"])) for row in rows), 10), 34)
    height = top + step * len(rows) + 22

    def x(value: float) -> float:
        return left + (width - left - right) * min(max(value, 0.0), 1.0)

    marks = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top - 8}" y2="{height - 20}" stroke="{_LINE}"/>'
        )
        marks.append(svg_text(x(tick), height - 6, f"{tick:g}"))
    legend = (("rest of the SAE", NEGATIVE), ("rest + children", POSITIVE))
    for i, (words, colour) in enumerate(legend):
        marks.append(f'<circle cx="{left + 8 + 130 * i}" cy="10" r="5" fill="{colour}"/>')
        marks.append(svg_text(left + 18 + 130 * i, 14, words, "start"))
    marks.append(svg_text(left + 270, 14, "grey bar: from what is free (floor) to a linear probe (ceiling)", "start"))
    for i, row in enumerate(rows):
        y = top + step * i + 8
        shade = 1.0 if row["primary"] else 0.45
        words = (
            f"{row['name']}: floor {show(row['floor'])}, rest {show(row['rest'])}, rest + children {show(row['both'])}, "
            f"probe {show(row['ceiling'])}; {show(row['n_test'])} test tokens"
        )
        marks.append(f'<g opacity="{shade}"><title>{html.escape(words)}</title>')
        marks.append(svg_text(left - 12, y + 4, clipped(str(row["name"]), 34), "end", _INK))
        if finite(row["floor"], row["ceiling"]):
            a, b = sorted((x(row["floor"]), x(row["ceiling"])))
            marks.append(
                f'<rect x="{a:.1f}" y="{y - 5}" width="{max(b - a, 2):.1f}" height="10" rx="3" fill="#e3e6e9"/>'
            )
        if finite(row["rest"], row["both"]):
            a, b = x(row["rest"]), x(row["both"])
            marks.append(f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{POSITIVE}" stroke-width="2"/>')
        if finite(row["both_low"], row["both_high"]):
            a, b = x(row["both_low"]), x(row["both_high"])
            marks.append(
                f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{POSITIVE}" stroke-width="7" stroke-opacity=".25"/>'
            )
        for name, colour in (("rest", NEGATIVE), ("both", POSITIVE)):
            if finite(row[name]):
                marks.append(f'<circle cx="{x(row[name]):.1f}" cy="{y}" r="5" fill="{colour}" stroke="#fff"/>')
        marks.append("</g>")
    return markupsafe.Markup(svg(width, height, f"{len(rows)} contexts between floor and ceiling", marks))


def k_curve_svg(curve: pd.DataFrame, width: int = 420, height: int = 170) -> markupsafe.Markup:
    """FVU on P (select) over the number of children trained; the chosen number is filled."""
    if len(curve) < 2:
        return markupsafe.Markup("")
    left, right, top, bottom = 46, 16, 16, 34
    K, fvu = curve["K"].to_numpy(float), curve["fvu"].to_numpy(float)
    low, high = float(np.nanmin(fvu)), float(np.nanmax(fvu))
    pad = 0.12 * max(high - low, 1e-3)
    low, high = low - pad, high + pad
    span = math.log(K.max() / K.min()) if K.max() > K.min() else 1.0

    def place(k: float, value: float) -> tuple[float, float]:
        x = left + (width - left - right) * math.log(k / K.min()) / span
        return x, top + (height - top - bottom) * (high - value) / (high - low)

    points = [place(k, value) for k, value in zip(K, fvu, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = [
        f'<line x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}" stroke="{GREY}"/>',
        f'<polyline points="{path}" fill="none" stroke="{POSITIVE}" stroke-width="2"/>',
        svg_text(width / 2, height - 4, "children trained, K"),
        svg_text(left, 10, "FVU on P, select", "start"),
    ]
    for (x, y), k, value, chosen in zip(points, K, fvu, curve["chosen"], strict=True):
        fill = POSITIVE if chosen else "#fff"
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if chosen else 4}" fill="{fill}" stroke="{POSITIVE}" stroke-width="2">'
            f"<title>K = {k:g}: FVU {value:.3f}{' (chosen)' if chosen else ''}</title></circle>"
        )
        marks.append(svg_text(x, height - bottom + 14, f"{k:g}", colour=_INK if chosen else GREY))
    ends = (float(np.nanmin(fvu)), float(np.nanmax(fvu)))
    marks += [svg_text(left - 8, place(K.min(), value)[1] + 4, f"{value:.3f}", "end") for value in ends]
    return markupsafe.Markup(svg(width, height, "FVU over the number of children", marks))


def relation_cells(
    iou: Float[np.ndarray, "k k"], cosine: Float[np.ndarray, "k k"], names: Sequence[str]
) -> list[list[tuple[str, str, str]]]:
    """A square of (text, background, words): overlap on P below the diagonal, cosine above it."""
    rows = []
    for i in range(len(names)):
        cells = []
        for j in range(len(names)):
            if i == j:
                cells.append(("", "", ""))
                continue
            value = float(iou[i, j] if j < i else cosine[i, j])
            what = "share of tokens with either on which both fire" if j < i else "cosine of what they write"
            colour = "0,114,178" if value >= 0 else "213,94,0"
            words = f"{names[i]} and {names[j]}: {what} {value:.2f}"
            cells.append(
                (f"{value:.2f}".replace("0.", ".", 1), f"rgba({colour},{min(abs(value), 1) * 0.55:.2f})", words)
            )
        rows.append(cells)
    return rows


def token_spans(
    tokens: Sequence[str], values: Sequence[float], notes: Sequence[str], high: float, at: int = -1
) -> markupsafe.Markup:
    """Tokens shaded by a value, each with words to read when pointed at; the one at `at` is framed."""
    tokens = [first.lstrip(" ") or first if i == 0 else first for i, first in enumerate(tokens)]
    spans = []
    for i, (token, value, note) in enumerate(zip(tokens, values, notes, strict=True)):
        share = min(max(value / high, 0.0), 1.0) if high > 0 else 0.0
        spans.append(_span(token, "0,114,178", share, note, i == at))
    return markupsafe.Markup("".join(spans))


def _span(token: str, rgb: str, share: float, note: str, framed: bool) -> str:
    text = "‖" if SPECIAL.fullmatch(token) else html.escape(inert(token).replace("\u2060", ""))
    style = f' style="background:rgba({rgb},{0.12 + 0.6 * share:.2f})"' if share > 0 else ""
    return f'<span class="t{" at" if framed else ""}"{style} title="{html.escape(note)}">{text}</span>'


def coloured(token: str, colour: str, share: float, note: str) -> markupsafe.Markup:
    """A token in a child's colour."""
    rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return markupsafe.Markup(_span(token, rgb, share, note, False))


def clipped(words: str, most: int) -> str:
    """At most `most` characters."""
    return words if len(words) <= most else words[: most - 1] + "…"
