"""Small charts as inline SVG: no script, nothing fetched, every mark says its numbers when pointed at."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import pandas as pd

from saelib.report.page import show
from saelib.report.views import PALETTE, POSITIVE

GREY = "#5b6168"
"""Words, axes, and what is shown beside."""
_FONT = 'font-family="sans-serif" font-size="11"'


def svg_text(x: float | int, y: float | int, words: str, anchor: str = "middle", colour: str = GREY) -> str:
    """Words in a picture, escaped; (x, y) is the baseline's `anchor`: its start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" {_FONT}>{html.escape(words)}</text>'


def svg(width: int, height: int, label: str, marks: Sequence[str]) -> str:
    """A picture of marks, `width` x `height` px and never wider than its place; `label` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="max-width:100%;height:auto" aria-label="{html.escape(label)}">{"".join(marks)}</svg>'
    )


def histogram_svg(histogram: pd.DataFrame, *, width: int = 520, height: int = 150) -> str:
    """Tokens by activation as bars, from `features.activation_histogram` of one feature; empty when it never fires."""
    if histogram.empty:
        return ""
    left, top, bottom = 8, 16, 20
    most, end = int(histogram["tokens"].max()), float(histogram["high"].iloc[-1])
    inner_w, inner_h = width - 2 * left, height - top - bottom
    marks = [svg_text(left, 11, f"tokens (tallest bar: {show(most)})", "start")]
    step = inner_w / len(histogram)
    for i, (low, high, tokens) in enumerate(histogram[["low", "high", "tokens"]].itertuples(index=False)):
        tall = inner_h * tokens / most
        tall = max(tall, 1.0) if tokens else 0.0  # a single token is still to be seen
        marks.append(
            f'<rect x="{left + i * step:.1f}" y="{top + inner_h - tall:.1f}" width="{max(step - 1, 0.5):.1f}" '
            f'height="{tall:.1f}" fill="{POSITIVE}"><title>activation {show(low)} to {show(high)}: {show(int(tokens))} '
            f"tokens</title></rect>"
        )
    axis = top + inner_h + 0.5
    marks.append(f'<line x1="{left}" x2="{width - left}" y1="{axis}" y2="{axis}" stroke="{GREY}"/>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        marks.append(svg_text(left + share * inner_w, height - 5, show(share * end), anchor))
    return svg(width, height, "histogram of the activations", marks)


def scatter_svg(
    points: pd.DataFrame, *, marked: Mapping[tuple[str, int], str] | None = None, width: int = 860, height: int = 620
) -> str:
    """Points in the plane, coloured by group, with a text to read on each.

    Args:
        points: columns group, feature, x, y, hover.
        marked: (group, feature) -> words written beside the point.
    """
    groups = list(dict.fromkeys(points["group"]))
    margin, head = 14, 26
    spans = {axis: (float(points[axis].min()), float(points[axis].max())) for axis in ("x", "y")}

    def place(value: float, axis: str, size: int) -> float:
        low, high = spans[axis]
        return size * ((value - low) / (high - low) if high > low else 0.5)

    marks = [
        "<style>circle:hover{stroke:#000;stroke-width:2}</style>",
        f'<rect x="0.5" y="{head}" width="{width - 1}" height="{height - head - 1}" fill="none" stroke="#dfe2e5"/>',
    ]
    for i, group in enumerate(groups):
        marks.append(f'<circle cx="{12 + i * 220}" cy="12" r="5" fill="{PALETTE[i % len(PALETTE)]}"/>')
        marks.append(svg_text(22 + i * 220, 16, f"{group} ({(points['group'] == group).sum()})", "start"))
    named: list[str] = []
    written: list[tuple[float, float]] = []
    for i, group in enumerate(groups):
        marks.append(f'<g fill="{PALETTE[i % len(PALETTE)]}" fill-opacity=".6">')
        own = points.loc[points["group"] == group, ["feature", "x", "y", "hover"]]
        for feature, x, y, hover in own.itertuples(index=False):
            words = (marked or {}).get((group, int(feature)))
            cx = margin + place(x, "x", width - 2 * margin)
            cy = height - margin - place(y, "y", height - 2 * margin - head)
            at, title = f'cx="{cx:.0f}" cy="{cy:.0f}"', f"<title>{html.escape(str(hover))}</title>"
            if not words:
                marks.append(f'<circle {at} r="2.6">{title}</circle>')
                continue
            look = f'r="6" fill="{PALETTE[i % len(PALETTE)]}" stroke="#000" stroke-width="1.5"'
            named.append(f"<circle {at} {look}>{title}</circle>")
            side = ("end", cx - 9) if cx > width * 0.7 else ("start", cx + 9)
            y_words = cy + 4
            while any(abs(cx - x) < 110 and abs(y_words - y) < 12 for x, y in written):
                y_words += 12  # below the words that are there already
            written.append((cx, y_words))
            named.append(svg_text(side[1], y_words, words, side[0], "#1c1e21"))
        marks.append("</g>")
    return svg(width, height, f"map of {len(points)} features", [*marks, *named])
