"""Which features may be active: a low-precision product of batch and encoder, with a bound on its error.

With c = x - b_dec rounded to c' and a column w of W_enc rounded to w', whatever the format,

    |c . w - c' . w'|  <=  |c - c'| |w|  +  |c'| |w - w'|                                        (Cauchy-Schwarz)

and the four norms are computed, not estimated. A feature is not active if its rough pre-activation plus this bound plus its
bias is not positive; for all others the kernel computes the pre-activation in fp32. The bound also covers the rounding of
that computation, d_in 2^-23 |c| |w|, so the format does not change a result by a bit. It only matters for speed: from time to
time the three formats are timed on the batch at hand and the fastest is kept (unless it disagrees with fp32 there, which
would be a bug of the product's library).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from saelib.base import kernels

Format = Literal["float32", "bfloat16", "int8"]
FORMATS: tuple[Format, ...] = ("int8", "bfloat16", "float32")


class Rounded(NamedTuple):
    """Rows in a cheaper format: about `values * scale`, with the norms of the rows and of what is missing, rounded up."""

    values: Shaped[Tensor, "n d_in"]
    scale: Float[Tensor, " n"]
    norm: Float[Tensor, " n"]
    rest: Float[Tensor, " n"]


def rounded(rows: Float[Tensor, "n d_in"], kind: Format) -> Rounded:
    """The rows in `kind`."""
    n = len(rows)
    norm, rest, scale = rows.new_empty(n), rows.new_empty(n), rows.new_ones(n)
    bounds = kernels.even(n)
    if kind == "int8":
        values = torch.empty(rows.shape, dtype=torch.int8)
        kernels.spread(kernels.round_to_int8, bounds, *_arrays(rows, values, scale, norm, rest))
        return Rounded(values, scale, norm, rest)
    values = rows if kind == "float32" else rows.bfloat16()
    kernels.spread(kernels.norms, bounds, *_arrays(rows, values.float(), norm, rest))
    return Rounded(values, scale, norm, rest)


def rough_product(
    c: Shaped[Tensor, "b d_in"], w: Shaped[Tensor, "d_sae d_in"], out: Shaped[Tensor, "b d_sae"] | None = None
) -> Shaped[Tensor, "b d_sae"]:
    """c @ w.T, summed in int32 for int8 and in fp32 otherwise (bf16 rounds once more on the way out).

    `out` is memory of four bytes an entry to use for it (fresh memory costs as much as the product in int8).
    """
    if out is None:
        out = torch.empty(len(c), len(w))
    if c.dtype == torch.int8:
        out = out.view(torch.int32)
        if c.shape[1] == 1:  # torch 2.13 multiplies these wrongly
            return torch.mul(c.int(), w.int().t(), out=out)
        return torch._int_mm(c, w.t(), out=out)
    return torch.mm(c, w.t(), out=out) if c.dtype == torch.float32 else out.copy_(torch.mm(c, w.t()))


def relative_error(kind: Format) -> float:
    """Error of `rough_product` relative to its result, besides that of summation: the rounding of bf16 results."""
    return 2.0**-7.9 if kind == "bfloat16" else 0.0


def margins(c: Rounded, d_in: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Per row of the batch, in its own scale: what the bound grows by for a unit of the feature's norm, and of its rest.

    Rounding moves the sums themselves, the rough one and the exact one, by less than (d_in + 32) 2^-24 |c| |w| each.
    """
    inverse = 1 / c.scale
    return (c.rest + c.norm * ((d_in + 32) * 2.0**-23)) * inverse, (c.norm + c.rest) * inverse


def _arrays(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.numpy() for tensor in tensors)
