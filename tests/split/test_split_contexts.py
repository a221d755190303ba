"""Contexts from text alone: the hyphen's classes, automatic ones and a user's rules, on real tokens with texts made up here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saelib.acts.store import POSITIONS
from saelib.base.errors import UserError
from saelib.lm.model import OneLayerModel, load_embedded
from saelib.split import contexts as module
from saelib.split.classes import CLASSES
from saelib.split.contexts import automatic_contexts, hyphen_contexts, label, member, read_rules, rule_contexts
from saelib.split.tokens import TokenSet


@pytest.fixture(scope="module")
def model() -> OneLayerModel:
    return load_embedded()


def contexts_of(model: OneLayerModel, sentences: list[str]) -> np.ndarray:
    """A context a sentence: BOS, the sentence, BOS up to the end."""
    out = np.full((len(sentences), POSITIONS + 1), model.bos, dtype=np.int64)
    for i, sentence in enumerate(sentences):
        ids = model.tokenizer.encode(sentence, add_special_tokens=False).ids
        out[i, 1 : 1 + len(ids)] = ids
    return out


def token_set(contexts: np.ndarray, rows: np.ndarray) -> TokenSet:
    ids = contexts[:, 1:].reshape(-1)
    place = rows % POSITIONS
    return TokenSet(
        rows=rows,
        x=torch.zeros(len(rows), 1),
        parent=np.ones(len(rows), dtype=np.float32),
        document=rows // POSITIONS,
        previous=np.where(place > 0, ids[np.maximum(rows - 1, 0)], -1),
        current=ids[rows],
        next=np.where(place < POSITIONS - 1, ids[np.minimum(rows + 1, len(ids) - 1)], -1),
    )


def at(model: OneLayerModel, contexts: np.ndarray, token: str) -> TokenSet:
    """The tokens that are `token`, of the same text in all three splits."""
    return token_set(contexts, np.flatnonzero(contexts[:, 1:].reshape(-1) == model.token_id(token)))


HYPHENS = ["She is a multi-millionaire"] * 40 + ["It was a 3-point landing"] * 35 + ["A long-standing rule"] * 90
HYPHENS += ["from 1990-1995"] * 5  # in no class
EXPECTED = {"count": 40, "number": 35, "compound": 90}


@pytest.fixture(scope="module")
def hyphens(model: OneLayerModel) -> tuple[dict[str, TokenSet], dict[str, np.ndarray]]:
    contexts = contexts_of(model, HYPHENS)
    tokens = at(model, contexts, "-")
    assert len(tokens) == len(HYPHENS)
    splits = ("train", "select", "test")
    return dict.fromkeys(splits, tokens), dict.fromkeys(splits, contexts)


@pytest.mark.parametrize("how", ["auto", "hyphen"])
def test_hyphens(model: OneLayerModel, hyphens: tuple, how: str) -> None:
    labels = label(model, *hyphens, how)
    assert [(c.name, c.primary) for c in labels.contexts] == [("count", True), ("number", True), ("compound", False)]
    assert dict(zip(CLASSES, labels.member["test"].sum(0), strict=True)) == EXPECTED
    assert labels.member["test"][0].tolist() == [True, False, False]
    assert labels.counts["test"].sum() == 165
    assert labels.purity() == pytest.approx(165 / 170)
    assert labels.named


def test_a_class_of_more_than_half_is_not_primary(model: OneLayerModel) -> None:
    contexts = contexts_of(model, HYPHENS[:40] + HYPHENS[40:70])
    part = at(model, contexts, "-")
    labels = hyphen_contexts(
        model, dict.fromkeys(("select", "test"), part), dict.fromkeys(("select", "test"), contexts)
    )
    assert [c.primary for c in labels.contexts] == [False, True, False]  # count is 40 of 70


def test_context_edges_are_not_crossed(model: OneLayerModel) -> None:
    """A hyphen that begins a context has no word before it, whatever ends the context before."""
    hyphen, contexts = model.token_id("-"), contexts_of(model, ["x", "x"])
    contexts[0, -1] = model.tokenizer.encode("3", add_special_tokens=False).ids[0]
    contexts[1, 1:3] = [hyphen, model.tokenizer.encode("point", add_special_tokens=False).ids[0]]
    begins = token_set(contexts, np.array([POSITIONS]))
    assert begins.previous.tolist() == [-1]
    named = tuple(module.Context(name, "class", True, name) for name in CLASSES)
    assert not member(model, named, begins, contexts).any()
    before = (module.Context("after", "rule", True, "3-"),)
    assert not member(model, before, begins, contexts).any()


# --- automatic ------------------------------------------------------------------------------------------------------------


def automatic_tokens(model: OneLayerModel, counts: dict[str, int]) -> TokenSet:
    """Rows whose previous token is as counted; 400 in all, the others each after a token of their own."""
    previous = [i for token, n in counts.items() for i in [model.token_id(token)] * n]
    others = [i for i in range(1000, 3000) if i not in previous]
    n = 400
    previous += others[: n - len(previous)]
    blank = torch.zeros(n, 1)
    current = np.array([model.token_id("x")] * 150 + others[:250])
    ends = np.full(n, -1)
    return TokenSet(np.arange(n), blank, np.ones(n, dtype=np.float32), np.arange(n), np.array(previous), current, ends)


def test_automatic_contexts(model: OneLayerModel) -> None:
    select = automatic_tokens(model, {"multi": 120, "Ġthe": 100, "a": 99})
    test = automatic_tokens(model, {"Ġthe": 130, "multi": 100, "a": 110})
    tokens = {"train": select, "select": select, "test": test}
    labels = label(model, tokens, {})
    assert [(c.name, c.kind, c.primary) for c in labels.contexts] == [
        ('after "multi"', "previous", True),
        ('after "the"', "previous", True),  # "a" has 99 on select; more than 100 tokens are after none (-1)
        ('is "x"', "current", False),
    ]
    assert labels.member["select"].sum(0).tolist() == [120, 100, 150]
    assert labels.member["test"].sum(0).tolist() == [100, 130, 150]
    assert labels.counts["test"].all() and not labels.named
    few = automatic_contexts(model, tokens, most=1)
    assert [c.name for c in few.contexts] == ['after "multi"', 'is "x"']
    assert label(model, tokens, {}, most=1).contexts == few.contexts
    more = automatic_contexts(model, tokens, least=99)
    assert 'after "a"' in [c.name for c in more.contexts]


def test_a_token_must_be_frequent_on_test_too(model: OneLayerModel) -> None:
    select = automatic_tokens(model, {"multi": 150, "a": 120})
    test = automatic_tokens(model, {"multi": 150, "a": 99})
    found = automatic_contexts(model, {"select": select, "test": test})
    assert [c.name for c in found.contexts if c.primary] == ['after "multi"']


def test_a_token_before_more_than_half_is_no_context(model: OneLayerModel) -> None:
    half = automatic_tokens(model, {"multi": 200})
    most = automatic_tokens(model, {"multi": 201})
    assert automatic_contexts(model, {"select": half, "test": half}).contexts[0].name == 'after "multi"'
    for tokens in ({"select": most, "test": half}, {"select": half, "test": most}):
        with pytest.raises(UserError, match="some token must stand before or after 100 of the parent's tokens"):
            automatic_contexts(model, tokens)


def test_names_stay_distinct(model: OneLayerModel) -> None:
    ids = [model.token_id(token) for token in ("the", "Ġthe", "Ċ", "a")]
    assert module._shown(model, ids) == ["the", " the", "\\n", "a"]
    assert module._shown(model, ids[1:]) == ["the", "\\n", "a"]
    assert module._shown(model, [ids[0], ids[0]]) == [f"the (token {ids[0]})"] * 2


def test_contexts_are_found_in_other_tokens(model: OneLayerModel, hyphens: tuple) -> None:
    """Tokens on which the parent is weak or silent are labelled by the same contexts."""
    labels = label(model, *hyphens, "hyphen")
    contexts = contexts_of(model, ["a two-thirds share of 7-day trips"])
    every = token_set(contexts, np.arange(20))
    found = member(model, labels.contexts, every, contexts)
    text = [model.vocabulary[i] for i in every.current]
    assert [text[i] for i in np.flatnonzero(found.any(1))] == ["-", "-"]
    assert found.sum(0).tolist() == [1, 1, 0]


def test_permuted_labels_keep_their_counts(model: OneLayerModel, hyphens: tuple) -> None:
    labels = label(model, *hyphens, "hyphen")
    other = labels.permuted(0)
    assert other.member["test"].sum(0).tolist() == labels.member["test"].sum(0).tolist()
    assert (other.member["test"].any(1) == labels.counts["test"]).all()
    assert (other.member["test"] != labels.member["test"]).any()
    np.testing.assert_array_equal(labels.permuted(0).member["test"], other.member["test"])


# --- rules ----------------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_counts(model: OneLayerModel, hyphens: tuple, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"digit": r"\d-", "multi": "multi-", "any": "-", "never": "zzz"}))
    labels = label(model, *hyphens, str(path))
    assert labels.member["select"].sum(0).tolist() == [40, 40, 90, 0]  # 5 ranges of years are digits too
    assert [(c.name, c.kind, c.primary) for c in labels.contexts] == [
        ("digit", "rule", True),
        ("multi", "rule", True),
        ("any", "rule", False),
        ("never", "rule", True),
    ]


def test_rules_with_too_few_tokens(model: OneLayerModel, hyphens: tuple) -> None:
    rule = "a context needs at least 30 of the parent's tokens on select and on test"
    with pytest.raises(UserError, match=f"{rule}; got never 0, range 5: choose other contexts"):
        rule_contexts(model, *hyphens, {"never": "zzz", "range": "1990-"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file of rules must be there"),
        ('{"one": "a"}', "at least two names"),
        ('["a", "b"]', "at least two names"),
        ('{"one": "a", "two": 2}', "at least two names"),
        ('{"one": "(", "two": "b"}', r"rule must be a regular expression; got one: \("),
        ("{", "mend the file"),
    ],
)
def test_bad_files_of_rules(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_rules(path)


def test_unknown_contexts(model: OneLayerModel, hyphens: tuple) -> None:
    with pytest.raises(
        UserError, match=r"contexts must be auto, hyphen, automatic or a \.json file of rules; got 'days'"
    ):
        label(model, *hyphens, "days")
