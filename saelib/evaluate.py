"""How good an SAE is: L0, FVU and loss recovered on held-out text, with the token count beside them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saelib.activations import POSITIONS, ActivationStore
from saelib.model import LanguageModel, OneLayerModel
from saelib.sae import SAE


class Quality(NamedTuple):
    """Quality of an SAE on `tokens` tokens."""

    l0: float
    """Mean number of active features a token."""
    fvu: float
    """Fraction of variance unexplained: sum |x_hat - x|^2 / sum |x - mean(x)|^2."""
    loss_recovered: float
    """(L_zero - L_sae) / (L_zero - L_clean), L the next-token loss with the activation zeroed, replaced by x_hat, left alone."""
    loss_clean: float
    loss_sae: float
    loss_zero: float
    alive_share: float
    """Share of features that fire at least once on these tokens."""
    tokens: int


@torch.no_grad()
def next_token_loss(
    model: OneLayerModel, tokens: Int[Tensor, "b t"], residual_mid: Tensor, mlp_out: Tensor
) -> Float[Tensor, "b t-1"]:
    """Cross-entropy of each next token when the MLP's output is `mlp_out`."""
    return loss_of_logits(model.logits(residual_mid + mlp_out), tokens)


def loss_of_logits(logits: Float[Tensor, "b t d_vocab"], tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t-1"]:
    """Cross-entropy of each next token."""
    flat = logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="none").view(tokens.shape[0], -1)


@torch.no_grad()
def sae_quality(sae: SAE, model: LanguageModel, store: ActivationStore, n_contexts: int) -> Quality:
    """Measure an SAE on the first `n_contexts` contexts of a store, positions after BOS (BOS itself is left alone)."""
    contexts = np.asarray(store.contexts[:n_contexts])
    mean = torch.zeros(store.d_in, dtype=torch.float64)
    square = 0.0
    residual_error = active = 0.0
    losses = np.zeros(3)
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for begin in range(0, len(contexts), 32):
        tokens = torch.from_numpy(contexts[begin : begin + 32].astype(np.int64))  # (b, t)
        clean, logits = model.splice(tokens)  # (b, t, d_in)
        x = clean[:, 1:].flatten(0, 1)
        x_hat, feature_acts = sae(x)
        replaced, zeroed = clean.clone(), clean.clone()
        replaced[:, 1:] = x_hat.view(*clean[:, 1:].shape)
        zeroed[:, 1:] = 0
        # the first prediction is made at BOS, which no ablation touches: left out of all three means
        losses += [loss_of_logits(logits(out), tokens)[:, 1:].sum().item() for out in (clean, replaced, zeroed)]
        mean += x.double().sum(0)
        square += x.double().pow(2).sum().item()
        residual_error += (x_hat - x).double().pow(2).sum().item()
        active += (feature_acts > 0).sum().item()
        fired |= (feature_acts > 0).any(0)
    n_tokens = len(contexts) * POSITIONS
    variance = square - mean.pow(2).sum().item() / n_tokens
    loss_clean, loss_sae, loss_zero = (losses / (len(contexts) * (POSITIONS - 1))).tolist()
    return Quality(
        l0=active / n_tokens,
        fvu=residual_error / variance,
        loss_recovered=(loss_zero - loss_sae) / (loss_zero - loss_clean),
        loss_clean=loss_clean,
        loss_sae=loss_sae,
        loss_zero=loss_zero,
        alive_share=fired.float().mean().item(),
        tokens=n_tokens,
    )
