"""Local methods: dictionaries of K features for one parent. Ours, ours with a part taken away, relatives from the literature,
clusterings and nulls.

Each is exported with the same thresholds and the same refit (`Work.install`), so that they differ in their features alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.threads import one_thread
from saelib.sae.initial import unit_rows
from saelib.split import controls
from saelib.split.children import ChildrenConfig, Dictionary, Pools, train_children
from saelib.split.methods import Task, method
from saelib.split.tokens import SPLITS

K_CURVE = (8, 16, 32, 64, 128, 256, 512)
"""Sizes at which our children are a row each."""
CLEAN = 0.02
"""Foreign leak on select above which `children-clean` leaves a child out."""
PRICES = {"cheap": 0.5, "dear": 2.0}
"""Our children at other L0: multiples of their prices of activation."""
_SAMPLE = 8192


# --- ours, and ours with a part taken away -------------------------------------------------------------------------------------


def trained(task: Task, pools: Pools, cfg: ChildrenConfig) -> Dictionary:
    """`train_children`, with its cost."""
    batches = zip((pools.x_on, pools.x_weak, pools.x_off), (cfg.batch_on, cfg.batch_weak, cfg.batch_off), strict=True)
    tokens = sum(min(size, len(x)) for x, size in batches)
    task.meter.train(cfg.n_steps * tokens, pools.x_on.shape[1], cfg.K)
    return train_children(pools, cfg)


@method("children", "local", "ours: children on what the rest leaves, with off-parent tokens as negatives")
def children(task: Task) -> Dictionary:
    """The method of `docs/splitting.md`."""
    return trained(task, task.targets, task.config)


def _register_curve() -> None:
    for K in K_CURVE:
        method(f"children-{K}", "local", f"ours with K = {K}", K=K)(children)
    for word, share in PRICES.items():

        def at_price(task: Task, share: float = share) -> Dictionary:
            cfg = task.config
            return trained(task, task.targets, replace(cfg, l1=share * cfg.l1, l1_off=share * cfg.l1_off))

        at_price.__qualname__ = f"children_{word}"
        method(f"children-{word}", "local", f"ours with activation at {share:g} of its price")(at_price)


_register_curve()
method(
    "children-clean",
    "local",
    f"ours with K = 256, and no child whose foreign leak on select is above {CLEAN:.0%}",
    K=256,
    most_leak=CLEAN,
)(children)


@method("no-negatives", "local", "ours without off-parent tokens")
def no_negatives(task: Task) -> Dictionary:
    """Children that never see a token on which the parent is silent."""
    return trained(task, task.targets._replace(x_off=task.targets.x_off[:0]), task.config)


@method("no-target", "local", "ours without the residual target: x less its mean on P")
def no_target(task: Task) -> Dictionary:
    """Children that reconstruct the activation itself, whatever the rest of the SAE has of it."""
    pools = task.pools
    centre = pools.x_on.mean(0)
    return trained(task, pools._replace(y_on=pools.x_on - centre, y_weak=pools.x_weak - centre), task.config)


@method("wrong-parent", "local", "ours, trained for another parent of the same rate", prune=False)
def wrong_parent(task: Task) -> Dictionary:
    """Children of another feature: the live one whose rate is nearest to this parent's among those of another direction."""
    return trained(task, controls.other_pools(task.work).beyond_core(), task.config)


# --- relatives from the literature -------------------------------------------------------------------------------------------


