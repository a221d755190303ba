"""Activations on one scale: how long what each feature adds to the reconstruction is, whatever the kind of SAE."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.sae import SAE


@torch.no_grad()
def scaled_acts(sae: SAE, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
    """`|c_j(x) d_j|`, the length of what feature j adds to the reconstruction of x, so that features of different SAEs compare.

    c are the SAE's `contributions` and d_j its decoder rows: for a standard SAE the activation times its decoder row's norm.

    Raises:
        UserError: the SAE's width is not that of the activations, or an activation is NaN or infinite.
    """
    return sae.contributions(finite_acts(sae, x), x) * sae.W_dec.norm(dim=1)


@torch.no_grad()
def finite_acts(sae: SAE, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
    """`sae.encode(x)`; errors as in `scaled_acts`."""
    if x.shape[-1] != sae.cfg.d_in:
        raise UserError(f"the SAE's d_in must be the activations' {x.shape[-1]}", sae.cfg.d_in, "use the model's SAE")
    acts: Tensor = sae.encode(x)
    if not bool(torch.isfinite(acts.sum())):
        raise UserError("activations must be finite", "NaN or infinity", "harvest again, or check the SAE's weights")
    return acts
