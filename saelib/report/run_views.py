"""The study's pictures of one wide SAE: its three prompts (Figures 2, 4 and 5) and what each child fires on (Figure 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from saelib.acts.store import ActivationStore
from saelib.interpret import features
from saelib.lm.model import LanguageModel
from saelib.report import views
from saelib.report.html_view import View
from saelib.sae.sae import SAE
from saelib.sae.stream import feature_activations
from saelib.split.classes import PROMPTS

PUBLISHED = (
    ("count", 826, 6.82), ("count", 3334, 1.24), ("count", 2548, 1.05),
    ("number", 2821, 1.75), ("number", 3334, 1.29), ("number", 1781, 1.18),
    ("compound", 3833, 2.01), ("compound", 36, 1.33), ("compound", 2548, 0.99),
)  # fmt: skip
"""What the study read off its wide SAE, run-25: the top features at each prompt's hyphen, and their activations."""


def prompt_views(sae: SAE, model: LanguageModel, children: Mapping[int, str]) -> Iterator[View]:
    """Each prompt, coloured by the three strongest features at its hyphen; `children` are named."""
    for name, prompt in PROMPTS.items():
        words, acts = features.prompt_activations(sae, model, prompt)
        yield views.top_features(
            words, acts, position=words.index("-"), labels=dict(children), caption=f"{name}: {prompt}"
        )


def child_views(
    sae: SAE, model: LanguageModel, store: ActivationStore, children: Mapping[int, str]
) -> Iterator[View | pd.DataFrame]:
    """For each child, where it fires most in a store, then the logits it moves."""
    for child, name in children.items():
        acts = feature_activations(store, sae, child)
        top = features.top_rows(acts, 8)
        texts = [features.context_of(store, model, row, acts) for row in top]
        yield views.top_contexts(
            [tokens for tokens, _ in texts],
            [values for _, values in texts],
            scores=acts[top],
            caption=f"{name}: feature {child}",
        )
        yield features.logit_effects(sae.W_dec[child], model, k=8)


def beside_published(sae: SAE, model: LanguageModel) -> pd.DataFrame:
    """The published features at the prompts' hyphens with their activations here, and their rank among all features.

    Columns: prompt, feature, published, here, rank (1 is the strongest; 0 where the feature does not fire).
    """
    rows: list[dict[str, Any]] = []
    acts = {}
    for name, prompt in PROMPTS.items():
        words, found = features.prompt_activations(sae, model, prompt)
        acts[name] = found[words.index("-")]
    for name, feature, published in PUBLISHED:
        here = float(acts[name][feature])
        rank = int((acts[name] > here).sum()) + 1 if here > 0 else 0
        rows.append({"prompt": name, "feature": feature, "published": published, "here": here, "rank": rank})
    return pd.DataFrame(rows)
