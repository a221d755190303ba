"""One training step of an L1 SAE, with the backward pass written out.

    feature_acts = relu((x - b_dec) @ W_enc + b_enc)             x_hat = feature_acts @ W_dec + b_dec
    loss = mean over the batch of |x_hat - x|^2  +  sum over features and over the BATCH of penalty * feature_acts

The penalty of a feature j is, by `objective`,

    "study"          l1_coeff: a sum over the batch, not a mean, so a token pays `l1_coeff * batch_size` for each unit of
                     activation, relative to its squared error (3e-4 at batch 4096 is 1.2288 a token);
    "decoder_norm"   l1_coeff |W_dec[j]| / batch: SAELens's default, a mean over the batch, decoder rows of any length.

With g = 2 (x_hat - x) / batch and dpre = (g @ W_dec.T + penalty) where a feature is active, else 0:

    dW_dec = feature_acts.T @ g        dW_enc = (x - b_dec).T @ dpre
    db_enc = sum dpre                  db_dec = sum g - W_enc @ db_enc        (only column sums: a dense product saved)

and for "decoder_norm" dW_dec[j] has l1_coeff / batch * (sum of feature j's activations) * W_dec[j] / |W_dec[j]| besides.

Two routes compute this. *dense*: five matrix products. *sparse*: one, to find the active entries; everything else touches
these only. They agree within float rounding; which is faster depends on how many features are active
(`SPARSE_BELOW`). On a CPU and in fp32 the sparse route is compiled (`saelib.base.kernels`), and its one product is a rough one
with a bound on its error (`saelib.sae.low_precision`); elsewhere it is made of torch's own operations.

On CUDA the dense route is taken, with fp32 products (TF32 only if torch.backends.cuda.matmul.allow_tf32 is switched on),
and nothing is read back from the device within a step. That path is not measured.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.sae import SAE, unit_rows

try:
    from saelib.base import kernels
    from saelib.sae import low_precision
except ImportError:  # no numba for this interpreter: torch's own operations do the same, more slowly
    COMPILED = False
else:
    COMPILED = True

Route = Literal["dense", "sparse"]
Objective = Literal["study", "decoder_norm"]

SPARSE_BELOW = 0.15
"""Share of active features under which the sparse route is the faster one on a CPU (`benchmarks/train_step.py`)."""

BLOCK_ROWS = 1024
"""Rows of the batch that are encoded at a time: no (batch, d_sae) matrix is ever held, and a block's stays in cache."""


