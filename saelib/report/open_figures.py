"""The figures of notebooks 13 to 15: curves against tokens and their price, shares with intervals, damage against effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt

from saelib.study.circuit_tables import PREVIOUS, Case


def data_figure(table: pd.DataFrame, scales: Mapping[str, Callable[[float, str], float]]) -> Any:
    """S_2 against training tokens on several scales: the median of the seeds, and between their least and largest.

    Args:
        table: columns arm, seed, tokens, S_2; points that were not measured are left out.
        scales: a name and what (tokens, arm) are on it.
    """
    figure, axes = plt.subplots(1, len(scales), figsize=(3.7 * len(scales), 3.8), sharey=True, squeeze=False)
    for axis, (name, scale) in zip(axes[0], scales.items(), strict=True):
        for i, arm in enumerate(table["arm"].unique()):
            curve = table[table["arm"] == arm].groupby("tokens")["S_2"].agg(["median", "min", "max"]).dropna()
            if curve.empty:
                continue
            x = [scale(float(n), arm) for n in curve.index]
            axis.semilogx(x, curve["median"], marker=".", color=f"C{i}", label=arm)
            axis.fill_between(x, curve["min"], curve["max"], color=f"C{i}", alpha=0.12, linewidth=0)
        axis.set(xlabel=name)
    axes[0, 0].set(ylabel="S_2")
    if axes[0, 0].lines:
        axes[0, 0].legend(fontsize=7)
    return figure


def previous_token_figure(sources: pd.DataFrame) -> Any:
    """For each context, the share of every feature's contrast that comes from the previous token, with its interval
    (which runs off the picture where there is next to no contrast)."""
    names = list(sources["context"].unique())
    tall = max(4.0, 0.2 * sources["object"].nunique())
    figure, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), tall), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        part = sources[(sources["context"] == name) & (sources["component"] == PREVIOUS)].iloc[::-1]
        ends = [(part["share"] - part["low"]).clip(0), (part["high"] - part["share"]).clip(0)]
        axis.errorbar(part["share"], part["object"], xerr=ends, fmt="o", capsize=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(
            title=f"{name} against its siblings",
            xlabel="share of the contrast from the previous token",
            xlim=(-1.5, 2.5),
        )
    return figure


def acting_figure(cases: Mapping[str, Case]) -> Any:
    """For each case, damage to the siblings against the effect on the class, a line a way; dashed: where they are compared."""
    figure, axes = plt.subplots(1, len(cases), figsize=(5.5 * len(cases), 4), squeeze=False)
    for axis, (name, case) in zip(axes[0], cases.items(), strict=True):
        for way in (way for way in case.ways if way.size == 1):
            curve = case.curves(way)
            on, off = curve.fall[case.test.in_class].mean(0), curve.kl[~case.test.in_class].mean(0)
            axis.plot([0, *on], [0, *off], ".-", label=way.name, alpha=0.4 if way.family == "rotation" else 1)
        axis.set(title=name, xlabel="effect on the class (nats)", ylabel="damage to siblings (KL, nats)")
        axis.axvline(case.level, color="black", linestyle="--", linewidth=0.8)
        axis.legend(fontsize=6)
    return figure


def saving_figure(many: pd.DataFrame) -> Any:
    """Over parents, what the split adds against how much less damage its best child does at the same effect."""
    figure, axis = plt.subplots()
    axis.plot(many["added_2"], many["saving"], "o")
    compared = int((many["added_2"].notna() & many["saving"].notna()).sum())
    axis.set(xlabel="added_2", ylabel="saving: 1 - child's damage / parent's", title=f"{compared} parents")
    return figure
