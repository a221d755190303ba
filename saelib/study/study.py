"""The study's objects under a profile, each made once and kept: what the notebooks call.

    tokens -> activations -> coefficient, narrow SAE -> parent, tau -> views -> one training run

Every function returns what is in the cache when it was made before from the same inputs.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch

from saelib.acts.filter import filter_view
from saelib.acts.store import ActivationStore, ShuffledBatches, View, harvest
from saelib.base.cache import (
    cache_dir,
    content_key,
    kept_folder,
    kept_json,
    read_json,
)
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.hub import named_path
from saelib.base.progress import report_progress
from saelib.interpret.feature_f1 import Cut, best_cut, best_feature_f1, cut_at, feature_f1, tokens_of_kind
from saelib.lm.gelu_1l import load_gelu_1l
from saelib.lm.hf_model import load_hf_folder, load_smollm2, smollm2_folder
from saelib.lm.model import EMBEDDED_FOLDER, LanguageModel, load_embedded
from saelib.sae.evaluate import LossEnds, Quality, loss_ends, sae_quality
from saelib.sae.kept import sae_key, train_once, training_folder, weights_hash
from saelib.sae.sae import SAE, SAEConfig, init_from_narrow, init_random, load_sae, require_fits
from saelib.sae.scaled import scaled_acts
from saelib.sae.stream import feature_activations
from saelib.sae.train import TrainConfig, TrainResult
from saelib.split.classes import hyphen_labels, hyphen_rows
from saelib.study.profiles import Profile
from saelib.study.runs import RunSpec, get_run
from saelib.text.corpus import build_token_store
from saelib.text.hub_data import PRETOKENISED, pretokenised_store
from saelib.text.sources import STUDY_SOURCES
from saelib.text.tokens import TokenStore

P = ParamSpec("P")
R = TypeVar("R")


def once_a_text(function: Callable[Concatenate[Profile, P], R]) -> Callable[Concatenate[Profile, P], R]:
    """Keep a function's results in memory for a profile's text and model: the seed of the narrow SAE changes neither."""
    kept = functools.cache(function)

    @functools.wraps(function)
    def call(profile: Profile, *args: P.args, **kwargs: P.kwargs) -> R:
        return kept(replace(profile, seed=0), *args, **kwargs)  # type: ignore[arg-type]

    call.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return call


@once_a_text
def language_model(profile: Profile) -> LanguageModel:
    """The profile's language model: `mini`, `smollm2`, `gelu-1l`, or the folder of any Hugging Face causal model."""
    if profile.model == "mini":
        return load_embedded()
    if profile.model == "gelu-1l":
        return load_gelu_1l(center_writing_weights=profile.center_writing_weights)
    if profile.model == "smollm2":
        return load_smollm2(profile.hook_name)
    centred = profile.center_writing_weights
    return load_hf_folder(Path(profile.model), profile.hook_name, center_writing_weights=centred)


@once_a_text
def tokens(profile: Profile) -> TokenStore:
    """The study's text, tokenised and split by document."""
    if profile.text == (PRETOKENISED,):
        return pretokenised_store(language_model(profile), _contexts(profile), progress=report_progress)
    sources = [source for source in STUDY_SOURCES if source.package in profile.text]
    if profile.model == "mini":
        return build_token_store(sources, EMBEDDED_FOLDER / "tokenizer.json", name="study", progress=report_progress)
    model = language_model(profile)
    file = (smollm2_folder() if profile.model == "smollm2" else Path(profile.model)) / "tokenizer.json"
    return build_token_store(
        sources, file, name="study", bos=model.bos_token, eos=model.eos_token, progress=report_progress
    )


def _contexts(profile: Profile) -> dict[str, int]:
    """Contexts of each split that the profile uses."""
    return {"train": profile.train_contexts, "select": profile.select_contexts, "test": profile.test_contexts}


