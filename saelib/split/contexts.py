"""Contexts that children are to be told apart by: from the text alone, never from an SAE.

* the hyphen's classes: number, count, and compound, which is what remains and is shown beside;
* a user's rules: name -> regular expression on the text up to and including the token;
* automatic: tokens that often stand just before or just after the parent's tokens. Frequent *current* tokens are contexts of
  kind "current", never averaged in: they are a lookup, which the rest of the SAE does as well as any child.

`label` makes contexts and labels P; `member` says of any other tokens which of these contexts they are in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Integer

from saelib.acts.store import POSITIONS
from saelib.base.cache import read_json
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel
from saelib.split.classes import CLASSES, classify, find_hyphen, hyphen_token
from saelib.split.tokens import TokenSet

LEAST = 100
"""An automatic context has at least this many tokens on select and on test."""
LEAST_NAMED = 30
"""At least one rule must match this many tokens on select and on test."""
MOST_CONTEXTS = 16
"""Automatic contexts of each kind: the most frequent on select."""
_LOOK_BACK = {"class": 8, "rule": 12}
"""Tokens of text before the token that a class or a rule is given."""

Kind = Literal["class", "rule", "previous", "next", "current"]


class Context(NamedTuple):
    """One context, with all that is needed to find it in other tokens."""

    name: str
    kind: Kind
    primary: bool
    """Averaged into S_k."""
    match: str | int
    """A class's name, a rule's expression, or a token's id."""


@dataclass(frozen=True)
class Labels:
    """Contexts and the tokens that are in them."""

    contexts: tuple[Context, ...]
    """What is to be told apart."""
    member: dict[str, Bool[np.ndarray, "_ m"]]
    """For each split, the contexts of each token."""
    counts: dict[str, Bool[np.ndarray, " _"]]
    """For each split, the tokens that take part: all, or for classes and rules those that are in one."""

    @property
    def named(self) -> bool:
        """Whether the contexts were asked for (classes or rules), not found."""
        return self.contexts[0].kind in ("class", "rule")

    def purity(self, split: str = "test") -> float:
        """Share of the tokens that are in the contexts asked about."""
        return float(self.counts[split].mean()) if len(self.counts[split]) else 0.0

    def permuted(self, seed: int) -> Labels:
        """The same labels in random order among the tokens that take part: a control in which nothing can be split."""
        rng, member = np.random.default_rng(seed), {}
        for split, each in self.member.items():
            rows = np.flatnonzero(self.counts[split])
            member[split] = each.copy()
            member[split][rows] = each[rng.permutation(rows)]
        return Labels(self.contexts, member, self.counts)


def label(
    model: LanguageModel,
    tokens: Mapping[str, TokenSet],
    contexts_of: Mapping[str, np.ndarray],
    how: str = "auto",
    least: int = LEAST,
    most: int = MOST_CONTEXTS,
) -> Labels:
    """Label a parent's tokens.

    Args:
        tokens: P of train, select and test.
        contexts_of: for each split, the token ids (n_contexts, 128) of the store that `TokenSet.rows` count in.
        how: `auto` (the hyphen's classes when most of P on select is "-", else automatic), `hyphen`, `automatic`, or the path
            of a JSON file of rules.
        least: tokens that an automatic context must have on select and on test.
        most: automatic contexts of each kind.

    Raises:
        UserError: an unknown way, `hyphen` for a tokenizer without that token, a file without rules or with a bad one, no
            context with enough tokens.
    """
    if how == "auto":
        hyphen, current = find_hyphen(model), tokens["select"].current
        mostly = hyphen is not None and len(current) > 0 and (current == hyphen).mean() > 0.5
        how = "hyphen" if mostly else "automatic"
    if how == "hyphen":
        return hyphen_contexts(model, tokens, contexts_of)
    if how == "automatic":
        return automatic_contexts(model, tokens, least, most)
    if Path(how).suffix == ".json":
        return rule_contexts(model, tokens, contexts_of, read_rules(Path(how)))
    raise UserError("contexts must be auto, hyphen, automatic or a .json file of rules", repr(how), "pass one")


