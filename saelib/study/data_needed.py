"""How much data separation takes, with and without filtering (the 2024 post's next step 2).

S_k of the hyphen's classes against training tokens, many seeds an arm: snapshots of one training serve all points of a curve;
the children, whose learning rate falls over their training, are trained anew for each.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.split.children import ChildrenConfig, train_children
from saelib.split.parent import gather
from saelib.split.work import Work
from saelib.study import price, selection, study, texts, trainings
from saelib.study.hyphen_scale import separation_of
from saelib.study.profiles import Profile, get_profile
from saelib.study.runs import RunSpec, get_run

CHILDREN = "children"
_PLAIN_CONTROL = 13
_CHILDREN_CODE = ("split.children", "split.exported", "split.leak", "split.parent", "split.work", "study.data_needed")


@dataclass(frozen=True)
class DataArm:
    """One way to training data."""

    name: str
    text: str
    init_from_narrow: bool = False
    filter_by: str = "none"
    """`none`, `context` or `token`."""

    def spec(self, seed: int) -> RunSpec:
        """The run of one seed, numbered from 201 on."""
        return replace(
            get_run(_PLAIN_CONTROL), run=201 + [arm.name for arm in ARMS].index(self.name), seed=seed,
            init_from_narrow=self.init_from_narrow, normalised=not self.init_from_narrow,
            filtered=self.filter_by != "none", note="",
        )  # fmt: skip


ARMS = (
    DataArm("random, all", "random start, all data"),
    DataArm("random, contexts", "random start, filtered by context", filter_by="context"),
    DataArm("random, tokens", "random start, filtered by token", filter_by="token"),
    DataArm("warm, all", "warm start, all data", init_from_narrow=True),
    DataArm("warm, contexts", "warm start, filtered by context", init_from_narrow=True, filter_by="context"),
)
"""The arms that are wide SAEs; the children are a sixth."""
ARM_NAMES = (*(arm.name for arm in ARMS), CHILDREN)


def snapshot_steps(batch_size: int, n_steps: int, first_tokens: int, points: int) -> tuple[int, ...]:
    """Steps of the points of a curve: evenly spaced in the logarithm, from `first_tokens` to the last step.

    Raises:
        UserError: fewer than two points, or the first lies after the last step.
    """
    first = math.ceil(first_tokens / batch_size)
    if points < 2 or not 1 <= first <= n_steps:
        got = f"{points} points from {first_tokens:,} to {n_steps * batch_size:,} tokens"
        raise UserError("a curve needs two points or more, the first before the last", got, "train longer")
    return tuple(np.unique(np.geomspace(first, n_steps, points).round().astype(int)).tolist())


def _steps(profile: Profile) -> tuple[int, ...]:
    return snapshot_steps(profile.batch_size, profile.data_steps, profile.data_first_tokens, profile.data_points)


# --- the points ----------------------------------------------------------------------------------------------------------


def arm_points(profile: Profile, arm: DataArm, seed: int) -> list[dict[str, Any]]:
    """One row a point of one seed of a wide arm: arm, seed, tokens, seconds (of training so far), S_1, S_2."""
    chosen, steps = selection.parent(profile), _steps(profile)
    spec, n_steps = arm.spec(seed), profile.data_steps
    result = trainings.train_run(profile, spec, chosen, arm.filter_by, n_steps, keep=steps[:-1])
    rows = []
    for step in steps:
        last = step == n_steps
        sae = result.sae if last else trainings.kept_after(profile, spec, chosen, arm.filter_by, n_steps, step)
        at = {"tokens": step * profile.batch_size, "seconds": result.seconds * step / n_steps}
        rows.append({"arm": arm.name, "seed": seed, **at, **separation_of(profile, chosen, sae)})
    return rows


def children_points(profile: Profile, seed: int) -> list[dict[str, Any]]:
    """The rows of `arm_points` for children in the parent's place, each point a training of its own."""
    chosen, narrow = selection.parent(profile), study.narrow_sae(profile).sae
    training = ChildrenConfig(seed=seed)
    K = profile.children_K or training.K
    a_step = replace(training, n_steps=1).tokens
    last = profile.children_steps or training.n_steps
    first = min(profile.data_first_tokens, last * a_step)
    rows = []
    for n_steps in snapshot_steps(a_step, last, first, profile.data_points):
        cfg = replace(training, K=K, n_steps=n_steps)
        key = content_key(
            stores=[study.activations(profile, split).key for split in ("train", "select", "test")], cfg=repr(cfg),
            parent=[sae_key(narrow), chosen.feature, chosen.tau],
            code=code_version(*_CHILDREN_CODE, "study.hyphen_scale"),
        )  # fmt: skip
        found = kept_json("data_needed", key, functools.partial(_children_point, profile, cfg))
        rows.append({"arm": CHILDREN, "seed": seed, "tokens": n_steps * a_step, **_numbers(found)})
    return rows


