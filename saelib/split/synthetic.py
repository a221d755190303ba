"""Parents whose true children are known, and impostors: tokens and an SAE for `saelib.split.work.Work`, made from a seed.

    x = on * s * (u + alpha v(token)) + sum_k f_k w_k + noise

`u` is the parent's direction, `w_k` four times as many background features as dimensions, each on a few tokens; the SAE knows
u and every w_k, not v. What v is makes the case:

* `tree`: one of three orthonormal directions, that of the token's class (shares 5, 20 and 75%);
* `seven clusters`: (cos phi, sin phi) in a plane, phi one of seven angles: seven true children that share two dimensions;
* impostors, which hold no split: see `IMPOSTORS`.

The effect size is how far a child's component stands out along its own direction: effect = alpha s0 / sd, sd the standard
deviation of everything else along it; on the circle, how far it stands out from its neighbours' there. Documents differ in
which classes they hold, so that a bootstrap over documents has something to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.initial import unit_rows
from saelib.sae.sae import SAE, SAEConfig
from saelib.split.contexts import Context, Labels
from saelib.split.tokens import SPLITS, ParentTokens, TokenSet
from saelib.split.work import Work

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
RATE = 0.02
"""Natural rate of the parent: the tokens on which it is silent stand for 49 times as many as those of P."""
SHARES = (0.05, 0.2, 0.75)
"""Shares of the three classes of a tree: as uneven as the hyphen's."""
ARCS = 7

TRUE = ("tree", "seven clusters")
IMPOSTORS = (
    "permuted labels",
    "no children",
    "loose direction",
    "known to the rest",
    "circle",
)
"""What holds no split.

`permuted labels`: a tree whose labels are in random order. `no children`: alpha is 0. `loose direction`: 12% of the other
classes' tokens have the rare class's direction instead of their own, so most of its firings are theirs. `known to the rest`:
the rest of the SAE has the rare class's direction. `circle`: phi is uniform and the classes are seven arcs of it, a continuum
that any dictionary cuts somewhere. A direction that also stands where the parent is silent is no impostor: children learn to
fire on it only where the parent's is too.
"""


@dataclass(frozen=True)
class Case:
    """A parent, and which of its contexts are truly children."""

    work: Work
    truly_split: tuple[bool, ...]
    """One entry a context."""


def make_case(name: str, effect: float, seed: int, n_parent: int = 1500) -> Case:
    """A case by name, from its seed.

    Args:
        name: one of `TRUE` or `IMPOSTORS`.
        effect: standard deviations by which a child stands out.
        n_parent: tokens of P on select and on test; train has twice as many.

    Raises:
        UserError: there is no such case.
    """
    if name not in TRUE + IMPOSTORS:
        raise UserError(f"case must be one of {', '.join(TRUE + IMPOSTORS)}", repr(name), "pass one of these")
    rng = np.random.default_rng(seed)
    world = _World(name, effect, rng)
    sizes = {"train": 2 * n_parent, "select": n_parent, "test": n_parent}
    on, off, member = {}, {}, {}
    for split in SPLITS:
        on[split], member[split] = world.parent_tokens(sizes[split], rng)
        off[split] = world.silent_tokens((4 if split == "train" else 40) * n_parent, rng)
    none = {split: part.where(np.zeros(0, dtype=np.int64)) for split, part in off.items()}
    silent = {split: round(n * (1 / RATE - 1)) for split, n in sizes.items()}
    tokens = ParentTokens(
        feature=0, tau=world.tau, on=on, weak=none, off=off, n_tokens={s: sizes[s] + silent[s] for s in SPLITS},
        n_on=sizes, n_weak=dict.fromkeys(SPLITS, 0), n_off=silent,
    )  # fmt: skip
    m = member["test"].shape[1]
    contexts = tuple(Context(f"class {c}", "class", world.shares[c] <= 0.5, f"class {c}") for c in range(m))
    labels = Labels(contexts, member, {split: np.ones(n, dtype=bool) for split, n in sizes.items()})
    if name == "permuted labels":
        labels = labels.permuted(seed)
    off_member = {split: np.zeros((len(off[split]), m), dtype=bool) for split in ("select", "test")}
    return Case(Work(world.sae(), tokens, labels, off_member), tuple(world.true(c) for c in range(m)))


