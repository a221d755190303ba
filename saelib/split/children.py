"""Children: a small dictionary in one parent's place, trained on what the rest of the SAE leaves there.

    c(x) = relu(x' W + b)               x' is the SAE's own encoder input, (d_in,)
    y_hat(x) = a_p(x) v + c(x) E        rows of E of unit norm, no bias of its own

    loss = mean over on-parent tokens of   |y_hat - y|^2 + l1 sum_j c_j
         + mean over off-parent tokens of  w |c(x) E|^2 + l1_off sum_j c_j

v is the least-squares row of y on the parent's activation over P: the parent stays as the *core*, what all its tokens have in
common, and the children refine it. Without a core every child has to carry the common part, and fires on half of P.

On-parent tokens are P and the parent's weaker tokens; on off-parent tokens the target is 0, so that the children, which have
no gate, stay silent where the parent is. Everything is measured in units in which y has mean square norm 1 on P.

Sources: residual SAEs (SAE Boost, arXiv 2507.12990), hierarchical SAEs (arXiv 2506.01197); the price on off-parent tokens is
what `docs/splitting.md` found to matter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.errors import UserError
from saelib.base.threads import one_thread


@dataclass(frozen=True)
class ChildrenConfig:
    """How children are trained. Coefficients are in units in which the target has mean square norm 1 on P."""

    K: int = 64
    """Children."""
    l1: float = 0.2
    """Price of a unit of activation on on-parent tokens."""
    l1_off: float = 1.1
    """Price of a unit of activation on off-parent tokens."""
    off_weight: float = 3.0
    """Weight of the squared error on off-parent tokens."""
    n_steps: int = 1000
    """Adam steps."""
    batch_on: int = 512
    """Tokens of P a step."""
    batch_weak: int = 128
    """The parent's weaker tokens a step."""
    batch_off: int = 512
    """Off-parent tokens a step."""
    lr: float = 3e-3
    """Adam's learning rate; falls linearly to 0 over the second half."""
    whiten: float = 0.0
    """Exponent of the metric: errors are measured along y's principal axes divided by their variance to this power / 2."""
    start: str = "kmeans++"
    """Where decoder rows begin: `rows` of y at random, `kmeans++` (rows far from those chosen before), `clusters` (centres of
    spherical k-means, each child silent on the tokens of the others), or `random`."""
    frozen_decoder: bool = False
    """Leave the decoder where it begins (a control)."""
    revive_every: int = 400
    """Steps between revivals of children that did not fire on P since the last one; none in the last quarter."""
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that training sees."""
        return self.n_steps * (self.batch_on + self.batch_weak + self.batch_off)

    def __post_init__(self) -> None:
        for name in ("K", "n_steps", "batch_on"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of children must be at least 1", getattr(self, name), "pass more")
        for name in ("l1", "l1_off", "off_weight", "lr", "whiten"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"{name} of children must be finite and not negative", getattr(self, name), "mend it")
        if self.start not in ("rows", "kmeans++", "clusters", "random"):
            raise UserError("start must be rows, kmeans++, clusters or random", repr(self.start), "pass one")


class Pools(NamedTuple):
    """Training tokens: the encoder's input, and on-parent the target and the parent's activation."""

    x_on: Float[Tensor, "n d"]
    y_on: Float[Tensor, "n d"]
    a_on: Float[Tensor, " n"]
    x_weak: Float[Tensor, "m d"]
    y_weak: Float[Tensor, "m d"]
    a_weak: Float[Tensor, " m"]
    x_off: Float[Tensor, "o d"]

    def core(self) -> Float[Tensor, " d"]:
        """v = sum_P a y / sum_P a^2: what all tokens of P have in common, for a unit of the parent's activation."""
        return (self.a_on[:, None] * self.y_on).sum(0) / self.a_on.square().sum().clamp_min(1e-12)

    def beyond_core(self) -> Pools:
        """The same tokens with targets y - a v: what is left for the children."""
        v = self.core()
        return self._replace(y_on=self.y_on - self.a_on[:, None] * v, y_weak=self.y_weak - self.a_weak[:, None] * v)


class Dictionary(NamedTuple):
    """Children: `relu(x W + b)`, decoded by E (rows of unit norm)."""

    W: Float[Tensor, "d K"]
    b: Float[Tensor, " K"]
    E: Float[Tensor, "K d"]

    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n K"]:
        """Activations."""
        return torch.relu(torch.addmm(self.b, x, self.W))


class _Served:
    """Rows of a pool in shuffled order, a batch at a time, epoch after epoch; a batch is overwritten by the next one."""

    def __init__(self, tensors: tuple[Tensor, ...], size: int, generator: torch.Generator) -> None:
        self.tensors, self.generator = tensors, generator
        self.size = min(size, len(tensors[0]))
        self.at = len(tensors[0])

    def into(self, batch: tuple[Tensor, ...]) -> None:
        """Write the next rows of each tensor into its place in the batch."""
        if self.size == 0:
            return
        n = len(self.tensors[0])
        if self.at + self.size > n:
            self.order, self.at = torch.randperm(n, generator=self.generator).to(self.tensors[0].device), 0
        index = self.order[self.at : self.at + self.size]
        self.at += self.size
        for rows, place in zip(self.tensors, batch, strict=True):
            torch.index_select(rows, 0, index, out=place)


