"""`saelib.activations`: a language model by name, a text by name or path, their activations in three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saelib.acts.activations import SPLITS, Activations, harvest_documents
from saelib.study import study
from saelib.study.profiles import MINI, PROFILES, Profile


def activations(
    model: str = "mini", text: str | Path | Sequence[str] = "study", hook: str | None = None
) -> Activations:
    """Harvest (or open) a language model's activations on a text, split by document into train, select and test.

    Args:
        model: `mini` (the embedded model), `smollm2`, `gelu-1l`, or the folder of a Hugging Face causal model.
        text: `study` (the packages this project downloads), a text file, a folder of .txt files, or a list of documents.
        hook: the site, such as `blocks.0.hook_mlp_out`; None is the model's own default.

    Raises:
        UserError: the model, the text or the hook is not there.
    """
    known = PROFILES.get(model, MINI)
    folder = known.model if model in PROFILES else str(Path(model).expanduser())
    profile = replace(known, model=folder, hook_name=hook or known.hook_name)
    lm = study.language_model(profile)
    if text != "study":
        return harvest_documents(lm, text)
    return of_profile(replace(profile, d_in=lm.d_in))


def of_profile(profile: Profile) -> Activations:
    """The activations of a profile of the study."""
    stores = {split: study.activations(profile, split) for split in SPLITS}
    return Activations(
        study.language_model(profile), stores, {split: (study.tokens(profile), split) for split in SPLITS}
    )
