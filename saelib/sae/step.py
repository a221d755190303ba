"""One training step of an L1 SAE, with the backward pass written out.

    feature_acts = relu((x - b_dec) @ W_enc + b_enc)             x_hat = feature_acts @ W_dec + b_dec
    loss = mean over the batch of |x_hat - x|^2  +  sum over features and over the BATCH of penalty * feature_acts

The penalty of a feature j is, by `objective`,

    "study"          l1_coeff: a sum over the batch, not a mean, so a token pays `l1_coeff * batch_size` for each unit of
                     activation, relative to its squared error (3e-4 at batch 4096 is 1.2288 a token);
    "decoder_norm"   l1_coeff |W_dec[j]| / batch: SAELens's default, a mean over the batch, decoder rows of any length.

With g = 2 (x_hat - x) / batch and dpre = (g @ W_dec.T + penalty) where a feature is active, else 0:

    dW_dec = feature_acts.T @ g        dW_enc = (x - b_dec).T @ dpre
    db_enc = sum dpre                  db_dec = sum g - W_enc @ db_enc        (only column sums: a dense product saved)

and for "decoder_norm" dW_dec[j] has l1_coeff / batch * (sum of feature j's activations) * W_dec[j] / |W_dec[j]| besides.

Two routes compute this. *dense*: five matrix products. *sparse*: one, to find the active entries; everything else touches
these only. They agree within float rounding; which is faster depends on how many features are active
(`SPARSE_BELOW`). The sparse route is compiled (`saelib.base.kernels`), for a CPU and fp32, and its one product is a rough one
with a bound on its error (`saelib.sae.low_precision`). `saelib.sae.definition` says the same in plain autograd.

On CUDA the dense route is taken, with fp32 products (TF32 only if torch.backends.cuda.matmul.allow_tf32 is switched on),
and nothing is read back from the device within a step. `docs/performance.md` has its rates.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelib.base import kernels
from saelib.base.errors import UserError
from saelib.sae.dense_step import dense
from saelib.sae.gradients import Params
from saelib.sae.initial import unit_rows
from saelib.sae.sparse_step import sparse

Route = Literal["dense", "sparse"]
Objective = Literal["study", "decoder_norm"]

SPARSE_BELOW = 0.15
"""Share of active features under which the sparse route is the faster one on a CPU (`benchmarks/train_step.py`)."""


class StepResult(NamedTuple):
    """Loss, gradients and counts of one batch."""

    totals: Float[Tensor, " totals"]
    """l2, l1 and l0 as below and the loss, in fp64, on the device: what a loop may keep without waiting for it."""
    grads: Params
    """Gradients of `loss`."""
    fired: Int[Tensor, " d_sae"]
    """Tokens of this batch on which each feature was active, a zeroed parent included."""
    route: Route

    @property
    def l2(self) -> float:
        """Squared error, summed over d_in, averaged over the batch (read back from the device, as the next three)."""
        return self.totals[0].item()

    @property
    def l1(self) -> float:
        """l1_coeff times the sum of activations over the whole batch."""
        return self.totals[1].item()

    @property
    def l0(self) -> float:
        """Active features a token, as the loss sees them (without a zeroed parent)."""
        return self.totals[2].item()

    @property
    def loss(self) -> float:
        """l2 + l1."""
        return self.totals[3].item()


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
    objective: Objective = "study",
) -> StepResult:
    """The loss on one batch and its gradients.

    `zero_parent` is the "parent zeroed" variant: that feature's activation is set to zero before it is decoded and
    before the L1 term, so no gradient reaches its encoder; it is still counted in `fired`.

    Raises:
        UserError: `zero_parent` is not a feature of this SAE; the sparse route for anything but fp32 on a CPU.
    """
    d_sae = params.W_dec.shape[0]
    if zero_parent is not None and not 0 <= zero_parent < d_sae:
        raise UserError(f"feature must be in [0, d_sae={d_sae})", zero_parent, "pass a feature of this SAE")
    penalty = _penalty(params.W_dec, l1_coeff, len(x), objective)
    found = (dense if route == "dense" else sparse)(params, x, penalty, zero_parent)
    if objective == "decoder_norm":  # penalty / |row|^2 = l1_coeff / batch / |row|
        squares = params.W_dec.square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
        found.grads.W_dec.addcmul_(params.W_dec, (penalty * found.sums / squares).unsqueeze(1))
    l2, l1 = found.squares.double() / len(x), torch.dot(penalty, found.sums).double()
    active = found.fired.sum() if zero_parent is None else found.fired.sum() - found.fired[zero_parent]
    totals = torch.stack([l2, l1, active.double() / len(x), l2 + l1])
    return StepResult(totals, found.grads, found.fired, route)


def _penalty(W_dec: Tensor, l1_coeff: float, batch: int, objective: Objective) -> Tensor:
    """What a unit of each feature's activation costs in the loss."""
    if objective == "study":
        return W_dec.new_full((len(W_dec),), l1_coeff)
    return W_dec.norm(dim=1).mul_(l1_coeff / batch)


@torch.no_grad()
def normalise_decoder(W_dec: Float[Tensor, "d_sae d_in"], dW_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Scale the decoder rows to unit norm and remove the gradient along them, in place.

    The 2024 post does this between the backward pass and the optimiser's step, so after that step the rows differ from unit
    norm by up to one step.
    """
    if kernels.serve(W_dec) and W_dec.is_contiguous():
        tiny = np.float32(torch.finfo(torch.float32).tiny)
        kernels.spread(kernels.normalise_rows, kernels.even(len(W_dec)), W_dec.numpy(), dW_dec.numpy(), tiny)
        return
    W_dec.copy_(unit_rows(W_dec))
    dW_dec.sub_(W_dec * (dW_dec * W_dec).sum(-1, keepdim=True))