def hyphen_contexts(
    model: LanguageModel, tokens: Mapping[str, TokenSet], contexts_of: Mapping[str, np.ndarray]
) -> Labels:
    """The hyphen's classes; `compound` is not primary. Only hyphens that are in a class take part.

    Raises:
        UserError: too few tokens are in a class, or the tokenizer has no token "-".
    """
    contexts = tuple(Context(name, "class", name != "compound", name) for name in CLASSES)
    return _named(model, tokens, contexts_of, contexts)


def rule_contexts(
    model: LanguageModel,
    tokens: Mapping[str, TokenSet],
    contexts_of: Mapping[str, np.ndarray],
    rules: Mapping[str, str],
) -> Labels:
    """A user's rules: each expression must match the text up to and including the token at its end; the first that does
    counts. A rule that holds more than half of the tokens that take part is not primary.

    Raises:
        UserError: no rule matches `LEAST_NAMED` tokens on select and on test.
    """
    contexts = tuple(Context(name, "rule", True, rule) for name, rule in rules.items())
    return _named(model, tokens, contexts_of, contexts)


def _named(
    model: LanguageModel,
    tokens: Mapping[str, TokenSet],
    contexts_of: Mapping[str, np.ndarray],
    contexts: tuple[Context, ...],
) -> Labels:
    """Labels by classes or rules, with the primary ones decided on select."""
    found = {split: member(model, contexts, part, contexts_of[split]) for split, part in tokens.items()}
    counts = {split: np.asarray(each.any(axis=1)) for split, each in found.items()}
    fewest = np.minimum(found["select"].sum(0), found["test"].sum(0))
    if fewest.max(initial=0) < LEAST_NAMED:
        got = ", ".join(f"{c.name} {n}" for c, n in zip(contexts, fewest, strict=True))
        rule = f"a context needs at least {LEAST_NAMED} of the parent's tokens on select and on test"
        raise UserError(rule, got, "choose other contexts, lower tau, or use more text")
    share = found["select"].sum(0) / max(int(counts["select"].sum()), 1)
    contexts = tuple(c._replace(primary=c.primary and bool(s <= 0.5)) for c, s in zip(contexts, share, strict=True))
    return Labels(contexts, found, counts)


def automatic_contexts(
    model: LanguageModel, tokens: Mapping[str, TokenSet], least: int = LEAST, most: int = MOST_CONTEXTS
) -> Labels:
    """Tokens that stand before or after at least `least` and at most half of P's tokens, on select and on test.

    Args:
        most: contexts of each kind; the most frequent on select.

    Raises:
        UserError: no previous or next token is frequent enough.
    """
    contexts: list[Context] = []
    for kind in get_args(Kind)[2:]:
        select, test = (getattr(tokens[split], kind) for split in ("select", "test"))
        ids, counts = np.unique(select[select >= 0], return_counts=True)
        on_test = np.array([(test == i).sum() for i in ids], dtype=np.int64)
        fits = (counts >= least) & (on_test >= least) & (counts <= len(select) / 2) & (on_test <= len(test) / 2)
        order = np.argsort(-counts[fits], kind="stable")[:most]
        chosen = [int(i) for i in ids[fits][order]]
        names = _shown(model, chosen)
        before = {"previous": "after", "next": "before", "current": "is"}[kind]
        contexts += [Context(f'{before} "{n}"', kind, kind != "current", i) for i, n in zip(chosen, names, strict=True)]
    if not any(context.primary for context in contexts):
        rule = f"some token must stand before or after {least} of the parent's tokens and at most half of them"
        got = f"{len(tokens['select']):,} tokens on select, {len(tokens['test']):,} on test"
        raise UserError(rule, got, "use more text, lower tau, or pass rules")
    nothing = np.zeros((0, 128), dtype=np.int64)  # no text is needed
    found = {split: member(model, contexts, part, nothing) for split, part in tokens.items()}
    return Labels(tuple(contexts), found, {split: np.ones(len(part), dtype=bool) for split, part in tokens.items()})


