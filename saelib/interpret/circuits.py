"""Circuits of one feature in a one-layer model: where its pre-activation comes from, and what it does to the logits.

At a token the MLP reads m = W_E[token] + W_pos[position] + b_O + sum_h sum_s A_hs v_hs W_O_h. A feature with read direction w has
the pre-activation f(m) = mlp(LN(m)) . w, up to a constant. Attention A is frozen: it is taken as it is, and what differs between
classes of tokens is credited to the head and to the offset of the source (0 the token itself, 1 the one before).

    f(m) - f(m_ref) = J . (m - m_ref) + error        J = mean gradient of f on the straight line from m_ref to m
    part of a component = J . (component - its mean)

J is one linear map a token; `error` is what the midpoint rule leaves, and is shown. m_ref lies half way between the mean of a
class and the mean of its siblings, component by component, so that what all tokens share (the "-" itself) has no part.

What a feature does: removing a d from the residual stream r changes the logits, with the final LayerNorm frozen, by
-a (d - mean d) / sd(r) * w_ln @ W_U. The SAE's error stays where it is: only a d is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelib.base.errors import UserError
from saelib.lm.model import OneLayerModel

OFFSETS = 8
"""Source offsets that are told apart: 0 (the token itself) to 7; what lies further back is one component a head."""
POINTS = 8
"""Points at which the gradient is taken between the reference and a token."""
_BATCH = 64
_LN_EPS = 1e-5


# --- where it comes from -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Incoming:
    """What the MLP reads at some tokens, in components."""

    direct: Float[Tensor, "n d_model"]
    """Embedding, position and the attention's bias."""
    mixed: Float[Tensor, "n h o d_head"]
    """For each head and source offset the attention-weighted value, before W_O; the last place is all that is further back."""
    W_O: Float[Tensor, "h d_head d_model"]
    """The heads' output matrices."""

    @property
    def residual_mid(self) -> Float[Tensor, "n d_model"]:
        """The components' sum: `blocks.0.hook_resid_mid` at these tokens."""
        return self.direct + torch.einsum("nhok,hkd->nd", self.mixed, self.W_O)

    @property
    def names(self) -> tuple[str, ...]:
        """`direct`, then `head 0, offset 0` ... in the order of the parts."""
        heads, offsets = self.mixed.shape[1:3]
        places = [*(str(o) for o in range(offsets - 1)), f">={offsets - 1}"]
        return ("direct", *(f"head {h}, offset {o}" for h in range(heads) for o in places))


@torch.no_grad()
def incoming(
    model: OneLayerModel, contexts: Int[Tensor, "n t"], position: Int[Tensor, " n"], offsets: int = OFFSETS
) -> Incoming:
    """Decompose what the MLP reads at one position of each context.

    Args:
        contexts: token ids, BOS first; a context may be repeated.
        position: the position asked about, 0 for BOS.
        offsets: source offsets that are told apart.

    Raises:
        UserError: a position outside its context, fewer than one offset.
    """
    if offsets < 1:
        raise UserError("offsets must be at least 1", offsets, "pass how many places back are told apart")
    if len(position) and not 0 <= int(position.min()) <= int(position.max()) < contexts.shape[1]:
        got = f"{int(position.min())} to {int(position.max())}"
        raise UserError(f"position must be in [0, {contexts.shape[1]})", got, "pass places in the contexts")
    weights = model.weights
    W_Q, W_K, W_V, W_O = (weights[f"blocks.0.attn.W_{name}"] for name in "QKVO")
    b_Q, b_K, b_V = (weights[f"blocks.0.attn.b_{name}"] for name in "QKV")
    direct, mixed = [], []
    for tokens, at in zip(contexts.split(_BATCH), position.split(_BATCH), strict=True):
        b, t = tokens.shape
        every = torch.arange(b)
        x = weights["embed.W_E"][tokens] + weights["pos_embed.W_pos"][:t]  # (b, t, d)
        normed = F.layer_norm(x, x.shape[-1:], weights.get("blocks.0.ln1.w"), weights.get("blocks.0.ln1.b"), _LN_EPS)
        q = torch.einsum("bd,hdk->bhk", normed[every, at], W_Q) + b_Q
        k = torch.einsum("btd,hdk->bhtk", normed, W_K) + b_K[:, None]
        v = torch.einsum("btd,hdk->bhtk", normed, W_V) + b_V[:, None]
        back = at[:, None] - torch.arange(t)  # (b, t): the offset of each source; negative ones lie ahead
        scores = torch.einsum("bhk,bhtk->bht", q, k) / W_Q.shape[-1] ** 0.5
        pattern = scores.masked_fill(back[:, None] < 0, -torch.inf).softmax(-1)
        place = F.one_hot(back.clamp(0, offsets), offsets + 1).to(x.dtype)  # those ahead have weight 0 in the pattern
        mixed.append(torch.einsum("bht,bto,bhtk->bhok", pattern, place, v))
        direct.append(x[every, at] + weights["blocks.0.attn.b_O"])
    return Incoming(torch.cat(direct), torch.cat(mixed), W_O)


