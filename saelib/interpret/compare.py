"""Features beside each other, within one SAE or across two: directions, firing together, one-to-one matching.

decoder cosine = d_i . d_j / (|d_i| |d_j|)        encoder cosine: the same of the columns of W_enc
Jaccard = tokens on which both fire / tokens on which either does
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.interpret.features import check_features, check_match
from saelib.sae.initial import unit_rows
from saelib.sae.sae import SAE
from saelib.sae.stream import Encoder, Entries


def decoder_cosine(a: SAE, b: SAE) -> Float[np.ndarray, "d_sae_a d_sae_b"]:
    """Cosine between every decoder row of `a` and every one of `b`."""
    _check_pair(a, b)
    return _cosine(a.W_dec.detach(), b.W_dec.detach())


def _cosine(rows: Float[Tensor, "k d"], others: Float[Tensor, "m d"]) -> Float[np.ndarray, "k m"]:
    return (unit_rows(rows) @ unit_rows(others).T).numpy()


def _check_pair(a: SAE, b: SAE) -> None:
    """Refuse two SAEs of different spaces: their cosines would mean nothing."""
    if a.cfg.d_in != b.cfg.d_in:
        raise UserError(f"both SAEs must have one d_in, {a.cfg.d_in}", b.cfg.d_in, "compare SAEs of one model and site")
    for name in ("hook_name", "center_writing_weights"):
        first, second = getattr(a.cfg, name), getattr(b.cfg, name)
        if first not in (None, "") and second not in (None, "") and first != second:
            rule = f"both SAEs must have one {name}, {first!r}"
            raise UserError(rule, repr(second), "compare SAEs of one model, site and weight processing")


@dataclass(frozen=True)
class CoFiring:
    """How often some features fire together with others, on `tokens` tokens."""

    both: Integer[np.ndarray, "k m"]
    """Tokens on which both fire."""
    fires: Integer[np.ndarray, " k"]
    other_fires: Integer[np.ndarray, " m"]
    tokens: int

    @property
    def jaccard(self) -> Float[np.ndarray, "k m"]:
        """Tokens with both over tokens with either; 0 where neither ever fires."""
        either = self.fires[:, None] + self.other_fires[None] - self.both
        return np.divide(self.both, either, out=np.zeros(self.both.shape), where=either > 0)

    @property
    def given_other(self) -> Float[np.ndarray, "k m"]:
        """P(the feature fires | the other does); 0 where the other never does."""
        other = np.broadcast_to(self.other_fires[None], self.both.shape)
        return np.divide(self.both, other, out=np.zeros(self.both.shape), where=other > 0)


def co_firing(
    sae: SAE,
    store: ActivationStore,
    features: int | Sequence[int] | np.ndarray | None = None,
    *,
    other: SAE | None = None,
    other_features: int | Sequence[int] | np.ndarray | None = None,
    block: int | None = None,
) -> CoFiring:
    """Count firing together of `features` with those of `other` (default: of the same SAE), in one pass over the store.

    Features default to all of an SAE; memory is one number a pair.

    Raises:
        UserError: a feature out of range, an SAE that does not belong to the store or to the other, activations that are
            not finite.
    """
    against = sae if other is None else other
    _check_pair(sae, against)
    sides = []
    for one, chosen in ((sae, features), (against, other_features)):
        check_match(one, store=store)
        sides.append(Encoder(one, None if chosen is None else check_features(one, chosen)))
    own, others = sides
    both = np.zeros((own.n_features, others.n_features), dtype=np.int64)
    fires, other_fires = np.zeros(own.n_features, dtype=np.int64), np.zeros(others.n_features, dtype=np.int64)
    for rows, x in store.blocks(block or min(own.block_rows, others.block_rows)):
        a = _firing(own.entries(x, rows.start), own.n_features, rows.start)
        b = _firing(others.entries(x, rows.start), others.n_features, rows.start)
        fires += np.diff(a.indptr)
        other_fires += np.diff(b.indptr)
        pairs = (a @ b.T).tocoo()
        both[pairs.row, pairs.col] += pairs.data  # each pair once: a product's entries are summed
    return CoFiring(both, fires, other_fires, store.n_tokens)


def _firing(entries: Entries, n_features: int, first_row: int) -> sparse.csr_array:
    """(features, tokens of the block), 1 where the feature fires."""
    indptr = np.concatenate([[0], np.cumsum(np.bincount(entries.feature, minlength=n_features))])
    ones = np.ones(len(entries.row), dtype=np.int32)
    return sparse.csr_array((ones, entries.row - first_row, indptr), shape=(n_features, entries.n_rows))


def compare_features(
    sae: SAE,
    features: int | Sequence[int] | np.ndarray,
    other: SAE | None = None,
    other_features: int | Sequence[int] | np.ndarray | None = None,
    *,
    store: ActivationStore | None = None,
    block: int | None = None,
) -> pd.DataFrame:
    """Every pair of `features` with features of `other` (default: all of the same SAE).

    Columns: feature, other, decoder_cosine, encoder_cosine; with a store also both (tokens on which both fire), jaccard,
    given_other (P(feature fires | other fires)).

    Raises:
        UserError: as for `co_firing`.
    """
    against = sae if other is None else other
    _check_pair(sae, against)
    own = check_features(sae, features)
    others = np.arange(against.cfg.d_sae) if other_features is None else check_features(against, other_features)
    n, m = len(own), len(others)
    columns = {
        "feature": np.repeat(own, m),
        "other": np.tile(others, n),
        "decoder_cosine": _cosine(sae.W_dec.detach()[own], against.W_dec.detach()[others]).reshape(-1),
        "encoder_cosine": _cosine(sae.W_enc.detach().T[own], against.W_enc.detach().T[others]).reshape(-1),
    }
    if store is not None:
        together = co_firing(sae, store, own, other=against, other_features=others, block=block)
        columns["both"] = together.both.reshape(-1)
        columns["jaccard"] = together.jaccard.reshape(-1)
        columns["given_other"] = together.given_other.reshape(-1)
    return pd.DataFrame(columns)


def nearest_features(
    sae: SAE,
    feature: int,
    k: int = 8,
    *,
    other: SAE | None = None,
    store: ActivationStore | None = None,
    block: int | None = None,
) -> pd.DataFrame:
    """The `k` features with the largest decoder cosine and, with a store, the `k` that fire most with this one.

    Columns as in `compare_features`, and near: `decoder`, `firing` or `decoder, firing`. Ordered by decoder cosine; the
    feature itself is left out.

    Raises:
        UserError: as for `co_firing`.
    """
    pairs = compare_features(sae, feature, other, store=store, block=block)
    return nearest_among(pairs, k, same=other is None or other is sae)


def nearest_among(pairs: pd.DataFrame, k: int, *, same: bool) -> pd.DataFrame:
    """The table of `nearest_features` from one feature's rows of `compare_features`; `same`: within one SAE."""
    if same:
        pairs = pairs[pairs["other"] != pairs["feature"]]
    near = {"decoder": pairs["decoder_cosine"].nlargest(k).index}
    if "jaccard" in pairs:
        near["firing"] = pairs.loc[pairs["both"] > 0, "jaccard"].nlargest(k).index
    kinds = [", ".join(name for name, index in near.items() if i in index) for i in pairs.index]
    found = pairs.assign(near=kinds)[[*pairs.columns[:2], "near", *pairs.columns[2:]]]
    found = found[found["near"] != ""].sort_values("decoder_cosine", ascending=False, kind="stable")
    return found.reset_index(drop=True)


