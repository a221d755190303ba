"""One training step of the study's SAE, with the backward pass written out.

    feature_acts = relu((x - b_dec) @ W_enc + b_enc)             x_hat = feature_acts @ W_dec + b_dec
    loss = mean over the batch of |x_hat - x|^2  +  l1_coeff * (sum over features and over the BATCH of feature_acts)

The second sum is not a mean: a token pays `l1_coeff * batch_size` for each unit of activation, relative to its squared
error. The study's l1_coeff of 3e-4 at batch 4096 is 1.2288 a token.

With g = 2 (x_hat - x) / batch and dpre = (g @ W_dec.T + l1_coeff) where a feature is active, else 0:

    dW_dec = feature_acts.T @ g        dW_enc = (x - b_dec).T @ dpre
    db_enc = sum dpre                  db_dec = sum g - W_enc @ db_enc        (only column sums: a dense product saved)

Two routes compute this. *dense*: five matrix products. *sparse*: one, to find who is active; everything else touches
active entries only. They agree within float rounding; which is faster depends on how many features are active
(`SPARSE_BELOW`).
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saelib.errors import UserError
from saelib.sae import SAE, unit_rows

Route = Literal["dense", "sparse"]

SPARSE_BELOW = 0.15
"""Share of active features under which the sparse route is the faster one on a CPU (`benchmarks/train_step.py`)."""

BLOCK_ROWS = 1024
"""Rows of the batch that are encoded at a time: no (batch, d_sae) matrix is ever held, and a block's stays in cache."""


class Params(NamedTuple):
    """The four parameters, or their gradients, in the orientation of `saelib.sae`."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]

    @classmethod
    def of(cls, sae: SAE) -> Params:
        """The parameters of an SAE, detached: the same memory, no autograd."""
        return cls(sae.W_enc.detach(), sae.b_enc.detach(), sae.W_dec.detach(), sae.b_dec.detach())


class StepResult(NamedTuple):
    """Loss, gradients and counts of one batch."""

    loss: float
    """l2 + l1, the study's loss."""
    l2: float
    """Squared error, summed over d_in, averaged over the batch."""
    l1: float
    """l1_coeff times the sum of activations over the whole batch."""
    l0: float
    """Active features a token, as the loss sees them (without a zeroed parent)."""
    grads: Params
    """Gradients of `loss`. `grads.W_enc` is a transposed view of contiguous memory."""
    fired: Int[Tensor, " d_sae"]
    """Tokens of this batch on which each feature was active, a zeroed parent included."""
    route: Route


def choose_route(active_share: float, device: torch.device) -> Route:
    """The faster route, given the share of features active in the step before (1.0 if there was none)."""
    return "sparse" if device.type == "cpu" and active_share < SPARSE_BELOW else "dense"


@torch.no_grad()
def loss_and_grads(
    params: Params,
    x: Float[Tensor, "batch d_in"],
    l1_coeff: float,
    zero_parent: int | None = None,
    route: Route = "dense",
) -> StepResult:
    """The study's loss on one batch and its gradients.

    `zero_parent` is the "parent zeroed" variant: that feature's activation is set to zero before it is decoded and
    before the L1 term, so no gradient reaches its encoder; it is still counted in `fired`.

    Raises:
        UserError: `zero_parent` is not a feature of this SAE.
    """
    d_sae = params.W_dec.shape[0]
    if zero_parent is not None and not 0 <= zero_parent < d_sae:
        raise UserError(f"feature must be in [0, d_sae={d_sae})", zero_parent, "pass a feature of this SAE")
    compute = _sparse if route == "sparse" else _dense
    return compute(params, x, l1_coeff, zero_parent)


def _dense(params: Params, x: Tensor, l1_coeff: float, zero_parent: int | None) -> StepResult:
    W_enc, b_enc, W_dec, b_dec = params
    batch, d_sae = x.shape[0], W_dec.shape[0]
    dW_enc_t, dW_dec = torch.zeros_like(W_dec), torch.zeros_like(W_dec)  # (d_sae, d_in), both
    db_enc, g_sum = torch.zeros_like(b_enc), torch.zeros_like(b_dec)
    fired = torch.zeros(d_sae, dtype=torch.int64, device=x.device)
    squares, total = x.new_zeros(()), x.new_zeros(())
    rows = min(BLOCK_ROWS, batch)
    acts_buffer, dpre_buffer = x.new_empty(rows, d_sae), x.new_empty(rows, d_sae)
    for block in x.split(rows):
        acts, dpre = acts_buffer[: len(block)], dpre_buffer[: len(block)]
        centred = block - b_dec
        torch.addmm(b_enc, centred, W_enc, out=acts).relu_()
        fired += acts.count_nonzero(dim=0)
        if zero_parent is not None:
            acts[:, zero_parent] = 0
        error = torch.addmm(b_dec, acts, W_dec).sub_(block)
        squares += error.square().sum()
        total += acts.sum()
        g = error.mul_(2 / batch)
        torch.mm(g, W_dec.t(), out=dpre).add_(l1_coeff).masked_fill_(acts <= 0, 0)
        dW_dec.addmm_(acts.t(), g)
        dW_enc_t.addmm_(dpre.t(), centred)
        db_enc += dpre.sum(0)
        g_sum += g.sum(0)
    grads = Params(dW_enc_t.t(), db_enc, dW_dec, g_sum - W_enc @ db_enc)
    return _result(squares, total, l1_coeff, batch, grads, fired, zero_parent, "dense")


