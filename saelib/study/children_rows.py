"""The children method beside the study's wide runs: the narrow SAE with its parent split into children.

Each is what `saelib.split` trains (see `saelib.split.engine`), with the hyphen's classes as contexts and the study's parent and
tau. What is measured is the exported SAE, rest and children together, on the same hyphens as every run. Beside each stands
the strong null: as many children whose decoder rows are random and stay so, with as many of them active a token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.table import as_row, column, columns_of, from_row, plain_value
from saelib.sae.kept import sae_key
from saelib.split import controls
from saelib.split.children import ChildrenConfig, train_children
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.how_many import choose_K
from saelib.split.parent import gather
from saelib.split.result import Split
from saelib.split.tokens import SPLITS
from saelib.split.verdict import Verdict
from saelib.split.work import Made, Work
from saelib.study import graded, selection, study, texts
from saelib.study.graded import Graded
from saelib.study.outcome import OUTCOME_CODE, Outcome, Strict, outcome
from saelib.study.profiles import Profile

SEEDS = (0, 1, 2)
CHILDREN, RANDOM_DECODER = "children", "random decoder"
CHILDREN_CODE = (
    *OUTCOME_CODE, *study.QUALITY_CODE, "split.children", "split.controls", "split.engine", "split.exported", "split.how_many",
    "split.silent", "split.work", "study.children_rows",
)  # fmt: skip
"""What computes the rows."""


@dataclass(frozen=True, kw_only=True)
class ChildrenResult:
    """One dictionary in the parent's place; NaN where the parent or the classes have too few tokens (`reason`)."""

    dictionary: str = column("children, or the control whose decoder rows are random and stay so")
    seed: int = column("seed of the training")
    K: int = column(
        "children that were trained: chosen by the rule of the children method at the first seed", default=0
    )
    children: int = column("children that were kept, of those trained: the ones that carry something", default=0)
    outcome: Outcome = columns_of(Outcome)
    S_2_permuted: float = column(
        "S_2 under labels in random order, in units of the true labels' room", default=math.nan
    )
    fvu: float = column(
        "fraction of variance unexplained on held-out text, of the SAE with its children", default=math.nan
    )
    fvu_on_P: float = column("the same on test tokens on which the parent exceeds its threshold", default=math.nan)
    fvu_on_P_before: float = column("the same of the narrow SAE as it was", default=math.nan)
    l0: float = column("features active a token on held-out text, mean", default=math.nan)
    loss_recovered: float = column("share of the model's loss that the SAE keeps", default=math.nan)
    tokens: int = column("tokens trained on, repeats included", default=0)
    seconds: float = column("wall time of the training", default=math.nan)
    seconds_in_all: float = column(
        "wall time with finding the parent's tokens and choosing K (first seed)", default=math.nan
    )
    reason: str = column("why nothing was measured; empty where it was", default="")


def split_config(profile: Profile, chosen: selection.Parent, seed: int, K: int | None, **more: Any) -> SplitConfig:
    """How the study's parent is split."""
    training = ChildrenConfig() if profile.children_steps is None else ChildrenConfig(n_steps=profile.children_steps)
    return SplitConfig(contexts="hyphen", tau=chosen.tau, K=K, seed=seed, children=training, **more)


def study_split(profile: Profile, chosen: selection.Parent) -> Split:
    """The split of the study's parent with all that its page shows."""
    split = _split(profile, chosen)
    kept_json("splits", _split_key(profile, chosen), lambda: _children_of(split))
    return split


def made_of(profile: Profile, chosen: selection.Parent) -> list[dict[str, Any]]:
    """The children of the study's parent, as `Split.children` has them; none where it has too few tokens to be split."""

    def compute() -> list[dict[str, Any]]:
        try:
            return _children_of(_split(profile, chosen))
        except UserError:
            return []

    return list(kept_json("splits", _split_key(profile, chosen), compute))


