"""What a verdict on a split is made from, gathered in one streaming pass over each split of held-out text.

Notation, as in the rest of the package: the parent p is one feature of a narrow SAE, P the tokens on which it exceeds
tau. Activations are on the scale of `scaled_acts`, so that features of different SAEs compare. Every accumulator adds up:
the result does not depend on how the tokens are cut into blocks.

The select split says which features are children (`SelectEvidence`), the test split measures them (`HeldOutEvidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saelib.sae.sae import SAE
from saelib.sae.scaled import finite_acts, scaled_acts


@dataclass(frozen=True)
class Tokens:
    """A block of tokens: activations at the SAE's site with what the text says of each."""

    x: Float[Tensor, "n d_in"]
    parent: Float[Tensor, " n"]
    """The parent's activation in the narrow SAE."""
    label: Integer[np.ndarray, " n"]
    """Index of the token's context class; -1 when it is in none."""
    document: Integer[np.ndarray, " n"]
    """The document each token came from: what the bootstrap draws."""

    def __len__(self) -> int:
        return len(self.label)

    def where(self, keep: np.ndarray) -> Tokens:
        """The tokens chosen by a mask or by index."""
        chosen = torch.from_numpy(keep)
        return Tokens(self.x[chosen], self.parent[chosen], self.label[keep], self.document[keep])

    def permuted(self, rng: np.random.Generator) -> Tokens:
        """The same tokens with their class labels shuffled among the labelled ones."""
        label, labelled = self.label.copy(), np.flatnonzero(self.label >= 0)
        label[labelled] = label[rng.permutation(labelled)]
        return Tokens(self.x, self.parent, label, self.document)


_EXACT = 2**20
"""Tokens whose count fp32 holds exactly, with room to spare."""


class SelectEvidence:
    """Counts over the select split from which children are chosen: O(classes x d_sae) numbers, whatever the text's size."""

    def __init__(self, sae: SAE, n_classes: int, tau: float) -> None:
        self.sae, self.tau = sae, tau
        d_sae = sae.cfg.d_sae
        self.fired = torch.zeros(d_sae, dtype=torch.float64)
        """Tokens of any kind on which each feature fires."""
        self.fired_with_parent = torch.zeros(d_sae, dtype=torch.float64)
        """... and the parent fires too (above 0)."""
        self.fired_on_p = torch.zeros(d_sae, dtype=torch.float64)
        """Tokens of P on which each feature fires."""
        self.removal = torch.zeros(d_sae, dtype=torch.float64)
        """Sum over P of `|e + c_j d_j|^2 - |e|^2` with `e = x - x_hat` and c the SAE's `contributions`: what removing the feature
        adds to the error."""
        self.class_hits = torch.zeros(n_classes, d_sae, dtype=torch.float64)
        """Tokens of P in each class on which each feature fires."""
        self.class_tokens = torch.zeros(n_classes, dtype=torch.float64)
        self.n_parent = 0
        """Tokens in P."""

    @torch.no_grad()
    def any_tokens(self, x: Float[Tensor, "n d_in"], parent: Float[Tensor, " n"]) -> None:
        """Add tokens of any kind: how often each feature fires without the parent."""
        acts = finite_acts(self.sae, x)
        which = torch.stack([torch.ones(len(x)), (parent > 0).float()])
        for begin in range(0, len(x), _EXACT):  # sums of ones, exact in fp32 and much faster as a product
            here = slice(begin, begin + _EXACT)
            counts = which[:, here] @ (acts[here] > 0).float()
            self.fired += counts[0]
            self.fired_with_parent += counts[1]

    @torch.no_grad()
    def parent_tokens(self, tokens: Tokens) -> None:
        """Add tokens; those on which the parent does not exceed tau are left out."""
        tokens = tokens.where((tokens.parent > self.tau).numpy())
        if not len(tokens):
            return
        acts = self.sae.encode(tokens.x)
        error = tokens.x - self.sae.decode(acts, tokens.x)
        added = self.sae.contributions(acts, tokens.x)
        along = error @ self.sae.W_dec.T  # (n, d_sae)
        square = self.sae.W_dec.square().sum(1)
        self.removal += added.mul(along.mul_(2).addcmul_(added, square)).sum(0, dtype=torch.float64)
        fires = acts > 0
        self.fired_on_p += fires.sum(0)
        member = _membership(tokens.label, len(self.class_tokens))
        for c, own in enumerate(member.bool()):
            self.class_hits[c] += fires[own].sum(0)
        self.class_tokens += member.sum(1)
        self.n_parent += len(tokens)

    def candidates(self, precision: float, share: float) -> Integer[np.ndarray, " n_candidates"]:
        """Features that may be children of the parent.

        P(parent fires | j fires) >= `precision`, firing on at least `share` of P, and removal raises the error on P:
        activity alone makes false parents.
        """
        given = self.fired_with_parent / self.fired.clamp_min(1)
        often = self.fired_on_p >= share * max(self.n_parent, 1)
        return torch.nonzero((given >= precision) & often & (self.removal > 0)).flatten().numpy()

    def f1(self) -> Float[np.ndarray, "n_classes d_sae"]:
        """F1 of every feature's firing as a detector of every class, among the labelled tokens of P."""
        fired = self.class_hits.sum(0)
        return (2 * self.class_hits / (fired + self.class_tokens[:, None]).clamp_min(1)).numpy()

    def children(self, candidates: np.ndarray) -> list[int | None]:
        """One candidate a class, by Hungarian assignment on F1; None where none is left that ever fires on the class."""
        chosen: list[int | None] = [None] * len(self.class_tokens)
        table = self.f1()[:, candidates]
        for c, column in zip(*linear_sum_assignment(-table), strict=True):
            if table[c, column] > 0:
                chosen[int(c)] = int(candidates[column])
        return chosen


