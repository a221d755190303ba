"""Filter the training data by a parent feature: whole contexts (the study's reading) or single tokens; views, not copies."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from saelib.acts.store import POSITIONS, ActivationStore, View
from saelib.base.errors import UserError
from saelib.sae.sae import SAE, require_fits
from saelib.sae.stream import block_rows

FILTERS = ("none", "context", "token")


@torch.no_grad()
def feature_activations(store: ActivationStore, sae: SAE, feature: int) -> Float[np.ndarray, " n_tokens"]:
    """`sae.encode(x)[:, feature]` on every row of the store, fp32.

    Raises:
        UserError: the feature is not one of the SAE, or the SAE belongs to another model, site or weight centring.
    """
    d_sae = sae.cfg.d_sae
    if not 0 <= feature < d_sae:
        raise UserError(f"feature must be in [0, d_sae={d_sae})", feature, "pass a feature of the narrow SAE")
    manifest = store.manifest
    require_fits(
        sae.cfg,
        d_in=store.d_in,
        hook_name=manifest.get("hook_name"),
        center_writing_weights=manifest.get("center_writing_weights"),
    )
    out = np.empty(store.n_tokens, dtype=np.float32)
    for rows, x in store.blocks(block_rows(sae.n_encoded(1))):
        out[rows] = sae.encode_feature(x, feature).numpy()
    return out


def filter_view(store: ActivationStore, activations: np.ndarray, tau: float, by: str) -> View:
    """The rows that training keeps.

    Args:
        activations: the parent's activation on every row, from `feature_activations`.
        tau: a row counts as parent-active when its activation exceeds this (the study: 2.0).
        by: `none` keeps all, `context` keeps every row of a context with an active row, `token` keeps the active rows.

    Raises:
        UserError: unknown `by`, a threshold that is not a finite number of at least 0, or one that keeps no token.
    """
    if by not in FILTERS:
        raise UserError(f"filter must be one of {', '.join(FILTERS)}", repr(by), "pass one of these")
    if not (np.isfinite(tau) and tau >= 0):
        raise UserError("tau must be a finite number of at least 0", tau, "pass a threshold on the parent's activation")
    if by == "none":
        return View(store)
    active = activations > tau
    if not active.any():
        raise UserError(
            f"the filter must keep at least one token; the parent's largest activation is {activations.max():.3f}",
            f"tau={tau:g}",
            "lower tau",
        )
    keep = active
    if by == "context":
        keep = np.repeat(active.reshape(-1, POSITIONS).any(axis=1), POSITIONS)
    return View(store, np.flatnonzero(keep).astype(np.int32), name=by)
