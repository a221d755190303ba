"""How often the verdict is right: the whole engine, children trained anew, on parents whose true children are known.

* synthetic parents (`saelib.split.synthetic`): the share of true splits judged `split`, and of impostors of which a context
  passes that is no true child;
* implants in real activations (`saelib.split.implants`): the share judged `split` against how well a linear probe sees them.

`BOUNDS` (`saelib.split.verdict`) are judged here and nowhere else; the study's own runs have no say in them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saelib.base.stats import wilson_interval
from saelib.sae.sae import SAE
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, make_beside, make_product
from saelib.split.implants import Implant, implanted
from saelib.split.synthetic import TRUE, make_case
from saelib.split.tokens import ParentTokens
from saelib.split.verdict import Judgement, Verdict
from saelib.split.work import Work

STATED_EFFECT = 6.0
"""At this effect size (standard deviations by which a child stands out) ..."""
STATED_TOKENS = 1500
"""... and this many parent tokens a split, the rarest class having 75, at least `DETECTION_MIN` of true splits are found."""
DETECTION_MIN = 0.9
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
    product = make_product(work, cfg)
    separation, _ = work.separate(product.made)
    judgement = work.judge(product.made, separation, make_beside(work, cfg, product).stability)
    return Outcome(judgement, work.yardstick.ceiling_draws[0], separation["rest + children"].S[2].value)


def synthetic_row(name: str, effect: float, seed: int, n_parent: int = STATED_TOKENS) -> dict[str, Any]:
    """A synthetic parent judged: case, effect, parent_tokens, seed, verdict, and two outcomes.

    `split`: judged `split`. `false`: a context passes that is no true child; of a circle, of which any part is as good as
    another, the verdict is `split`.

    Children of `seven clusters` start at clusters: from other starts ReLU and L1 end with children that share the clusters in
    pairs, which cost less.
    """
    case = make_case(name, effect, seed, n_parent)
    start = "clusters" if name == "seven clusters" else SYNTHETIC.children.start
    cfg = replace(SYNTHETIC, seed=seed, children=replace(SYNTHETIC.children, start=start))
    judgement = outcome(case.work, cfg).judgement
    passes = [bool(row.passed) for row in judgement.contexts]
    false = any(p and not true for p, true in zip(passes, case.truly_split, strict=True))
    if name == "circle":
        false = judgement.verdict is Verdict.SPLIT
    return {
        "case": name, "effect": effect, "parent_tokens": n_parent, "seed": seed, "verdict": str(judgement.verdict),
        "split": judgement.verdict is Verdict.SPLIT, "false": false,
    }  # fmt: skip


def synthetic_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """By case, size and effect: cases, split, false, and rate with Wilson's 95% interval: of `split` for true cases, of `false`
    for impostors."""
    found = []
    for (name, n, effect), each in rows.groupby(["case", "parent_tokens", "effect"], sort=False):
        counted = int(each["split" if name in TRUE else "false"].sum())
        low, high = wilson_interval(counted / len(each), len(each))
        found.append(
            {"case": name, "parent_tokens": n, "effect": effect, "cases": len(each), "split": int(each["split"].sum()),
             "false": int(each["false"].sum()), "rate": counted / len(each), "low": low, "high": high}
        )  # fmt: skip
    return pd.DataFrame(found)


def implant_row(sae: SAE, tokens: ParentTokens, implant: Implant) -> dict[str, Any]:
    """An implant judged: delta, share, seed, verdict, ceiling (the probe's MCC on test), S_2 of rest + children."""
    found = outcome(implanted(sae, tokens, implant), replace(IMPLANTS, seed=implant.seed))
    return {
        **implant._asdict(), "verdict": str(found.judgement.verdict), "ceiling": float(found.ceiling[0]), "S_2": found.S_2,
    }  # fmt: skip


def implants_summary(table: pd.DataFrame) -> pd.DataFrame:
    """By delta and share: cases, split, rate with Wilson's 95% interval, told_apart (the rest had it already), mean ceiling."""
    rows = []
    for (delta, share), each in table.groupby(["delta", "share"]):
        split = int((each["verdict"] == Verdict.SPLIT).sum())
        low, high = wilson_interval(split / len(each), len(each))
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


def conclusion(synthetic: pd.DataFrame, implants: pd.DataFrame) -> dict[str, int]:
    """The counts that decide about the bounds.

    Args:
        synthetic: what `synthetic_summary` returns; true cases count at the stated point, trees apart from clusters, whose
            children do not start as the product's do; impostors count everywhere.
        implants: rows of `implant_row`.
    """
    stated = (synthetic["effect"] == STATED_EFFECT) & (synthetic["parent_tokens"] == STATED_TOKENS)
    tree, clusters = (synthetic[(synthetic["case"] == name) & stated] for name in TRUE)
    impostors = synthetic[~synthetic["case"].isin(TRUE)]
    seen, absent = implants_seen(implants), implants[implants["delta"] == 0]
    return {
        "detected": int(tree["split"].sum()), "true_cases": int(tree["cases"].sum()),
        "clusters_detected": int(clusters["split"].sum()), "clusters": int(clusters["cases"].sum()),
        "false": int(impostors["false"].sum()), "impostors": int(impostors["cases"].sum()),
        "implants_found": int(seen["split"].sum()), "implants_seen": int(seen["cases"].sum()),
        "absent_split": int((absent["verdict"] == Verdict.SPLIT).sum()), "absent": len(absent),
    }  # fmt: skip
