"""Figures of the calibration: how often a true split is found, against its size."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saelib.split import calibration


def sensitivity_figure(trees: pd.DataFrame) -> Figure:
    """The share of trees judged `split` against the effect size, a curve a number of parent tokens."""
    figure, axis = plt.subplots()
    for tokens, rows in trees.groupby("parent_tokens"):
        axis.plot(rows["effect"], rows["rate"], marker="o", label=f"{tokens:,} tokens of the parent")
        axis.fill_between(rows["effect"], rows["low"], rows["high"], alpha=0.12)
    _finish(figure, "effect size (standard deviations)")
    return figure


def implants_figure(summary: pd.DataFrame) -> Figure:
    """The share of implants judged `split` and the probe's MCC (dashed) against delta, a colour a share of P."""
    figure, axis = plt.subplots()
    for share, rows in summary.groupby("share"):
        (line,) = axis.plot(rows["delta"], rows["rate"], marker="o", label=f"{share:.0%} of the parent's tokens")
        axis.fill_between(rows["delta"], rows["low"], rows["high"], alpha=0.12, color=line.get_color())
        axis.plot(rows["delta"], rows["ceiling"], linestyle=":", color=line.get_color())
    _finish(figure, "delta (standard deviations); dotted: MCC of a linear probe")
    return figure


def _finish(figure: Figure, label: str) -> None:
    axis = figure.axes[0]
    axis.axhline(calibration.DETECTION_MIN, color="black", linestyle="--", linewidth=0.8)
    axis.set(xlabel=label, ylabel="share judged split", ylim=(-0.03, 1.03))
    axis.legend()
