"""The study's objects under a profile, each made once and kept: what the notebooks call.

    tokens -> activations -> coefficient, narrow SAE -> parent, tau -> views -> one training run

Every function returns what is in the cache when it was made before from the same inputs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from saelib.acts.batches import View
from saelib.acts.store import ActivationStore, harvest
from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.device import choose_device, in_key
from saelib.base.errors import UserError
from saelib.base.hub import named_path
from saelib.base.progress import report_progress
from saelib.lm.gelu_1l import load_gelu_1l
from saelib.lm.hf_model import load_hf_folder
from saelib.lm.model import EMBEDDED_FOLDER, LanguageModel, load_embedded
from saelib.lm.smollm2 import load_smollm2, smollm2_folder
from saelib.sae.evaluate import LossEnds, Quality, loss_ends, sae_quality
from saelib.sae.kept import beginning, sae_key, train_once
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig, require_fits
from saelib.sae.train import TrainResult
from saelib.sae.train_config import TrainConfig
from saelib.split.classes import hyphen_labels, hyphen_mask
from saelib.study.profiles import Profile
from saelib.text.corpus import build_token_store
from saelib.text.hub_data import PRETOKENISED, pretokenised_store
from saelib.text.sources import STUDY_SOURCES
from saelib.text.tokens import TokenStore

P = ParamSpec("P")
R = TypeVar("R")
HELD = 16
"""Results that a function of a profile keeps in memory: three splits of a handful of profiles. The cache folder has the rest."""


def once_a_text(function: Callable[Concatenate[Profile, P], R]) -> Callable[Concatenate[Profile, P], R]:
    """Keep a function's results in memory for a profile's text and model: the seed of the narrow SAE changes neither."""
    kept = functools.lru_cache(maxsize=HELD)(function)

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
    model = model.on(choose_device(profile.device))
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
    rows = np.flatnonzero(hyphen_mask(store, model))
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
    cfg = train_config(profile, l1_coeff, profile.narrow_steps, profile.seed, None)
    sae_cfg = sae_config(profile, profile.d_sae_narrow, l1_coeff=l1_coeff, seed=profile.seed)
    device = choose_device(profile.device)

    key = content_key(
        store=activations(profile, "train").key, sae=sae_cfg.to_dict(), cfg=repr(cfg), **in_key(device)
    )  # fmt: skip
    data = View(activations(profile, "train"))
    return train_once(key, f"narrow-l1-{l1_coeff:g}", lambda: beginning(sae_cfg, cfg, data, device), cfg)


class Coefficient(NamedTuple):
    """The chosen L1 coefficient and what every candidate gave."""

    l1_coeff: float
    meets_rule: bool
    """False when no candidate met the rule and the nearest was taken."""
    grid: pd.DataFrame
    """One row a candidate: l1_coeff, l1_per_token, l0, fvu, loss_recovered, alive_share, tokens, meets_rule."""


@functools.lru_cache(maxsize=HELD)
def coefficient(profile: Profile) -> Coefficient:
    """Choose the L1 coefficient on select data, before and independently of any split.

    Rule: the smallest coefficient of the grid at which the narrow SAE's L0 lies in `l0_range`; larger ones are not tried.
    When none does, the one whose L0 is nearest to the range's middle is taken, and it is said so.
    """
    low, high = profile.l0_range
    given = given_narrow(profile)
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
    given = given_narrow(profile)
    return given if given is not None else train_narrow(profile, coefficient(profile).l1_coeff)


def given_narrow(profile: Profile) -> TrainResult | None:
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


@functools.lru_cache(maxsize=HELD)
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


def seconds_of(function: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the wall time it took."""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began