@method("matryoshka", "local", "children in nested prefixes: the first K/16, K/4 and all reconstruct by themselves")
def matryoshka(task: Task) -> Dictionary:
    """Nested prefixes (Matryoshka SAEs), in the children's loss: the mean over prefixes."""
    K = task.K
    prefixes = tuple(sorted({max(1, K // 16), max(1, K // 4), K}))
    return _train_plain(task, task.targets, prefixes=prefixes)


@method("subspace", "local", "a low-rank subspace with one active child (H-SAE, arXiv 2506.01197)")
def subspace(task: Task) -> Dictionary:
    """One active child a token inside a subspace of rank K / 4 (at least 8); biases take the place of winner-takes-all."""
    d = task.targets.x_on.shape[1]
    rank = min(max(8, task.K // 4), d)
    on_only = task.targets._replace(x_off=task.targets.x_off[:0])
    return _train_plain(task, on_only, rank=rank, one_active=True)


@method("residual", "local", "a small SAE on the whole SAE's error on P (SAE Boost, arXiv 2507.12990)")
def residual(task: Task) -> Dictionary:
    """Features of x - x_hat on the parent's tokens, the parent staying as it is; no negatives."""
    pools, d_p = task.pools, task.d_p
    error = pools._replace(
        y_on=pools.y_on - pools.a_on[:, None] * d_p,
        y_weak=pools.y_weak - pools.a_weak[:, None] * d_p,
        x_off=pools.x_off[:0],
    )
    return trained(task, error, task.config)


def _train_plain(
    task: Task, pools: Pools, *, prefixes: Sequence[int] = (), rank: int | None = None, one_active: bool = False
) -> Dictionary:
    """The children's loss by plain autograd, with nested prefixes or with one active feature in a subspace.

    loss = mean over prefixes p of  |c_:p E_:p - y|^2 on P  +  w |c_:p E_:p|^2 off P     + l1 sum c (off P: l1_off)
    """
    with one_thread():
        return _plain(task, pools, prefixes or (task.K,), rank, one_active)


def _plain(task: Task, pools: Pools, prefixes: Sequence[int], rank: int | None, one_active: bool) -> Dictionary:
    cfg, generator = task.config, torch.Generator().manual_seed(task.seed)
    d = pools.x_on.shape[1]
    scale = pools.y_on.square().sum(1).mean().sqrt().clamp_min(1e-12)
    centre = pools.x_on.mean(0)
    spread = (pools.x_on - centre).square().sum(1).mean().sqrt().clamp_min(1e-12)
    x_on, y_on = (pools.x_on - centre) / spread, pools.y_on / scale
    x_off = (pools.x_off - centre) / spread
    E = unit_rows(y_on[torch.randint(len(y_on), (cfg.K,), generator=generator)])
    if rank is None:
        parts = [E.T.clone(), E.new_zeros(cfg.K), E]
    else:
        basis = torch.linalg.svd(y_on[:_SAMPLE] - y_on[:_SAMPLE].mean(0), full_matrices=False).Vh[:rank]
        parts = [basis.T @ (basis @ E.T), E.new_zeros(cfg.K), E @ basis.T, basis.clone()]
    parts = [p.contiguous().requires_grad_(True) for p in parts]
    adam = torch.optim.Adam(parts, lr=cfg.lr, betas=(0.9, 0.99))
    n_on, n_off = min(cfg.batch_on, len(x_on)), min(cfg.batch_off, len(x_off))
    task.meter.train(cfg.n_steps * (n_on + n_off), d, cfg.K)

    def decoder() -> Tensor:
        rows = parts[2] if rank is None else parts[2] @ parts[3]
        return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def encode(x: Tensor) -> Tensor:
        c = torch.relu(x @ parts[0] + parts[1])
        return c * (c == c.amax(1, keepdim=True)) if one_active else c

    for step in range(cfg.n_steps):
        index = torch.randint(len(x_on), (n_on,), generator=generator)
        c, rows = encode(x_on[index]), decoder()
        loss = cfg.l1 * c.sum(1).mean() if not one_active else c.new_zeros(())
        for p in prefixes:
            loss = loss + (c[:, :p] @ rows[:p] - y_on[index]).square().sum(1).mean() / len(prefixes)
        if n_off:
            away = encode(x_off[torch.randint(len(x_off), (n_off,), generator=generator)])
            loss = loss + cfg.l1_off * away.sum(1).mean()
            for p in prefixes:
                loss = loss + cfg.off_weight * (away[:, :p] @ rows[:p]).square().sum(1).mean() / len(prefixes)
        for group in adam.param_groups:
            group["lr"] = cfg.lr * min(1.0, 2 * (cfg.n_steps - step) / cfg.n_steps)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        W, b = parts[0] / spread, parts[1].clone()
        if one_active:
            b = b - _winning_margin(x_on, parts[0], b, encode)
        return Dictionary((W * scale).contiguous(), (b - centre @ W) * scale, decoder().clone())


def _winning_margin(x: Tensor, W: Tensor, b: Tensor, encode: Any) -> Tensor:
    """How far each bias is lowered so that, without the competition, the feature fires as often as it won."""
    won = (encode(x) > 0).float().mean(0)
    pre = torch.relu(x @ W + b).sort(0).values
    rank = ((1 - won) * (len(x) - 1)).round().long()
    return pre.gather(0, rank[None])[0]


@method("small-sae", "local", "a plain L1 SAE of K features on P, no residual target, no negatives", prune=False)
def small_sae(task: Task) -> Dictionary:
    """`saelib.split.controls.small_sae`."""
    cfg, n = task.config, len(task.pools.x_on)
    task.meter.train(cfg.n_steps * min(cfg.batch_on, n), task.pools.x_on.shape[1], cfg.K)
    return controls.small_sae(task.pools, cfg)


# --- clusterings ---------------------------------------------------------------------------------------------------------------


@method("k-means", "local", "K cluster centres of what is left on P", prune=False)
def k_means(task: Task) -> Dictionary:
    """`saelib.split.controls.k_means`."""
    return controls.k_means(task.targets, task.config)


@method("spherical-k-means", "local", "K cluster directions of what is left on P", prune=False)
@torch.no_grad()
def spherical_k_means(task: Task, rounds: int = 20) -> Dictionary:
    """Clusters of y / |y| by cosine; feature j is relu(x.u_j - b_j), b_j half-way from the mean to its own tokens."""
    generator = torch.Generator().manual_seed(task.seed)
    pools = task.targets
    index = torch.randperm(len(pools.y_on), generator=generator)[:_SAMPLE]
    z = pools.y_on[index] - pools.y_on[index].mean(0)
    unit = unit_rows(z)
    centres = unit[torch.randperm(len(unit), generator=generator)[: task.K]].clone()
    nearest = torch.zeros(len(unit), dtype=torch.long, device=unit.device)
    for _ in range(rounds):
        nearest = (unit @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, unit)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, unit_rows(sums), centres)
    own = (z * centres[nearest]).sum(1)
    count = torch.bincount(nearest, minlength=len(centres)).clamp_min(1)
    length = own.new_zeros(len(centres)).index_add_(0, nearest, own) / count
    W = centres.T.contiguous()
    return Dictionary(W, -(pools.x_on.mean(0) @ W) - length / 2, centres)


@method("ica", "local", "independent components of what is left on P (at most d_in)", prune=False)
def ica(task: Task) -> Dictionary:
    """Symmetric FastICA with tanh on K principal axes of y; each component's heavier side is a feature above one sd."""
    pools, generator = task.targets, torch.Generator().manual_seed(task.seed)
    index = torch.randperm(len(pools.y_on), generator=generator)[:_SAMPLE]
    y, x = pools.y_on[index], pools.x_on[index]
    unmix, mix = fast_ica(y.double(), min(task.K, y.shape[1], len(y) - 1), generator)
    sources = (y.double() - y.double().mean(0)) @ unmix
    sign = torch.where((sources**3).mean(0) < 0, -1.0, 1.0).double()
    unmix, mix = unmix * sign, mix * sign[:, None]
    W, E = unmix.float().contiguous(), unit_rows(mix.float())
    projected = x @ W
    return Dictionary(W, -(projected.mean(0) + projected.std(0)), E)


def fast_ica(
    y: Float[Tensor, "n d"], K: int, generator: torch.Generator, rounds: int = 100
) -> tuple[Float[Tensor, "d K"], Float[Tensor, "K d"]]:
    """Unmixing (y - mean) @ U and mixing rows A of K components: FastICA (Hyvärinen 1999), symmetric, g = tanh.

    Each round: B <- E[z g(B z)'] - E[g'(B z)] B, then B <- (B B')^(-1/2) B, on whitened z.
    """
    z = y - y.mean(0)
    values, axes = torch.linalg.eigh(z.T @ z / len(z))
    values, axes = values[-K:].clamp_min(1e-12 * float(values[-1]) + 1e-300), axes[:, -K:]
    white = axes / values.sqrt()  # (d, K)
    z = z @ white

    def decorrelated(B: Tensor) -> Tensor:
        u, _, v = torch.linalg.svd(B)
        return u @ v

    B = decorrelated(torch.randn(K, K, generator=generator, dtype=y.dtype).to(y.device))
    for _ in range(rounds):
        g = torch.tanh(z @ B.T)
        new = decorrelated(g.T @ z / len(z) - (1 - g.square()).mean(0)[:, None] * B)
        moved = float((1 - (new * B).sum(1).abs()).max())
        B = new
        if moved < 1e-6:
            break
    return white @ B.T, B @ (axes * values.sqrt()).T


# --- nulls ---------------------------------------------------------------------------------------------------------------------


@method("rest", "readout", "the SAE without the parent, nothing in its place", seeded=False)
def rest(task: Task) -> Mapping[str, Any]:
    """No features."""
    return {split: np.zeros((len(task.work.tokens.on[split]), 0), dtype=np.float32) for split in SPLITS}


@method("quantiles", "readout", "the parent's own activation cut into K bands", seeded=False)
def quantiles(task: Task) -> Mapping[str, Any]:
    """`saelib.split.controls.quantiles`, with edges from train."""
    on = task.work.tokens.on
    edges = np.quantile(on["train"].parent, np.linspace(0, 1, task.K + 1))
    return {split: controls.quantiles(on[split].parent, edges).numpy() for split in SPLITS}


@method("random-decoder", "local", "random frozen decoder, trained encoder (arXiv 2602.14111)", prune=False)
def random_decoder(task: Task) -> Dictionary:
    """`saelib.split.controls.random_decoder` at the L0 that ours has after a short training."""
    cfg = task.config
    ours = trained(task, task.targets, replace(cfg, n_steps=min(300, cfg.n_steps)))
    l0 = float((ours.encode(task.targets.x_on[:_SAMPLE]) > 0).float().sum(1).mean())
    n = min(cfg.batch_on, len(task.targets.x_on)) + cfg.batch_weak + cfg.batch_off
    task.meter.train((cfg.n_steps + 200 * len(controls.PRICES)) * n, task.targets.x_on.shape[1], cfg.K)
    return controls.random_decoder(task.targets, cfg, l0)


@method("permuted", "local", "ours, with contexts dealt out at random", permuted=True)
def permuted(task: Task) -> Dictionary:
    """Children as ours; what they are measured by is permuted."""
    return trained(task, task.targets, task.config)
