"""A linear probe of each context on the activations: the ceiling of what any feature of them can tell.

    min over w, b of  mean_i log(1 + exp(z_i)) - y_i z_i  +  |w|^2 / (2 C n),      z = w.x + b,  x standardised on train

All contexts and all C are fitted at once, as columns of one L-BFGS. It runs in the eigenbasis of the covariance, with
    h = ybar (1 - ybar) eigenvalue + 1 / (C n)
as the first guess of each Hessian's diagonal, so that some tens of matrix products are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from saelib.split.detectors import best_threshold

CS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the ridge, of which each context takes the one with the best select MCC."""
STEPS = 80
"""Most steps of L-BFGS."""
MEMORY = 8
TOLERANCE = 1e-5
"""A problem is done when the estimated excess of its mean loss (half the squared Newton decrement) is below this."""
LEAST_LOGIT = -60.0
"""Below this a probability is nothing beside the others; as it is it would be a denormal number, whose products take forty times
as long."""
Pair = tuple[Tensor, Tensor, Tensor]
"""A step, the change of the gradient over it, and 1 over their product, column by column."""


class Marked(NamedTuple):
    """How well something marks each context: select MCC, and where it fires on test."""

    select_mcc: Float[np.ndarray, " m"]
    fires: Bool[np.ndarray, "n_test m"]


def probe(x: Mapping[str, Float[Tensor, "_ d"]], member: Mapping[str, Bool[np.ndarray, "_ m"]]) -> Marked:
    """The probe of every context: fitted on train, C and threshold chosen on select.

    Args:
        x: activations of train, select and test.
        member: for train and select, the contexts of each token.
    """
    m = member["select"].shape[1]
    logits = _logits(x, torch.from_numpy(member["train"]).to(x["train"].device))
    select_mcc = np.zeros(m)
    fires = np.zeros((len(x["test"]), m), dtype=bool)
    for c in range(m):
        for i in range(len(CS)):
            cut = best_threshold(logits["select"][:, i * m + c], member["select"][:, c])
            if cut.mcc > select_mcc[c]:
                select_mcc[c], fires[:, c] = cut.mcc, logits["test"][:, i * m + c] > cut.t
    return Marked(select_mcc, fires)


@torch.no_grad()
def _logits(x: Mapping[str, Tensor], member: Tensor) -> dict[str, np.ndarray]:
    """Logits of select and test, (n, |CS| m): all contexts for the first C, then for the next."""
    axes = Axes.of(x["train"])
    n, m = member.shape
    ridge = torch.tensor([1 / (C * n) for C in CS], device=member.device).repeat_interleave(m)  # (M,)
    weights = ridge_logistic(axes(x["train"]), member.float().repeat(1, len(CS)), ridge, axes.variance)
    return {s: (axes(x[s]) @ weights[:-1] + weights[-1]).cpu().numpy() for s in ("select", "test")}


class Axes(NamedTuple):
    """Coordinates in which inputs are uncorrelated: standardised, then turned to the eigenvectors of their covariance."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    basis: Float[Tensor, "d d"]
    variance: Float[Tensor, " d"]

    @staticmethod
    def of(x: Float[Tensor, "n d"]) -> Axes:
        """Those of some inputs."""
        mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
        scaled = (x - mean) / std
        variance, basis = torch.linalg.eigh((scaled.T @ scaled).double() / len(x))
        return Axes(mean, std, basis.float(), variance.clamp_min(0).float())

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The inputs in these coordinates."""
        return (x - self.mean) / self.std @ self.basis

    def on_inputs(self, weights: Float[Tensor, "d1 M"]) -> tuple[Float[Tensor, "d M"], Float[Tensor, " M"]]:
        """Weights and intercepts on the inputs as they are, of those that `ridge_logistic` found in these coordinates."""
        W = self.basis @ weights[:-1] / self.std[:, None]
        return W, weights[-1] - self.mean @ W


def ridge_logistic(
    z: Float[Tensor, "n d"], y: Float[Tensor, "n M"], ridge: Float[Tensor, " M"], variance: Float[Tensor, " d"]
) -> Float[Tensor, "d1 M"]:
    """Weights of M ridge logistic regressions, the intercepts (no penalty) in the last row.

    Args:
        z: inputs, uncorrelated.
        y: 0 or 1 for each problem.
        ridge: penalty on half the squared weights, beside a mean loss.
        variance: of each input, for the first guess of the Hessian.
    """
    spread = (y.mean(0) * (1 - y.mean(0))).clamp_min(1e-6)
    h = torch.cat([variance[:, None] * spread + ridge, spread[None]])  # (d + 1, M)
    out, left = torch.zeros_like(h), torch.arange(h.shape[1], device=h.device)
    b = out
    loss, logit = _loss(z, y, ridge, b)
    g = _gradient(z, y, ridge, b, logit)
    pairs: list[Pair] = []
    for _ in range(STEPS):
        going = (g**2 / h).sum(0) / 2 > TOLERANCE
        if not going.all():  # problems that are done leave the work
            out[:, left[~going]] = b[:, ~going]
            left, y, ridge, h, b, g, loss = (each[..., going] for each in (left, y, ridge, h, b, g, loss))
            pairs = [(s[:, going], d[:, going], rho[going]) for s, d, rho in pairs]
            if not len(left):
                break
        step = _direction(g, h, pairs)
        step = torch.where((g * step).sum(0) < 0, step, -g / h)
        slope, size = (g * step).sum(0), torch.ones_like(loss)
        after = loss
        for _ in range(12):
            after, logit = _loss(z, y, ridge, b + size * step)
            short = after <= loss + 1e-4 * size * slope + 1e-6 * loss.abs()
            if short.all():
                break
            size = torch.where(short, size, size / 2)
        moved = b + size * step
        new = _gradient(z, y, ridge, moved, logit)
        s, d = moved - b, new - g
        curvature = (s * d).sum(0)
        rho = torch.where(curvature > 1e-12, 1 / curvature.clamp_min(1e-12), 0)  # 0 leaves the pair out
        pairs = [*pairs, (s, d, rho)][-MEMORY:]
        b, g, loss = moved, new, after
    out[:, left] = b
    return out


def _loss(z: Tensor, y: Tensor, ridge: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each problem, and the logits."""
    logit = torch.addmm(b[-1], z, b[:-1])
    return (F.softplus(logit.clamp_min(LEAST_LOGIT)) - y * logit).mean(0) + 0.5 * ridge * (b[:-1] ** 2).sum(0), logit


def _gradient(z: Tensor, y: Tensor, ridge: Tensor, b: Tensor, logit: Tensor) -> Tensor:
    residual = (torch.sigmoid(logit.clamp_min(LEAST_LOGIT)) - y) / len(z)
    return torch.cat([z.T @ residual + ridge * b[:-1], residual.sum(0)[None]])


def _direction(g: Tensor, h: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The two-loop recursion, column by column."""
    q, alphas = g, []
    for s, d, rho in reversed(pairs):
        alpha = rho * (s * q).sum(0)
        q = q - alpha * d
        alphas.append(alpha)
    q = q / h
    for (s, d, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + s * (alpha - rho * (d * q).sum(0))
    return -q
