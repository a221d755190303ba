"""How good an SAE is: L0, FVU and loss recovered on held-out text, with the token count beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.lm.model import LanguageModel, OneLayerModel
from saelib.sae.sae import SAE


class Quality(NamedTuple):
    """Quality of an SAE on `tokens` tokens."""

    l0: float
    """Mean number of active features a token."""
    fvu: float
    """Fraction of variance unexplained: sum |x_hat - x|^2 / sum |x - mean(x)|^2."""
    loss_recovered: float
    """See the function of that name."""
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
    targets = tokens[:, 1:].flatten().to(logits.device)
    return F.cross_entropy(flat, targets, reduction="none").view(tokens.shape[0], -1)


class LossEnds(NamedTuple):
    """The two losses that `loss_recovered` lies between: the same for every SAE at a site."""

    clean: float
    """With the activation left alone."""
    zero: float
    """With zeros in its place."""


def loss_recovered(loss: float, ends: LossEnds) -> float:
    """Share of the model's loss that a reconstruction keeps: 1 as with the activation left alone, 0 as with it zeroed.

        loss recovered = (L_zero - L_sae) / (L_zero - L_clean)

    L is the next-token loss with zeros, the reconstruction, or the activation itself in the activation's place; means or sums
    over the same predictions. Below 0 it harms more than zeros do. NaN where the ends are equal: zeroing costs nothing, so
    there is nothing to recover (also where no prediction is made).
    """
    room = ends.zero - ends.clean
    return (ends.zero - loss) / room if room else math.nan


@torch.no_grad()
def loss_ends(model: LanguageModel, store: ActivationStore, n_contexts: int) -> LossEnds:
    """Next-token loss with the activation left alone and zeroed, on the tokens that `sae_quality` takes."""
    losses = np.zeros(2)
    for tokens in _batches(store, n_contexts):
        clean, logits = model.splice(tokens)
        zeroed = clean.clone()
        zeroed[:, 1:] = 0
        losses += [_loss_after_bos(logits(out), tokens) for out in (clean, zeroed)]
    return LossEnds(*(losses / _predictions(store, n_contexts)).tolist())


@torch.no_grad()
def sae_quality(
    sae: SAE, model: LanguageModel, store: ActivationStore, n_contexts: int, ends: LossEnds | None = None
) -> Quality:
    """Measure an SAE on the first `n_contexts` contexts of a store, positions after BOS (BOS itself is left alone).

    `ends` is `loss_ends` of the same contexts, where it is known already.
    """
    ends = ends or loss_ends(model, store, n_contexts)
    sae = sae.on(model.device)
    mean = torch.zeros(store.d_in, dtype=torch.float64, device=model.device)
    square = 0.0
    residual_error = active = 0.0
    loss = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=model.device)
    for tokens in _batches(store, n_contexts):  # (b, t)
        clean, logits = model.splice(tokens)  # (b, t, d_in)
        x = clean[:, 1:].flatten(0, 1)
        x_hat, feature_acts = sae(x)
        replaced = clean.clone()
        replaced[:, 1:] = x_hat.view(*clean[:, 1:].shape)
        loss += _loss_after_bos(logits(replaced), tokens)
        mean += x.double().sum(0)
        square += x.double().pow(2).sum().item()
        residual_error += (x_hat - x).double().pow(2).sum().item()
        active += (feature_acts > 0).sum().item()
        fired |= (feature_acts > 0).any(0)
    n_tokens = min(n_contexts, len(store.contexts)) * POSITIONS
    variance = square - mean.pow(2).sum().item() / n_tokens
    loss_sae = loss / _predictions(store, n_contexts)
    return Quality(
        l0=active / n_tokens,
        fvu=residual_error / variance,
        loss_recovered=loss_recovered(loss_sae, ends),
        loss_clean=ends.clean,
        loss_sae=loss_sae,
        loss_zero=ends.zero,
        alive_share=fired.float().mean().item(),
        tokens=n_tokens,
    )


def _batches(store: ActivationStore, n_contexts: int) -> Iterator[Int[Tensor, "b t"]]:
    contexts = np.asarray(store.contexts[:n_contexts])
    for begin in range(0, len(contexts), 32):
        yield torch.from_numpy(contexts[begin : begin + 32].astype(np.int64))


def _loss_after_bos(logits: Float[Tensor, "b t d_vocab"], tokens: Int[Tensor, "b t"]) -> float:
    """Summed loss without the first prediction, which is made at BOS, where no ablation reaches."""
    return float(loss_of_logits(logits, tokens)[:, 1:].sum())


def _predictions(store: ActivationStore, n_contexts: int) -> int:
    return min(n_contexts, len(store.contexts)) * (POSITIONS - 1)
