"""The tokens on which features fire most, and examples from lower down, with the text around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.errors import UserError
from saelib.interpret.features import check_features, check_match
from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE
from saelib.sae.stream import Best, Encoder, stream

SAMPLE = 1000
"""Active tokens a feature that are kept to look at lower activations; the rank of a quantile is then within 3% (2 sd)."""


BEFORE, AFTER = 12, 6
"""Tokens of context shown around an example."""


class ExampleOptions(TypedDict, total=False):
    """How examples are ranked and shown."""

    raw: bool
    """Rank by `W_enc . (x - b_dec)`, the study's published score, over all tokens; default False."""
    before: int
    """Tokens of context before, which begins where the 128-token context does; default `BEFORE`."""
    after: int
    """And after; default `AFTER`."""
    sample: int
    """Active tokens a feature in which ranks are taken; default `SAMPLE`."""
    block: int | None
    """Rows that are encoded at a time; default by the SAE's width."""


class Found(NamedTuple):
    """What one pass found of one feature: the `place`-th that the accumulators counted."""

    place: int
    top: Best
    drawn: Best | None
    quantiles: Sequence[float]
    k: int


def highest_activating_tokens(
    sae: SAE,
    model: LanguageModel | None,
    store: ActivationStore,
    features: int | Sequence[int] | np.ndarray,
    k: int = 10,
    quantiles: Sequence[float] = (),
    **options: Unpack[ExampleOptions],
) -> pd.DataFrame:
    """The tokens on which features fire most, and examples from lower down, in one pass over the store.

    Memory does not grow with the store: `k` and, with quantiles, `sample` tokens a feature are kept.

    Args:
        model: for the tokens' texts; None shows token numbers.
        features: one feature or several; they share the pass.
        k: examples a feature from the top, and again at each quantile.
        quantiles: for each q the `k` tokens whose ranks lie nearest to q among the tokens on which the feature fires
            (0 the weakest, 1 the strongest). Ranks are those in a sample of `sample` active tokens, fixed by row numbers;
            exact for a feature that fires on no more than that.
        options: see `ExampleOptions`.

    Returns:
        a row an example: feature, band (`top` or `q=...`), rank (1 first), activation (or the raw score), row (of the
        store), context, position, token, tokens (the context's texts, a list), activations (the same feature on each of
        them), at (where the token is in that list). A feature that never fires has no rows.

    Raises:
        UserError: a feature out of range, a quantile outside [0, 1], an SAE that does not belong to the model or store,
            activations that are not finite.
    """
    chosen = check_features(sae, features)
    check_match(sae, model, store)
    raw, sample = options.get("raw", False), options.get("sample", SAMPLE)
    if k < 1 or sample < 1:
        raise UserError("k and sample must be at least 1", f"k={k}, sample={sample}", "ask for one example or more")
    for q in quantiles:
        if not 0 <= q <= 1:
            raise UserError("a quantile must lie in [0, 1]", q, "pass 0.5 for the median of the active tokens")
    top = Best(len(chosen), k)
    drawn = Best(len(chosen), sample, by="sample") if len(quantiles) else None
    stream(sae, store, chosen, [top, drawn] if drawn else [top], raw=raw, block=options.get("block"))
    return pd.concat(
        [
            example_frame(sae, model, store, int(feature), Found(i, top, drawn, quantiles, k), **options)
            for i, feature in enumerate(chosen)
        ],
        ignore_index=True,
    )


_EXAMPLE_COLUMNS = {
    "feature": np.int64, "band": object, "rank": np.int64, "activation": np.float64, "row": np.int64, "context": np.int64,
    "position": np.int64, "token": object, "tokens": object, "activations": object, "at": np.int64,
}  # fmt: skip


def example_frame(
    sae: SAE,
    model: LanguageModel | None,
    store: ActivationStore,
    feature: int,
    found: Found,
    **options: Unpack[ExampleOptions],
) -> pd.DataFrame:
    """The table of `highest_activating_tokens` for one feature."""
    raw, before, after = options.get("raw", False), options.get("before", BEFORE), options.get("after", AFTER)
    bands = [("top", *found.top.of(found.place))]
    if found.drawn is not None:
        rows, values = found.drawn.of(found.place)
        bands += [(f"q={q:g}", *_near_quantile(rows, values, q, found.k)) for q in found.quantiles]
    encoder = Encoder(sae, np.array([feature]), raw)
    records = []
    for band, rows, values in bands:
        for rank, (row, value) in enumerate(zip(rows.tolist(), values.tolist(), strict=True), start=1):
            context, start, end = _around(row, before, after)
            ids = store.contexts[context, start % POSITIONS + 1 : start % POSITIONS + 1 + end - start]
            tokens = _texts(model, ids)
            nearby = encoder.values(store.rows(slice(start, end)))[:, 0].tolist()
            position = row % POSITIONS + 1
            here = row - start
            records.append(
                (feature, band, rank, value, row, context, position, tokens[here], tokens, nearby, here)
            )  # fmt: skip
    return pd.DataFrame(records, columns=list(_EXAMPLE_COLUMNS)).astype(_EXAMPLE_COLUMNS)


def _near_quantile(
    rows: np.ndarray, values: np.ndarray, q: float, k: int
) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The `k` entries whose ranks lie nearest to q, strongest first."""
    order = np.lexsort((rows, -values))
    first = int(np.clip(round((1 - q) * len(rows) - k / 2), 0, max(len(rows) - k, 0)))
    chosen = order[first : first + k]
    return rows[chosen], values[chosen]


def _around(row: int, before: int, after: int) -> tuple[int, int, int]:
    """(context, first row, row after the last) of the tokens around a row, within its context."""
    first = row - row % POSITIONS
    return row // POSITIONS, max(first, row - before), min(first + POSITIONS, row + after + 1)


def _texts(model: LanguageModel | None, ids: np.ndarray) -> list[str]:
    return model.to_str_tokens(ids) if model is not None else [f"{int(i)} " for i in ids]


def top_rows(activations: Float[np.ndarray, " n_tokens"], k: int) -> np.ndarray:
    """The `k` rows with the highest activation, highest first; rows that are not active are left out."""
    k = min(k, len(activations))
    rows = np.argpartition(-activations, k - 1)[:k]
    rows = rows[np.argsort(-activations[rows], kind="stable")]
    return rows[activations[rows] > 0]


def quantile_rows(activations: Float[np.ndarray, " n_tokens"], k: int) -> np.ndarray:
    """`k` rows spread evenly over the ranks of the active rows, strongest first: tops alone mislead."""
    active = np.flatnonzero(activations > 0)
    order = active[np.argsort(-activations[active], kind="stable")]
    return order[(np.arange(k) + 0.5).astype(int) * len(order) // k] if len(order) else order


def context_of(
    store: ActivationStore,
    model: LanguageModel,
    row: int,
    activations: Float[np.ndarray, " n_tokens"],
    before: int = BEFORE,
    after: int = AFTER,
) -> tuple[list[str], list[float]]:
    """The tokens around a row, within its context, and the feature's activation on each."""
    _, start, end = _around(int(row), before, after)
    return model.to_str_tokens(store.token_ids[start:end]), activations[start:end].tolist()
