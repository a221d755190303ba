"""Context classes of any parent's tokens, from the text alone: a user's rules, or clusters of what stands beside the token.

A class never comes from an SAE. Automatic classes group the tokens of P by the token before (or after) them: k-means on the
unit columns of the unembedding, so that tokens the model treats alike fall together. They are made on the select split
and given to test tokens by nearest centre, and are called automatic wherever they are shown.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Integer
from scipy.cluster.vq import kmeans2, vq

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.cache import read_json
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel
from saelib.split.classes import CLASSES, hyphen_labels

_LOOK_BACK = 12
AUTOMATIC = ("previous", "next")


class Labels(NamedTuple):
    """Classes with the labels of two splits' tokens; -1 is no class."""

    names: tuple[str, ...]
    select: Integer[np.ndarray, " n"]
    test: Integer[np.ndarray, " m"]
    automatic: bool


class Rows(NamedTuple):
    """Some rows of a store."""

    store: ActivationStore
    rows: Integer[np.ndarray, " n"]


def label_tokens(model: LanguageModel, select: Rows, test: Rows, classes: str, k: int = 3) -> Labels:
    """Label the parent's tokens.

    Args:
        classes: `hyphen` (the study's three), `previous` or `next` (automatic), `auto` (`hyphen` when most of the select
            tokens are "-", else `previous`), or the path of a JSON file of rules: name -> regular expression that the text
            up to and including the token must match at its end. The first rule that matches counts.
        k: how many automatic classes.

    Raises:
        UserError: an unknown name, a file that holds no rules, a bad expression, fewer tokens than classes.
    """
    if classes == "auto":
        hyphens = _is_token(model, "-", select)
        classes = "hyphen" if len(hyphens) and hyphens.mean() > 0.5 else "previous"
    if classes == "hyphen":
        return Labels(CLASSES, _hyphens(model, select), _hyphens(model, test), automatic=False)
    if classes in AUTOMATIC:
        return _clusters(model, select, test, classes, k)
    if Path(classes).suffix == ".json":
        rules = _rules(Path(classes))
        return Labels(tuple(rules), by_rules(model, select, rules), by_rules(model, test, rules), automatic=False)
    raise UserError("classes must be auto, hyphen, previous, next or a .json file of rules", repr(classes), "pass one")


def by_rules(model: LanguageModel, part: Rows, rules: Mapping[str, re.Pattern[str]]) -> Integer[np.ndarray, " n"]:
    """The first rule that the text up to and including each token matches at its end; -1 for none."""
    ids, labels = part.store.token_ids, np.full(len(part.rows), -1, dtype=np.int64)
    for i, row in enumerate(part.rows):
        begin = max(row - row % POSITIONS, row - _LOOK_BACK)
        text = model.tokenizer.decode(ids[begin : row + 1].tolist())
        labels[i] = next((c for c, rule in enumerate(rules.values()) if rule.search(text)), -1)
    return labels


def _rules(path: Path) -> dict[str, re.Pattern[str]]:
    if not path.is_file():
        raise UserError("file of rules must be there", path, "pass a JSON file: name -> regular expression")
    found = read_json(path, "mend the file")
    if not isinstance(found, dict) or len(found) < 2 or not all(isinstance(rule, str) for rule in found.values()):
        got = json.dumps(found)[:60]
        raise UserError("rules must be a JSON object of at least two names with an expression each", got, "mend it")
    rules = {}
    for name, rule in found.items():
        try:
            rules[name] = re.compile(f"(?:{rule})$")
        except re.error as error:
            raise UserError("rule must be a regular expression", f"{name}: {rule} ({error})", "mend it") from error
    return rules


def _is_token(model: LanguageModel, token: str, part: Rows) -> np.ndarray:
    found = model.tokenizer.token_to_id(token)
    return part.store.token_ids[part.rows] == (-1 if found is None else found)


def _hyphens(model: LanguageModel, part: Rows) -> Integer[np.ndarray, " n"]:
    labels, is_hyphen = np.full(len(part.rows), -1, dtype=np.int64), _is_token(model, "-", part)
    labels[is_hyphen] = hyphen_labels(part.store, model, part.rows[is_hyphen])
    return labels


def _clusters(model: LanguageModel, select: Rows, test: Rows, beside: str, k: int) -> Labels:
    step = -1 if beside == "previous" else 1
    neighbours = [_neighbour(part, step) for part in (select, test)]
    there = [n >= 0 for n in neighbours]
    if there[0].sum() < max(k, 2):
        got = f"{int(there[0].sum())} on the select split"
        raise UserError(f"the parent must be active on at least {k} tokens", got, "lower tau, or use more text")
    vectors = [_token_vectors(model, n[ok]) for n, ok in zip(neighbours, there, strict=True)]
    centres, _ = kmeans2(vectors[0], k, minit="++", seed=0, missing="warn")
    labels = [np.full(len(n), -1, dtype=np.int64) for n in neighbours]
    for label, vector, ok in zip(labels, vectors, there, strict=True):
        label[ok] = vq(vector, centres)[0] if len(vector) else []
    names = []
    for c in range(k):
        common = Counter(neighbours[0][labels[0] == c].tolist()).most_common(3)
        words = ", ".join(
            f"“{model.vocabulary[token].strip() or repr(model.vocabulary[token])}”" for token, _ in common
        )
        names.append(f"{'after' if step < 0 else 'before'} {words or 'nothing'}")
    return Labels(tuple(names), labels[0], labels[1], automatic=True)


def _neighbour(part: Rows, step: int) -> Integer[np.ndarray, " n"]:
    """The token before or after each row; -1 at the context's edge."""
    position = part.rows % POSITIONS + step
    inside = (position >= 0) & (position < POSITIONS)
    found = part.store.token_ids[np.clip(part.rows + step, 0, part.store.n_tokens - 1)].astype(np.int64)
    return np.where(inside, found, -1)


def _token_vectors(model: LanguageModel, tokens: Integer[np.ndarray, " n"]) -> Float[np.ndarray, "n d_model"]:
    unique, index = np.unique(tokens, return_inverse=True)
    columns = F.normalize(model.W_U[:, unique].T.float(), dim=1).double().numpy()
    return np.asarray(columns[index])
