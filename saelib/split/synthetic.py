"""Activations with a known feature tree, and dictionaries that have split the parent or only look as if they had.

    x = on * s * (u + alpha * v_class) + sum_k f_k w_k + noise

`u` is the parent's direction, `v_c` that of its child for class c (orthonormal; a child is there only where the parent is,
and exactly one is: the children are mutually exclusive), `w_k` four times as many background features as dimensions, each
on a few tokens. The effect size is how far the child's component stands out along its own direction:
`effect = alpha * s0 / sd`, `sd` the standard deviation of everything else along `v_c`. Documents differ in which classes
they hold, so that a bootstrap over documents has something to find.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.sae.sae import SAE, SAEConfig, unit_rows
from saelib.split.evidence import Tokens

D_IN = 64
N_BACKGROUND = 4 * D_IN
BACKGROUND_RATE = 0.02
"""Share of tokens on which a background feature is on; its strength is 1 where it is."""
NOISE = 0.05
PARENT_STRENGTH = 8.0
"""s0, in standard deviations of everything else along a direction."""
SPREAD = 0.3
"""The parent's strength is uniform on s0 (1 +- SPREAD)."""
TOKENS_A_DOCUMENT = 6
SHARES = (0.05, 0.2, 0.75)
"""Shares of the three classes among the parent's tokens: as uneven as the hyphen's."""


@dataclass(frozen=True)
class Hidden:
    """A direction that is no child of the parent, on tokens of its own choosing: what an impostor reads."""

    in_class: float
    """Share of the class's tokens on which it is on ..."""
    in_others: float
    """... of the other classes' tokens ..."""
    in_rest: float
    """... and of the tokens on which the parent is off."""


IMPOSTORS: dict[str, Hidden | None] = {
    "permuted labels": None,
    "childless parent": None,
    "near-copies": None,
    "shadowed child": None,
    "wrong-way decoder": None,
    "leaky child": Hidden(0.97, 0.015, 0.0),
    "fragment": Hidden(0.4, 0.0, 0.0),
    "dense child": Hidden(0.97, 0.09, 0.0),
    "generic feature": Hidden(0.97, 0.0, 0.01),
}
"""What only looks like a split. Each of the last seven lies just beyond one bound: `cosine`, `win_rate`, the candidate's
removal test, `precision`, `recall` (with `win_rate`, which it cannot exceed), `fires_elsewhere`, `candidate_precision`."""


@dataclass(frozen=True)
class Case:
    """Two splits of tokens, a dictionary, and which of its classes are truly split."""

    sae: SAE
    select: Tokens
    test: Tokens
    tau: float
    truly_split: tuple[bool, ...]
    impostor: str | None = field(default=None)


def make_case(
    effect: float, seed: int, *, impostor: str | None = None, n_parent: int = 1500, shares: tuple[float, ...] = SHARES
) -> Case:
    """A parent with one child a class at the effect size given, or an impostor in the place of one or all of them.

    Args:
        effect: standard deviations by which a child stands out (see the module).
        seed: everything random follows from it.
        impostor: one of `IMPOSTORS`; None is a true split.
        n_parent: tokens of each split on which the parent is on; twice as many have it off.
        shares: shares of the classes among them.
    """
    if impostor is not None and impostor not in IMPOSTORS:
        raise ValueError(f"impostor must be one of {', '.join(IMPOSTORS)}; got {impostor!r}")
    rng = np.random.default_rng(seed)
    m = len(shares)
    basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(D_IN, m + 2)))[0].T).float()
    u, v, q = basis[0], basis[1 : m + 1], basis[m + 1]
    w = unit_rows(torch.from_numpy(rng.normal(size=(N_BACKGROUND, D_IN))).float())
    sd = float(np.sqrt(N_BACKGROUND * BACKGROUND_RATE / D_IN + NOISE**2))
    s0 = PARENT_STRENGTH * sd
    alpha = 0.0 if impostor == "childless parent" else effect / PARENT_STRENGTH
    hidden = IMPOSTORS[impostor] if impostor else None
    target = int(np.argmax(shares)) if impostor == "dense child" else int(np.argmin(shares))

    def tokens() -> Tokens:
        return _tokens(rng, u, alpha * v, w, q, s0, n_parent, shares, hidden, target)

    select, test = tokens(), tokens()
    if impostor == "permuted labels":
        select, test = select.permuted(rng), test.permuted(rng)
    sae = _dictionary(u, v, w, q, s0, effect / PARENT_STRENGTH, impostor, target)
    everything = impostor in ("permuted labels", "childless parent", "near-copies")
    true = tuple(impostor is None or not (everything or c == target) for c in range(m))
    return Case(sae, select, test, 0.2 * s0, true, impostor)