class Params(NamedTuple):
    """The four parameters, or their gradients, in the orientation of `saelib.sae.sae`."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]

    @classmethod
    def of(cls, sae: SAE) -> Params:
        """The parameters of an SAE, detached: the same memory, no autograd."""
        return cls(sae.W_enc.detach(), sae.b_enc.detach(), sae.W_dec.detach(), sae.b_dec.detach())


class StepResult(NamedTuple):
    """Loss, gradients and counts of one batch."""

    totals: Float[Tensor, " totals"]
    """l2, l1 and l0 as below and the loss, in fp64, on the device: what a loop may keep without waiting for it."""
    grads: Params
    """Gradients of `loss`. `grads.W_enc` is a transposed view of contiguous memory."""
    fired: Int[Tensor, " d_sae"]
    """Tokens of this batch on which each feature was active, a zeroed parent included."""
    route: Route

    @property
    def l2(self) -> float:
        """Squared error, summed over d_in, averaged over the batch (read back from the device, as the next three)."""
        return self.totals[0].item()

    @property
    def l1(self) -> float:
        """l1_coeff times the sum of activations over the whole batch."""
        return self.totals[1].item()

    @property
    def l0(self) -> float:
        """Active features a token, as the loss sees them (without a zeroed parent)."""
        return self.totals[2].item()

    @property
    def loss(self) -> float:
        """l2 + l1."""
        return self.totals[3].item()


def choose_route(active_share: float, device: torch.device) -> Route:
    """The faster route, given the share of features active in the step before (1.0 if there was none)."""
    return "sparse" if device.type == "cpu" and active_share < SPARSE_BELOW else "dense"


@torch.no_grad()
def loss_and_grads(
    params: Params,
    x: Float[Tensor, "batch d_in"],
    l1_coeff: float,
    zero_parent: int | None = None,
    route: Route = "dense",
    objective: Objective = "study",
) -> StepResult:
    """The loss on one batch and its gradients.

    `zero_parent` is the "parent zeroed" variant: that feature's activation is set to zero before it is decoded and
    before the L1 term, so no gradient reaches its encoder; it is still counted in `fired`.

    Raises:
        UserError: `zero_parent` is not a feature of this SAE.
    """
    d_sae = params.W_dec.shape[0]
    if zero_parent is not None and not 0 <= zero_parent < d_sae:
        raise UserError(f"feature must be in [0, d_sae={d_sae})", zero_parent, "pass a feature of this SAE")
    penalty = _penalty(params.W_dec, l1_coeff, len(x), objective)
    if route == "dense":
        result, sums = _dense(params, x, penalty, zero_parent)
    elif COMPILED and x.device.type == "cpu" and x.dtype == torch.float32:
        result, sums = _compiled(params, x, penalty, zero_parent)
    else:
        result, sums = _sparse(params, x, penalty, zero_parent)
    if objective == "decoder_norm":  # penalty / |row|^2 = l1_coeff / batch / |row|
        squares = params.W_dec.square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
        result.grads.W_dec.addcmul_(params.W_dec, (penalty * sums / squares).unsqueeze(1))
    return result


def _penalty(W_dec: Tensor, l1_coeff: float, batch: int, objective: Objective) -> Tensor:
    """What a unit of each feature's activation costs in the loss."""
    if objective == "study":
        return W_dec.new_full((len(W_dec),), l1_coeff)
    return W_dec.norm(dim=1).mul_(l1_coeff / batch)


def _dense(params: Params, x: Tensor, penalty: Tensor, zero_parent: int | None) -> tuple[StepResult, Tensor]:
    W_enc, b_enc, W_dec, b_dec = params
    batch, d_sae = x.shape[0], W_dec.shape[0]
    dW_enc_t, dW_dec = torch.empty_like(W_dec), torch.empty_like(W_dec)  # (d_sae, d_in), both
    db_enc, g_sum, sums = torch.zeros_like(b_enc), torch.zeros_like(b_dec), torch.zeros_like(b_enc)
    fired = torch.zeros(d_sae, dtype=torch.int64, device=x.device)
    squares = x.new_zeros(())
    rows = min(BLOCK_ROWS, batch)
    acts_buffer, dpre_buffer = x.new_empty(rows, d_sae), x.new_empty(rows, d_sae)
    rectify, mask_gradient = _dense_loops(x)
    for keep, block in enumerate(x.split(rows)):
        acts, dpre = acts_buffer[: len(block)], dpre_buffer[: len(block)]
        centred = block - b_dec
        torch.addmm(b_enc, centred, W_enc, out=acts)
        rectify(acts, fired, sums)
        if zero_parent is not None:
            acts[:, zero_parent] = 0
        error = torch.addmm(b_dec, acts, W_dec).sub_(block)
        squares += error.square().sum()
        g = error.mul_(2 / batch)
        torch.mm(g, W_dec.t(), out=dpre)
        mask_gradient(acts, dpre, penalty, db_enc)
        dW_dec.addmm_(acts.t(), g, beta=min(keep, 1))  # the first block begins the sums
        dW_enc_t.addmm_(dpre.t(), centred, beta=min(keep, 1))
        g_sum += g.sum(0)
    if zero_parent is not None:
        sums[zero_parent] = 0
    grads = Params(dW_enc_t.t(), db_enc, dW_dec, g_sum - W_enc @ db_enc)
    return _result(squares, sums, penalty, batch, grads, fired, zero_parent, "dense"), sums


