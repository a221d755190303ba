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

from saelib.acts.activations import Activations
from saelib.acts.store import POSITIONS
from saelib.sae.evaluate import loss_of_logits
from saelib.sae.sae import SAE

CONTEXTS = 96
"""Test contexts that are read, those that hold most tokens of P first chosen at random among the ones that hold any."""


@torch.no_grad()
def swap_table(
    acts: Activations, before: SAE, after: SAE, rows_on: np.ndarray, n_contexts: int = CONTEXTS
) -> pd.DataFrame:
    """Rows `on P` and `overall`; columns fvu, l0 and loss_recovered, each `_before` and `_after`, and tokens.

    Args:
        rows_on: rows of P in the test store.
        n_contexts: half are contexts that hold tokens of P, half are drawn from all.
    """
    store, rng = acts.stores["test"], np.random.default_rng(0)
    total = len(store.contexts)
    holding = np.unique(rows_on // POSITIONS)
    chosen = np.unique(
        np.concatenate(
            [
                rng.choice(holding, min(n_contexts // 2, len(holding)), replace=False),
                rng.choice(total, min(n_contexts // 2, total), replace=False),
            ]
        )
    )
    everywhere = np.zeros(store.n_tokens, dtype=bool)
    everywhere[rows_on] = True
    on = everywhere.reshape(total, POSITIONS)[chosen]
    sums = {name: _Sums(acts.model.d_in) for name in ("on P", "overall")}
    for begin in range(0, len(chosen), 16):
        part = slice(begin, begin + 16)
        tokens = torch.from_numpy(np.asarray(store.contexts[chosen[part]]).astype(np.int64))
        clean, logits = acts.model.splice(tokens)
        x = clean[:, 1:].flatten(0, 1)
        outputs = [before(x), after(x)]
        replaced = [torch.zeros_like(x), *(output.x_hat for output in outputs)]
        losses = [loss_of_logits(logits(clean), tokens)[:, 1:]]
        for value in replaced:
            spliced = clean.clone()
            spliced[:, 1:] = value.view(*clean[:, 1:].shape)
            losses.append(loss_of_logits(logits(spliced), tokens)[:, 1:])  # predictions at positions 1 .. t - 2
        mask = torch.from_numpy(on[part])
        for name, which in (("on P", mask), ("overall", torch.ones_like(mask))):
            at = which.flatten()
            errors = [(output.x_hat - x)[at].square().sum() for output in outputs]
            active = [(output.feature_acts[at] > 0).sum() for output in outputs]
            predicted = which[:, :-1]
            sums[name].add(x[at], errors, active, [loss[predicted].sum() for loss in losses], int(predicted.sum()))
    return pd.DataFrame({name: part.row() for name, part in sums.items()}).T.rename_axis("where")


class _Sums:
    """Running sums over some tokens."""

    def __init__(self, d_in: int) -> None:
        self.n, self.square = 0, 0.0
        self.total = torch.zeros(d_in, dtype=torch.float64)
        self.errors, self.active = np.zeros(2), np.zeros(2)
        self.losses, self.predictions = np.zeros(4), 0

    def add(
        self, x: torch.Tensor, errors: Sequence[torch.Tensor], active: Sequence[torch.Tensor],
        losses: Sequence[torch.Tensor], predictions: int,
    ) -> None:  # fmt: skip
        self.n += len(x)
        self.square += float(x.double().square().sum())
        self.total += x.double().sum(0)
        self.errors += [float(e) for e in errors]
        self.active += [float(a) for a in active]
        self.losses += [float(loss) for loss in losses]
        self.predictions += predictions

    def row(self) -> dict[str, float]:
        variance = self.square - float(self.total.square().sum()) / max(self.n, 1)
        clean, zero, *saes = self.losses / max(self.predictions, 1)
        recovered = [(zero - loss) / (zero - clean) if zero != clean else np.nan for loss in saes]
        fvu, l0 = self.errors / max(variance, 1e-12), self.active / max(self.n, 1)
        out = {}
        for name, values in (("fvu", fvu), ("l0", l0), ("loss_recovered", recovered)):
            out |= {f"{name}_before": float(values[0]), f"{name}_after": float(values[1])}
        return out | {"tokens": self.n}
