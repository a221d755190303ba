"""What the notebook on claims shows: arms and effects as tables and figures, and the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saelib.study.arms import EARLY, END
from saelib.study.claims import MATTERS, ClaimResult, ClaimVerdict, Kind
from saelib.study.profiles import Profile
from saelib.study.runs import ARMS
from saelib.study.selection import LEAST_FIT

_COLOURS = {ClaimVerdict.SUPPORTED: "C2", ClaimVerdict.NOT_SUPPORTED: "C3", ClaimVerdict.UNDECIDED: "#777777"}


def arms_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Means at the end of training, a row an arm (`runs` has the columns of `ArmRun`)."""
    last = runs[runs["at"] == END]
    columns = [
        "S_1",
        "S_2",
        "S_4",
        "mcc_2_number",
        "mcc_2_count",
        "passed",
        "l0_hyphens",
        "l1_scale",
        "tokens",
        "seconds",
    ]
    means = last.groupby("arm", sort=False)[columns].mean()
    means.insert(
        0,
        "arm is",
        [{arm.name: arm.text for arm in ARMS}.get(str(name), "in the parent's place") for name in means.index],
    )
    means.insert(1, "runs", last.groupby("arm", sort=False).size())
    return means


def arms_figure(runs: pd.DataFrame) -> Figure:
    """S_2 of every run at its end: a line an arm, a dot a run, a bar its mean over narrow SAEs."""
    last = runs[runs["at"] == END]
    names = list(dict.fromkeys(last["arm"]))
    figure, axis = plt.subplots(figsize=(8, 0.4 * len(names) + 1))
    for y, name in enumerate(names):
        part = last[last["arm"] == name]
        S_2 = part["S_2"].astype(float)
        axis.scatter(S_2, np.full(len(S_2), y), s=12, alpha=0.5, color="C0")
        axis.plot([S_2.mean()] * 2, [y - 0.3, y + 0.3], color="black")
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="S_2", title="Every run of every arm")
    axis.invert_yaxis()
    plt.close(figure)
    return figure


def effects_figure(judged: Sequence[ClaimResult]) -> Figure:
    """Every effect with its 95% interval; dashed: an effect that matters."""
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(judged) + 1))
    for y, row in enumerate(judged):
        axis.plot([row.low, row.high], [y, y], color=_COLOURS[row.verdict])
        axis.plot(row.effect, y, marker="o", color=_COLOURS[row.verdict])
    axis.axvline(0, color="black", linewidth=0.8)
    for end in (-MATTERS, MATTERS):
        axis.axvline(end, color="black", linewidth=0.8, linestyle="--")
    axis.set(yticks=range(len(judged)), yticklabels=[row.claim for row in judged], xlabel="effect on S_2")
    axis.set_title("Green: supported; red: not supported; grey: undecided")
    axis.invert_yaxis()
    plt.close(figure)
    return figure


def early_and_late(runs: pd.DataFrame) -> pd.DataFrame:
    """For each arm that was measured early: S_2 then and at the end, the gain, and the mean distance of two seeds at the end."""
    rows = {}
    for name in dict.fromkeys(runs.loc[runs["at"] == EARLY, "arm"]):
        part = runs[runs["arm"] == name]
        early, late = (part[part["at"] == at] for at in (EARLY, END))
        S_2 = late.assign(S_2=late["S_2"].astype(float)).groupby("block")["S_2"]
        then, now = early["S_2"].astype(float).mean(), late["S_2"].astype(float).mean()
        rows[name] = {
            "tokens early": early["tokens"].mean(), "tokens": late["tokens"].mean(), "S_2 early": then, "S_2": now,
            "gain": now - then, "spread of seeds": (S_2.max() - S_2.min()).mean(),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def long_enough(gains: pd.DataFrame) -> str:
    """Whether more steps still change S_2 by more than seeds do, from the rows of `early_and_late`."""
    if gains.empty:
        return "No arm was measured early."
    rising = [str(arm) for arm, row in gains.iterrows() if row["gain"] > row["spread of seeds"]]
    share = (gains["tokens early"] / gains["tokens"]).mean()
    told = (
        f"From {share:.0%} of a run to its end S_2 changes by {gains['gain'].min():+.2f} to {gains['gain'].max():+.2f}"
    )
    if not rising:
        return f"{told}, in no arm by more than two seeds differ."
    return f"{told}, in {len(rising)} of {len(gains)} arms by more than two seeds differ ({', '.join(rising)})."


def claims_headline(profile: Profile, judged: Sequence[ClaimResult], runs: pd.DataFrame) -> dict[str, Any]:
    """The numbers that answer which claims hold; `runs` has the columns of `ArmRun`."""
    parents = runs.groupby("block")[["purity", "recall"]].first().astype(float)
    own = [row for row in judged if row.kind is not Kind.CONTROL]
    told = [
        f"{verdict.value.capitalize()}: {', '.join(_claim_text(row) for row in own if row.verdict is verdict)}"
        for verdict in ClaimVerdict
        if any(row.verdict is verdict for row in own)
    ]
    return {
        "answer": f"Effects on S_2 over {profile.claim_blocks} narrow SAEs. {'. '.join(told)}.",
        "claims": dict(Counter(row.verdict.value for row in own)),
        "tokens_per_run": profile.claim_steps * profile.batch_size,
        "narrow_saes": profile.claim_blocks,
        "runs_on_each": profile.claim_wide_seeds,
        "parents_of_hyphens": int((parents.min(axis=1) >= LEAST_FIT).sum()),
        "purity_lowest": parents["purity"].min(),
        "recall_lowest": parents["recall"].min(),
        "long_enough": long_enough(early_and_late(runs)),
        "seconds": runs[runs["at"] == END].groupby("arm")["seconds"].mean().to_dict(),
    }


def _claim_text(row: ClaimResult) -> str:
    effect = f" ({row.effect:+.2f}, {row.low:+.2f} to {row.high:+.2f})" if row.low == row.low else ""
    return f"“{row.claim}”{effect}"
