"""The study's claims put to the test: arms of many seeds, effects with intervals, a verdict a claim.

An arm is one cell of the study's design (`saelib.study.runs.ARMS`), trained with many seeds (`seeds_of`). Two outcomes are
compared between arms:

* success: the verdict of `saelib.split.score` is `split`. Effect: difference of the arms' success rates, with Newcombe's 95%
  interval (from the two Wilson intervals); Fisher's exact test.
* best F1: mean over the classes of the F1 of the feature that marks the class best, chosen on select and measured on test
  without any of the verdict's bounds. Effect: difference of means, with a 95% bootstrap interval over seeds; Mann-Whitney test.

The first says whether the parent splits; the second still sees a difference where nothing, or everything, does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import mannwhitneyu

from saelib.acts.store import POSITIONS
from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.stats import bootstrap_difference, first_at_or_below, fisher_p, newcombe_interval
from saelib.sae.sae import SAE
from saelib.split.classes import CLASSES
from saelib.study import study
from saelib.study.profiles import Profile, get_profile
from saelib.study.runs import ARMS, Arm
from saelib.study.verdicts import score_of

SCORE_CODE = (
    "sae.sae", "sae.scaled", "split.choose", "split.classes", "split.evidence", "split.score", "study.verdicts",
)  # fmt: skip
"""What computes a kept score."""
_DRAWS = 400


def get_arm(name: str) -> Arm:
    """The arm of that name."""
    for arm in ARMS:
        if arm.name == name:
            return arm
    raise UserError(f"arm must be one of {', '.join(arm.name for arm in ARMS)}", repr(name), "pass one of these")


def seeds_of(profile: Profile, arm: Arm) -> range:
    """The seeds an arm is trained with."""
    return range(profile.claim_seeds if arm.headline else max(profile.claim_seeds // 2, 1))


def matched_feature(profile: Profile) -> study.Parent:
    """Another feature whose filter keeps as many contexts as the parent's: the control for "any filter would do".

    Among the features that mark hyphens worse than the first eight, the one whose share of select contexts above
    `tau_fraction` of its largest activation is nearest to the parent's share above tau.
    """
    chosen = study.parent(profile)
    sae, store = study.narrow_sae(profile).sae, study.activations(profile, "select")
    key = content_key(
        store=store.key, sae=study.sae_key(sae), parent=chosen, fraction=profile.tau_fraction,
        code=code_version("interpret.feature_f1", "sae.sae", "study.claims"),
    )  # fmt: skip

    def search() -> dict[str, Any]:
        largest = np.zeros(sae.cfg.d_sae, dtype=np.float32)
        context_max = []
        with torch.no_grad():
            for begin in range(0, store.n_tokens, 512 * POSITIONS):
                x = store.read(np.arange(begin, min(begin + 512 * POSITIONS, store.n_tokens))).float()
                context_max.append(sae.encode(x).view(-1, POSITIONS, sae.cfg.d_sae).amax(1).numpy())
        by_context = np.concatenate(context_max)  # (contexts, d_sae)
        largest = by_context.max(0)
        density = (by_context > profile.tau_fraction * largest).mean(0)
        ranking = study.rank_parents(profile, sae)["feature"].tolist()
        allowed = [f for f in ranking[8:] if f != chosen.feature and largest[f] > 0]
        target = (by_context[:, chosen.feature] > chosen.tau).mean()
        best = min(allowed, key=lambda f: abs(density[f] - target))
        return {
            "feature": int(best), "tau": float(profile.tau_fraction * largest[best]), "largest": float(largest[best])
        }  # fmt: skip

    found = kept_json("matched", key, search)
    return study.Parent(found["feature"], found["tau"], found["largest"])


def train_arm(profile: Profile, arm: Arm, seed: int) -> study.TrainResult:
    """Train one seed of an arm, or open it."""
    chosen, by = _filter_of(profile, arm)
    return study.train_run(profile, arm.spec(seed), chosen, by, profile.claim_steps, keep=profile.claim_snapshots)


def _filter_of(profile: Profile, arm: Arm) -> tuple[study.Parent, str]:
    if arm.filter_by == "other":
        return matched_feature(profile), "context"
    return study.parent(profile), "context" if arm.filter_by == "none" else arm.filter_by


def measured(profile: Profile, arm: Arm, seed: int, step: int) -> dict[str, Any]:
    """The score of one SAE of an arm after `step` steps, as numbers; kept in the cache."""
    chosen, by = _filter_of(profile, arm)
    sae = (
        train_arm(profile, arm, seed).sae
        if step == profile.claim_steps
        else study.kept_after(profile, arm.spec(seed), chosen, by, profile.claim_steps, step)
    )
    parent = study.parent(profile)
    test = study.activations(profile, "test")
    key = content_key(
        sae=study.sae_key(sae), parent=parent, store=test.key, code=code_version(*SCORE_CODE), draws=_DRAWS,
        cofire=profile.cofire_contexts, warm=arm.init_from_narrow,
    )  # fmt: skip
    return dict(kept_json("scores", key, lambda: _measure(profile, sae, parent, arm)))


def _measure(profile: Profile, sae: SAE, parent: study.Parent, arm: Arm) -> dict[str, Any]:
    score, summary = score_of(profile, sae, parent, warm=arm.init_from_narrow, draws=_DRAWS)
    row: dict[str, Any] = {
        "verdict": score.verdict,
        "classes_passed": score.classes_passed,
        "candidates": score.candidates,
        "coverage": score.coverage,
        "max_cosine": score.max_cosine,
        "best_f1": float(np.mean(score.best_f1)),
    }
    for c, name in enumerate(CLASSES):
        row |= {f"best_f1_{name}": score.best_f1[c], f"child_{name}": score.classes[c].child}
        row |= {f"failed_{name}": ", ".join(score.classes[c].failed), f"tokens_{name}": score.classes[c].test_tokens}
        row[f"best_feature_{name}"] = summary.best_features[c]
    return row


def run_arm_job(profile: str, arm: str) -> dict[str, int]:
    """Train and score every seed of an arm: the work behind `07_claims`, one process an arm."""
    torch.set_num_threads(get_profile(profile).threads_per_run)
    settings, chosen = get_profile(profile), get_arm(arm)
    seeds = seeds_of(settings, chosen)
    for seed in seeds:
        train_arm(settings, chosen, seed)
        for step in (*settings.claim_snapshots, settings.claim_steps):
            measured(settings, chosen, seed, step)
        report_progress(f"arm {arm}", seed + 1, len(seeds))
    return {"seeds": len(seeds)}


def arm_table(profile: Profile) -> pd.DataFrame:
    """Every score: one row a seed and step. Columns: arm, seed, step, tokens, then those of `measured`, l0, loss, seconds."""
    rows = []
    for arm in ARMS:
        for seed in seeds_of(profile, arm):
            trained = train_arm(profile, arm, seed)
            last = trained.history.iloc[-1]
            for step in (*profile.claim_snapshots, profile.claim_steps):
                found = measured(profile, arm, seed, step)
                at = {"arm": arm.name, "seed": seed, "step": step, "tokens": step * profile.batch_size}
                rows.append(at | found | {"l0": last["l0"], "loss": last["loss"], "seconds": trained.seconds})
    return pd.DataFrame(rows)


# --- the claims ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A claim of the study as a difference between two arms."""

    claim: str
    published: str
    """The evidence published for it."""
    first: str
    second: str
    expected: float
    """The difference in success rates, first less second, that the published runs show; 0 where "no help" is claimed."""


