"""The SAE with a parent replaced by its children: what is judged is what is exported.

The new SAE is JumpReLU in the SAELens format: every feature of the rest keeps its number and its weights (threshold 0 where it
had a plain ReLU), the parent's core keeps the parent's number, the children follow at the end.

A TopK SAE has no place for features outside its competition. It is turned into JumpReLU first: each feature's threshold is one
at which it fires as often as it did under TopK.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows
from saelib.split.children import Dictionary

_COLUMNS = 512
"""Features whose pre-activations are sorted at once."""


@torch.no_grad()
def as_jumprelu(sae: SAE, x: Float[Tensor, "n d_in"]) -> SAE:
    """The same SAE as JumpReLU: exactly, from standard; at equal rates on `x`, from TopK."""
    if sae.cfg.architecture == "jumprelu":
        return sae
    out = SAE(replace(sae.cfg, architecture="jumprelu", k=None, rescale_acts_by_decoder_norm=False)).to(sae.device)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(out, name).copy_(getattr(sae, name))
    if sae.cfg.architecture == "topk":
        norm = sae.W_dec.norm(dim=1).clamp_min(1e-12)
        if sae.cfg.rescale_acts_by_decoder_norm:
            out.W_enc.mul_(norm)
            out.b_enc.mul_(norm)
            out.W_dec.div_(norm[:, None])
        n_fired = torch.stack([(sae.encode(part) > 0).sum(0) for part in x.split(block_rows(sae.cfg.d_sae))]).sum(0)
        inner = out.encoder_input(x)
        for some in torch.arange(sae.cfg.d_sae, device=x.device).split(_COLUMNS):
            pre = inner @ out.W_enc[:, some] + out.b_enc[some]
            out.threshold[some] = thresholds_at(pre, n_fired[some])
    return out


@torch.no_grad()
def thresholds_at(pre: Float[Tensor, "n d_sae"], n_fired: Integer[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """For each feature the threshold that its `n_fired` largest pre-activations exceed.

    Half-way between the last of those and the next smaller one (or 0), so that no token lies on a threshold, where rounding
    would decide whether it fires. A feature that never fired gets 1.5 times its largest pre-activation.
    """
    nothing = pre.new_zeros(1, pre.shape[1])
    values = torch.cat([torch.relu(pre).sort(0, descending=True).values, nothing])  # (n + 1, d_sae)
    last = values.gather(0, (n_fired - 1).clamp_min(0)[None])[0]
    after = values.gather(0, n_fired[None])[0]
    return torch.where(n_fired > 0, (last + after) / 2, 1.5 * last)


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
    out = SAE(replace(sae.cfg, d_sae=sae.cfg.d_sae + K)).to(sae.device)
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
