"""The definition of a training step: the 2024 post's objective in plain autograd, every matrix written out.

    acts  = relu((x - b_dec) @ W_enc + b_enc)                          (batch, d_sae); a zeroed parent's column set to 0
    x_hat = acts @ W_dec + b_dec
    loss  = mean over the batch of |x_hat - x|^2  +  l1_coeff * sum over features and over the batch of acts

    one step:  gradients; decoder rows to unit norm and their gradients orthogonal to them; Adam

It shares no code with the step that is used (`saelib.sae.step`), which tests hold to it and benchmarks time against it; nothing
else calls it. Source: the post's facts in `docs/study.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Loss(NamedTuple):
    """The loss on one batch, its two parts, and the activations."""

    loss: Float[Tensor, ""]
    l2: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    acts: Float[Tensor, "batch d_sae"]


class PlainTrainer:
    """Parameters as nn.Parameter, loss by autograd, Adam as torch ships it.

    Args:
        weights: W_enc (d_in, d_sae), b_enc (d_sae), W_dec (d_sae, d_in), b_dec (d_in), by name.
        l1_coeff: of the activations, summed over features and over the batch.
        lr: Adam's learning rate; `betas` its decays.
        zero_parent: a feature whose activation the loss sets to zero.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        l1_coeff: float,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        zero_parent: int | None = None,
    ) -> None:
        self.params = {name: nn.Parameter(value.detach().clone()) for name, value in weights.items()}
        self.l1_coeff, self.zero_parent = l1_coeff, zero_parent
        ordered = [self.params[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")]
        self.optimiser = torch.optim.Adam(ordered, lr=lr, betas=betas)

    def loss(self, x: Float[Tensor, "batch d_in"]) -> Loss:
        """The loss on a batch."""
        p = self.params
        acts = torch.relu((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
        if self.zero_parent is not None:
            keep = torch.ones(acts.shape[1], dtype=acts.dtype)
            keep[self.zero_parent] = 0
            acts = acts * keep
        x_hat = acts @ p["W_dec"] + p["b_dec"]
        l2 = ((x_hat - x) ** 2).sum(-1).mean(0)
        l1 = self.l1_coeff * acts.abs().sum()
        return Loss(l2 + l1, l2, l1, acts)

    def step(self, x: Float[Tensor, "batch d_in"]) -> float:
        """One update; returns the loss before it."""
        loss = self.loss(x).loss
        loss.backward()
        self._decoder_rows_to_unit_norm()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()

    @torch.no_grad()
    def _decoder_rows_to_unit_norm(self) -> None:
        W_dec = self.params["W_dec"]
        assert W_dec.grad is not None
        unit = W_dec / torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
        along = (W_dec.grad * unit).sum(dim=1, keepdim=True)
        W_dec.grad = W_dec.grad - along * unit
        W_dec.data = unit
