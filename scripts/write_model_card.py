# ruff: noqa: E501 (the card is prose)
"""Measure the embedded model and write its card (`card.json`, `CARD.md`) beside the weights.

python scripts/write_model_card.py     # needs the language model's text; about two minutes
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from saelib.base.cache import atomic_path, read_json, write_json
from saelib.lm.model import EMBEDDED_FOLDER, load_embedded
from saelib.study import study
from saelib.study.model_card import measure, measure_sample, sample
from saelib.study.profiles import get_profile
from saelib.text.corpus import build_token_store
from saelib.text.sources import STUDY_SOURCES

N_CONTEXTS = 2000
PROMPTS = ("The long-", "In 18", "How to ", "def get_")


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
small SAE, so the model is trained on one pass. `docs/embedded_models.csv` (by `scripts/compare_models.py`) has losses a token and a
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