class HeldOutEvidence:
    """The children's activations on the test tokens of P: O(tokens of P x classes) numbers."""

    def __init__(
        self,
        sae: SAE,
        children: Sequence[int | None],
        candidates: np.ndarray,
        tau: float,
        best_features: Sequence[int],
    ) -> None:
        self.sae, self.children, self.candidates, self.tau = sae, tuple(children), candidates, tau
        self.best_features = list(best_features)
        self._best: list[Tensor] = []
        self._child: list[Tensor] = []
        self._other: list[Tensor] = []
        self._top: list[Tensor] = []
        self._covered: list[Tensor] = []
        self._parent: list[Tensor] = []
        self._label: list[np.ndarray] = []
        self._document: list[np.ndarray] = []

    @torch.no_grad()
    def add(self, tokens: Tokens) -> None:
        """Add tokens; those on which the parent does not exceed tau are left out."""
        tokens = tokens.where((tokens.parent > self.tau).numpy())
        if not len(tokens):
            return
        acts = scaled_acts(self.sae, tokens.x)
        top, second = F.pad(acts, (0, 1)).topk(2, dim=1).values.split(1, dim=1)  # padded: an SAE may have one feature
        columns = [j if j is not None else 0 for j in self.children]
        child = acts[:, columns] * torch.tensor([j is not None for j in self.children])
        self._child.append(child)
        self._other.append(torch.where(child >= top, second, top))
        self._top.append(torch.where(top[:, 0] > 0, acts.argmax(1), -1))
        self._covered.append((acts[:, torch.from_numpy(self.candidates)] > 0).any(1))
        self._best.append(acts[:, self.best_features] > 0)
        self._parent.append(tokens.parent)
        self._label.append(tokens.label)
        self._document.append(tokens.document)

    def columns(self) -> Columns:
        """What was gathered, token by token."""
        m = len(self.children)
        empty = torch.zeros(0, m)
        return Columns(
            child=torch.cat([empty, *self._child]).numpy(),
            other=torch.cat([empty, *self._other]).numpy(),
            top=torch.cat([torch.zeros(0, dtype=torch.int64), *self._top]).numpy(),
            best_fires=torch.cat([torch.zeros(0, len(self.best_features), dtype=torch.bool), *self._best]).numpy(),
            covered=torch.cat([torch.zeros(0, dtype=torch.bool), *self._covered]).numpy(),
            parent=torch.cat([torch.zeros(0), *self._parent]).numpy(),
            label=np.concatenate([np.zeros(0, dtype=np.int64), *self._label]),
            document=np.concatenate([np.zeros(0, dtype=np.int64), *self._document]),
        )


@dataclass(frozen=True)
class Columns:
    """Test tokens of P, one entry a token."""

    child: Float[np.ndarray, "n n_classes"]
    """Scaled activation of each class's child; 0 for a class without one."""
    other: Float[np.ndarray, "n n_classes"]
    """The largest scaled activation of any other feature."""
    top: Integer[np.ndarray, " n"]
    """The feature with the largest scaled activation, -1 where none fires."""
    best_fires: np.ndarray
    """(n, n_classes): whether the feature fires that marks the class best, candidate or not."""
    covered: np.ndarray
    """Whether any candidate child fires."""
    parent: Float[np.ndarray, " n"]
    label: Integer[np.ndarray, " n"]
    document: Integer[np.ndarray, " n"]


def _membership(label: np.ndarray, n_classes: int) -> Float[Tensor, "n_classes n"]:
    return torch.from_numpy((label[None] == np.arange(n_classes)[:, None]).astype(np.float64))
