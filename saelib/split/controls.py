"""Rows to beat: dictionaries that are no children, measured on the same parent with the same yardstick.

Each is a function from the training pools to a `Dictionary` of K features that takes the children's place:

* random decoder: E drawn at random and frozen, the encoder trained: reaches much of what trained dictionaries reach
  (arXiv 2602.14111);
* k-means: directions of K cluster centres of y, without training;
* small L1 SAE on P: an ordinary SAE of K features trained on P alone, without the residual target and without negatives;
* children of another parent: ours, trained for another feature of about the same rate.

`quantiles` cuts the parent's own activation at K quantiles, which is no dictionary but activations of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse import csc_array
from torch import Tensor

from saelib.base.errors import UserError
from saelib.sae.stream import sparse_acts
from saelib.split.children import ChildrenConfig, Dictionary, Pools, train_children
from saelib.split.parent import TAU_SHARE, parent_target
from saelib.split.separation import Separation, in_room_of
from saelib.split.tokens import SPLITS
from saelib.split.work import Made, Work
from saelib.split.yardstick import make_yardstick

PRICES = (1.0, 0.3, 0.1, 0.03)
"""Shares of the children's prices that are tried for the random decoder."""
LEAST_OTHER = 200
"""Sampled train tokens on which another parent must be on."""


def random_decoder(pools: Pools, cfg: ChildrenConfig, l0: float) -> Dictionary:
    """Children whose decoder rows are random and stay so; the encoder is trained as theirs is.

    Random rows earn less for their price, so the price is lowered until about `l0` of them fire on a token of P, as of the
    children: the best of `PRICES` in short trainings.
    """
    frozen = replace(cfg, frozen_decoder=True, start="random")

    def priced(share: float, n_steps: int) -> Dictionary:
        return train_children(pools, replace(frozen, l1=share * cfg.l1, l1_off=share * cfg.l1_off, n_steps=n_steps))

    def distance(share: float) -> float:
        found = float((priced(share, min(200, cfg.n_steps)).encode(pools.x_on[:4096]) > 0).float().sum(1).mean())
        return abs(np.log((found + 0.05) / (l0 + 0.05)))

    return priced(min(PRICES, key=distance), cfg.n_steps)


def small_sae(pools: Pools, cfg: ChildrenConfig) -> Dictionary:
    """A plain L1 SAE of K features on P: it reconstructs x less its mean there, with no off-parent tokens."""
    centre = pools.x_on.mean(0)
    none = {name: getattr(pools, name)[:0] for name in ("x_weak", "y_weak", "a_weak", "x_off")}
    plain = pools._replace(y_on=pools.x_on - centre, **none)
    return train_children(plain, replace(cfg, whiten=0.0))


