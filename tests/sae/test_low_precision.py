"""The rough product may not lose an active feature, in any format, on any input; and then no format changes a bit."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saelib.sae.sparse_step as sparse_module
from saelib.base import kernels
from saelib.sae import low_precision
from saelib.sae.gradients import Params
from saelib.sae.step import loss_and_grads


def rows_of(kind, n, d, generator):
    """Rows of one character: what makes rounding hard, or breaks it."""
    rows = torch.randn(n, d, generator=generator)
    match kind:
        case "outlier":  # one entry sets the scale of int8, all others fall to zero
            rows[:, 0] *= 1000
        case "tiny":
            rows *= 1e-12
        case "subnormal":
            rows *= 1e-41
        case "huge":
            rows *= 1e14
        case "zero":
            rows[::2] = 0
        case "mixed":
            rows *= 10.0 ** torch.randint(-20, 12, (n, 1), generator=generator)
        case "overflowing":
            rows[::3] *= 1e25
    return rows


@settings(max_examples=150, deadline=None)
@given(
    c_kind=st.sampled_from(["plain", "outlier", "tiny", "subnormal", "huge", "zero", "mixed"]),
    w_kind=st.sampled_from(["plain", "outlier", "tiny", "subnormal", "huge", "zero", "mixed"]),
    d=st.integers(1, 90),
    n=st.integers(1, 70),
    near=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_bound_holds(c_kind, w_kind, d, n, near, seed):
    """Every feature whose fp32 pre-activation is positive is a candidate, also one that is so by a last bit."""
    generator = torch.Generator().manual_seed(seed)
    c, w = rows_of(c_kind, 5, d, generator), rows_of(w_kind, n, d, generator)
    b = torch.zeros(n)
    if near:  # biases that leave a pre-activation of a hair above zero, for the first row
        b = torch.nextafter(-(w @ c[0]), torch.tensor(float("inf")))
        b = torch.where(b.isfinite(), b, torch.zeros(n))
    exact = c.double() @ w.double().t() + b.double()
    computed = torch.stack([_computed(row, w) for row in c]) + b
    for kind in low_precision.FORMATS:
        found = candidates(c, w, b, kind)
        for r in range(len(c)):
            missing = ((exact[r] > 0) | (computed[r] > 0)) & ~found[r]
            assert not missing.any(), (kind, r, missing.nonzero().flatten().tolist())


def _computed(row, w):
    """The kernel's own fp32 products."""
    which, out = np.arange(len(w) + 4, dtype=np.int32), np.empty(len(w) + 4, np.float32)
    kernels._dots(row.numpy(), w.numpy(), which, len(w), out)
    return torch.from_numpy(out[: len(w)].copy())


