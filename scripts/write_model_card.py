# ruff: noqa: E501 (the card is prose)
"""Measure the embedded model and write its card (`card.json`, `CARD.md`) beside the weights.

python scripts/write_model_card.py     # needs the language model's text; about two minutes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer

from saelib.base.cache import atomic_path, read_json, write_json
from saelib.lm.model import EMBEDDED_FOLDER, OneLayerModel, load_embedded
from saelib.sae.evaluate import next_token_loss
from saelib.study import study
from saelib.study.profiles import get_profile
from saelib.text.corpus import build_token_store
from saelib.text.sources import STUDY_SOURCES
from saelib.text.tokens import TokenStore

Pairs = tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]
N_CONTEXTS = 2000
PROMPTS = ("The long-", "In 18", "How to ", "def get_")


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


def main() -> None:
    """Measure and write."""
    model = load_embedded()
    store = build_token_store(STUDY_SOURCES, EMBEDDED_FOLDER / "tokenizer.json", name="study")
    training = read_json(EMBEDDED_FOLDER / "training.json")
    numbers = measure(model, store, N_CONTEXTS)
    smoke = study.tokens(get_profile("smoke"))
    small = measure_sample(model, [np.asarray(smoke.contexts(split)) for split in ("train", "select", "test")])
    parameters = sum(tensor.numel() for tensor in model.weights.values())
    card = {
        "name": model.name, "d_model": model.cfg.d_model, "d_mlp": model.cfg.d_mlp, "n_heads": model.cfg.n_heads,
        "n_ctx": model.cfg.n_ctx, "d_vocab": model.cfg.d_vocab, "parameters": parameters,
        "training_tokens": training["tokens"], "training_seconds": training["seconds"], **numbers,
        "sample": small,
    }  # fmt: skip
    write_json(EMBEDDED_FOLDER / "card.json", card)
    curve = pd.read_csv(EMBEDDED_FOLDER / "loss_curve.csv")
    with atomic_path(EMBEDDED_FOLDER / "CARD.md") as temporary:
        temporary.write_text(card_text(card, training, curve, [sample(model, p, 40, i) for i, p in enumerate(PROMPTS)]))


def card_text(card: dict, training: dict, curve: pd.DataFrame, samples: list[str]) -> str:  # type: ignore[type-arg]
    """The card in Markdown, every number from `card` or `training`."""
    rows = [
        ("this model", card["validation_loss"]),
        ("this model, mlp_out zeroed", card["loss_zero_ablated"]),
        ("this model, mlp_out at its mean", card["loss_mean_ablated"]),
        ("bigram counts (smoothed)", card["bigram_loss"]),
        ("unigram counts", card["unigram_loss"]),
    ]
    table = "\n".join(f"| {name} | {loss:.3f} |" for name, loss in rows)
    every = max(len(curve) // 8, 1)
    points = ", ".join(
        f"{r.tokens / 1e6:.0f}M {r.validation_loss:.3f}" for r in curve.iloc[::-every][::-1].itertuples()
    )
    shown = "\n\n".join(f"    {' '.join(text.split())}" for text in samples)
    sources = ", ".join(f"{s['package']} {s['version']}" for s in training["text"]["sources"])
    return f"""# {card["name"]}: the embedded language model

A 1-layer GELU transformer of gelu-1l's architecture at a laptop's size: d_model {card["d_model"]}, {card["n_heads"]} heads,
d_mlp {card["d_mlp"]}, context {card["n_ctx"]}, vocabulary {card["d_vocab"]:,} (byte-level BPE over GPT-2's way of
cutting words, digits single), {card["parameters"]:,} parameters. Trained by `scripts/train_mini_lm.py` on {card["training_tokens"]:,} tokens (train split
only; {sources}) in {card["training_seconds"] / 60:.0f} minutes of wall time, pauses included, on a shared 2-core machine, seed {training["seed"]}; AdamW at a
learning rate of {training["learning_rate"]:g} ({training["steps"]:,} steps of {training["batch_contexts"]} contexts), with a linear rise and fall. Weights are stored in half precision.

## Loss, measured on {card["test_predictions"]:,} predictions of the test split

| model | nats a token |
|---|---|
{table}

Zeroing mlp_out raises the loss by {card["rise_zero_ablated"]:.3f}, replacing it by its mean by {card["rise_mean_ablated"]:.3f}: the
MLP, whose output the SAEs are trained on, matters. The baselines count the train split; the bigram's smoothing
(k = {card["bigram_k"]:g}) was fitted on the select split. Validation loss while training (select split): {points}.

## Why one pass over the text

Longer training lowers the loss and leaves what a linear probe can tell, but at the MLP's output the hyphen keeps less of the
direction that all its uses share: the best feature of a narrow SAE of 256 features marks hyphens that join words with F1 0.87
after one pass, 0.51 after three and 0.57 after five, one of 1,024 with 0.86, 0.75 and 0.80. The study splits a feature that is one in a
small SAE, so the model is trained on one pass, though 100M tokens were planned. The price: a loss a character of 1.035 (the first
edition's model, 41.0M tokens of another tokenizer, had 0.970) and a rise without the MLP of 0.88 (1.25). `docs/embedded_models.csv` (by `scripts/compare_models.py`) has losses a token and a
character, the probe's ceilings, purity and recall of models trained on 13.7M, 41.0M and 71.5M tokens, and the first edition's losses.

## Samples (temperature 0.8)

{shown}

## Limits

It is small, knows the style of its text and little else, and should be used for nothing but studying SAEs. Part of its
text are public benchmark sets, so benchmark scores of it would mean nothing. It is not gelu-1l: other text, other
tokenizer, half the width, and some 500 times fewer tokens; what an SAE shows of it need not hold there.
"""


if __name__ == "__main__":
    main()