def _children_point(profile: Profile, cfg: ChildrenConfig) -> dict[str, float | None]:
    chosen, work = selection.parent(profile), _work(profile)
    began = time.perf_counter()
    found = train_children(work.targets, cfg)
    seconds = time.perf_counter() - began
    try:
        sae: SAE = work.install(found).sae
    except UserError:  # after so few steps no child fires: the SAE is as it was
        sae = study.narrow_sae(profile).sae
    row = {"seconds": seconds, **separation_of(profile, chosen, sae)}
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


@functools.lru_cache(maxsize=1)
def _work(profile: Profile) -> Work:
    """The parent's tokens, made once for all trainings of children."""
    chosen, narrow, acts = selection.parent(profile), study.narrow_sae(profile).sae, texts.of_profile(profile)
    return Work.of(acts, gather(acts, narrow, chosen.feature, chosen.tau), narrow, "hyphen")


def _numbers(row: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in row.items()}


def run_part_job(profile: str, part: int, parts: int) -> dict[str, int]:
    """Train and measure every `parts`-th seed of all arms: the work behind notebook 13, one process a part."""
    settings = get_profile(profile)
    torch.set_num_threads(settings.threads_per_run)
    mine = [(arm, seed) for arm in ARM_NAMES for seed in range(settings.data_seeds)][part::parts]
    for i, (arm, seed) in enumerate(mine):
        points(settings, arm, seed)
        report_progress(f"data needed, part {part + 1} of {parts}", i + 1, len(mine))
    return {"curves": len(mine)}


def points(profile: Profile, arm: str, seed: int) -> list[dict[str, Any]]:
    """The points of one seed of an arm.

    Raises:
        UserError: there is no such arm.
    """
    if arm not in ARM_NAMES:
        raise UserError(f"arm must be one of {', '.join(ARM_NAMES)}", repr(arm), "pass one of these")
    if arm == CHILDREN:
        return children_points(profile, seed)
    return arm_points(profile, next(a for a in ARMS if a.name == arm), seed)


def points_table(profile: Profile) -> pd.DataFrame:
    """Every point of every seed and arm: the rows of `arm_points`."""
    return pd.DataFrame(
        [row for arm in ARM_NAMES for seed in range(profile.data_seeds) for row in points(profile, arm, seed)]
    )


def sources(profile: Profile, table: pd.DataFrame) -> dict[str, price.Source]:
    """Where each arm's tokens come from: the share that passes, how many there are, seconds a token of training."""
    chosen, everything = selection.parent(profile), study.activations(profile, "train").n_tokens
    found = {}
    for name, part in table.groupby("arm", sort=False):
        by = next((arm.filter_by for arm in ARMS if arm.name == name), "token")
        available = trainings.view(profile, by, chosen).n_tokens
        a_token = float(part["seconds"].sum() / part["tokens"].sum())
        found[str(name)] = price.Source(available / everything, float(available), a_token)
    return found