def lineage(parent: SAE, feature: int, sae: SAE, children: Sequence[int]) -> pd.DataFrame:
    """How near each child's decoder row is to the parent's, against the rest of its dictionary.

    Columns: child, decoder_cosine (with the parent), encoder_cosine, rest_median and rest_95 (median and 95% point of the
    decoder cosines of the features that are no children), share_below (share of those with a smaller cosine).

    Raises:
        UserError: a feature out of range, or SAEs of different models or sites.
    """
    chosen = check_features(sae, list(children))
    pairs = compare_features(parent, feature, sae)
    rest = np.delete(pairs["decoder_cosine"].to_numpy(), chosen)
    own = pairs.iloc[chosen]
    return pd.DataFrame(
        {
            "child": chosen,
            "decoder_cosine": own["decoder_cosine"].to_numpy(),
            "encoder_cosine": own["encoder_cosine"].to_numpy(),
            "rest_median": np.median(rest) if len(rest) else np.nan,
            "rest_95": np.quantile(rest, 0.95) if len(rest) else np.nan,
            "share_below": [float((rest < c).mean()) if len(rest) else np.nan for c in own["decoder_cosine"]],
        }
    )


def match_saes(a: SAE, b: SAE) -> pd.DataFrame:
    """Pair the features of two SAEs one to one so that the sum of decoder cosines is largest (Hungarian matching).

    Returns:
        a row a pair, min(d_sae) of them, in the order of a's features: feature (of a), match (of b), decoder_cosine,
        encoder_cosine. Features of the larger SAE that were left over have no row.

    Raises:
        UserError: the SAEs have different d_in, hook_name or centring, or weights that are not finite.
    """
    cosine = decoder_cosine(a, b)
    if not np.isfinite(cosine).all():
        raise UserError("W_dec of an SAE must be finite", "NaN or infinity", "train or load the SAE again")
    rows, columns = linear_sum_assignment(-cosine)
    order = np.argsort(rows)
    rows, columns = rows[order], columns[order]
    encoder = (unit_rows(a.W_enc.detach().T[rows]) * unit_rows(b.W_enc.detach().T[columns])).sum(1).numpy()
    return pd.DataFrame(
        {"feature": rows, "match": columns, "decoder_cosine": cosine[rows, columns], "encoder_cosine": encoder}
    )
