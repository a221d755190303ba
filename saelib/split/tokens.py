"""Tokens of a parent: what one streaming pass over the text keeps, and everything afterwards reads."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

SPLITS = ("train", "select", "test")


@dataclass(frozen=True)
class TokenSet:
    """Some tokens of one split of the text."""

    rows: Integer[np.ndarray, " n"]
    """Rows of the activation store, ascending."""
    x: Float[Tensor, "n d_in"]
    """Activations, fp32; those of many tokens as bf16, where that is what the store holds (`packed`)."""
    parent: Float[np.ndarray, " n"]
    """The parent's activation; 0 where it does not fire."""
    document: Integer[np.ndarray, " n"]
    """The document each token came from: what the bootstrap draws."""
    previous: Integer[np.ndarray, " n"]
    """The token before; -1 where the context begins."""
    current: Integer[np.ndarray, " n"]
    """The token itself."""
    next: Integer[np.ndarray, " n"]
    """The token after; -1 where the context ends."""

    def __len__(self) -> int:
        return len(self.rows)

    def packed(self) -> TokenSet:
        """The same tokens in half the memory, where no activation changes by it."""
        half = self.x.bfloat16()
        return replace(self, x=half) if torch.equal(half.float(), self.x) else self

    def where(self, keep: np.ndarray) -> TokenSet:
        """The tokens chosen by a mask or by index."""
        chosen = torch.from_numpy(np.asarray(keep))
        every: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        kept: dict[str, Any] = {k: v[chosen] if isinstance(v, Tensor) else v[keep] for k, v in every.items()}
        return TokenSet(**kept)


@dataclass(frozen=True)
class ParentTokens:
    """What one streaming pass a split kept for one parent."""

    feature: int
    """The parent's number in its SAE."""
    tau: float
    """The parent is on above this activation."""
    on: dict[str, TokenSet]
    """P: tokens with a_p > tau, for each of `SPLITS`."""
    weak: dict[str, TokenSet]
    """Tokens with 0 < a_p <= tau, sampled."""
    off: dict[str, TokenSet]
    """Tokens on which the parent is silent, sampled uniformly."""
    n_tokens: dict[str, int]
    """All tokens of each split."""
    n_on: dict[str, int]
    """Tokens of P before sampling; with `n_weak` and `n_off` these give natural rates."""
    n_weak: dict[str, int]
    n_off: dict[str, int]
    silent: Bool[np.ndarray, " n_tokens"] | None = None
    """Whether the parent is silent, for every token of test; None where only the sample is known."""
