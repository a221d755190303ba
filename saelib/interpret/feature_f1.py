"""How well each feature detects given tokens: F1, precision, recall."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from saelib.acts.store import ActivationStore
from saelib.sae.sae import SAE
from saelib.sae.stream import Entries, block_rows, stream


@torch.no_grad()
def feature_f1(store: ActivationStore, sae: SAE, tokens: list[int]) -> pd.DataFrame:
    """Each feature as a detector of some tokens, over every token of a store: it says yes where it fires.

        F1 = 2 hits / (fired + marked)

    One row a feature, in order: feature, f1, precision, recall, fires_on (share of all tokens), max_activation.
    """
    marked = torch.from_numpy(np.isin(store.token_ids, tokens))
    fired = torch.zeros(sae.cfg.d_sae)
    hits = torch.zeros(sae.cfg.d_sae)
    largest = torch.zeros(sae.cfg.d_sae)
    for rows, x in store.blocks(block_rows(sae.cfg.d_sae)):
        acts = sae.encode(x.to(sae.device)).cpu()
        fires = acts > 0
        fired += fires.sum(0)
        hits += fires[marked[rows]].sum(0)
        largest = torch.maximum(largest, acts.amax(0))
    total = int(marked.sum())
    return pd.DataFrame(
        {
            "feature": np.arange(sae.cfg.d_sae),
            "f1": (2 * hits / (fired + total)).numpy(),
            "precision": (hits / fired.clamp_min(1)).numpy(),
            "recall": (hits / max(total, 1)).numpy(),
            "fires_on": (fired / store.n_tokens).numpy(),
            "max_activation": largest.numpy(),
        }
    )


# --- the threshold that marks best -------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """A threshold `value > tau` and how well what exceeds it marks some tokens."""

    tau: float
    f1: float
    """2 hits / (above + marked)."""
    purity: float
    """Share of the tokens above tau that are marked; 0 where none is above."""
    recall: float
    """Share of the marked tokens that are above tau; 0 where none is marked."""


def cut_at(values: Float[np.ndarray, " n"], marked: Bool[np.ndarray, " n"], tau: float) -> Cut:
    """How well `value > tau` marks some tokens."""
    above, total = values > tau, int(marked.sum())
    hits, fired = int((above & marked).sum()), int(above.sum())
    return Cut(float(tau), 2 * hits / max(fired + total, 1), hits / max(fired, 1), hits / max(total, 1))


def best_cut(values: Float[np.ndarray, " n"], marked: Bool[np.ndarray, " n"]) -> Cut:
    """The threshold of best F1 among all that part some of a feature's activations (0 where it is silent) from others.

    tau lies midway between the lowest activation above it and the next lower one; of equal F1 the highest tau.
    """
    firing = np.flatnonzero(values > 0)
    order = firing[np.argsort(-values[firing], kind="stable")]
    ordered, hits = values[order].astype(np.float64), np.cumsum(marked[order])
    if not len(ordered) or not hits[-1]:
        return cut_at(values, marked, float(values.max(initial=0.0)))
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + int(marked.sum()))
    below = np.append(ordered[1:], 0.0)
    f1[ordered == below] = 0  # equal values are never parted
    best = int(np.argmax(f1))
    return cut_at(values, marked, float((ordered[best] + below[best]) / 2))


@torch.no_grad()
def best_feature_f1(store: ActivationStore, sae: SAE, marked: Bool[np.ndarray, " n_tokens"]) -> pd.DataFrame:
    """Each feature as a detector of some tokens, at its threshold of best F1 over every token of a store.

        F1(t) = 2 hits(t) / (above(t) + marked),     above(t) = tokens with activation >= t

    with t over the feature's activations on marked tokens: no other t can be best. Held are the activations on marked
    tokens alone, (n_marked, d_sae); all others are counted between them, block by block.

    One row a feature, in order: feature, f1, precision, recall, fires_on (share of all tokens, at that threshold),
    at_least (the lowest activation that counts), max_activation. A feature that is silent on every marked token has f1 0.
    """
    d_sae, rows = sae.cfg.d_sae, np.flatnonzero(marked)
    block = block_rows(d_sae)
    parts = [
        sae.encode(store.read(rows[i : i + block]).to(sae.device).float()).cpu().numpy()
        for i in range(0, len(rows), block)
    ]
    levels = np.sort(np.concatenate([np.empty((0, d_sae), dtype=np.float32), *parts]).T, axis=1)  # (d_sae, n_marked)
    counted = _CountedBetween(levels, marked)
    stream(sae, store, None, [counted])
    hits = np.arange(len(rows), 0, -1)  # at levels[:, i], where those before it are lower
    above = hits + counted.at_or_above()
    f1 = np.where(levels > 0, 2 * hits / (above + len(rows)), 0.0)
    best = f1.argmax(1)[:, None] if len(rows) else np.zeros((d_sae, 0), dtype=np.int64)

    def at_best(table: np.ndarray) -> np.ndarray:
        each = np.take_along_axis(np.broadcast_to(table, levels.shape), best, axis=1)
        return each[:, 0] if len(rows) else np.zeros(d_sae)

    live = at_best(f1) > 0
    return pd.DataFrame(
        {
            "feature": np.arange(d_sae),
            "f1": at_best(f1),
            "precision": np.where(live, at_best(hits / above), 0.0),
            "recall": np.where(live, at_best(hits / max(len(rows), 1)), 0.0),
            "fires_on": np.where(live, at_best(above) / store.n_tokens, 0.0),
            "at_least": at_best(levels),
            "max_activation": counted.largest,
        }
    )


class _CountedBetween:
    """Counts, for each feature, unmarked tokens between the sorted activations on marked ones."""

    def __init__(self, levels: Float[np.ndarray, "d_sae n_marked"], marked: Bool[np.ndarray, " n_tokens"]) -> None:
        self.levels, self.marked = levels, marked
        self.counts = np.zeros((levels.shape[0], levels.shape[1] + 1), dtype=np.int32)
        self.largest = np.zeros(len(levels), dtype=np.float32)

    def add(self, entries: Entries) -> None:
        """Take the entries of the next block."""
        ends = np.searchsorted(entries.feature, np.arange(len(self.levels) + 1))
        for j in np.flatnonzero(np.diff(ends)):
            part = slice(ends[j], ends[j + 1])
            value = entries.value[part]
            self.largest[j] = max(self.largest[j], value.max())
            place = np.searchsorted(self.levels[j], value[~self.marked[entries.row[part]]], side="right")
            self.counts[j] += np.bincount(place, minlength=self.counts.shape[1]).astype(np.int32)

    def at_or_above(self) -> np.ndarray:
        """For each feature and level, unmarked tokens whose activation is at least the level."""
        return np.cumsum(self.counts[:, :0:-1], axis=1, dtype=np.int64)[:, ::-1]
