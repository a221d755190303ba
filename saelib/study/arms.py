"""The arms of the claims: every cell of the study's design on several narrow SAEs, and what each run came to.

* A block is one narrow SAE of its own seed, with its own parent by the study's rule. The hyphens that everything is measured
  on are fixed by the text, for all arms and blocks.
* Arms are matched in L0: an arm's L1 coefficient is calibrated, on the first block, until as many of its features are active
  on a hyphen that joins words (select) as of the plain control's, within a tenth. The children's L0 is what it is.
* Each training, each measurement is kept on its own, so that a command that was killed goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from saelib.acts.store import POSITIONS
from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.hub import named_path
from saelib.base.progress import report_progress
from saelib.base.table import column, columns_of
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows
from saelib.sae.train import TRAINING_CODE
from saelib.study import graded, selection, study, trainings
from saelib.study.children_rows import ChildrenResult, children_results
from saelib.study.outcome import Outcome, outcome
from saelib.study.profiles import Profile, get_profile
from saelib.study.runs import ARMS, Arm

END, EARLY, SAME_PARENT_TOKENS = "end", "early", "same parent tokens"
WATCHED = ("all data", "filtered", "token-filtered", "warm")
"""Arms that are measured early, too."""
MATCHED = 0.1
"""An arm's L0 is matched when it is within this share of the control's."""


@dataclass(frozen=True)
class ArmRun:
    """One run of an arm, measured at its end or on the way."""

    arm: str = column(
        "the arm; `children` and `random decoder` are no wide runs but dictionaries in the parent's place"
    )
    block: int = column("number of the narrow SAE, which has a seed of its own")
    seed: int = column("seed of this training")
    at: str = column(
        "when it was measured: end, early, or when it had seen as many parent-active tokens as the control in all"
    )
    tokens: int = column("tokens trained on until then")
    parent: int = column("the parent in this narrow SAE, by the study's rule")
    purity: float = column("share of the parent's test tokens that are hyphens that join words")
    recall: float = column("share of such hyphens that are the parent's")
    l1_scale: float = column("L1 coefficient as a multiple of the narrow SAE's, calibrated to the control's L0")
    outcome: Outcome = columns_of(Outcome)
    S_2_permuted: float = column(
        "S_2 under labels in random order, in units of the true labels' room", default=math.nan
    )
    seconds: float = column("wall time of the training", default=math.nan)


def get_arm(name: str) -> Arm:
    """The trained arm of that name."""
    for arm in ARMS:
        if arm.name == name:
            return arm
    raise UserError(f"arm must be one of {', '.join(arm.name for arm in ARMS)}", repr(name), "pass one of these")


def block_profile(profile: Profile, block: int) -> Profile:
    """The study with another narrow SAE: number 0 is the study's own.

    Raises:
        UserError: the profile's narrow SAE is given as a file, so that there is only one.
    """
    if block and named_path(profile.narrow_sae_variable) is not None:
        rule = "claims need narrow SAEs of different seeds"
        raise UserError(rule, "one that is given", f"unset {profile.narrow_sae_variable}, or set claim_blocks to 1")
    return replace(profile, seed=profile.seed + block)


def seeds_of(profile: Profile, block: int) -> range:
    """The seeds of the wide runs of a block: different ones on every block."""
    return range(block * profile.claim_wide_seeds, (block + 1) * profile.claim_wide_seeds)


def matched_feature(profile: Profile) -> selection.Parent:
    """Another feature whose filter keeps as many contexts as the parent's: the control for "any filter would do".

    Among the features that mark hyphens worse than the first eight, the one whose share of select contexts above
    `tau_fraction` of its largest activation is nearest to the parent's share above tau.
    """
    chosen = selection.parent(profile)
    sae, store = study.narrow_sae(profile).sae, study.activations(profile, "select")
    key = content_key(
        store=store.key, sae=sae_key(sae), parent=chosen, fraction=profile.tau_fraction,
        code=code_version("interpret.feature_f1", "sae.sae", "study.arms"),
    )  # fmt: skip

    def search() -> dict[str, Any]:
        size = max(block_rows(sae.cfg.d_sae) // POSITIONS, 1) * POSITIONS  # whole contexts
        with torch.no_grad():
            blocks = [sae.encode(x).view(-1, POSITIONS, sae.cfg.d_sae).amax(1).numpy() for _, x in store.blocks(size)]
        by_context = np.concatenate(blocks)  # (contexts, d_sae)
        largest = by_context.max(0)
        density = (by_context > profile.tau_fraction * largest).mean(0)
        ranking = selection.rank_parents(profile, sae)["feature"].tolist()
        allowed = [f for f in ranking[8:] if f != chosen.feature and largest[f] > 0]
        target = (by_context[:, chosen.feature] > chosen.tau).mean()
        best = min(allowed, key=lambda f: abs(density[f] - target))
        tau = float(profile.tau_fraction * largest[best])
        return selection.Parent(int(best), tau, float(largest[best]))._asdict()

    return selection.Parent(**kept_json("matched", key, search))


# --- training and measuring ------------------------------------------------------------------------------------------------


def _steps(block: Profile, arm: Arm) -> dict[str, int]:
    """When a run is measured: step by name. Filtered runs have seen the control's parent-active tokens sooner.

    A filter keeps all parent-active tokens: in a share s of the data they are 1/s times as dense.
    """
    steps = {END: block.claim_steps}
    if arm.name in WATCHED:
        steps[EARLY] = block.claim_early
    if arm.name == "filtered":
        share = (
            trainings.view(block, "context", selection.parent(block)).n_tokens
            / study.activations(block, "train").n_tokens
        )
        steps[SAME_PARENT_TOKENS] = max(round(share * block.claim_steps), 1)
    return steps


def train_arm(block: Profile, arm: Arm, seed: int, l1_scale: float) -> dict[str, tuple[SAE, study.TrainResult]]:
    """Train one seed of an arm on a block, or open it: the SAE at each time it is measured, and its training."""
    by = "context" if arm.filter_by in ("none", "other") else arm.filter_by
    chosen = matched_feature(block) if arm.filter_by == "other" else selection.parent(block)
    spec, steps = arm.spec(seed, l1_scale), _steps(block, arm)
    trained = trainings.train_run(block, spec, chosen, by, block.claim_steps, keep=[*steps.values()])
    return {
        at: (trained.sae, trained)
        if step >= block.claim_steps
        else (trainings.kept_after(block, spec, chosen, by, block.claim_steps, step), trained)
        for at, step in steps.items()
    }


def l1_scale_of(profile: Profile, arm: Arm) -> float:
    """The multiple of the narrow SAE's coefficient at which an arm's L0 on hyphens is the plain control's.

    Found on the first block by trainings of which each corrects the last: L0 falls about as fast as the coefficient rises,
    then as fast as between the last two. The nearest of them is taken.
    """
    control = ARMS[0]
    if arm.name == control.name:
        return 1.0
    block, seed = block_profile(profile, 0), seeds_of(profile, 0)[0]
    key = content_key(
        profile=repr(profile), arm=repr(arm), narrow=sae_key(study.narrow_sae(block).sae), parent=selection.parent(block),
        store=study.activations(block, "train").key, code=code_version(*TRAINING_CODE, "study.arms", "study.graded"),
    )  # fmt: skip

    def l0_at(an_arm: Arm, scale: float) -> float:
        return max(graded.l0_on_hyphens(block, train_arm(block, an_arm, seed, scale)[END][0]), 1e-3)

    def search() -> float:
        target, tried = l0_at(control, 1.0), [(0.0, math.log(l0_at(arm, 1.0)))]
        while len(tried) < profile.claim_trials and abs(math.exp(tried[-1][1]) / target - 1) > MATCHED:
            tried.append(_next_scale(tried, math.log(target), lambda scale: math.log(l0_at(arm, math.exp(scale)))))
        return math.exp(min(tried, key=lambda pair: abs(pair[1] - math.log(target)))[0])

    return float(kept_json("l1_scales", key, search))


def _next_scale(tried: list[tuple[float, float]], target: float, l0_at: Any) -> tuple[float, float]:
    """One step of the secant method on (log scale, log L0), from a slope of -1; no step is larger than a factor of 4."""
    (scale, l0), slope = tried[-1], -1.0
    if len(tried) > 1 and scale != tried[-2][0]:
        slope = min((l0 - tried[-2][1]) / (scale - tried[-2][0]), -0.2)
    moved = scale + float(np.clip((target - l0) / slope, -math.log(4), math.log(4)))
    return moved, l0_at(moved)


def runs_of(profile: Profile, block: int) -> list[ArmRun]:
    """Every run of one narrow SAE, trained (or opened) and measured; the narrow SAE, its parent and hyphens are shared."""
    here, found = block_profile(profile, block), []
    chosen, seeds = selection.parent(here), seeds_of(profile, block)
    fit = selection.parent_fit(here, chosen)
    shared: dict[str, Any] = {"block": block, "parent": chosen.feature, "purity": fit.purity, "recall": fit.recall}
    for i, arm in enumerate(ARMS):
        scale = l1_scale_of(profile, arm)
        for seed in seeds:
            report_progress(f"narrow SAE {block}", i, len(ARMS) + 1)
            steps = _steps(here, arm)
            found += [
                ArmRun(
                    arm=arm.name, seed=seed, at=at, tokens=steps[at] * here.batch_size, l1_scale=scale,
                    outcome=outcome(here, chosen, sae), seconds=trained.seconds, **shared,
                )
                for at, (sae, trained) in train_arm(here, arm, seed, scale).items()
            ]  # fmt: skip
    report_progress(f"narrow SAE {block}", len(ARMS), len(ARMS) + 1)
    return found + [_of_children(row, shared) for row in children_results(here, chosen, seeds)]


def _of_children(row: ChildrenResult, shared: dict[str, Any]) -> ArmRun:
    return ArmRun(
        arm=row.dictionary, seed=row.seed, at=END, tokens=row.tokens, l1_scale=math.nan, outcome=row.outcome,
        S_2_permuted=row.S_2_permuted, seconds=row.seconds, **shared,
    )  # fmt: skip


def arm_runs(profile: Profile) -> tuple[ArmRun, ...]:
    """Every run of every arm, block by block."""
    return tuple(row for block in range(profile.claim_blocks) for row in runs_of(profile, block))


# --- the work behind `07_claims`, in processes of their own ------------------------------------------------------------------


def calibrate_job(profile: str, arm: str) -> float:
    """The coefficient of one arm, with the first run that has it; the plain control's is what the others are matched to."""
    settings = get_profile(profile)
    torch.set_num_threads(settings.threads_per_run)
    scale = l1_scale_of(settings, get_arm(arm))
    train_arm(block_profile(settings, 0), get_arm(arm), seeds_of(settings, 0)[0], scale)
    return scale


def block_job(profile: str, block: int) -> int:
    """All runs of one narrow SAE; returns how many measurements there are."""
    settings = get_profile(profile)
    torch.set_num_threads(settings.threads_per_run)
    return len(runs_of(settings, block))
