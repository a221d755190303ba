"""What a training step differentiates, and what a route through it gives back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelib.sae.sae import SAE

BLOCK_ROWS = 1024
"""Rows of the batch that are encoded at a time: no (batch, d_sae) matrix is ever held, and a block's stays in cache."""
BLOCK_BYTES_ELSEWHERE = 2**29
"""Most bytes of such a block's activations on a GPU, which wants few large products."""


def step_rows(batch: int, d_sae: int, device: torch.device) -> int:
    """Rows of the batch that are encoded at a time."""
    if device.type == "cpu":
        return min(BLOCK_ROWS, batch)
    return min(max(BLOCK_ROWS, BLOCK_BYTES_ELSEWHERE // (4 * d_sae)), batch)


class Params(NamedTuple):
    """The four parameters, or their gradients, in the orientation of `saelib.sae.sae`."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]

    @classmethod
    def of(cls, sae: SAE) -> Params:
        """The parameters of an SAE, detached: the same memory, no autograd."""
        return cls(sae.W_enc.detach(), sae.b_enc.detach(), sae.W_dec.detach(), sae.b_dec.detach())


class Gradients(NamedTuple):
    """What either route computes on one batch."""

    squares: Float[Tensor, ""]
    """Squared error, summed over d_in and the batch."""
    grads: Params
    """Gradients of the loss. `grads.W_enc` is a transposed view of contiguous memory."""
    fired: Int[Tensor, " d_sae"]
    """Tokens of this batch on which each feature was active, a zeroed parent included."""
    sums: Float[Tensor, " d_sae"]
    """Each feature's activations, summed over the batch, a zeroed parent's as 0."""
