"""Whether a warm start converges faster, and how long the old parent stays on top (notebook 06)."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from saelib.base import stats
from saelib.study import trainings
from saelib.study.profiles import Profile
from saelib.study.runs import RUNS, RunSpec

NEAR = 1.05
"""The level is this much of where the random starts end."""
LAST = 10
"""Logged losses whose median is where a run ends."""
WIDE: dict[int, RunSpec] = {spec.run: spec for spec in RUNS if spec.size == "wide"}
COMPARED = {run: spec for run, spec in WIDE.items() if spec.filtered and not spec.zero_parent}
"""Runs on the same filtered data with the standard loss."""


def histories(profile: Profile) -> dict[int, pd.DataFrame]:
    """What each wide run logged: step, tokens, loss, `parent_still_top` after a warm start."""
    return {run: trainings.trained_run(profile, run).history for run in WIDE}


def loss_level(logs: Mapping[int, pd.DataFrame]) -> float:
    """`NEAR` times the level that the random starts end at."""
    ends = [logs[run]["loss"].tail(LAST) for run, spec in COMPARED.items() if not spec.init_from_narrow]
    return float(NEAR * pd.concat(ends).median())


def tokens_to_level(logs: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """A row a compared run: start, seed, losses, tokens to `loss_level` (NaN where it is not reached), tokens given."""
    level, rows = loss_level(logs), {}
    for run, spec in COMPARED.items():
        loss = logs[run]["loss"]
        rows[run] = {
            "start": "warm" if spec.init_from_narrow else "random",
            "seed": spec.seed,
            "first loss": loss.iloc[0],
            "last loss": loss.tail(LAST).median(),
            "tokens to level": stats.first_at_or_below(logs[run], "loss", level),
            "tokens given": int(logs[run]["tokens"].iloc[-1]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def parent_on_top(logs: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """A row a warm run: the share of its hyphens on which the old parent is on top, largest at any time and at the end."""
    rows = {
        run: {"zeroed": spec.zero_parent, "largest at any time": share.max(), "at the end": share.iloc[-1]}
        for run, spec in WIDE.items()
        if spec.init_from_narrow and len(share := logs[run]["parent_still_top"])
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
