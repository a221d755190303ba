"""Tokens to fixed levels of separation, and their price: the tables behind notebook 13's answer.

A level is *reached* at the first point from which on S_2 stays at or above it: nearly untrained SAEs may cross it and fall back.
A run that ends below is censored at its last point. A number of tokens that is the first point's is an upper end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from saelib.base.stats import smallest_effect, t_test
from saelib.base.survival import time_to
from saelib.study import price, selection, trainings
from saelib.study.data_needed import CHILDREN
from saelib.study.hyphen_scale import separation_of
from saelib.study.profiles import Profile
from saelib.study.runs import get_run

LEVELS = {"half": 0.5, "three quarters": 0.75, "nine tenths": 0.9}
"""Fixed levels of S_2, whose ceiling is 1; the level of run 9 is measured."""
EVERYTHING = "random, all"
STUDY_RUNS = {EVERYTHING: (13, 14, 15), "random, contexts": (4, 5, 6), "warm, contexts": (7, 8)}
"""The study's own runs that are trained as an arm is, for longer."""
PRICE = [
    "arm", "level", "share", "break_even", "break_even_low", "break_even_high", "ratio", "ratio_low", "ratio_high",
    "ratio_seen_again", "bound", "verdict",
]  # fmt: skip
"""The columns of `priced` that say whether filtering pays."""
_BOUND = {(True, True): "either way", (True, False): "at most", (False, True): "at least", (False, False): ""}
_DRAWS = 2000


def reached_at(run: pd.DataFrame, level: float) -> float:
    """Training tokens at the first point from which on S_2 stays at or above `level`; NaN where the last point is below."""
    ordered = run.sort_values("tokens")
    below = np.flatnonzero(~(ordered["S_2"].to_numpy() >= level))
    after = int(below[-1]) + 1 if len(below) else 0
    return float(ordered["tokens"].iloc[after]) if after < len(ordered) else math.nan


def times_to(table: pd.DataFrame, arm: str, level: float) -> Float[np.ndarray, " seeds"]:
    """`reached_at` of every seed of an arm."""
    return np.array([reached_at(run, level) for _, run in table[table["arm"] == arm].groupby("seed")])


