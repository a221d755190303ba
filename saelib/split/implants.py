"""Implants: a split put into real activations, which the assay must find, or must not find where nothing was put.

    x' = x + delta sd u      on a chosen part of P, in every split

`u` is a random unit vector orthogonal to the parent's decoder row, sd the standard deviation of x.u over P (train). Which
tokens are chosen is drawn by document: some hold many, some none, as true contexts do. delta = 0 changes nothing, and the
"context" is then a random part of P.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from saelib.sae.sae import SAE
from saelib.split.contexts import Context, Labels
from saelib.split.tokens import SPLITS, ParentTokens
from saelib.split.work import Work

CLUSTERED = 2.0
"""Sum of the parameters of the Beta distribution from which each document's share is drawn: small is more clustered."""


class Implant(NamedTuple):
    """What is put where."""

    delta: float
    """Standard deviations."""
    share: float
    """Of P's tokens."""
    seed: int
    """Of the direction, of the tokens chosen, and of `most`."""


def implanted(sae: SAE, tokens: ParentTokens, implant: Implant, most: int = 8000) -> Work:
    """The work on a parent with an implant; at most `most` tokens of P a split (twice as many on train)."""
    rng = np.random.default_rng(implant.seed)
    d_p = torch.nn.functional.normalize(sae.W_dec[tokens.feature].detach(), dim=0)
    u = torch.from_numpy(rng.normal(size=len(d_p))).float()
    u = torch.nn.functional.normalize(u - (u @ d_p) * d_p, dim=0)
    sd = float((tokens.on["train"].x @ u).std())
    on, member = {}, {}
    for split in SPLITS:
        part = tokens.on[split]
        limit = 2 * most if split == "train" else most
        if len(part) > limit:
            part = part.where(np.sort(rng.choice(len(part), limit, replace=False)))
        inside = clustered(part.document, implant.share, rng)
        x = part.x + implant.delta * sd * torch.from_numpy(inside).float()[:, None] * u
        on[split] = replace(part, x=x, parent=_parent(sae, tokens.feature, x))
        member[split] = inside[:, None]
    labels = Labels(
        (Context("implant", "rule", True, "implant"),), member, {s: np.ones(len(on[s]), dtype=bool) for s in SPLITS}
    )
    off = {split: np.zeros((len(tokens.off[split]), 1), dtype=bool) for split in ("select", "test")}
    return Work(sae, replace(tokens, on=on), labels, off)


def clustered(document: np.ndarray, share: float, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """Tokens chosen with a probability of their document's own, Beta(share c, (1 - share) c), c = `CLUSTERED`."""
    names, index = np.unique(document, return_inverse=True)
    own = rng.beta(share * CLUSTERED, (1 - share) * CLUSTERED, size=len(names))
    return rng.random(len(document)) < own[index]


@torch.no_grad()
def _parent(sae: SAE, feature: int, x: Tensor) -> np.ndarray:
    return np.asarray(sae.encode_feature(x, feature).numpy())
