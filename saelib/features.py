"""Looking at features: what activates them most, what they do to the logits, which are active on a prompt.

Everything ranks by the true activation, `relu((x - b_dec) @ W_enc + b_enc)`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.activations import POSITIONS, ActivationStore
from saelib.model import LanguageModel
from saelib.sae import SAE


def logit_effects(direction: Float[Tensor, " d_in"], model: LanguageModel, k: int = 10) -> pd.DataFrame:
    """The `k` tokens whose logits `direction @ W_U` raises most and lowers most.

    The final LayerNorm's scale is left out, as in the study. Columns: top, top_logit, bottom, bottom_logit.
    """
    effect = direction.detach() @ model.W_U  # (d_vocab,)
    order = effect.argsort(descending=True)
    top, bottom = order[:k], order[-k:].flip(0)
    return pd.DataFrame(
        {
            "top": model.to_str_tokens(top),
            "top_logit": effect[top].numpy(),
            "bottom": model.to_str_tokens(bottom),
            "bottom_logit": effect[bottom].numpy(),
        }
    )


def top_rows(activations: Float[np.ndarray, " n_tokens"], k: int) -> np.ndarray:
    """The `k` rows with the highest activation, highest first; rows that are not active are left out."""
    k = min(k, len(activations))
    rows = np.argpartition(-activations, k - 1)[:k]
    rows = rows[np.argsort(-activations[rows], kind="stable")]
    return rows[activations[rows] > 0]


def quantile_rows(activations: Float[np.ndarray, " n_tokens"], k: int) -> np.ndarray:
    """`k` rows spread evenly over the ranks of the active rows, strongest first: tops alone mislead."""
    active = np.flatnonzero(activations > 0)
    order = active[np.argsort(-activations[active], kind="stable")]
    return order[(np.arange(k) + 0.5).astype(int) * len(order) // k] if len(order) else order


def context_of(
    store: ActivationStore,
    model: LanguageModel,
    row: int,
    activations: Float[np.ndarray, " n_tokens"],
    before: int = 12,
    after: int = 6,
) -> tuple[list[str], list[float]]:
    """The tokens around a row, within its context, and the feature's activation on each."""
    first = row - row % POSITIONS
    start, end = max(first, row - before), min(first + POSITIONS, row + after + 1)
    return model.to_str_tokens(store.token_ids[start:end]), activations[start:end].tolist()


@torch.no_grad()
def prompt_activations(sae: SAE, model: LanguageModel, prompt: str) -> tuple[list[str], Float[Tensor, "t d_sae"]]:
    """The prompt's tokens (BOS first) and every feature's activation on each, scaled by its decoder row's norm."""
    tokens = model.to_tokens(prompt)
    x = model.activations(tokens)[0]
    return model.to_str_tokens(tokens[0]), sae.encode(x) * sae.W_dec.norm(dim=1)


def top_features(feature_acts: Float[Tensor, " d_sae"], k: int = 3) -> pd.DataFrame:
    """The `k` most active features at one token, with the margin `(a_j - a_next) / a_j` to the next.

    Columns: feature, activation, margin. Features that are silent are left out.
    """
    values, features = feature_acts.topk(min(k + 1, len(feature_acts)))
    frame = pd.DataFrame({"feature": features.numpy(), "activation": values.numpy()})
    frame["margin"] = (frame["activation"] - frame["activation"].shift(-1, fill_value=0.0)) / frame["activation"]
    return frame[frame["activation"] > 0].head(k)
