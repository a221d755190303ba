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
from saelib.sae.stream import Firings, stream
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


def silent_firings(
    acts: Activations, tokens: ParentTokens, labels: Labels, sae: SAE, children: Integer[np.ndarray, " K"]
) -> Silent | None:
    """The firings of an SAE's children on all silent tokens of test, in one pass; None where these are not known."""
    if tokens.silent is None:
        return None
    store, firings = acts.stores["test"], Firings(tokens.silent)
    stream(sae, store, children, [firings])
    table = firings.table(store.n_tokens, len(children)).tocsr()
    rows = np.flatnonzero(np.diff(table.indptr))
    found = table[rows].toarray()
    there = token_set(acts, "test", rows, np.zeros(len(rows), dtype=np.float32), read=False)
    inside = member(acts.model, labels.contexts, there, np.asarray(store.contexts))
    return Silent(found, there.document, inside)