@dataclass(frozen=True)
class Parts:
    """A pre-activation's distance from the reference, in parts, token by token."""

    names: tuple[str, ...]
    """The components: see `Incoming.names`."""
    parts: Float[np.ndarray, "n c"]
    """What each component carries, through the linear map of its token."""
    actual: Float[np.ndarray, " n"]
    """f(m) - f(m_ref)."""

    @property
    def error(self) -> Float[np.ndarray, " n"]:
        """What the linear maps leave out."""
        return self.actual - self.parts.sum(1)


def contrast_parts(
    model: OneLayerModel,
    found: Incoming,
    read: Float[Tensor, " d_in"],
    in_class: Bool[np.ndarray, " n"],
    points: int = POINTS,
) -> Parts:
    """The parts of a feature's pre-activation, relative to half way between a class and its siblings.

    Args:
        read: the feature's encoder column.
        in_class: which tokens are of the class; the others are its siblings.
        points: gradients a token; 1 is the gradient half way.

    Raises:
        UserError: no token of the class, or none besides.
    """
    if not in_class.any() or in_class.all():
        got = f"{int(in_class.sum())} of {len(in_class)}"
        raise UserError("a contrast needs tokens of the class and others", got, "pass both")
    weight = np.where(in_class, 0.5 / in_class.sum(), 0.5 / (~in_class).sum())
    mean = torch.from_numpy(weight).to(found.direct.dtype)
    direct = found.direct - torch.einsum("n,nd->d", mean, found.direct)
    mixed = found.mixed - torch.einsum("n,nhok->hok", mean, found.mixed)
    deviation = direct + torch.einsum("nhok,hkd->nd", mixed, found.W_O)  # m - m_ref
    m = found.residual_mid
    reference = m[:1] - deviation[:1]  # the same for every token

    def pre(residual: Tensor) -> Tensor:
        return model.mlp_out(residual[None])[0] @ read

    J = torch.zeros_like(m)
    for p in range(points):
        at = (reference + (p + 0.5) / points * deviation).requires_grad_()
        J += torch.autograd.grad(pre(at).sum(), at)[0] / points
    with torch.no_grad():
        through_heads = torch.einsum("nd,hkd->nhk", J, found.W_O)
        by_head = torch.einsum("nhok,nhk->nho", mixed, through_heads)
        parts = torch.cat([(J * direct).sum(1, keepdim=True), by_head.flatten(1)], dim=1)
        actual = pre(m) - pre(reference)
    return Parts(found.names, parts.double().numpy(), actual.double().numpy())


# --- what it does --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def direct_effect(model: OneLayerModel, direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_vocab"]:
    """(d - mean d) * w_ln @ W_U, less its mean over the vocabulary: what a unit of a direction adds to the logits where the
    residual stream's standard deviation is 1."""
    effect = _through_final(model, direction)
    return effect - effect.mean()


def tokens_for_share(effect: Float[Tensor, " d_vocab"], share: float = 0.9) -> int:
    """How many tokens, the largest first, make up a share of sum |effect|; 0 where there is no effect.

    Raises:
        UserError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError("share must be in (0, 1]", share, "pass for example 0.9")
    ordered = effect.double().abs().sort(descending=True).values.cumsum(0)
    total = float(ordered[-1])
    return 0 if total == 0 else int((ordered < share * total * (1 - 1e-12)).sum()) + 1


@dataclass(frozen=True)
class Ablation:
    """What removing something from the residual stream does to the next token, token by token (nats)."""

    predicted: Float[np.ndarray, " n"]
    """Change of log p(target) with the final LayerNorm frozen."""
    measured: Float[np.ndarray, " n"]
    """Change of log p(target) as the model computes it."""
    changed: Float[Tensor, " d_vocab"]
    """Mean predicted change of every token's probability."""


@torch.no_grad()
def ablation(
    model: OneLayerModel, residual: Float[Tensor, "n d"], removed: Float[Tensor, "n d"], target: Int[Tensor, " n"]
) -> Ablation:
    """Remove a vector at each token, and predict the same from the logits' linear change.

    Args:
        residual: the residual stream after the block.
        removed: what is taken away, for a feature its activation times its decoder row.
        target: the token whose log-probability is followed, for example the next one.
    """
    predicted, measured = [], []
    changed = torch.zeros(model.d_vocab)
    for r, v, token in zip(residual.split(_BATCH), removed.split(_BATCH), target.split(_BATCH), strict=True):
        logits, index = model.logits(r), token[:, None]
        sd = (r.var(-1, unbiased=False, keepdim=True) + _LN_EPS).sqrt()
        linear = logits - _through_final(model, v) / sd
        before, after, true = (z.log_softmax(-1) for z in (logits, linear, model.logits(r - v)))
        predicted.append((after - before).gather(1, index)[:, 0])
        measured.append((true - before).gather(1, index)[:, 0])
        changed += (after.exp() - before.exp()).sum(0)
    each = [torch.cat(part).double().numpy() for part in (predicted, measured)]
    return Ablation(each[0], each[1], changed / max(len(residual), 1))


def _through_final(model: OneLayerModel, v: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d_vocab"]:
    """The logits' linear response to v, but for the division by the residual stream's standard deviation."""
    centred = v - v.mean(-1, keepdim=True)
    scale = model.weights.get("ln_final.w")
    out: Tensor = (centred if scale is None else centred * scale) @ model.W_U
    return out
