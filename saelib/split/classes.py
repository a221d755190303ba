"""Context classes of the hyphen, from the text alone (never from an SAE).

`count`: a count word before the hyphen (multi-, two-, double-); `number`: a digit before it (3-, 60-); `compound`: any
other word before it (long-). A hyphen counts only between a word or digit and a letter, so that minus signs, dashes,
arrows, option names, identifiers' ranges such as 1990-1995 and line breaks are in no class.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel

CLASSES = ("count", "number", "compound")
COUNT_WORDS = frozenset(
    "multi single double triple quadruple dual half quarter one two three four five six seven eight nine ten eleven twelve "
    "twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million first second third fourth fifth mono "
    "bi tri quad uni poly".split()
)
PROMPTS = {
    "count": "I am a multi-millionaire",
    "number": "A 3-point landing",
    "compound": "that encapsulated the long-standing",
}
"""The study's three prompts; each holds one hyphen."""
_LAST_WORD = re.compile(r"([A-Za-z]+|\d)$")
_LOOK_BACK = 8


def classify(before: str, after: str) -> str | None:
    """The class of a hyphen from the text before and after it; None when it joins nothing."""
    match = _LAST_WORD.search(before)
    if match is None or not after[:1].isalpha():
        return None
    word = match.group(1)
    if word.isdigit():
        return "number"
    # a part of a longer chain or identifier (`-two-`, `x_two-`) is still a word, but a hyphen before it makes it a chain
    return "count" if word.lower() in COUNT_WORDS else "compound"


def find_hyphen(model: LanguageModel) -> int | None:
    """The id of the token "-"; None where the tokenizer has no such token."""
    found = model.tokenizer.token_to_id("-")
    return None if found is None else int(found)


def hyphen_token(model: LanguageModel) -> int:
    """The id of the token "-", which these classes are of.

    Raises:
        UserError: the tokenizer has no such token.
    """
    found = find_hyphen(model)
    if found is None:
        rule, remedy = 'tokenizer must hold the hyphen "-" as one token', "ask for other contexts, or use another model"
        raise UserError(rule, f"none in {model.name}", remedy)
    return found


def hyphen_mask(store: ActivationStore, model: LanguageModel) -> Bool[np.ndarray, " n_tokens"]:
    """Whether each token of a store is the hyphen, joining words or not.

    Raises:
        UserError: the tokenizer has no such token.
    """
    return np.asarray(store.token_ids == hyphen_token(model))


def hyphen_labels(store: ActivationStore, model: LanguageModel, rows: np.ndarray) -> np.ndarray:
    """The class of each hyphen row, an index into `CLASSES`, or -1 for none (also at a context's edge)."""
    labels = np.full(len(rows), -1, dtype=np.int8)
    ids, decode = store.token_ids, model.tokenizer.decode
    within = store.contexts.shape[1] - 1
    for i, row in enumerate(rows):
        start, end = row - row % within, row - row % within + within
        before = decode(ids[max(start, row - _LOOK_BACK) : row].tolist())
        after = decode(ids[row + 1 : min(end, row + 2)].tolist())
        name = classify(before, after)
        if name is not None:
            labels[i] = CLASSES.index(name)
    return labels
