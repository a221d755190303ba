"""results.csv: one row a training run, measured and written by the library; notebooks and pages only show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from saelib.base.table import as_row, column, columns_of, frame_of
from saelib.sae.kept import weights_hash
from saelib.sae.train import TrainResult
from saelib.study import selection, study, trainings
from saelib.study.arms import arm_runs
from saelib.study.children_rows import children_results, made_of
from saelib.study.claims import judge_claims
from saelib.study.outcome import Outcome, outcome
from saelib.study.profiles import Profile, get_profile
from saelib.study.prompt_check import prompt_check
from saelib.study.runs import RunSpec, get_run


@dataclass(frozen=True)
class RunResult:
    """One training run: how it was made, what was published for it, and what came of it here."""

    run: int = column("number in the post's table; runs 13 and up are the plain controls it lacks")
    size: str = column("wide or narrow (in the post 4096 and 512 features)")
    d_sae: int = column("features of the SAE trained here")
    seed: int = column("seed of the initialisation and of the order of the data")
    init_from_narrow: bool = column("whether the SAE starts from the narrow SAE's weights and biases")
    normalised: bool = column("whether decoder rows are scaled to unit norm at that start")
    filtered: bool = column("whether training sees only data on which the parent feature fires above its threshold")
    loss: str = column("standard, or with the parent feature's activation set to zero in the loss")
    published: str = column("the post's verdict, by eye on three prompts; empty for the controls")
    published_classes: int | None = column("that verdict as classes, of three, with a feature of their own")
    outcome: Outcome = columns_of(Outcome)
    prompts: int = column(
        "prompts, of the post's three, at whose hyphen one feature is alone on top and silent on the others"
    )
    prompt_number: bool = column("whether that holds on the prompt with a number")
    prompt_count: bool = column("whether that holds on the prompt with a count word")
    prompt_compound: bool = column("whether that holds on the prompt with another compound")
    steps: int = column("training steps")
    tokens: int = column("tokens trained on: steps times batch size, repeats included")
    l0: float = column("features active a token on held-out text, mean")
    fvu: float = column("fraction of variance unexplained on held-out text")
    loss_recovered: float = column("share of the model's loss that the SAE keeps: 0 as zero-ablated, 1 as left alone")
    dead_share: float = column("share of features that never fired on held-out text")
    seconds: float = column("wall time of the training")
    weights: str = column("16 hex digits of SHA-256 over the trained weights")


def run_result(profile: Profile, spec: RunSpec, chosen: selection.Parent, trained: TrainResult) -> RunResult:
    """Measure a trained run; what is slow is kept in the cache."""
    quality = study.quality_of(profile, trained.sae)
    own = {win.context_class: win.own for win in prompt_check(trained.sae, study.language_model(profile))}
    return RunResult(
        run=spec.run,
        size=spec.size,
        d_sae=trained.sae.cfg.d_sae,
        seed=spec.seed,
        init_from_narrow=spec.init_from_narrow,
        normalised=spec.normalised,
        filtered=spec.filtered,
        loss="parent zeroed" if spec.zero_parent else "standard",
        published=spec.published,
        published_classes=spec.published_classes,
        outcome=outcome(profile, chosen, trained.sae),
        prompts=sum(own.values()),
        prompt_number=own["number"],
        prompt_count=own["count"],
        prompt_compound=own["compound"],
        steps=trained.n_tokens // profile.batch_size,
        tokens=trained.n_tokens,
        l0=quality.l0,
        fvu=quality.fvu,
        loss_recovered=quality.loss_recovered,
        dead_share=1 - quality.alive_share,
        seconds=trained.seconds,
        weights=weights_hash(trained.sae),
    )


def results(profile: Profile, runs: Sequence[int]) -> tuple[RunResult, ...]:
    """Rows of the run table, trained (or opened) as the study trains them, and measured."""
    chosen = selection.parent(profile)
    return tuple(run_result(profile, get_run(run), chosen, trainings.trained_run(profile, run)) for run in runs)


def results_frame(rows: Sequence[RunResult]) -> pd.DataFrame:
    """The rows as a table with the columns of results.csv, by run."""
    return frame_of(RunResult, map(as_row, rows)).set_index("run")


def tables_job(profile: str, runs: Sequence[int], whole: bool, claims: bool) -> dict[str, list[dict[str, Any]]]:
    """The rows of the tables of a study as JSON, from what is kept: `runs`, and of a whole study `children` and `made_of`.

    With `claims` also `arms` and `claims`.
    """
    settings = get_profile(profile)
    tables: dict[str, Sequence[Any]] = {"runs": results(settings, runs)}
    if whole:
        tables["children"] = children_results(settings, selection.parent(settings))
    if claims:
        tables["arms"] = arm_runs(settings)
        tables["claims"] = judge_claims(tables["arms"])
    found = {name: [as_row(row) for row in rows] for name, rows in tables.items()}
    return found | ({"made_of": made_of(settings, selection.parent(settings))} if whole else {})
