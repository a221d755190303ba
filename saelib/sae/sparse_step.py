"""The sparse route of a training step on a CPU: one rough product finds the active entries, compiled loops do the rest."""

from __future__ import annotations

import functools
import itertools
import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saelib.base import kernels
from saelib.base.errors import UserError
from saelib.sae import low_precision
from saelib.sae.gradients import Gradients, Params, step_rows

RETRIAL = 1000
"""Steps of one shape between trials of the formats of the rough product."""
_SMALL = 2**24
"""Multiply-adds of the rough product below which no trial is worth its time."""


class _Choice:
    """The format of the rough product for one shape, by trial. It cannot change a result: see `saelib.sae.low_precision`."""

    def __init__(self) -> None:
        self.calls = 0
        self.best: low_precision.Format = "float32"


@functools.lru_cache(maxsize=16)
def _choice(shape: tuple[int, int, int], threads: int) -> _Choice:
    return _Choice()


def sparse(
    params: Params, x: Float[Tensor, "batch d_in"], penalty: Float[Tensor, " d_sae"], zero_parent: int | None
) -> Gradients:
    """Loss and gradients by one product and compiled loops over the active entries (see `saelib.sae.step`).

    Raises:
        UserError: the batch is not fp32 on a CPU.
    """
    if not kernels.serve(x):
        got = f"{x.dtype} on {x.device.type}"
        raise UserError("the sparse route takes fp32 on a CPU", got, "take the dense route")
    W_enc, b_enc, W_dec, b_dec = params
    batch, (d_sae, d_in) = x.shape[0], W_dec.shape
    W_enc_t, W_dec, x = W_enc.t().contiguous(), W_dec.contiguous(), x.contiguous()
    centred = torch.sub(x, b_dec, out=_scratch.get("centred", batch, d_in))
    forward = functools.partial(_forward, _Batch(x, centred, W_enc_t, b_enc, W_dec, b_dec, penalty, zero_parent))
    choice = _choice((batch, d_in, d_sae), torch.get_num_threads())
    choice.calls += 1
    if choice.calls % RETRIAL == 2 and batch * d_in * d_sae >= _SMALL:
        choice.best = _trial(forward)
    found = forward(choice.best)

    # The same entries feature by feature, rows ascending: every sum has one fixed order.
    starts = _starts(found.fired)
    n = int(starts[-1])
    by_feature = (np.empty(n, np.int32), np.empty(n, np.float32), np.empty(n, np.float32))
    fill = starts.numpy().copy()
    for begin, end, stop, entries in found.segments:
        kernels.sort_by_feature(begin, end, found.starts, stop, *entries, fill, *by_feature)
    dW_dec, dW_enc_t = torch.empty_like(W_dec), torch.empty_like(W_dec)
    db_enc, sums = torch.empty_like(b_enc), torch.empty_like(b_enc)
    outputs = [tensor.numpy() for tensor in (found.g, centred, dW_dec, dW_enc_t, db_enc, sums)]
    shares = torch.searchsorted(starts, torch.tensor(kernels.even(n))).tolist() if n else kernels.even(d_sae)
    bounds = [0, *shares[1:-1], d_sae]
    kernels.spread(kernels.backward_features, bounds, starts.numpy(), *by_feature, *outputs)
    grads = Params(dW_enc_t.t(), db_enc, dW_dec, found.g.sum(0) - W_enc @ db_enc)
    # NaN > 0 is False, so a feature whose encoder broke would only fall silent here. Let it break the loss, as it does
    # in the dense route.
    squares = found.squares.sum() + 0 * (W_enc.sum() + b_enc.sum())
    return Gradients(squares, grads, found.fired, sums)


