"""What filtering by the parent keeps, and at which threshold how much (notebook 03)."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd

from saelib.acts.filter import filter_view
from saelib.acts.store import POSITIONS
from saelib.split.classes import hyphen_mask
from saelib.study import selection, study
from saelib.study.profiles import Profile

TAU_SHARES = (0.02, 0.05, 0.1, 0.15, 0.217, 0.3, 0.4, 0.5, 0.6, 0.8)
"""Thresholds of the curve, as shares of the parent's largest activation; the 2024 post's is 0.217."""


def kept_by_filter(profile: Profile, parent: selection.Parent) -> pd.DataFrame:
    """A row a filter (none, context, token): tokens and share kept, share of hyphens and of parent-active tokens, seconds.

    `enrichment` is the parent-active share over that of the whole data.
    """
    store, acts = study.activations(profile, "train"), selection.parent_on(profile, "train", parent.feature)
    hyphen, active = hyphen_mask(store, study.language_model(profile)), acts > parent.tau
    rows = []
    for by in ("none", "context", "token"):
        view, seconds = study.seconds_of(functools.partial(filter_view, store, acts, parent.tau, by))
        index = slice(None) if view.index is None else view.index
        row = {"filter": by, "tokens kept": view.n_tokens, "share kept": view.n_tokens / store.n_tokens}
        row |= {
            "hyphen share": hyphen[index].mean(),
            "parent-active share": active[index].mean(),
            "seconds": seconds,
        }
        rows.append(row)
    kept = pd.DataFrame(rows).set_index("filter")
    return kept.assign(enrichment=kept["parent-active share"] / kept["parent-active share"]["none"])


def share_by_threshold(profile: Profile, parent: selection.Parent) -> pd.DataFrame:
    """Columns tau, and the shares of contexts and of tokens that a filter at tau keeps."""
    acts = selection.parent_on(profile, "train", parent.feature)
    largest = acts.reshape(-1, POSITIONS).max(axis=1)
    taus = np.array(TAU_SHARES) * parent.max_activation
    shares = {name: [(values > t).mean() for t in taus] for name, values in (("contexts", largest), ("tokens", acts))}
    return pd.DataFrame({"tau": taus} | shares)
