"""The study's trainer as its facts describe it, in plain autograd. Written on its own: it shares no code with saelib.

Only tests and benchmarks use it. It makes every (batch, d_sae) matrix, lets autograd differentiate, and knows nothing
of routes, blocks, checkpoints or transposed storage.
"""

from __future__ import annotations

import torch
from torch import nn


class ReferenceTrainer:
    """Parameters as nn.Parameter, loss by autograd, Adam as torch ships it."""

    def __init__(self, weights, l1_coeff, lr=1e-4, beta1=0.9, beta2=0.99, zero_parent=None):
        self.params = {name: nn.Parameter(value.detach().clone()) for name, value in weights.items()}
        self.l1_coeff, self.zero_parent = l1_coeff, zero_parent
        self.optimiser = torch.optim.Adam(
            [self.params[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")], lr=lr, betas=(beta1, beta2)
        )

    def forward(self, x):
        p = self.params
        acts = torch.relu((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
        if self.zero_parent is not None:
            keep = torch.ones(acts.shape[1], dtype=acts.dtype)
            keep[self.zero_parent] = 0
            acts = acts * keep
        x_hat = acts @ p["W_dec"] + p["b_dec"]
        l2 = ((x_hat - x) ** 2).sum(-1).mean(0)
        l1 = self.l1_coeff * acts.abs().sum()
        return l2 + l1, l2, l1, acts

    def step(self, x):
        """One update; the loss before it."""
        loss = self.forward(x)[0]
        loss.backward()
        self.make_decoder_rows_unit_norm()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()

    @torch.no_grad()
    def make_decoder_rows_unit_norm(self):
        W_dec = self.params["W_dec"]
        unit = W_dec / torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
        along = (W_dec.grad * unit).sum(dim=1, keepdim=True)
        W_dec.grad = W_dec.grad - along * unit
        W_dec.data = unit