def candidates(c, w, b, kind):
    """The features that may be active by the bound."""
    found = torch.zeros(len(c), len(w), dtype=torch.bool)
    rough_c, rough_w = low_precision.rounded(c, kind), low_precision.rounded(w, kind)
    product = low_precision.rough_product(rough_c.values, rough_w.values)
    per_feature = torch.stack([b, rough_w.norm, rough_w.rest]).div_(rough_w.scale).numpy()
    for r in range(len(c)):
        out = np.empty(len(w) + 8, np.int32)
        on_norm, on_rest = low_precision.margins(rough_c, c.shape[1])
        n = kernels._candidates(
            product[r].numpy(), np.float32(low_precision.relative_error(kind)), np.float32(1) / rough_c.scale[r].numpy(),
            on_norm[r].numpy(), on_rest[r].numpy(), per_feature, np.zeros((len(w) + 7) // 8 * 8, np.uint8), out,
        )  # fmt: skip
        found[r, torch.from_numpy(out[:n].astype(np.int64))] = True
    return found


@pytest.mark.parametrize("kind", low_precision.FORMATS)
def test_few_are_computed_in_vain(kind):
    generator = torch.Generator().manual_seed(0)
    c, w = torch.randn(64, 256, generator=generator), torch.randn(1024, 256, generator=generator)
    pre = c @ w.t()
    b = torch.full((1024,), -float(pre.flatten().kthvalue(round(0.98 * pre.numel())).values))
    active = int((pre + b > 0).sum())
    limit = {"float32": 1.01, "bfloat16": 1.3, "int8": 2.0}[kind]
    assert active <= int(candidates(c, w, b, kind).sum()) <= limit * active


def test_a_number_that_is_not_finite_is_always_let_through():
    c, w = torch.ones(4, 8), torch.ones(40, 8)
    c[0, 3], c[1, 3], w[5, 0], w[6, 0] = float("nan"), float("inf"), float("nan"), -float("inf")
    b = torch.full((40,), -100.0)
    b[7] = float("nan")
    for kind in low_precision.FORMATS:
        found = candidates(c, w, b, kind)
        assert found[:2].all() and found[:, 5:8].all() and not found[2:, 8:].any(), kind


def training_problem(batch, d_in, d_sae, active, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = torch.randn(d_in, d_sae, generator=generator), torch.randn(d_sae, d_in, generator=generator)
    x, b_dec = torch.randn(batch, d_in, generator=generator), torch.randn(d_in, generator=generator)
    pre = (x - b_dec) @ W_enc
    ordered = pre.flatten().sort().values
    below = round(pre.numel() * (1 - active))  # the threshold lies between two pre-activations, not on one
    neighbours = ordered[max(0, below - 1) : below + 1]
    outside = {0: -1.0, pre.numel(): 1.0}.get(below, 0.0)
    b_enc = -(neighbours.mean() + outside) * torch.ones(d_sae)
    return Params(W_enc, b_enc, W_dec, b_dec), x


def with_format(monkeypatch, kind):
    """Let every step use one format."""
    choice = sparse_module._Choice()
    choice.best, choice.calls = kind, 2
    monkeypatch.setattr(sparse_module, "_choice", lambda *_: choice)


@pytest.mark.parametrize("zero_parent", [None, 3])
def test_no_format_and_no_number_of_threads_changes_a_bit(monkeypatch, zero_parent):
    params, x = training_problem(1500, 96, 700, 0.03)
    results = []
    threads = torch.get_num_threads()
    try:
        for kind in low_precision.FORMATS:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                with_format(monkeypatch, kind)
                results.append(loss_and_grads(params, x, 1e-3, zero_parent, "sparse"))
    finally:
        torch.set_num_threads(threads)
    first = results[0]
    assert 10 < first.l0 < 35
    for other in results[1:]:
        assert (other.l2, other.l0) == (first.l2, first.l0) and torch.equal(other.fired, first.fired)
        for name in ("W_enc", "b_enc", "W_dec"):
            assert torch.equal(getattr(other.grads, name), getattr(first.grads, name)), name


def test_the_trial_changes_nothing_and_comes_to_an_answer():
    params, x = training_problem(1024, 128, 256, 0.03)
    assert sparse_module._SMALL <= 1024 * 128 * 256
    sparse_module._choice.cache_clear()
    results = [loss_and_grads(params, x, 1e-3, route="sparse") for _ in range(3)]
    assert sparse_module._choice((1024, 128, 256), torch.get_num_threads()).calls == 3
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0].grads, other.grads, strict=True))


def test_more_entries_than_there_was_room_for(monkeypatch):
    params, x = training_problem(300, 16, 400, 0.6)
    monkeypatch.setattr(sparse_module, "_Entries", functools.partial(_small_room, sparse_module._Entries))
    found, dense = (loss_and_grads(params, x, 1e-3, route=route) for route in ("sparse", "dense"))
    agree(found, dense)


def _small_room(entries, room):
    return entries(500)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 33), (65, 64, 31), (130, 33, 64)])
@pytest.mark.parametrize("active", [0.0, 0.05, 1.0])
def test_at_odd_shapes_the_routes_agree_to_rounding(shape, active):
    params, x = training_problem(*shape, active)
    found, dense = (loss_and_grads(params, x, 1e-3, route=route) for route in ("sparse", "dense"))
    assert found.loss == pytest.approx(dense.loss, rel=1e-5)
    agree(found, dense)


def agree(found, dense):
    assert torch.equal(found.fired, dense.fired)
    for a, b in zip(found.grads, dense.grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))
