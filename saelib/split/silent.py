"""Where children fire on the tokens on which their parent is silent: all of them on test, not a sample.

A child fires on few of these tokens, and a sample of one in eight counts each for eight: that is no harm to the leak's value, but
to its interval, which then says little of children with some hundred firings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from saelib.acts.activations import Activations
from saelib.sae.sae import SAE
from saelib.sae.stream import Entries, stream
from saelib.split.contexts import Labels, member
from saelib.split.parent import token_set
from saelib.split.tokens import ParentTokens


class Silent(NamedTuple):
    """The tokens of test on which the parent is silent and some child fires."""

    acts: Float[np.ndarray, "n K"]
    """The children's activations."""
    document: Integer[np.ndarray, " n"]
    """The document of each token."""
    member: Bool[np.ndarray, "n m"]
    """Whether each token is in each context."""


class _Kept:
    """Entries on some rows of a store; the others are not kept."""

    def __init__(self, rows: Bool[np.ndarray, " n_tokens"]) -> None:
        self.rows, self.parts = rows, list[tuple[np.ndarray, np.ndarray, np.ndarray]]()

    def add(self, entries: Entries) -> None:
        """Take the entries of the next block."""
        keep = self.rows[entries.row]
        self.parts.append((entries.row[keep], entries.feature[keep], entries.value[keep]))


def silent_firings(
    acts: Activations, tokens: ParentTokens, labels: Labels, sae: SAE, children: Integer[np.ndarray, " K"]
) -> Silent | None:
    """The firings of an SAE's children on all silent tokens of test, in one pass; None where these are not known."""
    if tokens.silent is None:
        return None
    store, kept = acts.stores["test"], _Kept(tokens.silent)
    stream(sae, store, children, [kept])
    row, feature, value = (np.concatenate(parts) for parts in zip(*kept.parts, strict=True))
    rows, place = np.unique(row, return_inverse=True)
    found = np.zeros((len(rows), len(children)), dtype=np.float32)
    found[place, feature] = value
    there = token_set(acts, "test", rows, np.zeros(len(rows), dtype=np.float32), read=False)
    inside = member(acts.model, labels.contexts, there, np.asarray(store.contexts))
    return Silent(found, there.document, inside)
