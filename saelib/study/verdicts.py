"""The study's runs put to the score: its parent, its hyphen classes, its held-out text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.progress import report_progress
from saelib.lm.model import LanguageModel, Logits
from saelib.sae.sae import SAE
from saelib.sae.scaled import scaled_acts
from saelib.split.choose import SelectSummary, choose, clusters_as_children, score_split
from saelib.split.classes import CLASSES, hyphen_labels
from saelib.split.evidence import Tokens
from saelib.split.score import BOOTSTRAP_DRAWS, Score
from saelib.study import study
from saelib.study.profiles import Profile

At = tuple[Tensor, Tensor]
"""Index of a position in each context of a batch."""


@dataclass(frozen=True)
class ParentTokens:
    """The tokens of a split on which the parent exceeds tau."""

    tokens: Tokens
    rows: Integer[np.ndarray, " n"]
    """Their rows in the split's activation store."""
    next_token: Integer[np.ndarray, " n"]
    """The token after each; -1 at a context's end."""


@functools.cache
def parent_tokens(profile: Profile, split: str, chosen: study.Parent) -> ParentTokens:
    """P of a split, with the hyphen's classes; a token that is no hyphen between words is in none."""
    store, model = study.activations(profile, split), study.language_model(profile)
    parent = study.parent_on(profile, split, chosen.feature)
    rows = np.flatnonzero(parent > chosen.tau)
    label = np.full(len(rows), -1, dtype=np.int64)
    is_hyphen = store.token_ids[rows] == model.hyphen
    label[is_hyphen] = hyphen_labels(store, model, rows[is_hyphen])
    context, position = np.divmod(rows, POSITIONS)
    next_token = store.token_ids[np.minimum(rows + 1, store.n_tokens - 1)].astype(np.int64)
    next_token[position == POSITIONS - 1] = -1
    document = study.tokens(profile).documents_of(split, context, position + 1)
    tokens = Tokens(store.rows(rows), torch.from_numpy(parent[rows]), label, document)
    return ParentTokens(tokens, rows, next_token)


def any_tokens(profile: Profile, chosen: study.Parent) -> Iterator[Tokens]:
    """Tokens of every kind: the first `cofire_contexts` contexts of the select split."""
    store = study.activations(profile, "select")
    parent = study.parent_on(profile, "select", chosen.feature)
    last = min(profile.cofire_contexts * POSITIONS, store.n_tokens)
    for begin in range(0, last, 16_384):
        rows = np.arange(begin, min(begin + 16_384, last))
        none = np.full(len(rows), -1, dtype=np.int64)
        yield Tokens(store.read(rows).float(), torch.from_numpy(parent[rows]), none, none)


def choose_children(profile: Profile, sae: SAE, chosen: study.Parent) -> SelectSummary:
    """The children of the study's parent in a dictionary, on the select split."""
    select = parent_tokens(profile, "select", chosen).tokens
    return choose(sae, any_tokens(profile, chosen), [select], len(CLASSES), chosen.tau)


def score_of(
    profile: Profile, sae: SAE, chosen: study.Parent, *, warm: bool = False, draws: int = BOOTSTRAP_DRAWS
) -> tuple[Score, SelectSummary]:
    """The verdict on a dictionary for the study's parent and hyphen classes."""
    summary = choose_children(profile, sae, chosen)
    test = parent_tokens(profile, "test", chosen).tokens
    warm_parent = chosen.feature if warm else None
    W_U = study.language_model(profile).W_U
    score = score_split(sae, CLASSES, summary, [test], chosen.tau, W_U=W_U, warm_parent=warm_parent, draws=draws)
    return score, summary


def kmeans_control(profile: Profile, chosen: study.Parent) -> pd.DataFrame:
    """K-means on the parent's tokens in the place of a dictionary; columns as in `clusters_as_children`, classes named."""
    select, test = (parent_tokens(profile, split, chosen).tokens for split in ("select", "test"))
    frame = clusters_as_children(select, test, len(CLASSES), chosen.tau)
    return frame.assign(**{"class": [CLASSES[c] for c in frame["class"]]})


def permuted_control(profile: Profile, sae: SAE, chosen: study.Parent, draws: int, seed: int = 0) -> pd.DataFrame:
    """The verdict on a dictionary under shuffled class labels, the whole choice of children made anew each time.

    One row a draw: split (0 or 1), classes_passed, best_f1.
    """
    rng = np.random.default_rng(seed)
    select, test = (parent_tokens(profile, split, chosen).tokens for split in ("select", "test"))
    kinds = list(any_tokens(profile, chosen))
    rows = []
    for _ in range(draws):
        summary = choose(sae, kinds, [select.permuted(rng)], len(CLASSES), chosen.tau)
        score = score_split(sae, CLASSES, summary, [test.permuted(rng)], chosen.tau, draws=200)
        rows.append([float(score.verdict == "split"), score.classes_passed, float(np.mean(score.best_f1))])
        report_progress("permuted labels", len(rows), draws)
    return pd.DataFrame(rows, columns=["split", "classes_passed", "best_f1"])


