"""What the embedded model's card claims, as functions that measure it: loss beside baselines, and what the MLP is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer

from saelib.lm.model import OneLayerModel
from saelib.sae.evaluate import next_token_loss
from saelib.text.tokens import TokenStore

Pairs = tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]


def prediction_pairs(contexts: Integer[np.ndarray, "n 128"]) -> Pairs:
    """(previous token, token) at every prediction that the card's losses average over: all but the one made at BOS."""
    return contexts[:, 1:-1].reshape(-1).astype(np.int64), contexts[:, 2:].reshape(-1).astype(np.int64)


class CountModel:
    """Unigram and bigram models by counting.

    Unigram: P(b) = (c(b) + 1) / (N + V). Bigram: P(b|a) = (c(ab) + k P(b)) / (c(a) + k), k fitted on select data.
    """

    def __init__(self, train: Pairs, d_vocab: int) -> None:
        before, after = train
        self.d_vocab = d_vocab
        self.unigram = (np.bincount(after, minlength=d_vocab) + 1) / (len(after) + d_vocab)
        self.before = np.bincount(before, minlength=d_vocab)
        self.codes, self.counts = np.unique(before * d_vocab + after, return_counts=True)

    def unigram_loss(self, pairs: Pairs) -> float:
        """Mean of -log P(token)."""
        return float(-np.log(self.unigram[pairs[1]]).mean())

    def bigram_loss(self, pairs: Pairs, k: float) -> float:
        """Mean of -log P(token | previous token)."""
        before, after = pairs
        code = before * self.d_vocab + after
        at = np.searchsorted(self.codes, code).clip(max=len(self.codes) - 1)
        count = np.where(self.codes[at] == code, self.counts[at], 0)
        return float(-np.log((count + k * self.unigram[after]) / (self.before[before] + k)).mean())


@torch.no_grad()
def mean_mlp_out(model: OneLayerModel, contexts: Integer[np.ndarray, "n 128"]) -> Float[torch.Tensor, " d_model"]:
    """Mean `mlp_out` over positions after BOS."""
    total = torch.zeros(model.cfg.d_model, dtype=torch.float64)
    for begin in range(0, len(contexts), 32):
        tokens = torch.from_numpy(contexts[begin : begin + 32].astype(np.int64))
        total += model.mlp_out(model.residual_mid(tokens))[:, 1:].double().sum((0, 1))
    return (total / (len(contexts) * (contexts.shape[1] - 1))).float()


@torch.no_grad()
def losses(model: OneLayerModel, contexts: Integer[np.ndarray, "n 128"], mean: torch.Tensor) -> dict[str, float]:
    """Next-token loss as trained, with `mlp_out` zeroed, and with it replaced by its mean (positions after BOS)."""
    names = ("validation_loss", "loss_zero_ablated", "loss_mean_ablated")
    sums = dict.fromkeys(names, 0.0)
    for begin in range(0, len(contexts), 32):
        tokens = torch.from_numpy(contexts[begin : begin + 32].astype(np.int64))
        mid = model.residual_mid(tokens)
        clean = model.mlp_out(mid)
        zeroed, averaged = clean.clone(), clean.clone()
        zeroed[:, 1:], averaged[:, 1:] = 0, mean
        for name, out in zip(names, (clean, zeroed, averaged), strict=True):
            sums[name] += next_token_loss(model, tokens, mid, out)[:, 1:].sum().item()
    return {name: total / (len(contexts) * (contexts.shape[1] - 2)) for name, total in sums.items()}


def measure(model: OneLayerModel, store: TokenStore, n_contexts: int) -> dict[str, Any]:
    """All numbers of the card on the first `n_contexts` test contexts; counts come from the train split."""
    train, select, test = (np.asarray(store.contexts(split)) for split in ("train", "select", "test"))
    test = test[:n_contexts]
    counts = CountModel(prediction_pairs(train), model.cfg.d_vocab)
    grid = (10.0, 30.0, 100.0, 300.0, 1000.0)
    k = min(grid, key=lambda k: counts.bigram_loss(prediction_pairs(select[:n_contexts]), k))
    pairs = prediction_pairs(test)
    measured = losses(model, test, mean_mlp_out(model, select[:n_contexts]))
    clean = measured["validation_loss"]
    return {
        **measured,
        "rise_zero_ablated": measured["loss_zero_ablated"] - clean,
        "rise_mean_ablated": measured["loss_mean_ablated"] - clean,
        "unigram_loss": counts.unigram_loss(pairs),
        "bigram_loss": counts.bigram_loss(pairs, k),
        "bigram_k": k,
        "test_predictions": len(pairs[0]),
    }


def measure_sample(model: OneLayerModel, splits: Sequence[np.ndarray]) -> dict[str, float]:
    """The losses on a small part of the smoke profile's text (train, select, test contexts), for checking the card."""
    return losses(model, splits[2][:150], mean_mlp_out(model, splits[1][:100]))


def sample(model: OneLayerModel, prompt: str, n_tokens: int, seed: int, temperature: float = 0.8) -> str:
    """Text continued by sampling."""
    generator = torch.Generator().manual_seed(seed)
    tokens = model.to_tokens(prompt)
    with torch.no_grad():
        for _ in range(n_tokens):
            mid = model.residual_mid(tokens)
            logits = model.logits(mid + model.mlp_out(mid))[0, -1]
            following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            tokens = torch.cat([tokens, following[None]], 1)
    return str(model.tokenizer.decode(tokens[0, 1:].tolist()))