CLAIMS = (
    Claim("Filtering makes the split reliable", "runs 4-6: 3 of 3; unfiltered: 1 of 3", "random", "random-all", 2 / 3),
    Claim(
        "The same filter does not split at narrow size", "runs 4-6: 3 of 3; run 12: no", "random", "narrow-size", 1.0
    ),
    Claim("Normalising at a warm start hurts", "runs 7-9: 3 of 3; run 10: no", "warm", "warm-normalised", 1.0),
    Claim("Zeroing the parent does not help", "run 11: 2/3; runs 7-9: 3 of 3", "warm-zeroed", "warm", 0.0),
)
CONTROLS = (
    Claim("Filtering tokens does better than contexts", "not tried", "random-token", "random", math.nan),
    Claim("It is this feature's filter that counts", "not tried", "random", "random-other", math.nan),
)
MARGIN = 0.25
"""A claim of no help is supported when the interval of the difference ends below this."""


def verdict_of(low: float, high: float, expected: float) -> str:
    """`supported`, `not supported` or `undecided`, from the 95% interval of the difference in success rates.

    A claimed difference is supported when the interval lies above 0, and not supported when it does not reach the
    published difference. A claim of no help is supported when it ends below `MARGIN`, not when it lies above 0.
    """
    if expected == 0:
        return "not supported" if low > 0 else "supported" if high < MARGIN else "undecided"
    if low > 0:
        return "supported"
    return "not supported" if high < (expected if math.isfinite(expected) else MARGIN) else "undecided"