def _split(profile: Profile, chosen: selection.Parent) -> Split:
    narrow, acts = study.narrow_sae(profile).sae, texts.of_profile(profile)
    return split_feature(narrow, chosen.feature, acts, split_config(profile, chosen, 0, profile.children_K))


def _children_of(split: Split) -> list[dict[str, Any]]:
    return list(plain_value(split.children.to_dict("records")))


def _split_key(profile: Profile, chosen: selection.Parent) -> str:
    return content_key(
        stores=[study.activations(profile, split).key for split in SPLITS],
        parent=[sae_key(study.narrow_sae(profile).sae), chosen],
        sizes=[profile.children_K, profile.children_steps],
        code=code_version(*CHILDREN_CODE, "split.children_table", "split.names", "split.result", "split.stability"),
    )


def children_results(
    profile: Profile, chosen: selection.Parent, seeds: Sequence[int] = SEEDS
) -> tuple[ChildrenResult, ...]:
    """For each seed the children and the control beside them; kept in the cache. The first seed chooses K for the others."""
    found: list[ChildrenResult] = []
    for i, seed in enumerate(seeds):
        report_progress("children", i, len(seeds))
        found += _of_seed(profile, chosen, seed, (found[0].K or None) if found else profile.children_K)
    return tuple(found)


def _of_seed(profile: Profile, chosen: selection.Parent, seed: int, K: int | None) -> list[ChildrenResult]:
    narrow = study.narrow_sae(profile).sae
    key = content_key(
        stores=[study.activations(profile, split).key for split in SPLITS],
        parent=[sae_key(narrow), chosen],
        seed=seed,
        sizes=[profile.evaluate_contexts, K, profile.children_steps],
        code=code_version(*CHILDREN_CODE),
    )

    def compute() -> list[dict[str, Any]]:
        try:
            rows = _measure(profile, chosen, split_config(profile, chosen, seed, K))
        except UserError as error:
            nothing = Outcome(Graded(), Strict(Verdict.UNDECIDED, 0, 0, "", None, None, None), math.nan)
            why = f"{error.rule}; got {error.got}"
            rows = [
                ChildrenResult(dictionary=name, seed=seed, outcome=nothing, reason=why)
                for name in (CHILDREN, RANDOM_DECODER)
            ]
        return [as_row(row) for row in rows]

    return [from_row(ChildrenResult, row) for row in kept_json("children", key, compute)]


def _measure(profile: Profile, chosen: selection.Parent, cfg: SplitConfig) -> list[ChildrenResult]:
    began = time.perf_counter()
    narrow, acts = study.narrow_sae(profile).sae, texts.of_profile(profile)
    work = Work.of(acts, gather(acts, narrow, chosen.feature, cfg.tau), narrow, cfg.contexts)
    K, _ = choose_K(work.targets, work.select_pools, cfg.training, cfg.K)
    training, timed = replace(cfg.training, K=K), time.perf_counter()
    children = work.install(train_children(work.targets, training))
    ended = time.perf_counter()
    l0 = float((children.acts["on"]["select"] > 0).sum(1).mean())
    K_kept = len(children.theta)
    random = work.install(controls.random_decoder(work.targets, replace(training, K=K_kept), l0), prune=False)
    begins = {CHILDREN: (timed, ended, began), RANDOM_DECODER: (ended, time.perf_counter(), ended)}

    def row(name: str, made: Made) -> ChildrenResult:
        start, end, first = begins[name]
        quality = study.quality_of(profile, made.sae)
        return ChildrenResult(
            dictionary=name, seed=cfg.seed, K=K, children=len(made.theta), outcome=outcome(profile, chosen, made.sae),
            S_2_permuted=graded.permuted_S_2(profile, chosen, made.sae), fvu=quality.fvu,
            fvu_on_P=work.fvu(made), fvu_on_P_before=work.fvu(made._replace(sae=narrow)), l0=quality.l0,
            loss_recovered=quality.loss_recovered,
            tokens=training.tokens,
            seconds=end - start, seconds_in_all=end - first,
        )  # fmt: skip

    return [row(CHILDREN, children), row(RANDOM_DECODER, random)]
