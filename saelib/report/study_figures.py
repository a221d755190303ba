"""The figures of the study's notebooks that no `TokenView` makes: curves against thresholds, tokens, steps and their price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt

from saelib.study.circuit_tables import PREVIOUS, Case
from saelib.study.warm_starts import COMPARED, WIDE

PUBLISHED_SHARE_KEPT = 0.72


def share_kept_figure(curve: pd.DataFrame, tau: float) -> Any:
    """The shares of contexts and of tokens that a filter keeps, against its threshold."""
    axis = curve.plot(x="tau", y=["contexts", "tokens"], logy=True, marker="o")
    axis.axvline(tau, color="black", linestyle="--")
    axis.axhline(PUBLISHED_SHARE_KEPT, color="gray", linestyle=":")
    axis.set(ylabel="share kept", title=f"dashed: tau used; dotted: the study's {PUBLISHED_SHARE_KEPT:.0%}")
    return axis.figure


def loss_figure(logs: Mapping[int, pd.DataFrame]) -> Any:
    """Figure 6: loss against tokens of the runs on the same filtered data, warm starts and random ones."""
    figure, axis = plt.subplots(figsize=(7, 4))
    for run, spec in COMPARED.items():
        log, warm = logs[run].rolling(3, min_periods=1).mean(), spec.init_from_narrow
        label = f"run {run}: {'warm' if warm else 'random'}, seed {spec.seed}"
        axis.plot(log["tokens"], log["loss"], color="C0" if warm else "C1", alpha=0.7, label=label)
    axis.set(xlabel="tokens", ylabel="loss", yscale="log", title="Filtered data, standard loss; blue: warm start")
    axis.legend(fontsize=8)
    return figure


def parent_on_top_figure(logs: Mapping[int, pd.DataFrame]) -> Any:
    """Share of parent-active hyphens on which the old parent is still the top feature, of every warm start."""
    figure, axis = plt.subplots(figsize=(7, 4))
    for run, spec in WIDE.items():
        if spec.init_from_narrow:
            kinds = ("parent zeroed" if spec.zero_parent else "standard", "filtered" if spec.filtered else "all data")
            line = ("-" if spec.zero_parent else "--") + ("C2" if spec.filtered else "C3")
            axis.plot(logs[run]["tokens"], logs[run]["parent_still_top"], line, label=f"run {run}: {', '.join(kinds)}")
    axis.set(
        xlabel="tokens", ylabel="share", ylim=(-0.02, 1.02), title="Old parent still the top feature on its hyphens"
    )
    axis.legend(fontsize=7)
    return figure


def replaced_figure(curves: pd.DataFrame, classes: Sequence[str]) -> Any:
    """Share of each class's hyphens on which the parent is still the largest, against steps; an arm as in `_lines`."""
    figure, axes = plt.subplots(1, len(classes), figsize=(11, 3.4), sharey=True)
    for axis, name in zip(axes, classes, strict=True):
        _lines(axis, curves, f"parent_{name}")
        axis.set(title=name, xlabel="step", ylim=(-0.02, 1.02))
    axes[0].set(ylabel="parent the largest")
    axes[-1].legend(fontsize=7)
    return figure


def watched_figure(curves: pd.DataFrame) -> Any:
    """Loss and FVU on the watched hyphens against steps; a line an arm."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, column, title in zip(axes, ("loss_P", "fvu_P"), ("loss", "FVU"), strict=True):
        _lines(axis, curves, column)
        axis.set(xlabel="step", title=f"{title} on the watched hyphens", yscale="log")
    axes[0].legend(fontsize=7)
    return figure


def _lines(axis: Any, curves: pd.DataFrame, column: str) -> None:
    """A line an arm, and between its seeds' least and largest; lines that lie over each other differ in dashes and markers."""
    for i, (arm, part) in enumerate(curves.groupby("arm", sort=False)):
        style = {"linestyle": ("-", "--", "-.", ":")[i % 4], "marker": "osv^Dx"[i % 6], "markevery": (5 * i + 3, 35)}
        axis.plot(part["step"], part[column], color=f"C{i}", label=arm, markersize=4, **style)
        axis.fill_between(
            part["step"], part[f"{column}_low"], part[f"{column}_high"], color=f"C{i}", alpha=0.15, linewidth=0
        )


def data_figure(
    table: pd.DataFrame, scales: Mapping[str, Callable[[float, str], float]], study_runs: pd.DataFrame
) -> Any:
    """S_2 and S_1 against training tokens on several scales: the median of the seeds, and between their least and largest.

    Args:
        table: columns arm, seed, tokens, S_1, S_2; points that were not measured are left out.
        scales: a name and what (tokens, arm) are on it.
        study_runs: the study's own runs with the same columns, each a hollow point.
    """
    figure, axes = plt.subplots(
        2, len(scales), figsize=(3.4 * len(scales), 6.4), sharey="row", sharex="col", squeeze=False
    )
    for row, S in zip(axes, ("S_2", "S_1"), strict=True):
        row[0].set(ylabel=S)
        for axis, scale in zip(row, scales.values(), strict=True):
            for i, arm in enumerate(table["arm"].unique()):
                curve = table[table["arm"] == arm].groupby("tokens")[S].agg(["median", "min", "max"]).dropna()
                x = [scale(float(n), arm) for n in curve.index]
                axis.semilogx(x, curve["median"], marker=".", color=f"C{i}", label=arm)
                axis.fill_between(x, curve["min"], curve["max"], color=f"C{i}", alpha=0.12, linewidth=0)
                runs = study_runs[study_runs["arm"] == arm]
                ends = [scale(float(n), arm) for n in runs["tokens"]]
                axis.plot(ends, runs[S], "o", color=f"C{i}", markerfacecolor="none")
    for axis, name in zip(axes[1], scales, strict=True):
        axis.set(xlabel=name)
    axes[0, 0].legend(fontsize=7)
    return figure


def previous_token_figure(sources: pd.DataFrame, children: int = 12) -> Any:
    """For each context, the share of a feature's contrast that comes from the previous token, with its interval (which runs off
    the picture where there is next to no contrast): of every feature that is acted on, and the children of largest contrast."""
    names = list(sources["context"].unique())
    figure, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), 5), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        part = sources[(sources["context"] == name) & (sources["component"] == PREVIOUS)]
        child = part["family"] == "child"
        largest = (part["amount"] / part["share"]).abs()[child].nlargest(children)
        part = part[~child | part.index.isin(largest.index)].iloc[::-1]
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
