"""One pass over an activation store of any size: a block of tokens at a time, only the active entries kept.

`stream` encodes a block, lists its active entries (feature, row, activation) and hands them to accumulators. What an
accumulator holds does not grow with the store, and does not depend on how the store was cut into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.base.threads import one_thread
from saelib.sae.sae import SAE, require_fits

_BLOCK_ENTRIES = 1 << 22
"""Activations computed at once: 17 MB."""
_DENSE_ENTRIES = 1 << 26
"""The same where what is computed is held as it is: 268 MB."""
_PENDING_ENTRIES = 1 << 20
"""Entries an accumulator collects before it sorts them."""


class Entries(NamedTuple):
    """The entries of a block of tokens: what is active, or everything when the raw score was asked for."""

    feature: Integer[np.ndarray, " n"]
    """Place in the list of features asked for; ascending."""
    row: Integer[np.ndarray, " n"]
    """Row of the store; ascending within a feature."""
    value: Float[np.ndarray, " n"]
    """Activation, fp32."""
    n_rows: int
    """Tokens in the block."""


@runtime_checkable
class Accumulator(Protocol):
    """Takes entries block by block, in the order of the store."""

    def add(self, entries: Entries) -> None:
        """Take the entries of the next block."""


def block_rows(n_features: int) -> int:
    """Tokens a block: its feature activations take 17 MB at most, and its own activations stay in the processor's cache."""
    return int(np.clip(_BLOCK_ENTRIES // max(n_features, 1), 64, 8192))


def rows_at_once(d_sae: int) -> int:
    """Tokens whose activations of all features, as a dense array, take 268 MB at most."""
    return max(_DENSE_ENTRIES // d_sae, 64)


def finite(x: Float[Tensor, "rows d_in"], first_row: int) -> Float[Tensor, "rows d_in"]:
    """The block itself; NaN and infinity would otherwise read as "does not fire"."""
    if not bool(x.sum().isfinite()) and not bool(
        torch.isfinite(x).all()
    ):  # the sum is one look at each, and holds no mask
        row = first_row + int((~torch.isfinite(x).all(1)).nonzero()[0])
        raise UserError("activations must be finite", f"NaN or infinity in row {row}", "harvest them again")
    return x


class Encoder:
    """Some features of an SAE, encoded by the SAE itself and laid out for listing their active entries feature by feature.

    Raises:
        UserError: a weight of the SAE is NaN or infinite.
    """

    def __init__(self, sae: SAE, features: Integer[np.ndarray, " k"] | None = None, raw: bool = False) -> None:
        for name, weight in sae.state_dict().items():
            if not bool(weight.isfinite().all()):
                raise UserError(f"{name} of an SAE must be finite", "NaN or infinity", "train or load the SAE again")
        self.sae, self.raw = sae, raw
        self.features = None if features is None else torch.from_numpy(np.asarray(features, dtype=np.int64))
        self.n_features = sae.cfg.d_sae if features is None else len(features)
        self.block_rows = block_rows(self.n_features if raw else sae.n_encoded(self.n_features))
        """Tokens that are best encoded at once."""

    @torch.no_grad()
    def values(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows k"]:
        """The features' activations, as `SAE.encode` gives them; when raw, `(x - b_dec) @ W_enc`.

        Computed where the SAE is and given back on the processor, where entries are sorted and counted.
        """
        x = x.to(self.sae.device)
        if self.raw:
            chosen = slice(None) if self.features is None else self.features
            return ((x - self.sae.b_dec) @ self.sae.W_enc[:, chosen]).cpu()
        return (self.sae.encode(x) if self.features is None else self.sae.encode_features(x, self.features)).cpu()

    def entries(self, x: Float[Tensor, "rows d_in"], first_row: int) -> Entries:
        """The entries of a block that begins at `first_row`."""
        values = self.values(finite(x, first_row)).numpy()
        if self.raw:
            feature, row = np.indices(values.shape[::-1]).reshape(2, -1)
        else:
            row, feature = np.nonzero(values > 0)
            # Sorting the few that are active costs less than turning the block; 16 bits are sorted by radix.
            key = feature.astype(np.uint16) if self.n_features <= 1 << 16 else feature
            order = np.argsort(key, kind="stable")
            feature, row = feature[order], row[order]
        return Entries(feature, row + first_row, values[row, feature], len(x))


def stream(
    sae: SAE,
    store: ActivationStore,
    features: Integer[np.ndarray, " k"] | None,
    accumulators: Sequence[Accumulator],
    *,
    raw: bool = False,
    block: int | None = None,
) -> None:
    """Feed every block of the store to the accumulators.

    Args:
        features: feature numbers; None is all of the SAE's.
        raw: in place of the activation the 2024 post's ranking score, `W_enc . (x - b_dec)`, without bias and ReLU.
        block: tokens at a time (default: what `block_rows` says).

    Raises:
        UserError: an activation or a weight is NaN or infinite.
    """
    encoder = Encoder(sae, features, raw)
    for rows, x in store.blocks(block or encoder.block_rows):
        entries = encoder.entries(x, rows.start)
        for accumulator in accumulators:
            accumulator.add(entries)


@torch.no_grad()
def feature_activations(store: ActivationStore, sae: SAE, feature: int) -> Float[np.ndarray, " n_tokens"]:
    """`sae.encode(x)[:, feature]` on every row of the store, fp32; on as many threads as torch has.

    Raises:
        UserError: the feature is not one of the SAE, or the SAE belongs to another model, site or weight centring.
    """
    d_sae = sae.cfg.d_sae
    if not 0 <= feature < d_sae:
        raise UserError(f"feature must be in [0, d_sae={d_sae})", feature, "pass a feature of the narrow SAE")
    manifest = store.manifest
    require_fits(
        sae.cfg,
        d_in=store.d_in,
        hook_name=manifest.get("hook_name"),
        center_writing_weights=manifest.get("center_writing_weights"),
    )
    out = np.empty(store.n_tokens, dtype=np.float32)
    size, workers = min(block_rows(sae.n_encoded(1)), 4096), torch.get_num_threads()

    @torch.no_grad()
    def encode(first: int) -> None:
        x = torch.empty(size, store.d_in)
        with one_thread():
            for rows, stored in store.chunks(first, workers):
                for place, part in enumerate(stored.split(size)):
                    begin = rows.start + place * size
                    block = x[: len(part)].copy_(part).to(sae.device)
                    out[begin : begin + len(part)] = sae.encode_feature(block, feature).cpu().numpy()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(encode, range(workers)))
    return out


@torch.no_grad()
def sparse_acts(sae: SAE, x: Float[Tensor, "n d_in"], without: int | None = None) -> csr_array:
    """`sae.encode(x)` as a sparse matrix, made a block of tokens at a time; the feature `without` is left at 0."""
    size, blocks = block_rows(sae.cfg.d_sae), []
    for i in range(0, len(x), size):
        acts = sae.encode(x[i : i + size])
        if without is not None:
            acts[:, without] = 0
        blocks.append(csr_array(acts.cpu().numpy()))
    return csr_array(vstack(blocks))


# --- accumulators ----------------------------------------------------------------------------------------------------


class Firings:
    """The entries themselves, of all rows of a store or of some."""

    def __init__(self, rows: Bool[np.ndarray, " n_tokens"] | None = None) -> None:
        self.rows, self.parts = rows, list[tuple[np.ndarray, np.ndarray, np.ndarray]]()

    def add(self, entries: Entries) -> None:
        """Take the entries of the next block."""
        keep = slice(None) if self.rows is None else self.rows[entries.row]
        self.parts.append((entries.row[keep].astype(np.int32), entries.feature[keep], entries.value[keep]))

    def table(self, n_tokens: int, n_features: int) -> csc_array:
        """Activations of every row, (n_tokens, n_features)."""
        row, feature, value = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        return csc_array((value, (row, feature)), shape=(n_tokens, n_features))


class Counts:
    """How often, how strongly on average and how strongly at most each feature fires."""

    def __init__(self, n_features: int) -> None:
        self.active = np.zeros(n_features, dtype=np.int64)
        self.total = np.zeros(n_features)
        self.largest = np.zeros(n_features, dtype=np.float32)
        self.n_rows = 0

    def add(self, entries: Entries) -> None:
        """Take the entries of the next block."""
        n = len(self.active)
        self.active += np.bincount(entries.feature, minlength=n)
        self.total += np.bincount(entries.feature, weights=entries.value, minlength=n)
        np.maximum(self.largest, _largest(entries, n), out=self.largest)
        self.n_rows += entries.n_rows


class Histogram:
    """Active tokens of each feature in bins of equal width, the width found on the way.

    Bin i holds activations in [i w, (i + 1) w). The width w is the smallest power of two with which the largest activation
    fits, so bins can be joined in pairs without loss when a larger one arrives: the outcome is that of a second pass.

    Raises:
        UserError: the number of bins is not a power of two.
    """

    def __init__(self, n_features: int, bins: int = 64) -> None:
        if bins < 2 or bins & (bins - 1):
            raise UserError("the number of bins must be a power of two, at least 2", bins, "pass 32, 64 or 128")
        self.bins = bins
        self.count = np.zeros((n_features, bins), dtype=np.int64)
        self.exponent = np.full(n_features, -200)
        """log2 of each feature's bin width."""

    @property
    def width(self) -> Float[np.ndarray, " n_features"]:
        """Bin width of each feature."""
        return np.ldexp(1.0, self.exponent)

    def add(self, entries: Entries) -> None:
        """Take the entries of the next block."""
        n = len(self.exponent)
        largest = _largest(entries, n)
        needed = np.where(largest > 0, np.frexp(largest.astype(np.float64) / self.bins)[1], -200)
        for f in np.flatnonzero(needed > self.exponent):
            joined = np.arange(self.bins) >> min(int(needed[f] - self.exponent[f]), 62)
            self.count[f] = np.bincount(joined, weights=self.count[f], minlength=self.bins)
            self.exponent[f] = needed[f]
        bin_of = np.ldexp(entries.value.astype(np.float64), -self.exponent[entries.feature]).astype(np.int64)
        flat = np.bincount(entries.feature * self.bins + bin_of, minlength=n * self.bins)
        self.count += flat.reshape(n, self.bins)


class Best:
    """The `k` entries a feature that come first by a key: the strongest, or a fixed pseudo-random sample.

    Ties go to the earlier row.
    """

    def __init__(self, n_features: int, k: int, by: str = "value") -> None:
        self.k, self.by, self.n_features = k, by, n_features
        self._limit = np.full(n_features, 1 << 32)  # a later entry must have a smaller key
        self._kept = [np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.float32)]  # code, row, value
        # one buffer, not a list of small arrays: those would leave the heap in pieces
        self._buffer = [np.empty(_PENDING_ENTRIES, dtype=kept.dtype) for kept in self._kept]
        self._n_pending = 0

    def add(self, entries: Entries) -> None:
        """Take the entries of the next block."""
        key = _strength_key(entries.value) if self.by == "value" else sample_key(entries.row)
        keep = np.flatnonzero(key < self._limit[entries.feature])
        for begin in range(0, len(keep), _PENDING_ENTRIES):
            part = keep[begin : begin + _PENDING_ENTRIES]
            if self._n_pending + len(part) > _PENDING_ENTRIES:
                self._merge()
            place = slice(self._n_pending, self._n_pending + len(part))
            self._buffer[0][place] = (entries.feature[part] << 32) | key[part]
            self._buffer[1][place], self._buffer[2][place] = entries.row[part], entries.value[part]
            self._n_pending += len(part)

    def of(self, feature: int) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """(rows, values) of the feature at that place, best first."""
        self._merge()
        begin, end = np.searchsorted(self._kept[0], [feature << 32, (feature + 1) << 32])
        return self._kept[1][begin:end], self._kept[2][begin:end]

    def _merge(self) -> None:
        if not self._n_pending:
            return
        pending = slice(0, self._n_pending)
        code = np.concatenate([self._kept[0], self._buffer[0][pending]])
        order = np.argsort(code, kind="stable")
        code = code[order]
        begins = np.searchsorted(code, np.arange(self.n_features + 1) << 32)
        full = np.flatnonzero(np.diff(begins) >= self.k)
        self._limit[full] = code[begins[full] + self.k - 1] & 0xFFFFFFFF
        keep = np.arange(len(code)) < (begins[:-1] + self.k)[code >> 32]
        order = order[keep]
        self._kept[0] = code[keep]
        del code, keep
        for i in (1, 2):
            self._kept[i] = np.concatenate([self._kept[i], self._buffer[i][pending]])[order]
        self._n_pending = 0


def _largest(entries: Entries, n_features: int) -> Float[np.ndarray, " n_features"]:
    """The largest value of each feature in a block; 0 for a feature without an entry."""
    out = np.zeros(n_features, dtype=np.float32)
    begins = np.flatnonzero(np.diff(entries.feature, prepend=-1))
    if len(begins):
        out[entries.feature[begins]] = np.maximum.reduceat(entries.value, begins)
    return out


def _strength_key(value: Float[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
    """32-bit integers in the opposite order of the values: smaller is stronger."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32).astype(np.int64)
    ascending = np.where(bits >> 31, 0xFFFFFFFF - bits, bits | (1 << 31))
    return 0xFFFFFFFF - ascending


def sample_key(row: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
    """32 well-mixed bits of a row number (splitmix64's finaliser): the rows with the smallest are a random sample."""
    z = row.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.int64)