def member(
    model: LanguageModel, contexts: Sequence[Context], tokens: TokenSet, contexts_of: np.ndarray
) -> Bool[np.ndarray, "n m"]:
    """Which of the contexts each token is in: of P, or of tokens on which the parent is weak or silent.

    Args:
        contexts_of: the token ids (n_contexts, 128) of the tokens' split.
    """
    out = np.zeros((len(tokens), len(contexts)), dtype=bool)
    for c, context in enumerate(contexts):
        if context.kind in ("previous", "next", "current"):
            out[:, c] = getattr(tokens, context.kind) == context.match
    if any(context.kind == "class" for context in contexts):
        rows = np.flatnonzero(tokens.current == hyphen_token(model))
        before = _decoded(model, tokens.rows[rows], contexts_of, (-_LOOK_BACK["class"], 0))
        after = _decoded(model, tokens.rows[rows], contexts_of, (1, 2))
        classes = np.array([classify(b, a) or "" for b, a in zip(before, after, strict=True)], dtype=object)
        for c, context in enumerate(contexts):
            if context.kind == "class":
                out[rows, c] = classes == context.match
    rules = {c: re.compile(f"(?:{context.match})$") for c, context in enumerate(contexts) if context.kind == "rule"}
    if rules:
        for i, text in enumerate(_decoded(model, tokens.rows, contexts_of, (-_LOOK_BACK["rule"], 1))):
            first = next((c for c, rule in rules.items() if rule.search(text)), None)
            if first is not None:
                out[i, first] = True
    return out


def read_rules(path: Path) -> dict[str, str]:
    """The rules of a JSON file: an object of at least two names with an expression each.

    Raises:
        UserError: the file is missing or not JSON, holds something else, or an expression is not one.
    """
    if not path.is_file():
        raise UserError("file of rules must be there", path, "pass a JSON file: name -> regular expression")
    found = read_json(path, "mend the file")
    if not isinstance(found, dict) or len(found) < 2 or not all(isinstance(rule, str) for rule in found.values()):
        got = json.dumps(found)[:60]
        raise UserError("rules must be a JSON object of at least two names with an expression each", got, "mend it")
    for name, rule in found.items():
        try:
            re.compile(f"(?:{rule})$")
        except re.error as error:
            raise UserError("rule must be a regular expression", f"{name}: {rule} ({error})", "mend it") from error
    return found


def _decoded(
    model: LanguageModel, rows: Integer[np.ndarray, " n"], contexts_of: np.ndarray, span: tuple[int, int]
) -> list[str]:
    """The text of the tokens from `span[0]` to before `span[1]` places beside each row, inside its context."""
    texts, parts = {}, []
    for row in rows:
        context, place = divmod(int(row), POSITIONS)
        begin, end = max(1, place + 1 + span[0]), max(1, place + 1 + span[1])  # place 0 is BOS
        parts.append(tuple(contexts_of[context, begin:end].tolist()))
    unique = list(dict.fromkeys(parts))
    texts = dict(zip(unique, model.tokenizer.decode_batch([list(part) for part in unique]), strict=True))
    return [texts[part] for part in parts]


def _shown(model: LanguageModel, ids: Sequence[int]) -> list[str]:
    """Tokens as words: without spaces around them, unless that makes two alike; line breaks and the like escaped."""
    texts = [model.vocabulary[i] for i in ids]
    exact = [text.encode("unicode_escape").decode("ascii") if text.isspace() else text for text in texts]
    short = [text.strip() or text for text in exact]
    shown = [s if short.count(s) == 1 else e for s, e in zip(short, exact, strict=True)]
    return [s if shown.count(s) == 1 else f"{s} (token {i})" for s, i in zip(shown, ids, strict=True)]