@torch.no_grad()
def other_pools(work: Work) -> Pools:
    """Pools of another parent, from the sample of tokens on which this one is silent: the live feature whose rate is nearest to
    this parent's among those of another direction.

    Raises:
        UserError: no other feature is on often enough there.
    """
    x = work.tokens.off["train"].x
    acts = csc_array(sparse_acts(work.sae, x))
    feature = np.repeat(np.arange(work.sae.cfg.d_sae), np.diff(acts.indptr))  # of each activation
    tau = TAU_SHARE * acts.max(axis=0).toarray()
    on = np.bincount(feature[acts.data > tau[feature]], minlength=len(tau))
    wanted = work.tokens.n_on["train"] / work.tokens.n_tokens["train"] * len(x)
    cosine = torch.nn.functional.cosine_similarity(work.sae.W_dec, work.sae.W_dec[work.feature][None], dim=1).abs()
    allowed = (on >= LEAST_OTHER) & (cosine < 0.2).cpu().numpy() & (np.arange(len(tau)) != work.feature)
    if not allowed.any():
        rule = f"another feature must be on on at least {LEAST_OTHER} sampled tokens"
        raise UserError(rule, int(on.max()), "use more text")
    distance = np.where(allowed, np.abs(np.log(np.maximum(on, 1) / max(wanted, 1))), np.inf)
    other = int(distance.argmin())
    a = torch.from_numpy(acts[:, [other]].toarray()[:, 0]).to(x.device)

    def part_of(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = chosen.nonzero()[:, 0]
        return work.sae.encoder_input(x[rows]), parent_target(work.sae, other, x[rows]), a[rows]

    is_on = a > float(tau[other])
    silent = work.sae.encoder_input(x[(a == 0).nonzero()[:, 0]])
    return Pools(*part_of(is_on), *part_of((a > 0) & ~is_on), silent)


def wrong_parent(work: Work, cfg: ChildrenConfig) -> Dictionary | None:
    """Children of another parent of about the same rate; None where no other feature is on often enough."""
    try:
        pools = other_pools(work)
    except UserError:
        return None
    return train_children(pools.beyond_core(), cfg)


@torch.no_grad()
def k_means(pools: Pools, cfg: ChildrenConfig, rounds: int = 20) -> Dictionary:
    """Cluster centres of y on P: feature j is relu(x.u_j - b_j), u_j the centre less the mean, b_j half-way to the mean."""
    generator = torch.Generator().manual_seed(cfg.seed)
    y = pools.y_on[torch.randperm(len(pools.y_on), generator=generator)[:8192]]
    mean = y.mean(0)
    z = y - mean
    centres = z[torch.randperm(len(z), generator=generator)[: cfg.K]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(z, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, z)
        counts = torch.bincount(nearest, minlength=len(centres))[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    length = centres.norm(dim=1).clamp_min(1e-12)
    W = (centres / length[:, None]).T
    x_mean = pools.x_on.mean(0)
    return Dictionary(W.contiguous(), -(x_mean @ W) - length / 2, centres / length[:, None])


def quantiles(parent: Float[np.ndarray, " n"], edges: Float[np.ndarray, " K1"]) -> Float[Tensor, "n K"]:
    """The parent's activation cut into bands: feature j is 1 where it lies between edges j and j + 1."""
    band = np.clip(np.searchsorted(edges, parent, side="right") - 1, 0, len(edges) - 2)
    return torch.nn.functional.one_hot(torch.from_numpy(band), len(edges) - 1).float()


def product_rows(work: Work, made: Made, separation: Mapping[str, Separation]) -> pd.DataFrame:
    """The product, the children alone and the rest alone: rows as of `control_row`, which stand under them.

    Args:
        separation: as `Work.separate` returns it.
    """
    rows = [_row("rest + children", separation["rest + children"], work, made)]
    return pd.DataFrame(rows + [_row(f"{name} alone", separation[name]) for name in ("children", "rest")])


def control_row(work: Work, name: str, found: Dictionary) -> dict[str, float | str]:
    """A row to beat: a dictionary in the children's place, with the rest beside it unless its name says otherwise.

    Keys: name, S_1, S_2, S_4 with `_low` and `_high`, fvu_on_p, leak (foreign), l0_on_p.
    """
    other = work.install(found, prune=False)
    return _row(name, work.with_rest(other.acts["on"], among=work.yardstick.judged), work, other)


def other_rows(work: Work, made: Made, seed: int) -> list[dict[str, float | str]]:
    """Rows to beat that are no dictionary: bands of the parent's activation, and the children on labels permuted with a seed."""
    judged = work.yardstick.judged
    edges = np.quantile(work.tokens.on["train"].parent, np.linspace(0, 1, len(made.theta) + 1))
    bands = {s: quantiles(work.tokens.on[s].parent, edges).numpy() for s in SPLITS}
    permuted = make_yardstick(work.tokens.on, work.labels.permuted(seed))
    shuffled = in_room_of(work.yardstick, work.with_rest(made.acts["on"], permuted, judged), permuted)
    return [_row("quantiles of the parent", work.with_rest(bands, among=judged)), _row("permuted labels", shuffled)]


def _row(
    name: str, separation: Separation, work: Work | None = None, made: Made | None = None
) -> dict[str, float | str]:
    row: dict[str, float | str] = {"name": name}
    for k, value in separation.S.items():
        row |= {f"S_{k}": value.value, f"S_{k}_low": value.low, f"S_{k}_high": value.high}
    nan = float("nan")
    if work is None or made is None:
        return row | {"fvu_on_p": nan, "leak": nan, "l0_on_p": nan}
    l0 = float(work.fires(made).sum(1).mean())
    return row | {"fvu_on_p": work.fvu(made), "leak": work.foreign(made), "l0_on_p": l0}
