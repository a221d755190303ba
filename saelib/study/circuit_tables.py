"""The tables of notebook 15: where a feature's contrast comes from, what it does, whether it is cleaner to act on."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from saelib.interpret.circuits import ablation, contrast_parts, direct_effect, tokens_for_share
from saelib.interpret.damage import Behaviour, Curves, curves, damage_at, log_odds
from saelib.sae.sae import SAE
from saelib.split.result import Split
from saelib.split.yardstick import Documents, Interval, interval
from saelib.study.circuit_cases import CaseTokens, Way, case_behaviour, case_tokens, feature_way, one_layer, ways

PREVIOUS = "previous token"
_LEVEL = 0.5
"""The level of a comparison: this share of the log-odds on the class, or of what the weaker of parent and child can do."""


def contrast_draws(
    documents: Documents, values: Float[np.ndarray, "n c"], in_class: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "draws c"]:
    """Mean over the class less mean over its siblings in every draw of documents; NaN where a draw lacks one of them."""
    sides = []
    for side in (in_class, ~in_class):
        sums = documents.sums(np.column_stack([side, values * side[:, None]]).astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            sides.append(sums[:, 1:] / sums[:, :1])
    return sides[0] - sides[1]


def mean_draws(
    documents: Documents, values: Float[np.ndarray, "n c"], among: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "draws c"]:
    """Mean over some tokens in every draw of documents."""
    sums = documents.sums(np.column_stack([among, values * among[:, None]]).astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = sums[:, 1:] / sums[:, :1]
    return found


class Case:
    """One parent and one context, with the ways of acting chosen on select."""

    def __init__(self, split: Split, context: int, wide: SAE, most: int) -> None:
        self.split, self.model, self.name = split, one_layer(split), split.contexts[context].name
        self.select, self.test = (case_tokens(split, part, context, most) for part in ("select", "test"))
        self.behaviour: Behaviour = case_behaviour(split, context)
        self.ways: tuple[Way, ...] = ways(split, self.select, self.behaviour, wide)
        self.documents = {
            part: Documents.drawn(tokens.document) for part, tokens in (("select", self.select), ("test", self.test))
        }

    @torch.no_grad()
    def odds(self, part: str) -> Interval:
        """The behaviour's mean log-odds on the class."""
        tokens: CaseTokens = getattr(self, part)
        values = log_odds(self.model, tokens.residual, self.behaviour).double().numpy()[:, None]
        return interval(mean_draws(self.documents[part], values, tokens.in_class)[:, 0])

    # --- where it comes from -----------------------------------------------------------------------------------------

    def sources(self) -> pd.DataFrame:
        """One row a feature and component of the contrast on test: object, family, component, amount, share with low and high.

        Features are those of the ways of acting, then every other child. Components are those of `Incoming.names`, `previous
        token` (offset 1, all heads), and `linearisation error`.
        """
        rows, split = [], self.split
        children = [feature_way(f"child {n}", "child", split.sae, torch.tensor([n])) for n in split.numbers]
        told = {way.name for way in self.ways}
        for way in (*self.ways, *(child for child in children if child.name not in told)):
            if way.read is None:
                continue
            parts = contrast_parts(self.model, self.test.found, way.read, self.test.in_class)
            previous = [i for i, name in enumerate(parts.names) if name.endswith("offset 1")]
            values = np.column_stack([parts.parts, parts.parts[:, previous].sum(1), parts.error, parts.actual])
            draws = contrast_draws(self.documents["test"], values, self.test.in_class)
            names = [*parts.names, PREVIOUS, "linearisation error"]
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = draws[:, :-1] / draws[:, -1:]
            for i, name in enumerate(names):
                share = interval(shares[:, i])
                rows.append(
                    {
                        "context": self.name, "object": way.name, "family": way.family, "component": name,
                        "amount": float(draws[0, i]), "share": share.value, "low": share.low, "high": share.high,
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    # --- what it does ------------------------------------------------------------------------------------------------

    def effects(self) -> pd.DataFrame:
        """One row a feature and side (class, siblings) on test: tokens for 90% of the direct effect, and the mean change of the
        next token's log-probability under ablation, predicted and measured, with the correlation of the two over tokens."""
        rows = []
        target = torch.from_numpy(self.test.next.astype(np.int64))
        for way in self.ways:
            if way.write is None:
                continue
            removed = way.removed(self.test)
            found = ablation(self.model, self.test.residual, removed, target)
            count = tokens_for_share(direct_effect(self.model, way.write))
            changed = tokens_for_share(found.changed)
            for side, among in (("class", self.test.in_class), ("siblings", ~self.test.in_class)):
                both = np.column_stack([found.predicted, found.measured])
                draws = mean_draws(self.documents["test"], both, among)
                measured = interval(draws[:, 1])
                rows.append(
                    {
                        "context": self.name, "object": way.name, "family": way.family, "side": side, "tokens_90": count,
                        "changed_90": changed, "predicted": float(draws[0, 0]), "measured": measured.value,
                        "low": measured.low, "high": measured.high, "correlation": _correlation(both[among]),
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    # --- is it cleaner to act on? --------------------------------------------------------------------------------------

    @functools.cached_property
    def level(self) -> float:
        """The effect (nats) at which ways are compared, from select: half of the class's log-odds, or of the most that the weaker
        of the parent and the best child can do; NaN where the question is not asked (log-odds not above 0) or neither can."""
        odds = self.odds("select")
        if not odds.low > 0:
            return math.nan
        most = min(
            self._mean(way, "select").max() for way in self.ways if way.family in ("parent", "child") and way.size == 1
        )
        level = _LEVEL * min(odds.value, float(most))
        return level if level > 0 else math.nan

    def curves(self, way: Way, part: str = "test") -> Curves:
        """Effect and damage at every strength."""
        tokens: CaseTokens = getattr(self, part)
        return curves(self.model, tokens.residual, way.removed(tokens), self.behaviour)

    def _mean(self, way: Way, part: str) -> np.ndarray:
        tokens: CaseTokens = getattr(self, part)
        fall: np.ndarray = self.curves(way, part).fall[tokens.in_class].mean(0)
        return fall

    def damage(self, families: tuple[str, ...] = ("parent", "child", "wide", "neuron", "rotation")) -> pd.DataFrame:
        """One row a way: damage to the siblings (nats of KL) where the effect on the class is `level`, and its ratio to the
        parent's, each with low and high; NaN where it never has that effect. Empty where the question is not asked."""
        if not math.isfinite(self.level):
            return pd.DataFrame(columns=["context", "object", "family", "count", "level", "damage", "ratio"])
        found: list[tuple[Way, np.ndarray]] = []
        tokens = self.test
        for way in self.ways:
            if way.family not in families:
                continue
            curve = self.curves(way)
            effect = mean_draws(self.documents["test"], curve.fall, tokens.in_class)
            damage = mean_draws(self.documents["test"], curve.kl, ~tokens.in_class)
            found.append((way, damage_at(effect, damage, self.level)))
        parent = next(draws for way, draws in found if way.family == "parent")
        rows = []
        for way, draws in found:
            value, ratio = interval(draws), interval(draws / np.where(parent > 0, parent, np.nan))
            rows.append(
                {
                    "context": self.name, "object": way.name, "family": way.family, "count": way.size, "level": self.level,
                    "damage": value.value, "low": value.low, "high": value.high,
                    "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high,
                }
            )  # fmt: skip
        return pd.DataFrame(rows)


def largest_heads(sources: pd.DataFrame, cases: Mapping[str, Case], k: int = 5) -> pd.DataFrame:
    """The k (head, offset) with the largest shares of the contrast, for the parent and the child that is worth most."""
    acted = [(n, way.name) for n, case in cases.items() for way in case.ways if way.family in ("parent", "child")]
    heads = sources[sources["component"].str.startswith("head")].set_index(["context", "object"])
    heads = heads[heads.index.isin(acted)].reset_index()
    heads = heads.assign(size=heads["share"].abs()).sort_values("size", ascending=False)
    found = heads.groupby(["context", "object"], sort=False).head(k).sort_values(["context", "object"])
    return found[["context", "object", "component", "share", "low", "high"]]


def _correlation(both: Float[np.ndarray, "n 2"]) -> float:
    """Pearson's, NaN where one side does not vary."""
    if len(both) < 2 or not (both.std(0) > 0).all():
        return math.nan
    return float(np.corrcoef(both.T)[0, 1])


def rank_correlation(a: np.ndarray, b: np.ndarray, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Spearman's correlation of pairs that are both finite, with a 95% interval by drawing pairs anew, their number n, and the
    smallest correlation that so many show with 80% power, (z.975 + z.80) / sqrt(n - 3)."""
    both = np.column_stack([a, b]).astype(np.float64)
    both = both[np.isfinite(both).all(1)]
    n = len(both)
    if n < 4 or (both.std(0) == 0).any():
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": n, "smallest": math.nan}
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        part = both[rng.integers(0, n, n)]
        if (part.std(0) > 0).all():
            found.append(spearmanr(part[:, 0], part[:, 1]).statistic)
    low, high = np.percentile(found, [2.5, 97.5])
    value = float(spearmanr(both[:, 0], both[:, 1]).statistic)
    return {
        "value": value,
        "low": float(low),
        "high": float(high),
        "n": n,
        "smallest": min(2.8016 / math.sqrt(n - 3), 1.0),
    }
