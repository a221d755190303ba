"""Looking at features: where they fire, how strongly and how often, what they do to the logits, which fire on a prompt.

Activations are those that the SAE's own `encode` gives, whatever its kind. The score of the 2024 post's ranking tool,
`(x - b_dec) @ W_enc`, which leaves out the bias and the ReLU, is given only where it is named: `raw=True`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE, require_fits
from saelib.sae.scaled import scaled_acts
from saelib.sae.stream import Counts, Histogram, finite, stream

# --- bad input ---------------------------------------------------------------------------------------------------------


def check_features(sae: SAE, features: int | Sequence[int] | np.ndarray) -> Integer[np.ndarray, " k"]:
    """The feature numbers as an array.

    Raises:
        UserError: none was named, or one is not a whole number in [0, d_sae).
    """
    asked = np.atleast_1d(np.asarray(features))
    rule = f"feature must be a whole number in [0, d_sae={sae.cfg.d_sae})"
    if not len(asked):
        raise UserError(rule, "none", "name at least one feature")
    for feature in asked:
        if not np.issubdtype(asked.dtype, np.integer) or not 0 <= feature < sae.cfg.d_sae:
            raise UserError(rule, feature, "pass a feature of this SAE")
    return asked.astype(np.int64)


def check_match(sae: SAE, model: LanguageModel | None = None, store: ActivationStore | None = None) -> None:
    """Refuse an SAE, a model and activations that do not belong together. What an SAE's folder does not say is let pass.

    Raises:
        UserError: they differ in width, in activation site or in whether the model's writing weights were centred, or the
            activations are another model's.
    """
    if store is not None:
        facts = store.manifest
        require_fits(
            sae.cfg, d_in=store.d_in, hook_name=facts.get("hook_name"),
            center_writing_weights=facts.get("center_writing_weights"),
        )  # fmt: skip
        if model is not None and facts.get("model_key") not in (None, model.key):
            rule = f"the activations must be those of the model {model.name} ({model.key})"
            raise UserError(rule, f"{facts.get('model_name')} ({facts['model_key']})", "harvest them with this model")
    if model is not None:
        require_fits(
            sae.cfg, d_in=model.d_in, hook_name=model.hook_name, center_writing_weights=model.center_writing_weights
        )


def activation_density(
    sae: SAE,
    store: ActivationStore,
    features: int | Sequence[int] | np.ndarray | None = None,
    *,
    block: int | None = None,
) -> pd.DataFrame:
    """How often and how strongly features fire, in one pass; by default all of them.

    Columns: feature, active (tokens on which it fires), tokens (of the store), density (their ratio), mean (activation
    where it fires; NaN if never), max.

    Raises:
        UserError: as for `highest_activating_tokens`.
    """
    chosen = np.arange(sae.cfg.d_sae) if features is None else check_features(sae, features)
    check_match(sae, store=store)
    counts = Counts(len(chosen))
    stream(sae, store, chosen, [counts], block=block)
    return density_frame(chosen, counts)


def density_frame(features: Integer[np.ndarray, " k"], counts: Counts) -> pd.DataFrame:
    """The table of `activation_density`."""
    mean = np.divide(counts.total, counts.active, out=np.full(len(features), np.nan), where=counts.active > 0)
    return pd.DataFrame(
        {
            "feature": features,
            "active": counts.active,
            "tokens": counts.n_rows,
            "density": counts.active / max(counts.n_rows, 1),
            "mean": mean,
            "max": counts.largest,
        }
    )


def activation_histogram(
    sae: SAE,
    store: ActivationStore,
    features: int | Sequence[int] | np.ndarray,
    *,
    bins: int = 64,
    block: int | None = None,
) -> pd.DataFrame:
    """Tokens by activation, in one pass: bins of equal width a feature, over the tokens on which it fires.

    The width is the smallest power of two at which `bins` bins (a power of two) reach the largest activation.
    Columns: feature, low, high (low <= activation < high), tokens. Bins beyond the largest activation are left out.

    Raises:
        UserError: as for `highest_activating_tokens`; `bins` is not a power of two.
    """
    chosen = check_features(sae, features)
    check_match(sae, store=store)
    histogram = Histogram(len(chosen), bins)
    stream(sae, store, chosen, [histogram], block=block)
    return histogram_frame(chosen, histogram)


def histogram_frame(features: Integer[np.ndarray, " k"], histogram: Histogram) -> pd.DataFrame:
    """The table of `activation_histogram`."""
    parts = []
    for feature, count, width in zip(features, histogram.count, histogram.width, strict=True):
        used = int(count.nonzero()[0].max(initial=-1)) + 1
        low = np.arange(used) * width
        parts.append(pd.DataFrame({"feature": feature, "low": low, "high": low + width, "tokens": count[:used]}))
    return pd.concat(parts, ignore_index=True)


# --- directions and prompts ----------------------------------------------------------------------------------------------


def logit_effects(direction: Float[Tensor, " d_in"], model: LanguageModel, k: int = 10) -> pd.DataFrame:
    """The `k` tokens whose logits `direction @ W_U` raises most and lowers most.

    The final LayerNorm's scale is left out, as in the study. Columns: top, top_logit, bottom, bottom_logit.

    Raises:
        UserError: the direction's width is not the model's, or it is not finite.
    """
    d_model = model.W_U.shape[0]
    if len(direction) != d_model:
        raise UserError(f"the direction must have the model's width, {d_model}", len(direction), "use the model's SAE")
    effect = (direction.detach().to(model.device) @ model.W_U).cpu()  # (d_vocab,)
    if not bool(effect.isfinite().all()):
        raise UserError("the direction must be finite", "NaN or infinity", "train or load the SAE again")
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


@torch.no_grad()
def prompt_activations(sae: SAE, model: LanguageModel, prompt: str) -> tuple[list[str], Float[Tensor, "t d_sae"]]:
    """The prompt's tokens (BOS first) and every feature's activation on each, on the scale of `scaled_acts`.

    Raises:
        UserError: the SAE does not belong to the model.
    """
    check_match(sae, model)
    tokens = model.to_tokens(prompt)
    x = finite(model.activations(tokens)[0], 0).to(sae.device)
    return model.to_str_tokens(tokens[0]), scaled_acts(sae, x)


def top_features(
    feature_acts: Float[Tensor, "*tokens d_sae"], k: int = 3, tokens: Sequence[str] | None = None
) -> pd.DataFrame:
    """The `k` most active features at each token, with the margin `(a_j - a_next) / a_j` to the next in rank.

    Args:
        feature_acts: activations of one token, or a row a token, as `prompt_activations` gives them.
        tokens: the tokens' texts.

    Returns:
        a row a token and feature: position, token (when given), rank (1 first), feature, activation, margin. Features that
        are silent are left out; the lower number goes first among equals.

    Raises:
        UserError: an activation is NaN or infinite, or there is not one text a token.
    """
    acts = feature_acts.detach().cpu().reshape(-1, feature_acts.shape[-1])
    if tokens is not None and len(tokens) != len(acts):
        raise UserError("there must be one text a token", f"{len(tokens)} for {len(acts)}", "pass the prompt's tokens")
    n = min(k + 1, acts.shape[1])
    order = finite(acts, 0).argsort(dim=1, descending=True, stable=True)[:, :n]
    values = acts.gather(1, order).numpy()
    following = np.concatenate([values[:, 1:], np.zeros((len(values), 1), dtype=values.dtype)], axis=1)
    position, rank = np.nonzero(values[:, : min(k, n)] > 0)
    value = values[position, rank]
    frame = pd.DataFrame(
        {
            "position": position,
            "rank": rank + 1,
            "feature": order.numpy()[position, rank],
            "activation": value,
            "margin": (value - np.maximum(following[position, rank], 0)) / value,
        }
    )
    if tokens is not None:
        frame.insert(1, "token", [tokens[int(p)] for p in position])
    return frame
