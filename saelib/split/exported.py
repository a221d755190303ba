"""The SAE with a parent replaced by its children: what is judged is what is exported.

The new SAE is JumpReLU in the SAELens format: every feature of the rest keeps its number and its weights (threshold 0 where it
had a plain ReLU), the parent's core keeps the parent's number, the children follow at the end.

A TopK SAE has no place for features outside its competition. It is turned into JumpReLU first: each feature's threshold is the
one at which it fires as often as it did under TopK.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.format import RUN_TIME_NORMALISATIONS
from saelib.sae.sae import SAE
from saelib.split.children import Dictionary


@torch.no_grad()
def as_jumprelu(sae: SAE, x: Float[Tensor, "n d_in"]) -> SAE:
    """The same SAE as JumpReLU: exactly, from standard; at equal rates on `x`, from TopK."""
    if sae.cfg.architecture == "jumprelu":
        return sae
    out = SAE(replace(sae.cfg, architecture="jumprelu", k=None, rescale_acts_by_decoder_norm=False))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(out, name).copy_(getattr(sae, name))
    if sae.cfg.architecture == "topk":
        norm = sae.W_dec.norm(dim=1).clamp_min(1e-12)
        if sae.cfg.rescale_acts_by_decoder_norm:
            out.W_enc.mul_(norm)
            out.b_enc.mul_(norm)
            out.W_dec.div_(norm[:, None])
        fired = (sae.encode(x) > 0).float().mean(0)
        pre = torch.relu(encoder_input(out, x) @ out.W_enc + out.b_enc)
        rank = ((1 - fired) * (len(x) - 1)).round().long()
        values = pre.sort(0).values
        out.threshold.copy_(values.gather(0, rank[None])[0].clamp_min(0))
    return out


def encoder_input(sae: SAE, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """What the encoder's weights meet: x normalised as the SAE does, less b_dec where it is subtracted."""
    return sae._input(x)


@torch.no_grad()
def inner_target(sae: SAE, feature: int, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """What the rest leaves for the parent, in the space the decoder writes to.

    y = x - x_hat(x) + a_p(x) d_p; for an SAE that normalises its input, in units of the normalised activation.
    """
    acts = sae.encode(x)
    acts[:, feature] = 0
    y = x - sae.decode(acts, x)
    if sae.cfg.normalize_activations in RUN_TIME_NORMALISATIONS:
        y = y / sae._normalised(x)[1]
    return y


@torch.no_grad()
def replace_parent(
    sae: SAE, feature: int, children: Dictionary, theta: Float[Tensor, " K"], core: Float[Tensor, " d_in"]
) -> SAE:
    """The JumpReLU SAE `sae` with `children` beside the core of `feature`; child j fires above theta[j].

    The core keeps the parent's number and encoder, and writes `core` for a unit of its old activation. Its row is scaled to
    unit norm as the others are, its encoder by the inverse.

    Raises:
        UserError: there are no children, or the SAE is not JumpReLU (see `as_jumprelu`).
    """
    K = len(theta)
    if K < 1 or sae.cfg.architecture != "jumprelu":
        got = f"{sae.cfg.architecture}, {K}"
        raise UserError("a JumpReLU SAE and at least one child are needed", got, "see as_jumprelu")
    out = SAE(replace(sae.cfg, d_sae=sae.cfg.d_sae + K))
    length = core.norm().clamp_min(1e-6)
    new = {"W_enc": (children.W, 1), "b_enc": (children.b, 0), "W_dec": (children.E, 0), "threshold": (theta, 0)}
    for name, (tensor, dim) in new.items():
        joined = torch.cat([getattr(sae, name), tensor], dim)
        own = joined.select(dim, feature)
        own.copy_(core / length if name == "W_dec" else own * length)
        getattr(out, name).copy_(joined)
    out.b_dec.copy_(sae.b_dec)
    return out


def child_numbers(sae: SAE, K: int) -> list[int]:
    """The numbers that the K children have in the new SAE: after those of the old one."""
    return list(range(sae.cfg.d_sae, sae.cfg.d_sae + K))