def _dense_loops(x: Tensor) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two passes over a dense block between its products: compiled, or by torch."""
    if COMPILED and x.device.type == "cpu" and x.dtype == torch.float32:
        return functools.partial(_by_columns, kernels.rectify), functools.partial(_by_columns, kernels.mask_gradient)

    def rectify(acts: Tensor, fired: Tensor, sums: Tensor) -> None:
        acts.relu_()
        fired += acts.count_nonzero(dim=0)
        sums += acts.sum(0)

    def mask_gradient(acts: Tensor, dpre: Tensor, penalty: Tensor, db_enc: Tensor) -> None:
        dpre.add_(penalty).masked_fill_(acts <= 0, 0)
        db_enc += dpre.sum(0)

    return rectify, mask_gradient


def _by_columns(kernel: Callable[..., None], acts: Tensor, *others: Tensor) -> None:
    kernels.spread(kernel, kernels.even(acts.shape[1]), *(tensor.numpy() for tensor in (acts, *others)))


def _sparse(params: Params, x: Tensor, penalty: Tensor, zero_parent: int | None) -> tuple[StepResult, Tensor]:
    W_enc, b_enc, W_dec, b_dec = params
    batch, d_sae = x.shape[0], W_dec.shape[0]
    centred = x - b_dec
    row, column, acts = _active_entries(centred, W_enc, b_enc)
    fired = torch.bincount(column, minlength=d_sae)
    if zero_parent is not None:
        acts.masked_fill_(column == zero_parent, 0)

    # The active entries of feature_acts as compressed rows: row r is entries row_start[r] ... row_start[r + 1].
    row_start = _starts(torch.bincount(row, minlength=batch))
    error = _weighted_sums(acts, column, row_start, W_dec).add_(b_dec).sub_(x)
    squares = error.square().sum()
    g = error.mul_(2 / batch)
    dpre = _entries_of_product(g, W_dec, row_start, column, acts).add_(penalty[column])
    if zero_parent is not None:
        dpre.masked_fill_(column == zero_parent, 0)

    # The same entries feature by feature. The sort is stable, so every sum below has one fixed order.
    by_feature = torch.sort(column.to(torch.int32), stable=True).indices
    feature_start, row, column = _starts(fired), row[by_feature], column[by_feature]
    acts, dpre = acts[by_feature], dpre[by_feature]
    dW_dec = _weighted_sums(acts, row, feature_start, g)
    dW_enc_t = _weighted_sums(dpre, row, feature_start, centred)
    db_enc = torch.zeros_like(b_enc).index_add_(0, column, dpre)
    sums = torch.zeros_like(b_enc).index_add_(0, column, acts)
    grads = Params(dW_enc_t.t(), db_enc, dW_dec, g.sum(0) - W_enc @ db_enc)
    # NaN > 0 is False, so a feature whose encoder broke would only fall silent here. Let it break the loss, as it does
    # in the dense route.
    squares = squares + 0 * (W_enc.sum() + b_enc.sum())
    return _result(squares, sums, penalty, batch, grads, fired, zero_parent, "sparse"), sums


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


def _compiled(params: Params, x: Tensor, penalty: Tensor, zero_parent: int | None) -> tuple[StepResult, Tensor]:
    W_enc, b_enc, W_dec, b_dec = params
    batch, (d_sae, d_in) = x.shape[0], W_dec.shape
    W_enc_t, W_dec, x = W_enc.t().contiguous(), W_dec.contiguous(), x.contiguous()
    centred = torch.sub(x, b_dec, out=_scratch.get("centred", batch, d_in))
    forward = functools.partial(_forward, W_enc_t, b_enc, W_dec, b_dec, penalty, zero_parent, x, centred)
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
    squares = found.squares.sum() + 0 * (W_enc.sum() + b_enc.sum())  # NaN: see `_sparse`
    return _result(squares, sums, penalty, batch, grads, found.fired, zero_parent, "sparse"), sums


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


def _forward(
    W_enc_t: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    penalty: Tensor,
    zero_parent: int | None,
    x: Tensor,
    centred: Tensor,
    kind: low_precision.Format,
) -> _Forward:
    """Find the active entries, decode, and differentiate up to the pre-activations."""
    batch, d_sae = len(x), len(b_enc)
    c, w = low_precision.rounded(centred, kind), low_precision.rounded(W_enc_t, kind)
    per_feature = torch.stack([b_enc, w.norm, w.rest]).div_(w.scale)
    g, squares = _scratch.get("g", *x.shape), x.new_empty(batch)
    rows = min(BLOCK_ROWS, batch)
    room = _scratch.get("product", rows, d_sae)
    n_threads = torch.get_num_threads()
    owned = [_Entries(64 * batch // n_threads + d_sae + 4) for _ in range(n_threads)]
    fired = np.zeros((n_threads, d_sae), np.int64)
    starts, candidates = np.empty(batch, np.int64), np.empty(batch, np.int32)
    segments = []
    margins = low_precision.margins(c, x.shape[1])
    fixed = [t.numpy() for t in (c.scale, *margins, per_feature, x, centred, W_enc_t, b_enc, W_dec, b_dec, penalty)]

    def work(thread: int, begin: int, end: int, first: int, product: Any) -> None:
        mine = owned[thread]
        while True:
            done, mine.used = kernels.forward_rows(
                begin, end, first, product, np.float32(low_precision.relative_error(kind)), *fixed,
                -1 if zero_parent is None else zero_parent, g.numpy(), squares.numpy(), starts, fired[thread],
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


def _active_entries(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column, value) of every positive pre-activation, row by row."""
    d_sae = len(b_enc)
    rows = min(BLOCK_ROWS, len(centred))
    pre_buffer = centred.new_empty(rows, d_sae)
    indices, values = [], []
    for first in range(0, len(centred), rows):
        block = centred[first : first + rows]
        pre = torch.addmm(b_enc, block, W_enc, out=pre_buffer[: len(block)]).view(-1)
        index = _nonzero(pre > 0)
        values.append(pre[index])
        indices.append(index.add_(first * d_sae))
    index = torch.cat(indices)
    row = index // d_sae
    return row, index - row * d_sae, torch.cat(values)