@once_a_text
def activations(profile: Profile, split: str) -> ActivationStore:
    """The harvested activations of a split."""
    model = language_model(profile)
    if model.d_in != profile.d_in:
        rule = f"d_in of profile {profile.name} must be the model's {model.d_in}"
        raise UserError(rule, profile.d_in, "mend the profile, or use its model")
    return harvest(model, tokens(profile), split, _contexts(profile)[split], progress=report_progress)


def prepare(profile: Profile) -> dict[str, float]:
    """Make everything that is not training: text, tokens, activations of all three splits. Returns the seconds of each part."""
    _, text = seconds_of(lambda: tokens(profile))
    _, harvested = seconds_of(lambda: [activations(profile, split) for split in ("train", "select", "test")])
    return {"text": text, "harvest": harvested}


@once_a_text
def joining_hyphens(profile: Profile, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The hyphens of a split that join two words, from the text alone: their rows, ascending, and their classes."""
    store, model = activations(profile, split), language_model(profile)
    rows = hyphen_rows(store, model.hyphen)
    label = hyphen_labels(store, model, rows)
    return rows[label >= 0], label[label >= 0]


def joins(profile: Profile, split: str) -> np.ndarray:
    """For every token of a split, whether it is a hyphen that joins two words."""
    out = np.zeros(activations(profile, split).n_tokens, dtype=bool)
    out[joining_hyphens(profile, split)[0]] = True
    return out


# --- training, for the narrow SAE and for the runs ---------------------------------------------------------------------


def sae_config(profile: Profile, d_sae: int, **metadata: Any) -> SAEConfig:
    """An SAE of the profile's model and site; `metadata` says how it was trained."""
    model = language_model(profile)
    return SAEConfig(
        d_in=profile.d_in,
        d_sae=d_sae,
        hook_name=model.hook_name,
        model_name=model.name,
        center_writing_weights=model.center_writing_weights,
        metadata={"profile": profile.name, **metadata},
    )


QUALITY_CODE = ("lm.hf_model", "lm.hooked", "lm.mini_lm", "lm.model", "sae.evaluate", "sae.sae")
"""What computes a kept quality, as `TRAINING_CODE` a training."""


def kept_after(profile: Profile, spec: RunSpec, chosen: Parent, filter_by: str, n_steps: int, step: int) -> SAE:
    """The SAE of a finished run as it was after `step` steps; that step must be one that was kept."""
    name, key, *_ = _run_plan(profile, spec, chosen, filter_by, n_steps)
    return load_sae(training_folder(name, key) / f"sae-{step}")


def train_config(profile: Profile, l1_coeff: float, n_steps: int, seed: int, zero_parent: int | None) -> TrainConfig:
    """A training with the profile's rates, batch and intervals."""
    return TrainConfig(
        l1_coeff=l1_coeff,
        n_steps=n_steps,
        seed=seed,
        lr=profile.lr,
        beta1=profile.beta1,
        beta2=profile.beta2,
        batch_size=profile.batch_size,
        zero_parent=zero_parent,
        reinit_every=profile.reinit_every,
        reinit_threshold=profile.reinit_threshold,
        log_every=profile.log_every,
        checkpoint_every=profile.checkpoint_every,
    )


def train_narrow(profile: Profile, l1_coeff: float) -> TrainResult:
    """A narrow SAE at one coefficient, on all training data."""
    key, name, sae_cfg, cfg = _narrow_plan(profile, l1_coeff)

    def begin() -> tuple[SAE, ShuffledBatches]:
        batches = ShuffledBatches(View(activations(profile, "train")), profile.batch_size, profile.seed)
        return init_random(sae_cfg, torch.Generator().manual_seed(profile.seed)), batches

    return train_once(key, name, begin, cfg)


def _narrow_plan(profile: Profile, l1_coeff: float) -> tuple[str, str, SAEConfig, TrainConfig]:
    cfg = train_config(profile, l1_coeff, profile.narrow_steps, profile.seed, None)
    sae_cfg = sae_config(profile, profile.d_sae_narrow, l1_coeff=l1_coeff, seed=profile.seed)
    key = content_key(store=activations(profile, "train").key, sae=sae_cfg.to_dict(), cfg=repr(cfg))
    return key, f"narrow-l1-{l1_coeff:g}", sae_cfg, cfg


class Coefficient(NamedTuple):
    """The chosen L1 coefficient and what every candidate gave."""

    l1_coeff: float
    meets_rule: bool
    """False when no candidate met the rule and the nearest was taken."""
    grid: pd.DataFrame
    """One row a candidate: l1_coeff, l1_per_token, l0, fvu, loss_recovered, alive_share, tokens, meets_rule."""


@functools.cache
def coefficient(profile: Profile) -> Coefficient:
    """Choose the L1 coefficient on select data, before and independently of any split.

    Rule: the smallest coefficient of the grid at which the narrow SAE's L0 lies in `l0_range`; larger ones are not tried.
    When none does, the one whose L0 is nearest to the range's middle is taken, and it is said so.
    """
    low, high = profile.l0_range
    given = _given_narrow(profile)
    if given is not None:  # the coefficient it was trained with is the profile's first
        quality = quality_of(profile, given.sae, "select")
        row = {"l1_coeff": profile.l1_grid[0], "l1_per_token": profile.l1_grid[0] * profile.batch_size}
        return Coefficient(profile.l1_grid[0], True, pd.DataFrame([{**row, **quality._asdict(), "meets_rule": True}]))
    rows = []
    for l1_coeff in profile.l1_grid:
        quality = quality_of(profile, train_narrow(profile, l1_coeff).sae, "select")
        meets = low <= quality.l0 <= high
        per_token = l1_coeff * profile.batch_size
        rows.append({"l1_coeff": l1_coeff, "l1_per_token": per_token, **quality._asdict(), "meets_rule": meets})
        if meets:
            break
    grid = pd.DataFrame(rows)
    fitting = grid[grid["meets_rule"]]
    if len(fitting):
        return Coefficient(float(fitting["l1_coeff"].iloc[0]), True, grid)
    nearest = int((grid["l0"] - (low + high) / 2).abs().argmin())
    return Coefficient(float(grid["l1_coeff"].iloc[nearest]), False, grid)


def narrow_sae(profile: Profile) -> TrainResult:
    """The narrow SAE at the chosen coefficient; or, where `SAELIB_NARROW_SAE` names one, that SAE as it is."""
    given = _given_narrow(profile)
    return given if given is not None else train_narrow(profile, coefficient(profile).l1_coeff)


def narrow_folder(profile: Profile) -> Path:
    """Where the narrow SAE lies, in the SAELens format; or the file that `SAELIB_NARROW_SAE` names."""
    narrow_sae(profile)
    if (path := named_path(profile.narrow_sae_variable)) is not None:
        return path
    key, name, *_ = _narrow_plan(profile, coefficient(profile).l1_coeff)
    return training_folder(name, key) / "sae"


def _given_narrow(profile: Profile) -> TrainResult | None:
    """The narrow SAE that a profile takes from a file, when the file is at hand."""
    sae = _named_sae(profile, profile.narrow_sae_variable, "narrow", profile.d_sae_narrow)
    if sae is None:
        return None
    history = pd.DataFrame({name: [float("nan")] for name in ("step", "tokens", "loss", "l0", "dead_share")})
    cfg = replace(sae_config(profile, sae.cfg.d_sae), metadata=sae.cfg.metadata)
    sae.cfg = cfg  # the model's own name, so that wide SAEs may start from it
    return TrainResult(sae, history, 0.0, 0)


def published_sae(profile: Profile) -> SAE | None:
    """The study's own wide SAE, run-25, when the profile's environment variable names its file.

    Raises:
        UserError: it is no SAE of the profile's model and size.
    """
    return _named_sae(profile, profile.published_sae_variable, "published", profile.d_sae_wide)


def _named_sae(profile: Profile, variable: str | None, which: str, d_sae: int) -> SAE | None:
    """The SAE whose file an environment variable names; None when it is not set."""
    path = named_path(variable)
    if path is None:
        return None
    sae, model = load_sae(path), language_model(profile)
    require_fits(
        sae.cfg, d_in=model.d_in, hook_name=model.hook_name, center_writing_weights=model.center_writing_weights
    )
    if sae.cfg.d_sae != d_sae:
        rule = f"the {which} SAE of profile {profile.name} must have {d_sae} features"
        raise UserError(rule, sae.cfg.d_sae, f"set {variable} to that SAE")
    return sae


@functools.cache
def _loss_ends(profile: Profile, split: str) -> LossEnds:
    store = activations(profile, split)
    key = content_key(store=store.key, ends=profile.evaluate_contexts, code=code_version(*QUALITY_CODE))

    def measure() -> dict[str, float]:
        return loss_ends(language_model(profile), store, profile.evaluate_contexts)._asdict()

    return LossEnds(**kept_json("quality", key, measure))


def quality_of(profile: Profile, sae: SAE, split: str = "test") -> Quality:
    """L0, FVU, loss recovered of an SAE on held-out text; measured once for its weights."""
    store = activations(profile, split)
    key = content_key(
        store=store.key,
        sae=sae_key(sae),
        n_contexts=profile.evaluate_contexts,
        code=code_version(*QUALITY_CODE),
    )

    def measure() -> dict[str, float]:
        ends = _loss_ends(profile, split)
        return sae_quality(sae, language_model(profile), store, profile.evaluate_contexts, ends)._asdict()

    return Quality(**kept_json("quality", key, measure))


# --- the parent, its threshold, the filter -----------------------------------------------------------------------------


LEAST_FIT = 0.8
"""A parent of lower purity or recall on test is not the feature of the hyphens that join words."""


def rank_parents(profile: Profile, sae: SAE) -> pd.DataFrame:
    """Features of the narrow SAE ranked by how well they mark hyphens that join words, each at its threshold of best F1.

    The columns of `saelib.interpret.feature_f1.best_feature_f1`, over all tokens of the select split; the best first.
    """
    store = activations(profile, "select")
    key = content_key(
        store=store.key,
        sae=sae_key(sae),
        marked="joining hyphens",
        code=code_version("interpret.feature_f1", "sae.sae", "split.classes"),
    )

    def columns() -> dict[str, Any]:
        found = best_feature_f1(store, sae, joins(profile, "select"))
        return {str(name): values.tolist() for name, values in found.items()}

    found = pd.DataFrame(kept_json("parents", key, columns))
    return found.sort_values("f1", ascending=False, kind="stable").reset_index(drop=True)


def rank_marking(profile: Profile, sae: SAE, kind: str) -> pd.DataFrame:
    """Features ranked by F1 on the select split: columns as in `saelib.interpret.feature_f1.feature_f1`, and `token`.

    Args:
        kind: `hyphen`, `digit` or `code`, as in `saelib.interpret.feature_f1.tokens_of_kind`. Each token of code is ranked
            alone: its pairs of token and feature are in one table.
    """
    store, which = activations(profile, "select"), sae_key(sae)
    tables = []
    for name, ids in tokens_of_kind(language_model(profile), kind):
        key = content_key(store=store.key, sae=which, tokens=ids, code=code_version("interpret.feature_f1", "sae.sae"))
        columns = kept_json("parents", key, functools.partial(_marking_columns, store, sae, ids))
        tables.append(pd.DataFrame(columns).assign(token=name))
    return pd.concat(tables).sort_values("f1", ascending=False, kind="stable").reset_index(drop=True)


def _marking_columns(store: ActivationStore, sae: SAE, tokens: list[int]) -> dict[str, Any]:
    return {str(name): values.tolist() for name, values in feature_f1(store, sae, tokens).items()}


def parents_of_other_kinds(profile: Profile, sae: SAE) -> pd.DataFrame:
    """Two parents beside the hyphen's: the feature that best marks digits, and the one that best marks a token of code.

    Best is the highest F1 on the select split, with the hyphen's parent left out. One row a kind: kind, then the columns of
    `rank_marking`.
    """
    taken = [int(rank_parents(profile, sae)["feature"].iloc[0])]
    rows = []
    for kind in ("digit", "code"):
        ranking = rank_marking(profile, sae, kind)
        row = ranking[~ranking["feature"].isin(taken)].iloc[0]
        taken.append(int(row["feature"]))
        rows.append({"kind": kind, **row.to_dict()})
    return pd.DataFrame(rows)


def parent_of_kind(parents: pd.DataFrame, kind: str) -> pd.Series:
    """The row of one kind in what `parents_of_other_kinds` returned.

    Raises:
        UserError: there is none.
    """
    row = parents[parents["kind"] == kind]
    if row.empty:
        raise UserError(f"kind must be one of {', '.join(parents['kind'])}", repr(kind), "pass one of these")
    return row.iloc[0]


class Parent(NamedTuple):
    """The parent feature and the threshold above which it counts as active."""

    feature: int
    tau: float
    max_activation: float
    """The largest activation on the select split."""


@functools.cache
def parent(profile: Profile, feature: int | None = None, tau: float | None = None) -> Parent:
    """The parent of the study: the feature that best marks hyphens that join words, above its threshold of best F1.

    Both are chosen on the select split, over all its tokens: for every feature the threshold of best F1, then the feature
    whose F1 is best there. A profile that names its SAE's parent and tau is followed, where that SAE is at hand. A feature
    that is named, or one chosen where no feature fires on such a hyphen, has the 2024 post's threshold: `tau_fraction` of
    its largest activation (2 of 9.23).
    """
    sae = narrow_sae(profile).sae
    if feature is None and _given_narrow(profile) is not None and profile.parent is not None:
        feature, tau = profile.parent, profile.tau if tau is None else tau
    ruled = feature is None
    if feature is None:
        feature = int(rank_parents(profile, sae)["feature"].iloc[0])
    values = parent_on(profile, "select", feature)
    largest = float(values.max())
    if tau is None:
        best = best_cut(values, joins(profile, "select")) if ruled else None
        tau = best.tau if best is not None and best.f1 > 0 else profile.tau_fraction * largest
    return Parent(feature, tau, largest)


def parent_fit(profile: Profile, chosen: Parent, split: str = "test") -> Cut:
    """How well the parent, above tau, marks the hyphens of a split that join words: F1, purity and recall.

    purity = share of the tokens above tau that are such hyphens,   recall = share of such hyphens that are above tau
    """
    return cut_at(parent_on(profile, split, chosen.feature), joins(profile, split), chosen.tau)


def is_hyphens(fit: Cut) -> bool:
    """Whether purity and recall are those of the feature of the hyphens that join words: at least `LEAST_FIT` each."""
    return min(fit.purity, fit.recall) >= LEAST_FIT


def parent_on(profile: Profile, split: str, feature: int) -> np.ndarray:
    """The parent's activation on every row of a split."""
    return feature_on(profile, split, narrow_sae(profile).sae, feature)


def feature_on(profile: Profile, split: str, sae: SAE, feature: int) -> np.ndarray:
    """One feature's activation on every row of a split; kept in the cache, since every run asks for the parent's."""
    store = activations(profile, split)
    key = content_key(store=store.key, sae=sae_key(sae), feature=feature, code=code_version("sae.stream", "sae.sae"))

    def make(folder: Path) -> None:
        file = io.BytesIO()  # numpy's error on a full disk would not say that it is full
        np.save(file, feature_activations(store, sae, feature))
        (folder / "values.npy").write_bytes(file.getvalue())

    return np.load(kept_folder(cache_dir() / "features" / f"{split}-{key}", make) / "values.npy")


def view(profile: Profile, by: str, chosen: Parent) -> View:
    """The training data under a filter: `none`, `context` or `token`."""
    store = activations(profile, "train")
    return filter_view(store, parent_on(profile, "train", chosen.feature), chosen.tau, by)


# --- one run of the table -----------------------------------------------------------------------------------------------


def _replacing_probe(profile: Profile, chosen: Parent) -> Callable[[SAE], dict[str, float]]:
    """Share of parent-active select hyphens on which the old parent's index is still the top feature."""
    narrow = narrow_sae(profile).sae
    x = activations(profile, "select").rows(joining_hyphens(profile, "select")[0][:4096])
    with torch.no_grad():
        x = x[narrow.encode(x)[:, chosen.feature] > chosen.tau]

    def probe(sae: SAE) -> dict[str, float]:
        acts = scaled_acts(sae, x)
        still = (acts.argmax(1) == chosen.feature) & (acts[:, chosen.feature] > 0)
        return {"parent_still_top": float(still.float().mean()) if len(still) else float("nan")}

    return probe


class _RunPlan(NamedTuple):
    name: str
    key: str
    cfg: TrainConfig
    sae_cfg: SAEConfig
    by: str


def _run_plan(profile: Profile, spec: RunSpec, chosen: Parent, filter_by: str, n_steps: int) -> _RunPlan:
    """What a run is called and what determines it."""
    store, narrow = activations(profile, "train"), narrow_sae(profile).sae
    d_sae = profile.d_sae_wide if spec.size == "wide" else profile.d_sae_narrow
    by = filter_by if spec.filtered else "none"
    l1_coeff = spec.l1_scale * coefficient(profile).l1_coeff
    cfg = train_config(profile, l1_coeff, n_steps, spec.seed, chosen.feature if spec.zero_parent else None)
    start = "narrow" if spec.init_from_narrow else "random"
    sae_cfg = sae_config(
        profile, d_sae, l1_coeff=l1_coeff, seed=spec.seed, start=start, normalised=spec.normalised, filter=by,
        parent=chosen.feature, tau=chosen.tau, zero_parent=spec.zero_parent, n_steps=n_steps,
    )  # fmt: skip
    key = content_key(store=store.key, narrow=weights_hash(narrow), sae=sae_cfg.to_dict(), cfg=repr(cfg))
    return _RunPlan(f"run-{spec.run:02d}", key, cfg, sae_cfg, by)


def train_run(
    profile: Profile, spec: RunSpec, chosen: Parent, filter_by: str, n_steps: int, keep: Sequence[int] = ()
) -> TrainResult:
    """Train one row of the run table.

    `filter_by` is used when the row is filtered. Only a warm start gives the parent's index a meaning in the wide SAE;
    with a random start neither the parent can be zeroed nor its replacing be watched. `keep` are steps after which the
    SAE is kept for `kept_after`.
    """
    plan, narrow = _run_plan(profile, spec, chosen, filter_by, n_steps), narrow_sae(profile).sae

    def begin() -> tuple[SAE, ShuffledBatches]:
        generator = torch.Generator().manual_seed(spec.seed)
        batches = ShuffledBatches(view(profile, plan.by, chosen), profile.batch_size, spec.seed)
        if spec.init_from_narrow:
            return init_from_narrow(narrow, plan.sae_cfg, spec.normalised, generator), batches
        return init_random(plan.sae_cfg, generator), batches

    probe = _replacing_probe(profile, chosen) if spec.init_from_narrow else None
    return train_once(plan.key, plan.name, begin, plan.cfg, probe, keep)


def trained_run(profile: Profile, run: int) -> TrainResult:
    """A row of the run table as the study trains it: parent and threshold by their rules, filtered by context."""
    spec = get_run(run)
    return train_run(profile, spec, parent(profile), "context", profile.steps(spec.short))


def text_summary(profile: Profile) -> dict[str, Any]:
    """The text manifest as every report shows it."""
    manifest = tokens(profile).manifest
    return {
        "key": manifest["key"],
        "splits": manifest["splits"],
        "sources": [
            {k: source[k] for k in ("package", "version", "sha256", "documents", "tokens", "hyphens")}
            for source in manifest["sources"]
        ],
    }


def model_card() -> dict[str, Any]:
    """The embedded model's measured numbers."""
    return dict(read_json(Path(EMBEDDED_FOLDER) / "card.json"))


def seconds_of(function: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the wall time it took."""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began
