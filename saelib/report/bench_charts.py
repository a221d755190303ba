"""Pictures of the benchmark: separation against seconds, and what reconstruction costs in active features."""

from __future__ import annotations

import html
import math
from io import BytesIO
from pathlib import Path

import markupsafe
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from saelib.bench.table import first_parent_seconds
from saelib.report.charts import GREY, svg, svg_text
from saelib.report.figures import image_uri
from saelib.report.page import show_seconds
from saelib.report.views import NEGATIVE, PALETTE, POSITIVE

KINDS = {"local": POSITIVE, "wide": NEGATIVE, "readout": GREY}
PLACES = [("start", 9, 4), ("end", -9, 4), ("middle", 0, -10), ("middle", 0, 19), ("start", 9, 17), ("start", 9, -9)]
"""Where a point's name may stand, the best place first: anchor, and how far from the point."""
SWAP = ("l0_on_P", "fvu_on_P", "loss_recovered_on_P")


def short(method: str) -> str:
    """A method's name; of an SAE in a folder the last part of its path."""
    return f"sae:{Path(method).name}" if method.startswith("sae:") else method


def l0_figure(rows: pd.DataFrame) -> tuple[str, int]:
    """FVU and loss recovered on P against L0 there, a point a method: a data URI, and the number of parents.

    Means over the parents on which every method that is drawn has all three; no picture where there are none.
    """
    each = rows.groupby(["method", "parent"])[list(SWAP)].mean().dropna()["l0_on_P"].unstack()
    parents = each.columns[each.notna().all()]
    if not len(parents):
        return "", 0
    drawn = rows[rows["parent"].isin(parents) & rows["method"].isin(each.index)]
    points = drawn.groupby(["method", "parent"])[list(SWAP)].mean().groupby("method").mean()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, words in zip(axes, SWAP[1:], ("FVU", "loss recovered"), strict=True):
        for i, (method, row) in enumerate(points.iterrows()):
            marker, colour = "osD^v"[i // (len(PALETTE) - 1) % 5], PALETTE[i % (len(PALETTE) - 1)]
            axis.plot(row["l0_on_P"], row[name], marker, color=colour, markersize=7, label=short(str(method)))
        axis.set(xlabel="L0 on P", ylabel=f"{words} on P")
        axis.grid(color="#e6e6e6")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    image = BytesIO()
    figure.savefig(image, format="png", dpi=110)
    plt.close(figure)
    return image_uri(image.getvalue()), len(parents)


def cost_svg(board: pd.DataFrame, width: int = 900, height: int = 420) -> markupsafe.Markup:
    """Mean S_2 over the seconds that the first parent costs (log axis): a wide SAE's training counts in full."""
    frame = board.assign(cost=first_parent_seconds(board).clip(lower=0.01))
    frame = frame[frame["S_2"].notna() & frame["cost"].notna()]
    if frame.empty:
        return markupsafe.Markup("")
    low, high = math.floor(math.log10(frame["cost"].min())), math.ceil(math.log10(frame["cost"].max()) + 1e-9)
    high = max(high, low + 1)
    bottom, top = min(0.0, float(frame["S_2"].min()) - 0.08), max(1.0, float(frame["S_2"].max()))
    left, right, upper, lower = 46, 150, 26, 34

    def x(seconds: float) -> float:
        return left + (width - left - right) * (math.log10(seconds) - low) / (high - low)

    def y(value: float) -> float:
        return upper + (height - upper - lower) * (top - value) / (top - bottom)

    marks = []
    for power in range(low, high + 1):
        at = x(10.0**power)
        marks.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{upper}" y2="{height - lower}" stroke="#dfe2e5"/>')
        marks.append(svg_text(at, height - lower + 14, f"{10.0**power:g} s"))
    for tick in np.arange(math.ceil(bottom * 5) / 5, top + 1e-9, 0.2):
        marks.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#eef0f2"/>')
        marks.append(svg_text(left - 6, y(tick) + 4, f"{tick:.1f}", "end"))
    marks.append(svg_text(left, 14, "mean S_2 (0 is free, 1 is a linear probe)", "start"))
    marks.append(svg_text(width - right, height - 4, "seconds for the first parent", "end"))
    for i, (kind, colour) in enumerate(KINDS.items()):
        marks.append(f'<circle cx="{width - right + 18}" cy="{upper + 10 + 18 * i}" r="5" fill="{colour}"/>')
        marks.append(svg_text(width - right + 28, upper + 14 + 18 * i, kind, "start"))
    points = [(x(cost), y(value)) for cost, value in zip(frame["cost"], frame["S_2"], strict=True)]
    taken = [(at - 6, at + 6, up - 6, up + 6) for at, up in points]
    for (at, up), row in zip(points, frame.to_dict("records"), strict=True):
        name = short(row["method"])
        words = f"{name}: S_2 {row['S_2']:.2f}, {show_seconds(row['cost'])}"
        marks.append(
            f'<circle cx="{at:.1f}" cy="{up:.1f}" r="5" fill="{KINDS.get(row["kind"], PALETTE[3])}" stroke="#fff">'
            f"<title>{html.escape(words)}</title></circle>"
        )
        boxes = [_box(at + dx, up + dy, name, anchor) for anchor, dx, dy in PLACES]
        free = next((i for i, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)), 0)
        taken.append(boxes[free])
        anchor, dx, dy = PLACES[free]
        marks.append(svg_text(at + dx, up + dy, name, anchor, "#1c1e21"))
    return markupsafe.Markup(svg(width, height, "separation against seconds", marks))


def _box(x: float, y: float, words: str, anchor: str) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a text of 11 px."""
    wide = 6.2 * len(words)
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    return left, left + wide, y - 9, y + 2


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