@torch.no_grad()
def causal_effects(
    profile: Profile, sae: SAE, features: Sequence[int | None], chosen: study.Parent, split: str = "test"
) -> Float[np.ndarray, "n_features n_classes"]:
    """What taking a feature away does to each class's true next tokens.

    What the feature adds to the reconstruction, `c_j d_j` (c the SAE's `contributions`), is subtracted from the activation
    at a labelled token of P, all else (the SAE's error included) left as it is: `x - c_j d_j`. The entry is the mean change
    in log-probability (nats) of the class's true next tokens; a class without tokens gives NaN. A child of class c lowers
    those of c and leaves the other classes' alone: c's entry less the mean of the others' is its causal effect, negative
    for a child that does its work. Measured on the first `profile.causal_tokens` tokens of each class.
    """
    model, store = study.language_model(profile), study.activations(profile, split)
    part = parent_tokens(profile, split, chosen)
    usable = np.flatnonzero((part.tokens.label >= 0) & (part.next_token >= 0))
    keep = np.sort(
        np.concatenate([usable[part.tokens.label[usable] == c][: profile.causal_tokens] for c in range(len(CLASSES))])
    )
    label, target = part.tokens.label[keep], part.next_token[keep]
    changes = np.zeros((len(features), len(keep)))
    for here, at, clean, logits in _spliced(model, store, part.rows[keep]):
        added = sae.contributions(sae.encode(clean[at]), clean[at])

        def true_next(x: Tensor, at: At = at, here: np.ndarray = here, logits: Logits = logits) -> Tensor:
            return logits(x, at).log_softmax(-1).gather(1, torch.from_numpy(target[here])[:, None])[:, 0]

        base = true_next(clean)
        for k, j in enumerate(features):
            if j is not None:
                without = clean.clone()
                without[at] -= added[:, j, None] * sae.W_dec[j]
                changes[k, here] = (true_next(without) - base).numpy()
    by_class = [changes[:, label == c] for c in range(len(CLASSES))]
    return np.stack([c.mean(1) if c.shape[1] else np.full(len(features), np.nan) for c in by_class], axis=1)


@torch.no_grad()
def usefulness(profile: Profile, saes: Mapping[str, SAE], chosen: study.Parent) -> pd.DataFrame:
    """What each SAE keeps of the parent's test tokens, at matched L0: all keep their k largest activations a token.

    k is the smallest mean L0 on these tokens. One row an SAE: l0 (its own, on P), k, fvu, loss_recovered (as `Quality`, with
    the activation replaced at the tokens of P alone and the loss that of their next tokens), tokens.
    Measured on the first `2 * profile.causal_tokens` tokens of P that have a next one.
    """
    model, store = study.language_model(profile), study.activations(profile, "test")
    part = parent_tokens(profile, "test", chosen)
    keep = np.flatnonzero(part.next_token >= 0)[: 2 * profile.causal_tokens]
    target = torch.from_numpy(part.next_token[keep])
    x = part.tokens.x[torch.from_numpy(keep)]
    l0 = {name: float((sae.encode(x) > 0).float().sum(1).mean()) for name, sae in saes.items()}
    k = max(round(min(l0.values())), 1)
    rebuilt = {name: sae.decode(_largest(scaled_acts(sae, x), sae.encode(x), k), x) for name, sae in saes.items()}
    outputs = {"clean": x, "zero": torch.zeros_like(x), **rebuilt}
    losses = dict.fromkeys(outputs, 0.0)
    for here, at, clean, logits in _spliced(model, store, part.rows[keep]):
        for name, out in outputs.items():
            replaced = clean.clone()
            replaced[at] = out[here]
            losses[name] += float(F.cross_entropy(logits(replaced, at), target[here], reduction="sum"))
    variance = float((x - x.mean(0)).square().sum())
    rows = {
        name: {
            "l0": l0[name],
            "k": k,
            "fvu": float((out - x).square().sum()) / variance,
            "loss_recovered": (losses["zero"] - losses[name]) / (losses["zero"] - losses["clean"]),
            "tokens": len(keep),
        }
        for name, out in rebuilt.items()
    }
    return pd.DataFrame(rows).T


def _spliced(
    model: LanguageModel, store: ActivationStore, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, At, Tensor, Logits]]:
    """The contexts of some rows, 16 at a time and no longer than they must be: which rows, where they are, `model.splice`."""
    context, position = np.divmod(rows, POSITIONS)
    order = np.argsort(position, kind="stable")  # contexts of like length together
    for begin in range(0, len(rows), 16):
        here = order[begin : begin + 16]
        tokens = np.asarray(store.contexts[context[here]])[:, : position[here].max() + 2].astype(np.int64)
        at = (torch.arange(len(here)), torch.from_numpy(position[here] + 1))
        yield here, at, *model.splice(torch.from_numpy(tokens))


def _largest(strength: Tensor, acts: Tensor, k: int) -> Tensor:
    """The activations of each row's k strongest features, the others zero."""
    index = strength.topk(min(k, strength.shape[1]), dim=1).indices
    return torch.zeros_like(acts).scatter_(1, index, acts.gather(1, index))