def _tokens(
    rng: np.random.Generator,
    u: Tensor,
    children: Float[Tensor, "m d_in"],
    w: Tensor,
    q: Tensor,
    s0: float,
    n_parent: int,
    shares: tuple[float, ...],
    hidden: Hidden | None,
    target: int,
) -> Tokens:
    n = 3 * n_parent
    on = np.arange(n) < n_parent
    document = np.where(on, np.arange(n), np.arange(n) - n_parent) // TOKENS_A_DOCUMENT
    mixture = rng.dirichlet(20 * np.array(shares), size=int(document.max()) + 1)  # each document's own shares
    label = (rng.random(n)[:, None] > mixture[document].cumsum(1)).sum(1).clip(max=len(shares) - 1)
    label = np.where(on, label, -1)
    strength = torch.from_numpy(on * s0 * rng.uniform(1 - SPREAD, 1 + SPREAD, size=n)).float()
    background = torch.from_numpy((rng.random((n, len(w))) < BACKGROUND_RATE).astype(np.float32))
    x = strength[:, None] * (u + children[np.maximum(label, 0)]) + background @ w
    x += NOISE * torch.from_numpy(rng.normal(size=(n, D_IN))).float()
    if hidden is not None:
        rate = np.where(label == target, hidden.in_class, np.where(on, hidden.in_others, hidden.in_rest))
        x += torch.from_numpy((rng.random(n) < rate) * s0).float()[:, None] * q
    return Tokens(x, torch.relu(x @ u - s0 / 4), label, document)


def _dictionary(
    u: Tensor, v: Tensor, w: Tensor, q: Tensor, s0: float, alpha: float, impostor: str | None, target: int
) -> SAE:
    """Children first (feature c for class c), then the background, then what an impostor adds."""
    m, length = len(v), (1 + alpha**2) ** 0.5
    gain = 2 * length / alpha
    encoder, bias = gain * v, torch.full((m,), -gain * alpha * s0 / 2)
    decoder = (u + alpha * v) / length
    if impostor is not None and IMPOSTORS[impostor] is not None:
        encoder[target], bias[target], decoder[target] = 3 * q, torch.tensor(-1.5 * s0), q
    if impostor == "near-copies":
        decoder = unit_rows(u + 0.27 * v)
    if impostor == "wrong-way decoder":
        decoder[target] *= -1
    extra = torch.zeros(0, len(u)), torch.zeros(0), torch.zeros(0, len(u))  # encoder, bias and decoder of what stays
    if impostor == "childless parent":
        extra = 1.2 * u[None], torch.tensor([-0.1 * s0]), u[None]
    if impostor == "shadowed child":  # a blunter feature carries more of the child's load, and fires half of the time
        extra = 0.35 * encoder[target, None], 0.035 * bias[target, None], decoder[target, None].clone()
        encoder[target] *= 0.3
        bias[target] *= 0.3
    tree = torch.cat([u[None], v, q[None]])
    reads = 2.5 * (w - w @ tree.T @ tree)  # as training would have it, blind to what the children already carry
    background_bias = torch.full((len(w),), 2.5 * -0.6)
    d_sae = m + len(w) + len(extra[1])
    sae = SAE(SAEConfig(d_in=len(u), d_sae=d_sae, hook_name="synthetic", model_name="synthetic"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([encoder, reads, extra[0]]).T)
        sae.b_enc.copy_(torch.cat([bias, background_bias, extra[1]]))
        sae.W_dec.copy_(torch.cat([decoder, w, extra[2]]))
    return sae