def _nonzero(mask: Tensor) -> Tensor:
    """Indices of the True entries of a flat mask; mostly False, so look at eight bytes at a time first."""
    if len(mask) % 8:
        return mask.nonzero().squeeze(1)
    word = mask.view(torch.int64).nonzero().squeeze(1)
    within = mask.view(-1, 8)[word].view(-1).nonzero().squeeze(1)
    return word[within >> 3].mul_(8).add_(within & 7)


def _starts(counts: Tensor) -> Tensor:
    """Where each group of `counts` entries begins, and where the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0))


def _weighted_sums(weights: Tensor, index: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """For each group of entries: the sum of weight * rows[index]."""
    return F.embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _entries_of_product(g: Tensor, W_dec: Tensor, row_start: Tensor, column: Tensor, like: Tensor) -> Tensor:
    """(g @ W_dec.T) at the given entries only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        at = torch.sparse_csr_tensor(row_start, column, like, (len(g), len(W_dec)), check_invariants=False)
        return torch.sparse.sampled_addmm(at, g, W_dec.t(), beta=0.0).values()


def _result(
    squares: Tensor,
    sums: Tensor,
    penalty: Tensor,
    batch: int,
    grads: Params,
    fired: Tensor,
    zero_parent: int | None,
    route: Route,
) -> StepResult:
    l2, l1 = squares.double() / batch, torch.dot(penalty, sums).double()
    active = fired.sum() if zero_parent is None else fired.sum() - fired[zero_parent]
    return StepResult(torch.stack([l2, l1, active.double() / batch, l2 + l1]), grads, fired, route)


@torch.no_grad()
def normalise_decoder(W_dec: Float[Tensor, "d_sae d_in"], dW_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Scale the decoder rows to unit norm and remove the gradient along them, in place.

    The 2024 post does this between the backward pass and the optimiser's step, so after that step the rows differ from unit
    norm by up to one step.
    """
    if COMPILED and W_dec.device.type == "cpu" and W_dec.dtype == torch.float32 and W_dec.is_contiguous():
        tiny = np.float32(torch.finfo(torch.float32).tiny)
        kernels.spread(kernels.normalise_rows, kernels.even(len(W_dec)), W_dec.numpy(), dW_dec.numpy(), tiny)
        return
    W_dec.copy_(unit_rows(W_dec))
    dW_dec.sub_(W_dec * (dW_dec * W_dec).sum(-1, keepdim=True))
