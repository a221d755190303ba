"""Compiled loops of the sparse training step on a CPU (numba): what `saelib.sae.step` does to active entries, in fp32.

A kernel works on a range of rows or of features and releases the interpreter's lock; `spread` runs it on as many threads
as torch may use. Every output row is made by one thread in one fixed order, so the bits do not depend on the number of
threads. Values need not be finite: a NaN ends up where it would in the plain formula.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numba
import numpy as np
import torch

# Sums may be reordered (fixed once compiled, so results repeat) and products fused into them; NaN and infinity keep
# their meaning.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use; kept on disk where a folder for that can be written."""
    options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep it in
        return numba.njit(**options)(function)


@functools.lru_cache(maxsize=4)
def _helpers(process: int, n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="saelib")


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all calls, made side by side, the first one on this thread."""
    if len(calls) == 1:
        return [calls[0]()]
    helpers = _helpers(os.getpid(), len(calls) - 1)
    others = [helpers.submit(call) for call in calls[1:]]
    return [calls[0](), *(each.result() for each in others)]


def spread(kernel: Callable[..., Any], bounds: Sequence[int], *args: Any) -> None:
    """`kernel(begin, end, *args)` for each pair of neighbouring bounds, side by side."""
    together([functools.partial(kernel, begin, end, *args) for begin, end in itertools.pairwise(bounds)])


def even(n: int, parts: int | None = None) -> list[int]:
    """Bounds of `parts` (default: torch's number of threads) nearly equal ranges of 0 ... n."""
    parts = max(1, min(parts or torch.get_num_threads(), n))
    return [n * part // parts for part in range(parts + 1)]


def serve(x: torch.Tensor) -> bool:
    """Whether the loops take this tensor: fp32, on a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32


@compiled
@no_type_check
def round_to_int8(begin, end, rows, q, scale, norm, rest):
    """Row by row: rows = scale * q + remainder, with the norms of the row and of the remainder, rounded up.

    A row too small or too large to scale is all remainder; one that is not finite has infinite norms.
    """
    d = rows.shape[1]
    up = np.float32(1 + (d + 8) * 2.0**-23)
    bits = rows.view(np.int32)
    for r in range(begin, end):
        row, out = rows[r], q[r]
        largest_bits = np.int32(0)  # of the absolute values, which as integers have the same order (and NaN is last)
        squares = np.float32(0)
        for k in range(d):
            largest_bits = max(largest_bits, bits[r, k] & np.int32(0x7FFFFFFF))
            squares += row[k] * row[k]
        largest = np.int32(largest_bits).view(np.float32)
        if np.float32(1e-15) < largest < np.float32(1e15) and squares < np.float32(1e35):
            s = largest / np.float32(127)
            inverse = np.float32(1) / s
            left = np.float32(0)
            for k in range(d):
                nearest = np.rint(row[k] * inverse)
                out[k] = np.int8(np.int32(nearest))
                off = row[k] - s * nearest
                left += off * off
            scale[r] = s
            norm[r] = np.sqrt(squares) * up
            # the difference above is itself rounded, by at most half a unit of a value of the row's size
            rest[r] = np.sqrt(left) * up + np.float32(2.0**-23) * norm[r]
        else:
            for k in range(d):
                out[k] = 0
            scale[r] = 1
            finite = squares < np.float32(1e35)
            norm[r] = np.sqrt(squares) * up + np.float32(1e-15) * np.float32(d) if finite else np.float32(np.inf)
            rest[r] = norm[r]


@compiled
@no_type_check
def take_bfloat16(begin, end, index, source, out):
    """out[i] = source[index[i]], from the bits of bf16 to those of fp32."""
    for i in range(begin, end):
        row, taken = source[index[i]], out[i]
        for k in range(row.shape[0]):
            taken[k] = np.uint32(row[k]) << np.uint32(16)


@compiled
@no_type_check
def norms(begin, end, rows, rounded, norm, rest):
    """Norms of the rows and of `rows - rounded`, rounded up; a row that is not finite has infinite ones."""
    d = rows.shape[1]
    up = np.float32(1 + (d + 8) * 2.0**-23)
    for r in range(begin, end):
        row, near = rows[r], rounded[r]
        squares = np.float32(0)
        left = np.float32(0)
        for k in range(d):
            squares += row[k] * row[k]
            off = row[k] - near[k]
            left += off * off
        if squares < np.float32(1e35) and left < np.float32(1e35):
            norm[r] = np.sqrt(squares) * up + np.float32(1e-15) * np.float32(d)
            rest[r] = np.sqrt(left) * up + np.float32(1e-15) * np.float32(d)
        else:
            norm[r] = np.inf
            rest[r] = np.inf


@compiled
@no_type_check
def _dots(x, rows, which, n, out):
    """out[i] = x . rows[which[i]] for i < n, four at a time; `which` has room for three more."""
    d = x.shape[0]
    for i in range(n, (n + 3) // 4 * 4):
        which[i] = which[n - 1]
    for i in range(0, n, 4):
        a, b, c, e = rows[which[i]], rows[which[i + 1]], rows[which[i + 2]], rows[which[i + 3]]
        s0 = s1 = s2 = s3 = np.float32(0)
        for k in range(d):
            s0 += x[k] * a[k]
            s1 += x[k] * b[k]
            s2 += x[k] * c[k]
            s3 += x[k] * e[k]
        out[i], out[i + 1], out[i + 2], out[i + 3] = s0, s1, s2, s3


@compiled
@no_type_check
def _add_weighted(out, weights, which, n, rows):
    """out += sum of weights[i] * rows[which[i]] for i < n, four rows at a time."""
    d = out.shape[0]
    for i in range(0, n - 3, 4):
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        a, b, c, e = rows[which[i]], rows[which[i + 1]], rows[which[i + 2]], rows[which[i + 3]]
        for k in range(d):
            out[k] += w0 * a[k] + w1 * b[k] + w2 * c[k] + w3 * e[k]
    for i in range(n // 4 * 4, n):
        w0 = weights[i]
        a = rows[which[i]]
        for k in range(d):
            out[k] += w0 * a[k]


@compiled
@no_type_check
def _candidates(rough, relative, inverse, on_norm, on_rest, per_feature, hit, out):
    """Features whose pre-activation may be positive, ascending, into `out`; how many. `hit` is scratch: d_sae bytes, zeroed
    up to a multiple of 8."""
    bias, norm, rest = per_feature[0], per_feature[1], per_feature[2]
    for j in range(rough.shape[0]):
        product = np.float32(rough[j])
        at_most = product + relative * abs(product) + inverse * bias[j] + on_norm * norm[j] + on_rest * rest[j]
        hit[j] = np.uint8(0) if at_most <= np.float32(0) else np.uint8(1)  # NaN is a hit
    n = 0
    words = hit.view(np.int64)
    for i in range(words.shape[0]):
        word = words[i]
        if word:
            for byte in range(8):
                out[n] = 8 * i + byte
                n += (word >> 8 * byte) & 1
    return n


@compiled
@no_type_check
def forward_rows(
    begin, end, first, product, relative, scale, on_norm, on_rest, per_feature, x, centred, W_enc_t, b_enc, W_dec, b_dec,
    penalty, zero_parent, g, squares, starts, fired, which, acts, dpre, at, tally,
):  # fmt: skip
    """Rows begin ... end, of which `product` holds those from `first` on: who is active, decode, error, gradients.

    `product[r]` is a rough pre-activation without its bias, in units of scale[r] times the feature's own. A feature that
    may be active by the bound is computed exactly. Writes g (2 / batch times the error) and the squared error of each
    row, counts `fired`, and appends the row's entries (feature, activation, gradient of the pre-activation) to `which`,
    `acts` and `dpre` from starts[r] on. Stops before a row that might not fit: returns (rows done, entries).
    """
    d_sae, d_in = W_dec.shape
    candidates = np.empty(d_sae + 8, np.int32)
    values = np.empty(d_sae + 4, np.float32)
    hit = np.zeros((d_sae + 7) // 8 * 8, np.uint8)
    twice = np.float32(2 / x.shape[0])
    for r in range(begin, end):
        inverse = np.float32(1) / scale[r]
        n = _candidates(product[r - first], relative, inverse, on_norm[r], on_rest[r], per_feature, hit, candidates)
        if at + n + 4 > which.shape[0]:
            return r, at
        tally[r] = n
        starts[r] = at
        c = centred[r]
        if n:
            _dots(c, W_enc_t, candidates, n, values)
        a_which, a_acts, a_dpre = which[at:], acts[at:], dpre[at:]
        active = 0
        for i in range(n):
            j = candidates[i]
            pre = values[i] + b_enc[j]
            if pre > 0:
                a_which[active] = j
                a_acts[active] = pre if j != zero_parent else np.float32(0)
                fired[j] += 1
                active += 1
        error = g[r]
        for k in range(d_in):
            error[k] = b_dec[k] - x[r, k]
        _add_weighted(error, a_acts, a_which, active, W_dec)
        square = np.float32(0)
        for k in range(d_in):
            square += error[k] * error[k]
            error[k] *= twice
        squares[r] = square
        if active:
            _dots(error, W_dec, a_which, active, a_dpre)
        for i in range(active):
            j = a_which[i]
            a_dpre[i] = a_dpre[i] + penalty[j] if j != zero_parent else np.float32(0)
        at += active
    return end, at


@compiled
@no_type_check
def sort_by_feature(begin, end, starts, stop, which, acts, dpre, fill, row_of, acts_of, dpre_of):
    """Move the entries of rows begin ... end to their features' places; `fill` says where each goes on, ascending rows."""
    for r in range(begin, end):
        last = starts[r + 1] if r + 1 < end else stop
        for e in range(starts[r], last):
            at = fill[which[e]]
            fill[which[e]] = at + 1
            row_of[at], acts_of[at], dpre_of[at] = r, acts[e], dpre[e]


@compiled
@no_type_check
def backward_features(
    begin, end, starts, row_of, acts_of, dpre_of, g, centred, dW_dec, dW_enc_t, db_enc, total,
):  # fmt: skip
    """Features begin ... end: gradients of decoder row, encoder column and bias, and the sum of activations."""
    for j in range(begin, end):
        first, last = starts[j], starts[j + 1]
        decoder, encoder = dW_dec[j], dW_enc_t[j]
        decoder[:] = 0
        encoder[:] = 0
        rows, acts, dpre = row_of[first:last], acts_of[first:last], dpre_of[first:last]
        _add_weighted(decoder, acts, rows, last - first, g)
        _add_weighted(encoder, dpre, rows, last - first, centred)
        sum_acts = np.float32(0)
        sum_dpre = np.float32(0)
        for e in range(last - first):
            sum_acts += acts[e]
            sum_dpre += dpre[e]
        db_enc[j] = sum_dpre
        total[j] = sum_acts


@compiled
@no_type_check
def normalise_rows(begin, end, W_dec, dW_dec, smallest):
    """Rows of W_dec to unit norm, and the gradient's part along them removed."""
    d = W_dec.shape[1]
    for j in range(begin, end):
        row, grad = W_dec[j], dW_dec[j]
        squares = np.float32(0)
        along = np.float32(0)
        for k in range(d):
            squares += row[k] * row[k]
            along += row[k] * grad[k]
        inverse = np.float32(1) / max(np.sqrt(squares), smallest)
        along *= inverse
        for k in range(d):
            row[k] *= inverse
            grad[k] -= row[k] * along


@compiled
@no_type_check
def rectify(begin, end, acts, fired, sums):
    """Features begin ... end of a dense block: negative entries to zero; positive ones counted, all summed."""
    for r in range(acts.shape[0]):
        row = acts[r, begin:end]
        count, total = fired[begin:end], sums[begin:end]
        for k in range(end - begin):
            value = np.float32(0) if row[k] <= 0 else row[k]  # NaN stays
            row[k] = value
            count[k] += np.int32(value > 0)
            total[k] += value


@compiled
@no_type_check
def mask_gradient(begin, end, acts, dpre, penalty, db_enc):
    """Features begin ... end of a dense block: gradients of pre-activations, zero where inactive; column sums."""
    for r in range(acts.shape[0]):
        row, active = dpre[r, begin:end], acts[r, begin:end]
        cost, total = penalty[begin:end], db_enc[begin:end]
        for k in range(end - begin):
            value = np.float32(0) if active[k] <= 0 else row[k] + cost[k]
            row[k] = value
            total[k] += value
