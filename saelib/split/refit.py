"""Encoders refitted by logistic regression to where features are to fire.

    minimise  sum_x softplus(z_j) - y_j z_j  +  ridge |W_j|^2 / 2,      z = x W + b,  x of unit variance
    y_j(x) = 1 on the tokens of P on which feature j is to fire, 0 on its other tokens and where the parent is weak or silent

Reconstruction leaves encoders that fire too little on what they are for, and too much where the parent is silent.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelib.split.children import Dictionary, Pools
from saelib.split.probe import Axes, ridge_logistic

START = 4.0
"""Activation begins at a logit of -4 (a chance of 2%); thresholds are chosen above that."""
MOST_OFF = 40_000
"""Tokens on which the parent is silent that are taken."""


@torch.no_grad()
def refit_encoders(
    pools: Pools, y: Bool[Tensor, "n_on K"], ridge: float, seed: int = 0, most_on: int | None = None
) -> tuple[Float[Tensor, "d K"], Float[Tensor, " K"]]:
    """W and b of features relu(x W + b) that fire where `y` says.

    Args:
        y: for each token of P of the pools, whether each feature is to fire there.
        most_on: tokens of P that are taken, at random; None is all.
    """
    generator = torch.Generator().manual_seed(seed)
    off = torch.randperm(len(pools.x_off), generator=generator)[:MOST_OFF].to(pools.x_off.device)
    on = torch.arange(len(y), device=y.device)
    if most_on is not None:
        on = torch.randperm(len(y), generator=generator)[:most_on].to(y.device)
    x = torch.cat([pools.x_on[on], pools.x_weak, pools.x_off[off]])
    target = x.new_zeros(len(x), y.shape[1])
    target[: len(on)] = y[on].float()
    axes = Axes.of(x)
    weights = ridge_logistic(axes(x), target, x.new_full((y.shape[1],), ridge / len(x)), axes.variance)
    W, b = axes.on_inputs(weights)
    return W.contiguous(), b + START


@torch.no_grad()
def own_firings(found: Dictionary, pools: Pools, share: float) -> Bool[Tensor, "n_on K"]:
    """Whether each feature is above `share` of its 0.9 quantile (of where it fires) on each token of P."""
    c = found.encode(pools.x_on)
    strong = [col[col > 0].quantile(0.9) if bool((col > 0).any()) else col.new_tensor(1.0) for col in c.T]
    return c > share * torch.stack(strong)
