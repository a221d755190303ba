"""Initial weights: at random, or a narrow SAE plus fresh features."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.format import NORMALISATIONS, RUN_TIME_NORMALISATIONS
from saelib.sae.sae import SAE, SAEConfig

_RAW_INPUT = tuple(mode for mode in NORMALISATIONS if mode not in RUN_TIME_NORMALISATIONS)


def kaiming_uniform(shape: tuple[int, int], generator: torch.Generator | None) -> Float[Tensor, "fan_out fan_in"]:
    """Uniform on ±sqrt(6 / fan_in), with fan_in the *second* dimension.

    That is what torch's initialiser does to a matrix stored as the 2024 post stores them, so `W_enc` begins with bound
    sqrt(6 / d_sae) although its true fan-in is d_in. Kept, because it sets the scale everything else starts from.
    """
    bound = math.sqrt(6 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def unit_rows(W: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Rows scaled to unit Euclidean norm; a row of zeros stays zero."""
    return W / W.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)


@torch.no_grad()
def init_random(cfg: SAEConfig, generator: torch.Generator) -> SAE:
    """The standard initialisation of the 2024 post: Kaiming-uniform weights, unit decoder rows, zero biases."""
    sae = SAE(cfg)
    sae.W_enc.copy_(kaiming_uniform((cfg.d_in, cfg.d_sae), generator))
    sae.W_dec.copy_(unit_rows(kaiming_uniform((cfg.d_sae, cfg.d_in), generator)))
    return sae


@torch.no_grad()
def init_from_narrow(narrow: SAE, cfg: SAEConfig, normalise: bool, generator: torch.Generator) -> SAE:
    """Begin a wide SAE as a narrow one plus fresh features.

    Features 0 ... d_narrow-1 are the narrow SAE's: its encoder columns, encoder biases and decoder rows, and `b_dec` is
    its `b_dec`. The rest begin as in `init_random`: Kaiming-uniform, zero bias.

    `normalise=True` then scales every decoder row, copied or fresh, to unit norm. With False they stay as they are: the
    fresh rows have norm near sqrt(2), the copies differ from 1 by one optimiser step. The training step normalises the
    rows after each backward pass in either case, so this choice is about the first loss and its gradients.

    Raises:
        UserError: the wide SAE is smaller than the narrow one, they belong to different models or sites, or the narrow one
            is of a kind that a ReLU SAE cannot begin as.
    """
    d_narrow = narrow.cfg.d_sae
    if cfg.d_sae < d_narrow:
        rule = f"d_sae of the wide SAE must be at least the narrow SAE's {d_narrow}"
        raise UserError(rule, cfg.d_sae, "widen the wide SAE or pass a narrower one")
    for name in ("d_in", "hook_name", "model_name", "center_writing_weights"):
        wide_value, narrow_value = getattr(cfg, name), getattr(narrow.cfg, name)
        if wide_value != narrow_value:
            rule = f"{name} of the wide SAE must be the narrow SAE's ({narrow_value!r})"
            raise UserError(rule, repr(wide_value), "use one model, one site and one weight processing for both")
    for name, allowed in (("architecture", ("standard",)), ("normalize_activations", _RAW_INPUT)):
        if getattr(narrow.cfg, name) not in allowed:
            rule = f"{name} of a narrow SAE to start from must be one of {', '.join(allowed)}"
            raise UserError(rule, repr(getattr(narrow.cfg, name)), "start the wide SAE at random")
    sae = SAE(cfg)
    sae.W_enc.copy_(kaiming_uniform((cfg.d_in, cfg.d_sae), generator))
    sae.W_dec.copy_(kaiming_uniform((cfg.d_sae, cfg.d_in), generator))
    sae.W_enc[:, :d_narrow] = narrow.W_enc
    sae.b_enc[:d_narrow] = narrow.b_enc
    if not narrow.cfg.apply_b_dec_to_input:  # relu(x W + b) = relu((x - b_dec) W + (b + b_dec W))
        sae.b_enc[:d_narrow] += narrow.b_dec @ narrow.W_enc
    sae.W_dec[:d_narrow] = narrow.W_dec
    sae.b_dec.copy_(narrow.b_dec)
    if normalise:
        sae.W_dec.copy_(unit_rows(sae.W_dec))
    return sae
