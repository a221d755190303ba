"""Tokens to fixed levels of separation, and their price: the tables behind notebook 13's answer.

A level is *reached* at the first point whose S_2 is at least that; a run that reaches it at none is censored at its last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from saelib.base.survival import TimeTo, time_to
from saelib.study import price

LEVELS = {"half": 0.5, "three quarters": 0.75, "nine tenths": 0.9}
"""Fixed levels of S_2, whose ceiling is 1; the level of run 9 is measured."""

PRICE = ["arm", "level", "share", "break_even", "ratio", "ratio_seen_again", "at_least", "lm_tokens", "seconds_in_all"]
"""The columns of `priced` that say whether filtering pays."""


def first_at_least(run: pd.DataFrame, level: float) -> float:
    """Training tokens at the first point of a run whose S_2 is at least `level`; NaN where none is."""
    reached = run.loc[run["S_2"] >= level, "tokens"]
    return float(reached.min()) if len(reached) else math.nan


def levels_table(table: pd.DataFrame, levels: Mapping[str, float]) -> pd.DataFrame:
    """One row an arm and level: arm, level, S_2, tokens (median over seeds) with low and high (95%, censored at the last point),
    reached, seeds, given (tokens of the last point)."""
    rows = []
    for arm, part in table.groupby("arm", sort=False):
        runs = [run for _, run in part.groupby("seed")]
        given = np.array([float(run["tokens"].max()) for run in runs])
        for name, level in levels.items():
            found = time_to([first_at_least(run, level) for run in runs], given)
            rows.append(
                {
                    "arm": arm, "level": name, "S_2": level, "tokens": found.value, "low": found.low, "high": found.high,
                    "reached": found.reached, "seeds": found.n, "given": float(given.max()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def priced(
    levels: pd.DataFrame, sources: Mapping[str, price.Source], lm_second: float, everything: str = "random, all"
) -> pd.DataFrame:
    """`levels_table` with its price: lm_tokens and seconds_in_all at the median; share, break_even and ratio (see
    `price.BreakEven`: no token is seen twice) against all data from the same start; ratio_seen_again, that of seconds_in_all, in
    which a token seen again is not read again; `at_least`: all data did not get there, so that all three are upper ends."""
    rows = []
    for row in levels.to_dict("records"):
        source, n = sources[row["arm"]], float(row["tokens"])
        base = "warm, all" if str(row["arm"]).startswith("warm") else everything
        other = levels[(levels["arm"] == base) & (levels["level"] == row["level"])].iloc[0]
        censored = not math.isfinite(other["tokens"])
        n_all = float(other["given"] if censored else other["tokens"])
        even = price.break_even(n, source, n_all, sources[base], lm_second)
        cost = price.seconds(n, source, lm_second) if math.isfinite(n) else math.nan
        known = math.isfinite(n) and row["arm"] != base
        more = {
            "lm_tokens": price.lm_tokens(n, source) if math.isfinite(n) else math.nan,
            "seconds_in_all": cost,
            "share": source.share,
            "break_even": even.share if known else math.nan,
            "ratio": even.ratio if known else math.nan,
            "ratio_seen_again": cost / price.seconds(n_all, sources[base], lm_second) if known else math.nan,
            "at_least": bool(known and censored),
        }
        rows.append({**{str(name): value for name, value in row.items()}, **more})
    return pd.DataFrame(rows)


def priced_at(
    levels: pd.DataFrame,
    sources: Mapping[str, price.Source],
    lm_tokens_per_second: float | None,
    sae_tokens_per_second: float | None,
) -> pd.DataFrame | None:
    """`priced` at the rates of another machine; None where one of them is not known."""
    if not lm_tokens_per_second or not sae_tokens_per_second:
        return None
    there = {arm: replace(source, sae_second=1 / sae_tokens_per_second) for arm, source in sources.items()}
    return priced(levels, there, 1 / lm_tokens_per_second)


def answer(table: pd.DataFrame) -> str:
    """Notebook 13's answer, from `priced` (or from the CSV it was written to), at the highest level that half of the seeds of
    some arm reached; the price at the highest level that a filtered arm and all data from its start both reached."""
    reached = table[table["tokens"].notna()]
    if reached.empty:
        return "No arm reached any of the levels, so there is nothing to compare."
    top = reached.sort_values("S_2").to_dict("records")[-1]
    told = "; ".join(f"{row['arm']}: {_time(row)}" for row in table[table["S_2"] == top["S_2"]].to_dict("records"))
    first = f"To get to S_2 = {top['S_2']:.2f} ({top['level']}), training takes ({told})."
    both = table[table["ratio"].notna() & ~table["at_least"].astype(bool)]
    if both.empty:
        return f"{first} No level was reached by filtered and by plain data, so there is no price to compare."
    level = both[both["S_2"] == both["S_2"].max()]
    ends = "; ".join(
        f"{row['arm']} {'pays' if row['ratio'] < 1 else 'does not pay'}: {row['ratio']:.1f} times the cost "
        f"({row['ratio_seen_again']:.1f} times where tokens are seen again, as here); it breaks even where "
        f"{row['break_even']:.1%} of tokens pass, and {row['share']:.1%} do"
        for row in level.to_dict("records")
    )
    at = f"S_2 = {level['S_2'].iloc[0]:.2f} ({level['level'].iloc[0]})"
    return f"{first} Is filtering worth its price, at this machine's rates and {at}? {ends}."


def _time(row: Mapping[Any, Any]) -> str:
    return TimeTo(row["tokens"], row["low"], row["high"], int(row["reached"]), int(row["seeds"])).words("tokens")
