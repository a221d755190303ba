"""`saelib.activations`: a language model by name, a text by name or path, their activations in three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saelib.acts.activations import SPLITS, Activations, harvest_documents, harvest_splits
from saelib.base.device import Device, choose_device
from saelib.lm.hf_model import find_hf_folder
from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE, require_fits
from saelib.study import study
from saelib.study.profiles import MINI, PROFILES, Profile


def activations(
    model: str = "mini",
    text: str | Path | Sequence[str] = "study",
    hook: str | None = None,
    *,
    sae: SAE | None = None,
    device: Device = "auto",
) -> Activations:
    """Harvest (or open) a language model's activations on a text, split by document into train, select and test.

    Args:
        model: `mini` (the embedded model), `smollm2`, `gelu-1l`, or a Hugging Face causal model by its folder or its name on
            the hub.
        text: `study` (the packages this project downloads), a text file, a folder of .txt files, or a list of documents.
        hook: the site, such as `blocks.0.hook_mlp_out`; None is that of `sae`, or the model's own default.
        sae: what the activations are for: the model's weights are processed as its SAE's were, and an SAE that does not fit is
            refused before anything is computed.
        device: where the model runs, and everything that is done with the activations; `auto` is a GPU where there is one.

    Raises:
        UserError: the model, the text, the hook or the device is not there, or the SAE does not fit.
    """
    where = choose_device(device)
    known = PROFILES.get(model, MINI)
    profile = replace(known, model=known.model if model in PROFILES else str(find_hf_folder(model)))
    site = hook or (sae.cfg.hook_name if sae else "") or known.hook_name
    centred = sae.cfg.center_writing_weights if sae else None
    profile = replace(profile, hook_name=site)
    if centred is not None and profile.model not in ("mini", "smollm2"):
        profile = replace(profile, center_writing_weights=centred)
    lm = study.language_model(profile)
    if sae:
        centring = lm.center_writing_weights
        require_fits(sae.cfg, d_in=lm.d_in, hook_name=lm.hook_name, center_writing_weights=centring)
    if text != "study":
        return harvest_documents(lm.on(where), text)
    return of_profile(replace(profile, d_in=lm.d_in), lm.on(where))


def of_profile(profile: Profile, model: LanguageModel | None = None) -> Activations:
    """The activations of a profile of the study; `model` is its language model where it is on another device."""
    own = study.language_model(profile)
    if model is not None and model is not own:
        sizes = {"train": profile.train_contexts, "select": profile.select_contexts, "test": profile.test_contexts}
        return harvest_splits(model, study.tokens(profile), sizes)
    stores = {split: study.activations(profile, split) for split in SPLITS}
    return Activations(own, stores, {split: (study.tokens(profile), split) for split in SPLITS})