@torch.no_grad()
def train_children(pools: Pools, cfg: ChildrenConfig, progress: Callable[[int, int], None] | None = None) -> Dictionary:
    """Train children on these targets as they are; deterministic in `cfg.seed`, whatever threads the process has."""
    with one_thread():
        return _train(pools, cfg, progress)


def train_several(
    pools: Pools, cfgs: Sequence[ChildrenConfig], progress: Callable[[int, int], None] | None = None
) -> list[Dictionary]:
    """`train_children` for each configuration, side by side on the cores; `progress(done, total)` counts trainings."""
    done = 0

    def one(cfg: ChildrenConfig) -> Dictionary:
        nonlocal done
        found = train_children(pools, cfg)
        done += 1
        if progress:
            progress(done, len(cfgs))
        return found

    with ThreadPoolExecutor(max_workers=max(1, min(len(cfgs), os.cpu_count() or 1))) as pool:
        return list(pool.map(one, cfgs))


def _train(pools: Pools, cfg: ChildrenConfig, progress: Callable[[int, int], None] | None) -> Dictionary:
    generator = torch.Generator().manual_seed(cfg.seed)
    scale = pools.y_on.square().sum(1).mean().sqrt().clamp_min(1e-12)
    M = _metric(pools.y_on / scale, cfg.whiten)
    centre = pools.x_on.mean(0)
    spread = (pools.x_on - centre).square().sum(1).mean().sqrt().clamp_min(1e-12)

    def inputs(x: Tensor) -> Tensor:
        return (x - centre).div_(spread)

    def targets(y: Tensor) -> Tensor:
        return y / scale if M is None else (y / scale) @ M

    on = _Served((inputs(pools.x_on), targets(pools.y_on)), cfg.batch_on, generator)
    weak = _Served((inputs(pools.x_weak), targets(pools.y_weak)), cfg.batch_weak, generator)
    off = _Served((inputs(pools.x_off),), cfg.batch_off, generator)
    E = _start(on.tensors[1], cfg, generator)
    W = E.T.clone() if M is None else torch.linalg.lstsq(M, E.T).solution.contiguous()
    W = W / W.norm(dim=0).clamp_min(1e-12)  # a target of zeros gives a child of zeros: dead, and revived
    b = E.new_zeros(cfg.K)
    if cfg.start == "clusters":
        W, b = _apart(on.tensors, W, E)
    fired = E.new_zeros(cfg.K)
    parameters = (W, b, E)
    m, v = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    n_on, n_off, d = on.size + weak.size, off.size, E.shape[1]
    x, t = E.new_empty(n_on + n_off, len(W)), E.new_empty(n_on, d)
    x_on, x_off = x[:n_on], x[n_on:]
    w = cfg.off_weight / max(n_off, 1)
    for step in range(cfg.n_steps):
        on.into((x_on[: on.size], t[: on.size]))
        weak.into((x_on[on.size :], t[on.size :]))
        off.into((x_off,))
        c = torch.addmm(b, x, W).relu_()  # (n_on + n_off, K)
        c_on, c_off = c[:n_on], c[n_on:]
        # d/dc (|c E - t|^2 / n + l1 c / n) = (2 c E E' - 2 t E' + l1) / n; off-parent t is 0
        dc = torch.mm(c, E @ E.T)
        dc[:n_on].addmm_(t, E.T, alpha=-1).mul_(2 / n_on).add_(cfg.l1 / n_on)
        dc[n_on:].mul_(2 * w).add_(cfg.l1_off / max(n_off, 1))
        dc = torch.ops.aten.threshold_backward(dc, c, 0.0)  # 0 where the child is silent
        gram = (c_on.T @ c_on).div_(n_on).addmm_(c_off.T, c_off, alpha=w)
        dE = torch.addmm(gram @ E, c_on.T, t, alpha=-1 / n_on).mul_(2)
        grads = (x.T @ dc, dc.sum(0), dE - (dE * E).sum(1, keepdim=True) * E)
        lr = cfg.lr * min(1.0, 2 * (cfg.n_steps - step) / cfg.n_steps)
        for p, g, m1, v1 in list(zip(parameters, grads, m, v, strict=True))[: 2 if cfg.frozen_decoder else 3]:
            m1.lerp_(g, 0.1)
            v1.lerp_(g * g, 0.01)
            denominator = (v1 / (1 - 0.99 ** (step + 1))).sqrt_().add_(1e-8)
            p.addcdiv_(m1, denominator, value=-lr / (1 - 0.9 ** (step + 1)))
        E.div_(E.norm(dim=1, keepdim=True).clamp_min(1e-12))
        fired += c[: on.size].sum(0)
        if cfg.revive_every and (step + 1) % cfg.revive_every == 0:
            if step + 1 <= 0.75 * cfg.n_steps and not cfg.frozen_decoder:
                _revive(fired, parameters, (m, v), on, generator)
            fired.zero_()
        if progress and step % 100 == 99:
            progress(step + 1, cfg.n_steps)
    # back to the units of x and y: c is measured in units of `scale`
    W = W / spread
    b = b - centre @ W
    if M is not None:
        E = _refit(Dictionary(W, b, E), pools, scale)
    return _unit(Dictionary(W * scale, b * scale, E))