class _World:
    """Directions, and tokens drawn from them."""

    def __init__(self, name: str, effect: float, rng: np.random.Generator) -> None:
        self.name = name
        basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(D_IN, 5)))[0].T).float()
        self.u, self.v, self.q = basis[0], basis[1:4], basis[4]
        self.w = unit_rows(torch.from_numpy(rng.normal(size=(N_BACKGROUND, D_IN))).float())
        sd = float(np.sqrt(N_BACKGROUND * BACKGROUND_RATE / D_IN + NOISE**2))
        self.s0, self.tau = PARENT_STRENGTH * sd, 0.2 * PARENT_STRENGTH * sd
        self.alpha = 0.0 if name == "no children" else effect / PARENT_STRENGTH
        if name in ("circle", "seven clusters"):
            self.alpha /= 1 - np.cos(2 * np.pi / ARCS)
        self.shares = (1 / ARCS,) * ARCS if name in ("circle", "seven clusters") else SHARES

    def true(self, c: int) -> bool:
        """Whether context c is a true child."""
        return self.name in TRUE or (self.name in ("loose direction", "known to the rest") and c > 0)

    def sae(self) -> SAE:
        """Feature 0 is the parent, then the background, then what an impostor adds."""
        tree = torch.cat([self.u[None], self.v, self.q[None]])
        encoder = [
            2.0 * self.u[None],
            2.5 * (self.w - self.w @ tree.T @ tree),
        ]  # the background is blind to the children
        bias = [torch.tensor([-0.5 * self.s0]), torch.full((len(self.w),), -1.5)]
        decoder = [self.u[None], self.w]
        if self.name == "known to the rest":
            encoder.append(2.0 * self.v[0, None])
            bias.append(torch.tensor([-self.alpha * self.s0]))
            decoder.append(self.v[0, None])
        W = torch.cat(encoder)
        sae = SAE(SAEConfig(d_in=D_IN, d_sae=len(W), hook_name="synthetic", model_name="synthetic"))
        with torch.no_grad():
            sae.W_enc.copy_(W.T)
            sae.b_enc.copy_(torch.cat(bias))
            sae.W_dec.copy_(torch.cat(decoder))
        return sae

    def parent_tokens(self, n: int, rng: np.random.Generator) -> tuple[TokenSet, np.ndarray]:
        """Tokens of P and their contexts."""
        document = np.arange(n) // TOKENS_A_DOCUMENT
        mixture = rng.dirichlet(20 * np.array(self.shares), size=int(document.max()) + 1)  # each document's own shares
        kind = (rng.random(n)[:, None] > mixture[document].cumsum(1)).sum(1).clip(max=len(self.shares) - 1)
        strength = torch.from_numpy(self.s0 * rng.uniform(1 - SPREAD, 1 + SPREAD, size=n)).float()[:, None]
        x = self._background(n, rng) + strength * (self.u + self.alpha * self._children(kind, rng))
        return self._tokens(x, document), kind[:, None] == np.arange(len(self.shares))

    def _children(self, kind: np.ndarray, rng: np.random.Generator) -> Float[Tensor, "n d"]:
        if len(self.shares) == ARCS:
            within = rng.uniform(-0.5, 0.5, size=len(kind)) if self.name == "circle" else 0.0
            phi = torch.from_numpy(2 * np.pi * (kind + within) / ARCS).float()[:, None]
            return phi.cos() * self.v[0] + phi.sin() * self.v[1]
        if self.name == "loose direction":
            kind = np.where(rng.random(len(kind)) < 0.12, 0, kind)
        return self.v[torch.from_numpy(kind)]

    def silent_tokens(self, n: int, rng: np.random.Generator) -> TokenSet:
        """Tokens on which the parent is silent."""
        x = self._background(n, rng)
        return self._tokens(x, np.arange(n) // TOKENS_A_DOCUMENT)

    def _background(self, n: int, rng: np.random.Generator) -> Float[Tensor, "n d"]:
        on = torch.from_numpy((rng.random((n, len(self.w))) < BACKGROUND_RATE).astype(np.float32))
        return on @ self.w + NOISE * torch.from_numpy(rng.normal(size=(n, D_IN))).float()

    def _tokens(self, x: Tensor, document: np.ndarray) -> TokenSet:
        nothing: dict[str, Any] = dict.fromkeys(("previous", "current", "next"), np.zeros(len(x), dtype=np.int64))
        parent = torch.relu(2.0 * (x @ self.u) - 0.5 * self.s0).numpy()
        return TokenSet(rows=np.arange(len(x)), x=x, parent=parent, document=document, **nothing)
