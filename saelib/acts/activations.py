"""A language model's activations on a text in three splits: what `saelib.split` works on.

    acts = saelib.activations("mini", "my-texts/", hook="blocks.0.hook_mlp_out")

Text is tokenised and split by document, activations are harvested once and kept in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from saelib.acts.store import POSITIONS, ActivationStore, harvest
from saelib.base.progress import report_progress
from saelib.lm.model import LanguageModel
from saelib.text.own_text import SPLIT, own_tokens, read_documents, split_documents
from saelib.text.tokens import TokenStore

SPLITS = ("train", "select", "test")
"""Children are trained on train, every choice is made on select, every reported number comes from test."""


@dataclass(frozen=True)
class Activations:
    """Three splits of activations at one hook, with the model and the tokens they come from."""

    model: LanguageModel
    """The language model; `model.hook_name` is the site."""
    stores: Mapping[str, ActivationStore]
    """For each of `SPLITS`, its activations."""
    texts: Mapping[str, tuple[TokenStore, str]]
    """For each of `SPLITS`, the token store and the name of the split there."""

    @property
    def device(self) -> torch.device:
        """Where a split is computed: where the model is. The stores lie on disk."""
        return self.model.device

    def read(self, split: str, rows: Integer[np.ndarray, " n"]) -> Float[Tensor, "n d_in"]:
        """The activations of ascending rows of a split, fp32, on the device."""
        return self.stores[split].read(rows).to(self.device).float()

    def documents(self, split: str, rows: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """The document each row of a split's store came from."""
        tokens, name = self.texts[split]
        context, position = np.divmod(rows, POSITIONS)
        return tokens.documents_of(name, context, position + 1)

    def beside(self, split: str, rows: Integer[np.ndarray, " n"], step: int) -> Integer[np.ndarray, " n"]:
        """The token `step` places after each row (before it, when negative); -1 outside its context."""
        context, position = np.divmod(rows, POSITIONS)
        place = position + step
        inside = (place >= 0) & (place < POSITIONS)
        found = self.stores[split].contexts[context, np.clip(place, 0, POSITIONS - 1) + 1].astype(np.int64)
        return np.where(inside, found, -1)


def harvest_splits(model: LanguageModel, tokens: TokenStore, n_contexts: Mapping[str, int]) -> Activations:
    """Harvest (or open) the activations of the first `n_contexts[split]` contexts of each split of a token store."""
    stores = {split: harvest(model, tokens, split, n_contexts[split], progress=report_progress) for split in SPLITS}
    return Activations(model, stores, {split: (tokens, split) for split in SPLITS})


def text_store(
    model: LanguageModel, text: str | Path | Sequence[str], *, max_contexts: int | None = None
) -> ActivationStore:
    """The model's activations on a text, harvested when first asked for and kept in the cache.

    Args:
        text: a text file (one document), a folder of `.txt` files (a document each), or a list of documents.
        max_contexts: harvest no more than this many contexts of 127 tokens.

    Raises:
        UserError: the file is not there or is no text, or holds fewer tokens than one context.
    """
    return stores_of_text(model, text, max_contexts=max_contexts)[0]


def stores_of_text(
    model: LanguageModel, text: str | Path | Sequence[str], *, max_contexts: int | None = None
) -> tuple[ActivationStore, TokenStore]:
    """As `text_store`, with the tokens: which document each came from."""
    tokens = own_tokens(model, read_documents(text))
    available = len(tokens.contexts(SPLIT))
    n_contexts = min(max_contexts or available, available)
    return harvest(model, tokens, SPLIT, n_contexts, progress=report_progress), tokens


def harvest_documents(model: LanguageModel, text: str | Path | Sequence[str]) -> Activations:
    """Harvest (or open) the activations of a text of one's own, split by document (see `saelib.text.own_text`)."""
    stores, texts = {}, {}
    for split, documents in split_documents(text).items():
        stores[split], tokens = stores_of_text(model, documents)
        texts[split] = (tokens, SPLIT)
    return Activations(model, stores, texts)
