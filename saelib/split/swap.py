"""What swapping the parent for its children does to the SAE, measured on test: FVU, L0 and loss recovered, on P and overall.

    FVU = sum |x_hat - x|^2 / sum |x - mean(x)|^2        (the mean over the same tokens)
    loss recovered = (L_zero - L_sae) / (L_zero - L_clean)

L is the next-token loss with the activation left alone, replaced by x_hat, or zeroed, at every token but BOS; "on P" averages
the predictions made at tokens of P.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.acts.store import POSITIONS
from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE

CONTEXTS = {"on P": 300, "overall": 48}
"""Test contexts that are read at random: of those that hold tokens of P, and of all."""
_BATCH = 16


@torch.no_grad()
def swap_table(acts: Activations, before: SAE, after: SAE, rows_on: np.ndarray) -> pd.DataFrame:
    """Rows `on P` and `overall`; columns fvu, l0 and loss_recovered, each `_before` and `_after`, and tokens.

    Args:
        rows_on: rows of P in the test store.
    """
    store, rng = acts.stores["test"], np.random.default_rng(0)
    total = len(store.contexts)
    flat = np.zeros(store.n_tokens, dtype=bool)
    flat[rows_on] = True
    mask = flat.reshape(total, POSITIONS)
    rows = {}
    for where, among, at in (
        ("on P", np.flatnonzero(mask.any(1)), mask),
        ("overall", np.arange(total), np.ones_like(mask)),
    ):
        chosen = np.sort(rng.choice(among, min(CONTEXTS[where], len(among)), replace=False))
        sums = _Sums(acts.model.d_in, acts.device)
        for begin in range(0, len(chosen), _BATCH):
            part = chosen[begin : begin + _BATCH]
            tokens = torch.from_numpy(np.asarray(store.contexts[part]).astype(np.int64)).to(acts.device)
            sums.add(acts.model, (before, after), tokens, torch.from_numpy(at[part]).to(acts.device))
        rows[where] = sums.row()
    return pd.DataFrame(rows).T.rename_axis("where")


class _Sums:
    """Running sums over some tokens."""

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.n, self.square = 0, 0.0
        self.total = torch.zeros(d_in, dtype=torch.float64, device=device)
        self.errors, self.active = np.zeros(2), np.zeros(2)
        self.losses, self.predictions = np.zeros(4), 0

    def add(
        self, model: LanguageModel, saes: Sequence[SAE], tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t1"]
    ) -> None:
        """Take some contexts, and in them the chosen tokens (BOS is not among them)."""
        clean, logits = model.splice(tokens)
        x = clean[:, 1:]  # (b, t - 1, d)
        outputs = [sae(x.flatten(0, 1)) for sae in saes]
        at = chosen.flatten()
        own = x.flatten(0, 1)[at]
        self.n += len(own)
        self.square += float(own.double().square().sum())
        self.total += own.double().sum(0)
        self.errors += [float((output.x_hat[at] - own).square().sum()) for output in outputs]
        self.active += [float((output.feature_acts[at] > 0).sum()) for output in outputs]
        # The last token of a context predicts nothing that is known.
        context, place = (
            index + shift for index, shift in zip(chosen[:, :-1].nonzero(as_tuple=True), (0, 1), strict=True)
        )
        target = tokens[context, place + 1]
        self.predictions += len(target)
        for i, value in enumerate([x, torch.zeros_like(x), *(output.x_hat.view_as(x) for output in outputs)]):
            put = clean.clone()
            put[:, 1:] = value
            self.losses[i] += float(F.cross_entropy(logits(put, (context, place)), target, reduction="sum"))

    def row(self) -> dict[str, float]:
        variance = self.square - float(self.total.square().sum()) / max(self.n, 1)
        clean, zero, *saes = self.losses / max(self.predictions, 1)
        recovered = [(zero - loss) / (zero - clean) if zero != clean else np.nan for loss in saes]
        fvu, l0 = self.errors / max(variance, 1e-12), self.active / max(self.n, 1)
        out: dict[str, float] = {}
        for name, values in (("fvu", fvu), ("l0", l0), ("loss_recovered", recovered)):
            out |= {f"{name}_before": float(values[0]), f"{name}_after": float(values[1])}
        return out | {"tokens": self.n}
