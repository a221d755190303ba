"""How many children: the smallest K from which no doubling lowers FVU on P by much."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from saelib.base.progress import report_progress
from saelib.split.children import ChildrenConfig, Dictionary, Pools, train_several

K_GRID = (8, 16, 32, 64, 128)
K_GAIN = 0.02
"""The rule for K: the smallest of `K_GRID` after which doubling lowers FVU on P (select) by less than this."""
K_STEPS = 300
"""Steps of each short training of the curve over K."""


def choose_K(pools: Pools, select: Pools, children: ChildrenConfig, K: int | None = None) -> tuple[int, pd.DataFrame]:
    """K by the rule, from short trainings on train measured on select; the curve has columns K, fvu, chosen.

    Args:
        children: how they are trained; its K is not looked at.
        K: what was asked for in place of the rule.
    """
    if K is not None:
        return K, pd.DataFrame({"K": [K], "fvu": [np.nan], "chosen": [True]})
    tries = [replace(children, K=K, n_steps=K_STEPS) for K in reversed(K_GRID)]  # the longest first
    found = train_several(pools, tries, lambda done, total: report_progress("how many children", done, total))
    fvu = [fvu_on(children, select) for children in reversed(found)]
    falls = [a - b for a, b in itertools.pairwise(fvu)]
    chosen = next((i for i, fall in enumerate(falls) if all(f < K_GAIN for f in falls[i:])), len(K_GRID) - 1)
    return K_GRID[chosen], pd.DataFrame({"K": K_GRID, "fvu": fvu, "chosen": [i == chosen for i in range(len(K_GRID))]})


@torch.no_grad()
def fvu_on(children: Dictionary, pools: Pools) -> float:
    """sum |a v + c E - y|^2 / sum |y - mean(y)|^2 on P."""
    y, left = pools.y_on, pools.beyond_core().y_on
    return float((children.encode(pools.x_on) @ children.E - left).square().sum() / (y - y.mean(0)).square().sum())