def _sparse(params: Params, x: Tensor, l1_coeff: float, zero_parent: int | None) -> StepResult:
    W_enc, b_enc, W_dec, b_dec = params
    batch, d_sae = x.shape[0], W_dec.shape[0]
    centred = x - b_dec
    row, column, acts = _active_entries(centred, W_enc, b_enc)
    fired = torch.bincount(column, minlength=d_sae)
    if zero_parent is not None:
        acts.masked_fill_(column == zero_parent, 0)

    # The active entries of feature_acts as compressed rows: row r is entries row_start[r] ... row_start[r + 1].
    row_start = _starts(torch.bincount(row, minlength=batch))
    error = _weighted_sums(acts, column, row_start, W_dec).add_(b_dec).sub_(x)
    squares, total = error.square().sum(), acts.sum()
    g = error.mul_(2 / batch)
    dpre = _entries_of_product(g, W_dec, row_start, column, acts).add_(l1_coeff)
    if zero_parent is not None:
        dpre.masked_fill_(column == zero_parent, 0)

    # The same entries feature by feature. The sort is stable, so every sum below has one fixed order.
    by_feature = torch.sort(column.to(torch.int32), stable=True).indices
    feature_start, row = _starts(fired), row[by_feature]
    dpre = dpre[by_feature]
    dW_dec = _weighted_sums(acts[by_feature], row, feature_start, g)
    dW_enc_t = _weighted_sums(dpre, row, feature_start, centred)
    db_enc = torch.zeros_like(b_enc).index_add_(0, column[by_feature], dpre)
    grads = Params(dW_enc_t.t(), db_enc, dW_dec, g.sum(0) - W_enc @ db_enc)
    # NaN > 0 is False, so a feature whose encoder broke would only fall silent here. Let it break the loss, as it does
    # in the dense route.
    squares = squares + 0 * (W_enc.sum() + b_enc.sum())
    return _result(squares, total, l1_coeff, batch, grads, fired, zero_parent, "sparse")


def _active_entries(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column, value) of every positive pre-activation, row by row."""
    d_sae = len(b_enc)
    rows = min(BLOCK_ROWS, len(centred))
    pre_buffer = centred.new_empty(rows, d_sae)
    indices, values = [], []
    for first in range(0, len(centred), rows):
        block = centred[first : first + rows]
        pre = torch.addmm(b_enc, block, W_enc, out=pre_buffer[: len(block)]).view(-1)
        index = _nonzero(pre > 0)
        values.append(pre[index])
        indices.append(index.add_(first * d_sae))
    index = torch.cat(indices)
    row = index // d_sae
    return row, index - row * d_sae, torch.cat(values)


def _nonzero(mask: Tensor) -> Tensor:
    """Indices of the True entries of a flat mask; mostly False, so look at eight bytes at a time first."""
    if len(mask) % 8:
        return mask.nonzero().squeeze(1)
    word = mask.view(torch.int64).nonzero().squeeze(1)
    within = mask.view(-1, 8)[word].view(-1).nonzero().squeeze(1)
    return word[within >> 3].mul_(8).add_(within & 7)


def _starts(counts: Tensor) -> Tensor:
    """Where each group of `counts` entries begins, and where the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0))


def _weighted_sums(weights: Tensor, index: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """For each group of entries: the sum of weight * rows[index]."""
    return F.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _entries_of_product(g: Tensor, W_dec: Tensor, row_start: Tensor, column: Tensor, like: Tensor) -> Tensor:
    """(g @ W_dec.T) at the given entries only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        at = torch.sparse_csr_tensor(row_start, column, like, (len(g), len(W_dec)), check_invariants=False)
        return torch.sparse.sampled_addmm(at, g, W_dec.t(), beta=0.0).values()


def _result(
    squares: Tensor,
    total: Tensor,
    l1_coeff: float,
    batch: int,
    grads: Params,
    fired: Tensor,
    zero_parent: int | None,
    route: Route,
) -> StepResult:
    l2, l1 = squares.item() / batch, l1_coeff * total.item()
    active = int(fired.sum()) - (0 if zero_parent is None else int(fired[zero_parent]))
    return StepResult(l2 + l1, l2, l1, active / batch, grads, fired, route)


@torch.no_grad()
def normalise_decoder(W_dec: Float[Tensor, "d_sae d_in"], dW_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Scale the decoder rows to unit norm and remove the gradient along them, in place.

    The study does this between the backward pass and the optimiser's step, so after that step the rows are off unit
    norm by the length of one step.
    """
    W_dec.copy_(unit_rows(W_dec))
    dW_dec.sub_(W_dec * (dW_dec * W_dec).sum(-1, keepdim=True))