def levels_table(table: pd.DataFrame, levels: Mapping[str, float]) -> pd.DataFrame:
    """One row an arm and level: arm, level, S_2, tokens (median over seeds) with low and high (95%, censored at the last point),
    reached, seeds, first and given (tokens of the first and the last point)."""
    rows = []
    for arm, part in table.groupby("arm", sort=False):
        given = part.groupby("seed")["tokens"].max().to_numpy(dtype=float)
        for name, level in levels.items():
            found = time_to(times_to(table, str(arm), level), given)
            rows.append(
                {
                    "arm": arm, "level": name, "S_2": level, "tokens": found.value, "low": found.low, "high": found.high,
                    "reached": found.reached, "seeds": found.n, "first": float(part["tokens"].min()), "given": float(given.max()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def at_one_rate(sources: Mapping[str, price.Source]) -> dict[str, price.Source]:
    """The wide arms train the same shape: all at their median seconds a token, for they differ by what else the machine did."""
    a_token = float(np.median([source.sae_second for arm, source in sources.items() if arm != CHILDREN]))
    return {
        arm: source if arm == CHILDREN else replace(source, sae_second=a_token) for arm, source in sources.items()
    }  # fmt: skip


def at_rate(sources: Mapping[str, price.Source], sae_tokens_per_second: float) -> dict[str, price.Source]:
    """Sources on another machine, on which the wide arms train at this rate; the children take as much less as they do here."""
    scale = 1 / sae_tokens_per_second / sources[EVERYTHING].sae_second
    return {arm: replace(source, sae_second=source.sae_second * scale) for arm, source in sources.items()}


def priced(
    table: pd.DataFrame, levels: Mapping[str, float], sources: Mapping[str, price.Source], lm_second: float
) -> pd.DataFrame:
    """`levels_table` with its price: lm_tokens and seconds_in_all at the median; against all data from the same start share,
    break_even and ratio (see `price.BreakEven`: no token is seen twice) with 95% intervals that draw seeds; ratio_seen_again,
    that of seconds_in_all, in which a token seen again is not read again; bound (`at most`: the filtered arm is there at its
    first point, or all data never; `at least`: all data are there at their first) and verdict (`undecided` where the interval,
    open where an end is not known, holds 1)."""
    rows, found = [], levels_table(table, levels).to_dict("records")
    of = {(row["arm"], row["level"]): row for row in found}
    times = {place: times_to(table, row["arm"], row["S_2"]) for place, row in of.items()}
    for row in found:
        source, n = sources[row["arm"]], float(row["tokens"])
        base = "warm, all" if row["arm"].startswith("warm") else EVERYTHING
        other = of[base, row["level"]]
        more: dict[str, Any] = dict.fromkeys(["lm_tokens", "seconds_in_all", *PRICE[2:]], math.nan)
        more["share"] = source.share
        if math.isfinite(n):
            more["lm_tokens"] = price.lm_tokens(n, source)
            more["seconds_in_all"] = price.seconds(n, source, lm_second)
        if math.isfinite(n) and row is not other:
            never = not math.isfinite(other["tokens"])
            n_all = float(other["given"] if never else other["tokens"])
            rng = np.random.default_rng(0)
            ends = tokens_ratio(*(drawn_medians(times[one["arm"], one["level"]], one, rng) for one in (row, other)))
            for end, ratio in zip(("", "_low", "_high"), (n / n_all, *ends), strict=True):
                even = price.break_even(ratio, source, 1.0, sources[base], lm_second)
                more |= {f"break_even{end}": even.share, f"ratio{end}": even.ratio}
            more["ratio_seen_again"] = more["seconds_in_all"] / price.seconds(n_all, sources[base], lm_second)
            more["bound"] = _BOUND[n <= row["first"] or never, n_all <= other["first"]]
            more["verdict"] = "undecided"
            if more["ratio_high"] < 1 or more["ratio_low"] > 1:
                more["verdict"] = "pays" if more["ratio_high"] < 1 else "does not pay"
        rows.append({**{str(name): value for name, value in row.items()}, **more})
    return pd.DataFrame(rows)


Ends = tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]
"""Between which two numbers something lies, in every draw."""


def drawn_medians(times: Float[np.ndarray, " seeds"], row: Mapping[Any, Any], rng: np.random.Generator) -> Ends:
    """Between which numbers of tokens the median lies when seeds are drawn anew: one that is there at the first point may have
    been there since 0, and one that is censored comes at any time after the last."""
    seeds = np.where(np.isnan(times), np.inf, times)
    drawn = np.sort(rng.choice(seeds, (_DRAWS, len(seeds))), axis=1)
    median = drawn[:, (len(seeds) - 1) // 2]  # Kaplan and Meier's, where all were watched for as long
    return np.where(median <= row["first"], 0.0, np.minimum(median, row["given"])), median


def tokens_ratio(filtered: Ends, everything: Ends) -> tuple[float, float]:
    """95% interval of the ratio of two medians: its low end from the least it can be in each draw, its high end from the most."""
    with np.errstate(divide="ignore"):
        least, most = filtered[0] / everything[1], filtered[1] / everything[0]
    low, high = np.quantile(least, 0.025, method="inverted_cdf"), np.quantile(most, 0.975, method="inverted_cdf")
    return float(low), float(high)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Each arm's S_2 at its last point less that of all data from the same start, seed by seed: arm, against, difference with low
    and high (95%, t), smallest (the difference that so many seeds show with 80% power), seeds."""
    last = table.loc[table.groupby(["arm", "seed"])["tokens"].idxmax()].pivot(index="seed", columns="arm", values="S_2")
    rows = []
    for arm in [name for name in table["arm"].unique() if not name.endswith(", all")]:
        base = "warm, all" if arm.startswith("warm") else EVERYTHING
        values = (last[arm] - last[base]).dropna().to_numpy(dtype=float)
        found = t_test(values)
        rows.append(
            {"arm": arm, "against": base, "difference": found.mean, "low": found.low, "high": found.high,
             "smallest": smallest_effect(values), "seeds": len(values)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def study_points(profile: Profile) -> pd.DataFrame:
    """The study's own runs as points (arm, seed, tokens, S_1, S_2): trained as the arms are, for longer."""
    chosen, rows = selection.parent(profile), []
    for arm, runs in STUDY_RUNS.items():
        for run in runs:
            trained = trainings.trained_run(profile, run)
            at = {"arm": arm, "run": run, "seed": get_run(run).seed, "tokens": trained.n_tokens}
            rows.append({**at, **separation_of(profile, chosen, trained.sae)})
    return pd.DataFrame(rows)


def answer(table: pd.DataFrame) -> str:
    """Notebook 13's answer, from `priced` (or from the CSV it was written to): which arms reach three quarters, after how many
    tokens; whether filtering by context and by token pays at the level of run 9."""
    top, level = (table[table["level"] == name] for name in ("three quarters", "run 9"))
    there = [f"{row['arm']} after {_tokens(row)}" for row in top[top["tokens"].notna()].to_dict("records")]
    who = " and ".join(there) + (", no other arm" if len(there) < len(top) else "") if there else "no arm"
    ways = {"random, contexts": "by context", "random, tokens": "by token"}
    costs = [f"{ways[row['arm']]}, {_price(row)}" for row in level.to_dict("records") if row["arm"] in ways]
    return (
        f"S_2 = 0.75 (three quarters of the way to the probe) is reached, within up to {top['given'].max():,.0f} SAE tokens, by "
        f"{who}. At this machine's rates and the level of run 9 (S_2 = {level['S_2'].max():.2f}), filtering costs, as a multiple "
        f"of all data (95% over {table['seeds'].max():.0f} seeds, which are few; open where the curves do not say): "
        f"{'; '.join(costs)}."
    )


def _tokens(row: Mapping[Any, Any]) -> str:
    """Such as `at most 500 tokens (95% at most 500 to 900)`."""

    def end(value: float) -> str:
        if not math.isfinite(value):
            return "not within"
        return f"{'at most ' if value <= row['first'] else ''}{value:,.0f}"

    return f"{end(row['tokens'])} tokens (95% {end(row['low'])} to {end(row['high'])})"


def _price(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["ratio"]):
        return f"unknown, for the level is not reached ({row['reached']:.0f} of {row['seeds']:.0f} seeds)"
    bound = f"{row['bound']} " if row["bound"] in ("at most", "at least") else ""
    low, high = (f"{end:.1f}" if 0 < end < math.inf else "open" for end in (row["ratio_low"], row["ratio_high"]))
    return f"{bound}{row['ratio']:.1f} ({low} to {high}): {row['verdict']}"
