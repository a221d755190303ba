"""Features of any SAE on a parent's tokens, a block at a time: some activations, the leak of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows
from saelib.split.tokens import TokenSet
from saelib.split.work import Work


@torch.no_grad()
def leak_shares(
    work: Work, sae: SAE, features: list[int], contexts: np.ndarray, split: str, theta: np.ndarray | None = None
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """For each feature the missed and the foreign share of its firings, and its firings in the text (see `saelib.split.leak`).

    Args:
        contexts: each feature's context, a number in the yardstick.
        split: select or test.
        theta: a feature fires above this; None is 0.
    """
    above = np.zeros(len(features)) if theta is None else theta
    chosen, total = torch.tensor(features), np.zeros(len(features))
    missed, silent = np.zeros(len(features)), np.zeros(len(features))
    inside = work.off_member[split]
    for name in ("on", "weak", "off"):
        part: TokenSet = getattr(work.tokens, name)[split]
        weight = getattr(work.tokens, f"n_{name}")[split] / max(len(part), 1)
        at = 0
        for x in blocks(part, sae, len(features)):
            fired = sae.encode_features(x, chosen).cpu().numpy() > above
            total += weight * fired.sum(0)
            if name == "off":
                silent += weight * fired.sum(0)
                missed += weight * (fired & inside[at : at + len(x)][:, contexts]).sum(0)
            at += len(x)
    safe = np.maximum(total, 1e-12)
    return missed / safe, (silent - missed) / safe, total


def blocks(part: TokenSet, sae: SAE, n_features: int | None = None) -> Iterator[Tensor]:
    """Activations of some tokens, as many at a time as the SAE encodes in one block."""
    size = block_rows(sae.cfg.d_sae if n_features is None else sae.n_encoded(n_features))
    for begin in range(0, len(part), size):
        yield part.x[begin : begin + size].float()


@torch.no_grad()
def chosen_acts(sae: SAE, x: Float[Tensor, "n d_in"], features: list[int]) -> Float[np.ndarray, "n K"]:
    """Some features' activations."""
    if not features:
        return np.zeros((len(x), 0), dtype=np.float32)
    chosen, size = torch.tensor(features), block_rows(sae.n_encoded(len(features)))
    return np.concatenate([sae.encode_features(x[i : i + size], chosen).cpu().numpy() for i in range(0, len(x), size)])


def rest_rows(columns: Any, work: Work, split: str) -> Any:
    """The yardstick's tokens of activations that have a row for every token of P."""
    used, n = work.yardstick.used[split], len(work.tokens.on[split])
    if columns.shape[0] not in (n, len(used)):
        raise UserError(
            f"activations need a row for each of the {n} tokens of P on {split}", columns.shape[0], "mend it"
        )
    return columns[used] if columns.shape[0] == n else columns
