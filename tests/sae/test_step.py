from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import saelib.sae.gradients as gradients
from saelib.base import kernels
from saelib.base.errors import UserError
from saelib.sae.divergence import DivergenceCheck
from saelib.sae.gradients import Params
from saelib.sae.initial import init_random
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.step import SPARSE_BELOW, Objective, choose_route, loss_and_grads, normalise_decoder
from saelib.sae.train_config import TrainConfig
from saelib.sae.train_state import TrainState

ROUTES = ("dense", "sparse")


def problem(batch=12, d_in=5, d_sae=9, active=0.4, dtype=torch.float64, seed=0):
    """Random parameters, all non-zero, and a batch; about `active` of the features fire."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    params = Params(normal(d_in, d_sae), normal(d_sae) / 4, normal(d_sae, d_in), normal(d_in))
    x = normal(batch, d_in)
    pre = (x - params.b_dec) @ params.W_enc + params.b_enc
    ordered = pre.flatten().sort().values
    below = round((1 - active) * len(ordered))
    if below >= len(ordered):
        shift = ordered[-1] + 1
    elif below <= 0:
        shift = ordered[0] - 1
    else:  # between two of them: a pre-activation of zero is active or not as it happens to be rounded
        shift = (ordered[below - 1] + ordered[below]) / 2
    return params._replace(b_enc=params.b_enc - shift), x


def autograd(params, x, l1_coeff, zero_parent, objective="study"):
    """The loss in the study's words (or SAELens's), differentiated by torch."""
    leaves = Params(*(p.clone().requires_grad_(True) for p in params))
    acts = torch.relu((x - leaves.b_dec) @ leaves.W_enc + leaves.b_enc)
    fired = (acts > 0).sum(0)
    if zero_parent is not None:
        acts = acts.masked_fill(torch.arange(acts.shape[1]) == zero_parent, 0)
    error = acts @ leaves.W_dec + leaves.b_dec - x
    l2 = (error**2).sum(-1).mean(0)
    if objective == "decoder_norm":
        l1 = l1_coeff * (acts * leaves.W_dec.norm(dim=1)).norm(p=1, dim=-1).mean()
    else:
        l1 = l1_coeff * acts.abs().sum()
    (l2 + l1).backward()
    return l2.item(), l1.item(), Params(*(p.grad for p in leaves)), fired


@pytest.mark.parametrize("route", ROUTES)
def test_by_hand(route):
    eye = torch.eye(2)
    params = Params(eye, torch.tensor([0.0, -1.0]), eye, torch.zeros(2))
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    # acts = [[1, 1], [3, 0]] and x_hat = acts, so the only error is -1 in the second place of the first row
    result = loss_and_grads(params, x, l1_coeff=0.1, route=route)
    assert (result.l2, result.l0, result.fired.tolist()) == (0.5, 1.5, [2, 1])
    assert result.l1 == pytest.approx(0.1 * 5)
    assert result.loss == pytest.approx(1.0)
    for got, expected in zip(
        result.grads, ([[0.4, -0.9], [0.2, -1.8]], [0.2, -0.9], [[0, -1], [0, -1]], [-0.2, -0.1]), strict=True
    ):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("route", ROUTES)
def test_zeroed_parent_by_hand(route):
    eye = torch.eye(2)
    params = Params(eye, torch.tensor([0.0, -1.0]), eye, torch.zeros(2))
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    # acts = [[1, 0], [3, 0]]: the error is now -2, and nothing reaches feature 1's encoder or decoder
    result = loss_and_grads(params, x, l1_coeff=0.1, zero_parent=1, route=route)
    assert (result.l2, result.l0, result.fired.tolist()) == (2.0, 1.0, [2, 1])
    assert result.l1 == pytest.approx(0.1 * 4)
    for got, expected in zip(
        result.grads, ([[0.4, 0], [0.2, 0]], [0.2, 0], [[0, -2], [0, 0]], [-0.2, -2.0]), strict=True
    ):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("route", ROUTES)
def test_l1_is_summed_over_the_batch_and_l2_averaged(route):
    params, x = problem(dtype=torch.float32)
    once, twice = (loss_and_grads(params, x.repeat(n, 1), 0.3, route=route) for n in (1, 2))
    assert twice.l1 == pytest.approx(2 * once.l1)
    assert twice.l2 == pytest.approx(once.l2)
    assert twice.l0 == once.l0


@pytest.mark.parametrize("objective", get_args(Objective))
@pytest.mark.parametrize("zero_parent", [None, 4])
@pytest.mark.parametrize("block_rows", [1024, 5])
def test_gradients_are_autograds(block_rows, zero_parent, objective, monkeypatch):
    monkeypatch.setattr(gradients, "BLOCK_ROWS", block_rows)
    params, x = problem()
    l2, l1, grads, fired = autograd(params, x, 0.3, zero_parent, objective)
    result = loss_and_grads(params, x, 0.3, zero_parent, "dense", objective)
    assert result.l2 == pytest.approx(l2, rel=1e-12)
    assert result.l1 == pytest.approx(l1, rel=1e-12)
    assert torch.equal(result.fired, fired)
    for got, expected in zip(result.grads, grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", get_args(Objective))
@pytest.mark.parametrize("zero_parent", [None, 4])
@pytest.mark.parametrize("block_rows", [1024, 50])
@pytest.mark.parametrize("route", ROUTES)
def test_fp32_gradients_are_autograds_to_rounding(route, block_rows, zero_parent, objective, monkeypatch):
    monkeypatch.setattr(gradients, "BLOCK_ROWS", block_rows)
    params, x = problem(300, 40, 200, 0.05)
    l2, l1, grads, fired = autograd(params, x, 0.3, zero_parent, objective)
    result = loss_and_grads(Params(*(p.float() for p in params)), x.float(), 0.3, zero_parent, route, objective)
    assert result.route == route
    assert (result.l2, result.l1) == (pytest.approx(l2, rel=1e-5), pytest.approx(l1, rel=1e-5))
    assert torch.equal(result.fired, fired)
    for got, expected in zip(result.grads, grads, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("zero_parent", [None, 4])
def test_gradients_are_finite_differences(zero_parent):
    params, x = problem()
    grads = loss_and_grads(params, x, 0.3, zero_parent).grads
    h = 1e-6
    for which, (param, grad) in enumerate(zip(params, grads, strict=True)):
        for entry in range(param.numel()):
            sides = []
            for sign in (1, -1):
                moved = param.flatten().clone()
                moved[entry] += sign * h
                changed = list(params)
                changed[which] = moved.view(param.shape)
                sides.append(loss_and_grads(Params(*changed), x, 0.3, zero_parent).loss)
            slope = (sides[0] - sides[1]) / (2 * h)
            assert grad.flatten()[entry].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 40),
    d_in=st.integers(1, 20),
    d_sae=st.integers(1, 70),
    active=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    zeroed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_routes_agree_on_any_shape(batch, d_in, d_sae, active, zeroed, seed):
    params, x = problem(batch, d_in, d_sae, active, torch.float32, seed)
    zero_parent = seed % d_sae if zeroed else None
    dense, sparse = (loss_and_grads(params, x, 0.1, zero_parent, route) for route in ROUTES)
    assert sparse.loss == pytest.approx(dense.loss, rel=1e-5)
    assert torch.equal(sparse.fired, dense.fired)
    assert sparse.l0 == dense.l0
    for a, b in zip(sparse.grads, dense.grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("route", ROUTES)
def test_the_same_bits_every_time(route):
    params, x = problem(3000, 32, 256, 0.05, torch.float32)
    first, again = (loss_and_grads(params, x.clone(), 1e-3, route=route) for _ in range(2))
    assert first.loss == again.loss
    for a, b in zip(first.grads, again.grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "b_dec"])
@pytest.mark.parametrize("route", ROUTES)
def test_nan_reaches_the_loss(route, name):
    params, x = problem(dtype=torch.float32)
    broken = getattr(params, name).clone()
    broken[..., 2] = float("nan")
    assert not loss_and_grads(params._replace(**{name: broken}), x, 0.1, route=route).loss < float("inf")


@pytest.mark.parametrize("feature", [-1, 9])
def test_parent_must_be_a_feature(feature):
    params, x = problem()
    with pytest.raises(UserError, match=rf"feature must be in \[0, d_sae=9\); got {feature}"):
        loss_and_grads(params, x, 0.1, zero_parent=feature)


def test_the_sparse_route_takes_fp32_on_a_cpu():
    params, x = problem()
    with pytest.raises(UserError, match=r"the sparse route takes fp32 on a CPU; got torch\.float64 on cpu"):
        loss_and_grads(params, x, 0.1, route="sparse")


def test_route_follows_the_activity():
    cpu = torch.device("cpu")
    assert choose_route(1.0, cpu) == "dense"
    assert choose_route(SPARSE_BELOW / 2, cpu) == "sparse"
    assert choose_route(SPARSE_BELOW / 2, torch.device("cuda")) == "dense"


def test_normalise_decoder():
    params, _ = problem()
    W_dec, gradient = params.W_dec.clone(), torch.randn(9, 5, dtype=torch.float64)
    given_rows, given_gradient = W_dec.clone(), gradient.clone()
    normalise_decoder(W_dec, gradient)
    torch.testing.assert_close(W_dec.norm(dim=1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(W_dec * given_rows.norm(dim=1, keepdim=True), given_rows)
    torch.testing.assert_close((W_dec * gradient).sum(1), torch.zeros(9, dtype=torch.float64))
    removed = given_gradient - gradient  # lies along the rows, and nothing else was touched
    torch.testing.assert_close(removed, (removed * W_dec).sum(1, keepdim=True) * W_dec)


def test_params_of_an_sae_share_its_memory():
    sae = init_random(SAEConfig(3, 4, "hook", "model"), torch.Generator().manual_seed(0))
    assert isinstance(sae, SAE)
    params = Params.of(sae)
    params.b_enc.fill_(7)
    assert sae.b_enc.tolist() == [7, 7, 7, 7]
    assert not any(p.requires_grad for p in params)


class NothingReadBack(TorchDispatchMode):
    """Fails on what makes the host wait for a device: a value read, or a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", get_args(Objective))
def test_a_step_as_on_cuda_reads_nothing_back(objective, monkeypatch):
    """The operations that a GPU is given, on a CPU: torch's own, the dense route."""
    monkeypatch.setattr(kernels, "serve", lambda x: False)
    params, x = problem(dtype=torch.float32)
    sae = SAE(SAEConfig(d_in=5, d_sae=9, hook_name="none", model_name="none"))
    state = TrainState(sae, TrainConfig(l1_coeff=0.1, n_steps=1, objective=objective))
    state.device = torch.device("meta")  # anything but a CPU
    check = DivergenceCheck("run", torch.device("cpu"), lambda: "none")
    assert choose_route(state.active_share, torch.device("cuda")) == "dense"
    with NothingReadBack():
        result = loss_and_grads(params, x, 0.1, 3, "dense", objective)
        check.observe(0, result.totals[-1])
        state.count(result, len(x))
        normalise_decoder(params.W_dec, result.grads.W_dec)
        state.update(result.grads)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            _ = result.loss
