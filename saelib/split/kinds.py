"""Kinds of parent, known by the tokens that they mark: the hyphen, digits, words of code."""

from __future__ import annotations

import pandas as pd

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.interpret.feature_f1 import feature_f1
from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE
from saelib.split.classes import find_hyphen, hyphen_token

CODE_TOKENS = ("self", "(", "def", "return", "=", "import")
"""Tokens of Python code among which a parent of the kind `code` is looked for."""


def find_kind(model: LanguageModel, kind: str) -> list[tuple[str, list[int]]]:
    """What a parent of a kind may mark: names, and the token ids of each; nothing where the tokenizer has no such token.

    `hyphen`: the token "-" itself. `digit`: any token that is one digit. `code`: each of `CODE_TOKENS`. Digits and words of
    code count with and without the space that tokenizers put before them.

    Raises:
        UserError: there is no such kind.
    """
    words = {"hyphen": ("-",), "digit": tuple("0123456789"), "code": CODE_TOKENS}
    if kind not in words:
        raise UserError(f"kind of parent must be one of {', '.join(words)}", repr(kind), "pass one of these")
    if kind == "hyphen":
        hyphen = find_hyphen(model)
        return [] if hyphen is None else [("-", [hyphen])]
    exact = {word: [i for i, text in enumerate(model.vocabulary) if text.strip(" ") == word] for word in words[kind]}
    if kind == "digit":
        exact = {"digit": sorted(i for ids in exact.values() for i in ids)}
    return [(word, ids) for word, ids in exact.items() if ids]


def tokens_of_kind(model: LanguageModel, kind: str) -> list[tuple[str, list[int]]]:
    """As `find_kind`.

    Raises:
        UserError: there is no such kind, or the tokenizer has no token of it.
    """
    if kind == "hyphen":
        return [("-", [hyphen_token(model)])]
    found = find_kind(model, kind)
    if not found:
        raise UserError(f"tokenizer must hold a token of the kind {kind}", f"none in {model.name}", "choose a feature")
    return found


def best_feature_of_kind(store: ActivationStore, sae: SAE, model: LanguageModel, kind: str) -> int:
    """The feature that best marks a kind of token: F1 of where it fires.

    Raises:
        UserError: as `tokens_of_kind`.
    """
    tables = [feature_f1(store, sae, ids) for _, ids in tokens_of_kind(model, kind)]
    return int(pd.concat(tables).sort_values("f1", ascending=False, kind="stable")["feature"].iloc[0])