class _Scratch(threading.local):
    """Memory that steps of one thread use again and again: asking the system for it anew costs more than filling it."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """An fp32 tensor, contents left over from before."""
        n = math.prod(shape)
        if name not in self.held or not n <= len(self.held[name]) <= 4 * n:
            self.held[name] = torch.empty(n)
        return self.held[name][:n].view(shape)


_scratch = _Scratch()


def _trial(forward: Callable[[low_precision.Format], _Forward]) -> low_precision.Format:
    """The fastest format here and now, among those that find what fp32 finds."""
    seconds, found = {}, {}
    for kind in low_precision.FORMATS:
        for _ in range(2):  # the first may compile
            started = time.perf_counter()
            found[kind] = forward(kind)
            seconds[kind] = time.perf_counter() - started
    right = [kind for kind in low_precision.FORMATS if torch.equal(found[kind].squares, found["float32"].squares)]
    return min(right, key=lambda kind: seconds[kind])


class _Batch(NamedTuple):
    """What the forward kernels read."""

    x: Tensor
    centred: Tensor
    W_enc_t: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    penalty: Tensor
    zero_parent: int | None


class _Forward(NamedTuple):
    """What the forward kernels return for a batch, row by row."""

    g: Tensor
    squares: Tensor
    fired: Tensor
    starts: np.ndarray
    segments: list[tuple[int, int, int, tuple[np.ndarray, ...]]]
    """(first row, end, where its last entry ends, (feature, activation, gradient) of the entries)."""
    candidates: np.ndarray
    """How many features were computed exactly, in each row."""


class _Entries:
    """Room for the entries that one thread finds; grows as needed."""

    def __init__(self, room: int) -> None:
        self.used = 0
        self.arrays = (np.empty(room, np.int32), np.empty(room, np.float32), np.empty(room, np.float32))

    def grow(self, at_least: int) -> None:
        room = max(2 * len(self.arrays[0]), self.used + at_least)
        larger = (np.empty(room, np.int32), np.empty(room, np.float32), np.empty(room, np.float32))
        for new, old in zip(larger, self.arrays, strict=True):
            new[: self.used] = old[: self.used]
        self.arrays = larger


def _forward(of: _Batch, kind: low_precision.Format) -> _Forward:
    """Find the active entries, decode, and differentiate up to the pre-activations."""
    batch, d_sae = len(of.x), len(of.b_enc)
    c, w = low_precision.rounded(of.centred, kind), low_precision.rounded(of.W_enc_t, kind)
    per_feature = torch.stack([of.b_enc, w.norm, w.rest]).div_(w.scale)
    g, squares = _scratch.get("g", *of.x.shape), of.x.new_empty(batch)
    rows = step_rows(batch, d_sae, of.x.device)
    room = _scratch.get("product", rows, d_sae)
    n_threads = torch.get_num_threads()
    owned = [_Entries(64 * batch // n_threads + d_sae + 4) for _ in range(n_threads)]
    fired = np.zeros((n_threads, d_sae), np.int64)
    starts, candidates = np.empty(batch, np.int64), np.empty(batch, np.int32)
    segments = []
    margins = low_precision.margins(c, of.x.shape[1])
    fixed = [t.numpy() for t in (c.scale, *margins, per_feature, *of[:-1])]
    parent = -1 if of.zero_parent is None else of.zero_parent

    def work(thread: int, begin: int, end: int, first: int, product: Any) -> None:
        mine = owned[thread]
        while True:
            done, mine.used = kernels.forward_rows(
                begin, end, first, product, np.float32(low_precision.relative_error(kind)), *fixed,
                parent, g.numpy(), squares.numpy(), starts, fired[thread],
                *mine.arrays, mine.used, candidates,
            )  # fmt: skip
            if done == end:
                return
            begin = done
            mine.grow(d_sae + 4)

    for first in range(0, batch, rows):
        values = c.values[first : first + rows]
        product = low_precision.rough_product(values, w.values, room[: len(values)]).numpy()
        bounds = [first + bound for bound in kernels.even(len(product), n_threads)]
        pieces = list(itertools.pairwise(bounds))
        kernels.together(
            [functools.partial(work, thread, *piece, first, product) for thread, piece in enumerate(pieces)]
        )
        segments += [(*piece, owned[thread].used, thread) for thread, piece in enumerate(pieces)]
    return _Forward(
        g,
        squares,
        torch.from_numpy(fired.sum(0)),
        starts,
        [(begin, end, stop, owned[thread].arrays) for begin, end, stop, thread in segments],
        candidates,
    )


def _starts(counts: Tensor) -> Tensor:
    """Where each group of `counts` entries begins, and where the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0))