def _unit(d: Dictionary) -> Dictionary:
    norm = d.E.norm(dim=1).clamp_min(1e-12)
    return Dictionary(d.W * norm, d.b * norm, d.E / norm[:, None])


def _refit(d: Dictionary, pools: Pools, scale: Tensor) -> Tensor:
    """Decoder rows by least squares of y on the activations, on-parent tokens."""
    c = d.encode(torch.cat([pools.x_on, pools.x_weak]))
    y = torch.cat([pools.y_on, pools.y_weak]) / scale
    gram = c.T @ c
    return torch.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device), c.T @ y)


def _metric(y: Float[Tensor, "n d"], exponent: float) -> Float[Tensor, "d d"] | None:
    """The symmetric matrix that divides y's principal axes by variance^(exponent/2), rescaled to keep mean square norm 1."""
    if exponent == 0:
        return None
    values, axes = torch.linalg.eigh(torch.cov(y.T).double())
    values = values.clamp_min(1e-3 * float(values.mean()))
    M = (axes * values ** (-exponent / 2)) @ axes.T
    M = M.float()
    return M / (y @ M).square().sum(1).mean().sqrt()


def _start(y: Float[Tensor, "n d"], cfg: ChildrenConfig, generator: torch.Generator) -> Float[Tensor, "K d"]:
    unit = torch.nn.functional.normalize(y, dim=1)
    if cfg.start == "random":
        return torch.nn.functional.normalize(torch.randn(cfg.K, y.shape[1], generator=generator), dim=1).to(y.device)
    if cfg.start == "rows":
        index = torch.randperm(len(y), generator=generator)[: cfg.K]
        E = unit[index]
    else:
        unit = unit[torch.randperm(len(y), generator=generator)[:8192]]
        chosen = [0]
        far = 1 - unit @ unit[0]
        for _ in range(cfg.K - 1):
            j = int(torch.multinomial(far.clamp_min(1e-9).cpu(), 1, generator=generator))
            chosen.append(j)
            far = torch.minimum(far, 1 - unit @ unit[j])
        E = unit[chosen]
        if cfg.start == "clusters":
            for _ in range(10):
                own = (unit @ E.T).argmax(1)
                E = torch.nn.functional.normalize(torch.zeros_like(E).index_add_(0, own, unit), dim=1)
    if len(E) < cfg.K:
        E = torch.cat([E, torch.randn(cfg.K - len(E), y.shape[1], generator=generator).to(y.device)])
    return torch.nn.functional.normalize(E, dim=1).clone()


def _apart(on: tuple[Tensor, ...], W: Tensor, E: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and bias with which child j is silent on most tokens nearer to another row, and on its own writes what they hold."""
    x, t = (part[:8192] for part in on)
    along = t @ E.T  # (n, K)
    own = along.argmax(1)
    p = x @ W
    W, b = W.clone(), W.new_zeros(W.shape[1])
    for j in range(W.shape[1]):
        mine = own == j
        if mine.sum() < 2 or mine.all():
            continue
        inside, outside = p[mine, j].mean(), p[~mine, j].mean()
        cut = 0.5 * (inside + outside)
        gain = (along[mine, j].mean() / (inside - cut).clamp_min(1e-6)).clamp(0.2, 5.0)
        W[:, j] *= gain
        b[j] = -cut * gain
    return W, b


def _revive(
    fired: Tensor, parameters: tuple[Tensor, Tensor, Tensor], moments: tuple[list[Tensor], list[Tensor]],
    on: _Served, generator: torch.Generator,
) -> None:  # fmt: skip
    """Put dead children where the error is largest: a row of the target chosen with probability its squared error."""
    dead = (fired == 0).nonzero()[:, 0]
    if not len(dead):
        return
    W, b, E = parameters
    x, t = on.tensors
    index = torch.randperm(len(x), generator=generator)[:4096]
    r = t[index] - torch.relu(torch.addmm(b, x[index], W)) @ E
    error = (r.square().sum(1) + 1e-12).cpu()
    picked = torch.multinomial(error, len(dead), replacement=True, generator=generator)
    E[dead] = torch.nn.functional.normalize(r[picked], dim=1)
    direction = x[index][picked]
    W[:, dead] = torch.nn.functional.normalize(direction, dim=1).T
    b[dead] = -0.5 * direction.norm(dim=1)
    for group in moments:
        for tensor, place in zip(group, (1, 0, 0), strict=True):
            tensor.index_fill_(place, dead, 0.0)
