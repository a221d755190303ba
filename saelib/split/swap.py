"""What swapping the parent for its children does to the SAE, measured on test: FVU, L0 and loss recovered, on P and overall.

    FVU = sum |x_hat - x|^2 / sum |x - mean(x)|^2        (the mean over the same tokens)

Loss recovered is `saelib.sae.evaluate.loss_recovered`, replaced at every token but BOS; "on P" are the predictions made at
tokens of P.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.acts.store import POSITIONS
from saelib.lm.model import LanguageModel
from saelib.sae.evaluate import LossEnds, loss_recovered
from saelib.sae.sae import SAE
from saelib.split.parent import Samples

DEEP, DEEP_SHARE = 6, {"on P": 5, "overall": 3}
"""Of a model of more layers than `DEEP` so many times fewer contexts are read: each passes through all layers for every SAE."""
_BATCH = 16


@torch.no_grad()
def swap_table(
    acts: Activations, before: SAE, after: SAE, rows_on: np.ndarray, samples: Samples | None = None
) -> pd.DataFrame:
    """Rows `on P` and `overall`; columns fvu, l0 and loss_recovered, each `_before` and `_after`, and tokens.

    Args:
        rows_on: rows of P in the test store.
        samples: how many test contexts are read, drawn at random: of those that hold tokens of P, and of all.
    """
    return Swaps(acts, before, rows_on, samples).table(after)


class Swaps:
    """One SAE's swaps: what the text says without it, and with it, is read once for all that may take its place."""

    @torch.no_grad()
    def __init__(self, acts: Activations, before: SAE, rows_on: np.ndarray, samples: Samples | None = None) -> None:
        """Read the text; arguments as of `swap_table`."""
        store, rng = acts.stores["test"], np.random.default_rng(0)
        total = len(store.contexts)
        flat = np.zeros(store.n_tokens, dtype=bool)
        flat[rows_on] = True
        mask = flat.reshape(total, POSITIONS)
        most, deep = samples or Samples(), acts.model.n_layers > DEEP
        self.parts: dict[str, list[_Part]] = {}
        for where, n, among, at in (
            ("on P", most.swapped_on, np.flatnonzero(mask.any(1)), mask),
            ("overall", most.swapped, np.arange(total), np.ones_like(mask)),
        ):
            n = n // DEEP_SHARE[where] if deep else n
            chosen = np.sort(rng.choice(among, min(n, len(among)), replace=False))
            self.parts[where] = []
            for begin in range(0, len(chosen), _BATCH):
                part = chosen[begin : begin + _BATCH]
                tokens = torch.from_numpy(np.asarray(store.contexts[part]).astype(np.int64)).to(acts.device)
                self.parts[where].append(_Part(acts.model, tokens, torch.from_numpy(at[part]).to(acts.device)))
        self.text = {where: _Text.of(parts) for where, parts in self.parts.items()}
        self.before = {where: self._sums(where, before) for where in self.parts}

    @torch.no_grad()
    def table(self, after: SAE) -> pd.DataFrame:
        """As `swap_table`."""
        rows = {}
        for where, text in self.text.items():
            row: dict[str, float] = {}
            for when, found in (("before", self.before[where]), ("after", self._sums(where, after))):
                row |= {
                    f"fvu_{when}": found.error / max(text.spread, 1e-12),
                    f"l0_{when}": found.active / max(text.n, 1),
                }
                row[f"loss_recovered_{when}"] = loss_recovered(found.loss, text.ends)
            rows[where] = row | {"tokens": text.n}
        return pd.DataFrame(rows).T.rename_axis("where")

    def _sums(self, where: str, sae: SAE) -> _Sums:
        return _Sums(*map(sum, zip(*(part.sums(sae) for part in self.parts[where]), strict=True)))


class _Text(NamedTuple):
    """Of the chosen tokens, whatever the SAE: how many, their squared distance from their mean, the model's loss there."""

    n: int
    spread: float
    ends: LossEnds

    @staticmethod
    def of(parts: list[_Part]) -> _Text:
        n = sum(len(part.own) for part in parts)
        total = sum(part.own.double().sum(0) for part in parts)
        square = sum(float(part.own.double().square().sum()) for part in parts)
        ends = LossEnds(*(sum(part.ends[i] for part in parts) for i in range(2)))
        return _Text(n, square - float(torch.as_tensor(total).square().sum()) / max(n, 1), ends)


class _Sums(NamedTuple):
    """Of an SAE over the chosen tokens: squared error, active features, and the loss of the predictions made there."""

    error: float
    active: float
    loss: float


class _Part:
    """Some contexts with the model's own numbers: activations, and losses as they are and with zeros in their place."""

    def __init__(self, model: LanguageModel, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t1"]) -> None:
        """Take some contexts, and in them the chosen tokens (BOS is not among them)."""
        self.clean, self.logits = model.splice(tokens)
        self.x = self.clean[:, 1:].flatten(0, 1)
        self.at = chosen.flatten()
        self.own = self.x[self.at]
        # The last token of a context predicts nothing that is known.
        context, place = chosen[:, :-1].nonzero(as_tuple=True)
        self.predicts, self.target = (context, place + 1), tokens[context, place + 2]
        self.ends = [self.loss(x) for x in (self.x, torch.zeros_like(self.x))]

    def loss(self, x: Float[Tensor, "n d"]) -> float:
        """Summed, with these activations in place of the model's."""
        put = self.clean.clone()
        put[:, 1:] = x.view_as(put[:, 1:])
        return float(F.cross_entropy(self.logits(put, self.predicts), self.target, reduction="sum"))

    def sums(self, sae: SAE) -> _Sums:
        """Of an SAE in place of the activations."""
        found = sae(self.x)
        error = float((found.x_hat[self.at] - self.own).square().sum())
        return _Sums(error, float((found.feature_acts[self.at] > 0).sum()), self.loss(found.x_hat))
