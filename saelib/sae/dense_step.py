"""The dense route of a training step: five matrix products, on any device and in any float format."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base import kernels
from saelib.sae.gradients import Gradients, Params, step_rows


def dense(
    params: Params, x: Float[Tensor, "batch d_in"], penalty: Float[Tensor, " d_sae"], zero_parent: int | None
) -> Gradients:
    """Loss and gradients by dense products, a block of rows at a time (see `saelib.sae.step`)."""
    W_enc, b_enc, W_dec, b_dec = params
    batch, d_sae = x.shape[0], W_dec.shape[0]
    dW_enc_t, dW_dec = torch.empty_like(W_dec), torch.empty_like(W_dec)  # (d_sae, d_in), both
    db_enc, g_sum, sums = torch.zeros_like(b_enc), torch.zeros_like(b_dec), torch.zeros_like(b_enc)
    fired = torch.zeros(d_sae, dtype=torch.int64, device=x.device)
    squares = x.new_zeros(())
    rows = step_rows(batch, d_sae, x.device)
    acts_buffer, dpre_buffer = x.new_empty(rows, d_sae), x.new_empty(rows, d_sae)
    rectify, mask_gradient = _dense_loops(x)
    for keep, block in enumerate(x.split(rows)):
        acts, dpre = acts_buffer[: len(block)], dpre_buffer[: len(block)]
        centred = block - b_dec
        torch.addmm(b_enc, centred, W_enc, out=acts)
        rectify(acts, fired, sums)
        if zero_parent is not None:
            acts[:, zero_parent] = 0
        error = torch.addmm(b_dec, acts, W_dec).sub_(block)
        squares += error.square().sum()
        g = error.mul_(2 / batch)
        torch.mm(g, W_dec.t(), out=dpre)
        mask_gradient(acts, dpre, penalty, db_enc)
        dW_dec.addmm_(acts.t(), g, beta=min(keep, 1))  # the first block begins the sums
        dW_enc_t.addmm_(dpre.t(), centred, beta=min(keep, 1))
        g_sum += g.sum(0)
    if zero_parent is not None:
        sums[zero_parent] = 0
    grads = Params(dW_enc_t.t(), db_enc, dW_dec, g_sum - W_enc @ db_enc)
    return Gradients(squares, grads, fired, sums)


def _dense_loops(x: Tensor) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two passes over a dense block between its products: compiled, or by torch."""
    if kernels.serve(x):
        return functools.partial(_by_columns, kernels.rectify), functools.partial(_by_columns, kernels.mask_gradient)

    def rectify(acts: Tensor, fired: Tensor, sums: Tensor) -> None:
        acts.relu_()
        fired += acts.count_nonzero(dim=0)
        sums += acts.sum(0)

    def mask_gradient(acts: Tensor, dpre: Tensor, penalty: Tensor, db_enc: Tensor) -> None:
        dpre.add_(penalty).masked_fill_(acts <= 0, 0)
        db_enc += dpre.sum(0)

    return rectify, mask_gradient


def _by_columns(kernel: Callable[..., None], acts: Tensor, *others: Tensor) -> None:
    kernels.spread(kernel, kernels.even(acts.shape[1]), *(tensor.numpy() for tensor in (acts, *others)))
