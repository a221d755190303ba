"""Filter the training data by a parent feature: whole contexts (as the 2024 post did) or single tokens; views, not copies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from saelib.acts.batches import View
from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.errors import UserError

FILTERS = ("none", "context", "token")


def filter_view(store: ActivationStore, activations: Float[np.ndarray, " n_tokens"], tau: float, by: str) -> View:
    """The rows that training keeps.

    Args:
        activations: the parent's activation on every row, from `saelib.sae.stream.feature_activations`.
        tau: a row counts as parent-active when its activation exceeds this (the post: 2.0).
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
