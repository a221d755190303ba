"""How often the verdict is right: the whole engine, children trained anew, on parents whose true children are known.

* synthetic parents (`saelib.split.synthetic`): the share of true splits judged `split`, and of impostors of which a context
  passes that is no true child;
* implants in real activations (`saelib.split.implants`): the share judged `split` against how well a linear probe sees them.

`BOUNDS` (`saelib.split.verdict`) are judged here and nowhere else; the study's own runs have no say in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from saelib.base.stats import wilson_interval
from saelib.sae.sae import SAE
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, make_children
from saelib.split.implants import Implant, implanted
from saelib.split.synthetic import IMPOSTORS, SHARES, TRUE, make_case
from saelib.split.tokens import ParentTokens
from saelib.split.verdict import Judgement, Verdict
from saelib.split.work import Work

STATED_EFFECT = 6.0
"""At this effect size (standard deviations by which a child stands out) ..."""
STATED_TOKENS = 1500
"""... and this many parent tokens a split, the rarest class having 75, at least `DETECTION_MIN` of true splits are found."""
DETECTION_MIN = 0.9
FALSE_POSITIVES_MAX = 0.05
EFFECTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
PARENT_TOKENS = (800, 1500, 3000)
DELTAS = (0.0, 1.0, 2.0, 4.0, 8.0)
IMPLANT_SHARES = (0.05, 0.2, 0.5)
PROBE_SEES = 0.8
"""Where the probe's MCC on test is at least this, an implant is to be found."""
SYNTHETIC = SplitConfig(
    K=16, seeds=2, controls=False, children=ChildrenConfig(n_steps=400, batch_on=512, batch_off=512)
)
IMPLANTS = SplitConfig(K=16, seeds=2, controls=False, children=ChildrenConfig(n_steps=800, batch_on=512, batch_off=512))


class Outcome(NamedTuple):
    """What the engine made of one parent."""

    judgement: Judgement
    ceiling: np.ndarray
    """MCC of the probe on test, a context."""
    S_2: float


def outcome(work: Work, cfg: SplitConfig) -> Outcome:
    """Train children on a parent and judge them."""
    found = make_children(work, cfg)
    separation, _ = work.separate(found.made)
    judgement = work.judge(found.made, separation, found.stability)
    return Outcome(judgement, work.yardstick.ceiling_draws[0], separation["rest + children"].S[2].value)


def synthetic_table(
    names: Iterable[str] = TRUE + IMPOSTORS,
    effects: Sequence[float] = EFFECTS,
    parent_tokens: Sequence[int] = (STATED_TOKENS,),
    seeds: Iterable[int] = range(12),
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """One row a case, effect and size; 95% intervals are Wilson's.

    Columns: case, effect, parent_tokens, rare_tokens (of a tree's rarest class), cases, split (judged `split`), false (of which
    a context passes that is no true child), rate and its low and high: of `split` for true cases, of `false` for impostors.
    """
    names, seeds, rows = list(names), list(seeds), []
    for name in names:
        for n in parent_tokens:
            for effect in effects:
                found = [_one(name, effect, seed, n) for seed in seeds]
                split, false = (sum(each[i] for each in found) for i in (0, 1))
                counted = split if name in TRUE else false
                low, high = wilson_interval(counted, len(seeds))
                rows.append(
                    {"case": name, "effect": effect, "parent_tokens": n, "rare_tokens": round(n * min(SHARES)),
                     "cases": len(seeds), "split": split, "false": false,
                     "rate": counted / len(seeds), "low": low, "high": high}
                )  # fmt: skip
                if progress:
                    progress("synthetic parents", len(rows), len(names) * len(parent_tokens) * len(effects))
    return pd.DataFrame(rows)


def _one(name: str, effect: float, seed: int, n_parent: int) -> tuple[bool, bool]:
    """Judged `split`; a context passes that is no true child (of a circle, only the verdict counts: `graded` is right)."""
    case = make_case(name, effect, seed, n_parent)
    judgement = outcome(case.work, replace(SYNTHETIC, seed=seed)).judgement
    split = judgement.verdict is Verdict.SPLIT
    if name == "circle":
        return split, judgement.verdict in (Verdict.SPLIT, Verdict.PARTIAL)
    passes = [bool(row.passed) for row in judgement.contexts]
    return split, any(p and not true for p, true in zip(passes, case.truly_split, strict=True))


def implants_table(
    sae: SAE,
    tokens: ParentTokens,
    deltas: Sequence[float] = DELTAS,
    seeds: Iterable[int] = range(20),
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """One row an implant: delta, share, seed, verdict, ceiling (the probe's MCC on test), S_2 of rest + children."""
    seeds, rows = list(seeds), []
    plan = [Implant(d, share, seed) for share in IMPLANT_SHARES for d in deltas for seed in seeds]
    for implant in plan:
        found = outcome(implanted(sae, tokens, implant), replace(IMPLANTS, seed=implant.seed))
        rows.append(
            {"delta": implant.delta, "share": implant.share, "seed": implant.seed, "verdict": str(found.judgement.verdict),
             "ceiling": float(found.ceiling[0]), "S_2": found.S_2}
        )  # fmt: skip
        if progress:
            progress("implants", len(rows), len(plan))
    return pd.DataFrame(rows)


def implants_summary(table: pd.DataFrame) -> pd.DataFrame:
    """By delta and share: cases, split, rate with Wilson's 95% interval, told_apart (the rest had it already), mean ceiling."""
    rows = []
    for (delta, share), each in table.groupby(["delta", "share"]):
        split = int((each["verdict"] == Verdict.SPLIT).sum())
        low, high = wilson_interval(split, len(each))
        told = int((each["verdict"] == Verdict.ALREADY_TOLD_APART).sum())
        rows.append(
            {"delta": delta, "share": share, "cases": len(each), "split": split, "rate": split / len(each), "low": low,
             "high": high, "told_apart": told, "ceiling": each["ceiling"].mean()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def implants_seen(table: pd.DataFrame) -> pd.DataFrame:
    """Of the implants that the probe sees (MCC of at least `PROBE_SEES`) and the rest does not tell apart: cases, split, rate."""
    seen = table[(table["ceiling"] >= PROBE_SEES) & (table["verdict"] != Verdict.ALREADY_TOLD_APART)]
    out = seen.groupby("share").agg(
        cases=("verdict", "size"), split=("verdict", lambda v: int((v == Verdict.SPLIT).sum()))
    )
    return out.assign(rate=out["split"] / out["cases"]).reset_index()
