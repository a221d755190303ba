"""How well a feature's firing marks a token: by this the parent of the study is found, and parents of other kinds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows

CODE_TOKENS = ("self", "(", "def", "return", "=", "import")
"""Tokens of Python code among which a parent of the kind `code` is looked for."""


def tokens_of_kind(model: LanguageModel, kind: str) -> list[tuple[str, list[int]]]:
    """What a parent of a kind may mark: names, and the token ids of each.

    `hyphen`: the token "-" itself. `digit`: any token that is one digit. `code`: each of `CODE_TOKENS`. Digits and words of
    code count with and without the space that tokenizers put before them.

    Raises:
        UserError: there is no such kind, or the tokenizer has no token of it.
    """
    words = {"hyphen": ("-",), "digit": tuple("0123456789"), "code": CODE_TOKENS}
    if kind not in words:
        raise UserError(f"kind of parent must be one of {', '.join(words)}", repr(kind), "pass one of these")
    if kind == "hyphen":
        return [("-", [model.hyphen])]
    exact = {word: [i for i, text in enumerate(model.vocabulary) if text.strip(" ") == word] for word in words[kind]}
    if not any(exact.values()):
        raise UserError(f"tokenizer must hold a token of the kind {kind}", f"none of {words[kind]}", "choose a feature")
    if kind == "digit":
        return [("digit", sorted(i for ids in exact.values() for i in ids))]
    return [(word, ids) for word, ids in exact.items() if ids]


@torch.no_grad()
def marking(store: ActivationStore, sae: SAE, tokens: list[int]) -> pd.DataFrame:
    """Each feature as a detector of some tokens, over every token of a store: it says yes where it fires.

        F1 = 2 hits / (fired + marked)

    One row a feature, in order: feature, f1, precision, recall, fires_on (share of all tokens), max_activation.
    """
    marked = torch.from_numpy(np.isin(store.token_ids, tokens))
    fired = torch.zeros(sae.cfg.d_sae)
    hits = torch.zeros(sae.cfg.d_sae)
    largest = torch.zeros(sae.cfg.d_sae)
    for rows, x in store.blocks(block_rows(sae.cfg.d_sae)):
        acts = sae.encode(x)
        fires = acts > 0
        fired += fires.sum(0)
        hits += fires[marked[rows]].sum(0)
        largest = torch.maximum(largest, acts.amax(0))
    total = int(marked.sum())
    return pd.DataFrame(
        {
            "feature": np.arange(sae.cfg.d_sae),
            "f1": (2 * hits / (fired + total)).numpy(),
            "precision": (hits / fired.clamp_min(1)).numpy(),
            "recall": (hits / max(total, 1)).numpy(),
            "fires_on": (fired / store.n_tokens).numpy(),
            "max_activation": largest.numpy(),
        }
    )