def compare_arms(table: pd.DataFrame, claims: Iterable[Claim] = (*CLAIMS, *CONTROLS)) -> pd.DataFrame:
    """One row a claim: both arms' successes, the effect with its interval and p, the same for best F1, the verdict.

    A claim is undecided when the verdict on any of its runs is: too few test tokens of a class.
    """
    last = table[table["step"] == table["step"].max()]
    rows = []
    for claim in claims:
        a, b = (last[last["arm"] == name] for name in (claim.first, claim.second))
        yes_a, yes_b = (int((part["verdict"] == "split").sum()) for part in (a, b))
        unknown = bool((pd.concat([a, b])["verdict"] == "undecided").any())
        low, high = newcombe_interval(yes_a, len(a), yes_b, len(b))
        f1_low, f1_high = bootstrap_difference(a["best_f1"].to_numpy(), b["best_f1"].to_numpy())
        rows.append(
            {
                "claim": claim.claim,
                "published": claim.published,
                "arms": f"{claim.first} against {claim.second}",
                "split": f"{yes_a}/{len(a)} against {yes_b}/{len(b)}",
                "difference": yes_a / len(a) - yes_b / len(b),
                "low": low,
                "high": high,
                "fisher_p": fisher_p(yes_a, len(a), yes_b, len(b)),
                "verdict": "undecided" if unknown else verdict_of(low, high, claim.expected),
                "f1_difference": float(a["best_f1"].mean() - b["best_f1"].mean()),
                "f1_low": f1_low,
                "f1_high": f1_high,
                "mann_whitney_p": float(mannwhitneyu(a["best_f1"], b["best_f1"]).pvalue),
            }
        )
    return pd.DataFrame(rows)


def tokens_to_success(table: pd.DataFrame) -> pd.DataFrame:
    """One row a run: the tokens at the first scored step with verdict `split`; NaN when never within the run (censored)."""
    rows = []
    for (arm, seed), runs in table.sort_values("step").groupby(["arm", "seed"], sort=False):
        success = runs.loc[runs["verdict"] == "split", "tokens"]
        rows.append({"arm": arm, "seed": seed, "tokens": float(success.iloc[0]) if len(success) else math.nan})
    return pd.DataFrame(rows)


def convergence(profile: Profile, arms: Sequence[str] = ("warm", "warm-normalised", "random")) -> pd.DataFrame:
    """Tokens at which each run's loss first stays at a level, that is the random start's median loss at half its steps.

    Columns: arm, seed, tokens (NaN: not within the run), and the level.
    """
    histories = {
        (name, seed): train_arm(profile, get_arm(name), seed).history
        for name in arms
        for seed in seeds_of(profile, get_arm(name))
    }
    half = profile.claim_steps // 2
    level = float(
        np.median([h.loc[h["step"] >= half, "loss"].iloc[0] for (name, _), h in histories.items() if name == "random"])
    )
    rows = [
        {"arm": name, "seed": seed, "tokens": first_at_or_below(history, "loss", level), "level": level}
        for (name, seed), history in histories.items()
    ]
    return pd.DataFrame(rows)


def stability(profile: Profile, arm: str, threshold: float = 0.7) -> pd.DataFrame:
    """How often a run's best feature for a class is found in the other seeds: encoder and decoder cosine >= threshold.

    Columns: class, found, pairs, rate.
    """
    seeds = seeds_of(profile, get_arm(arm))
    saes = [train_arm(profile, get_arm(arm), seed).sae for seed in seeds]
    scores = [measured(profile, get_arm(arm), seed, profile.claim_steps) for seed in seeds]
    found, pairs = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for i, own in enumerate(saes):
        for k, other in enumerate(saes):
            if i == k:
                continue
            for name in CLASSES:
                j = scores[i][f"best_feature_{name}"]
                both = torch.minimum(
                    torch.cosine_similarity(own.W_dec[j][None], other.W_dec, dim=1),
                    torch.cosine_similarity(own.W_enc[:, j][None], other.W_enc.T, dim=1),
                )
                found[name] += bool((both >= threshold).any())
                pairs[name] += 1
    return pd.DataFrame(
        [
            {"class": name, "found": found[name], "pairs": pairs[name], "rate": found[name] / max(pairs[name], 1)}
            for name in CLASSES
        ]
    )
