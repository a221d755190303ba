"""Which parents stand on which side: those of one model and text whose tokens overlap stand on the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np
from scipy.sparse import csr_array

from saelib.bench.parents import Parent

OVERLAP = 0.2
"""Two parents whose P on select have a larger IoU stand on one side."""


def assign_sides(parents: Sequence[Parent], rows: Sequence[np.ndarray], families: Sequence[str]) -> list[Parent]:
    """Group parents of one model and text by overlap; a group that holds a development parent is development.

    Args:
        rows: for each parent, the rows of P on select.
        families: for each parent, what its rows are rows of (`Origin.family`).
    """
    group = list(range(len(parents)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i, j in overlapping(rows, families):
        a, b = sorted((root(i), root(j)))
        group[b] = a
    roots = [root(i) for i in range(len(parents))]
    dev = {roots[i] for i, p in enumerate(parents) if p.side == "dev"}
    return [
        Parent(**(asdict(p) | {"group": roots[i], "side": "dev" if roots[i] in dev else p.side}))
        for i, p in enumerate(parents)
    ]


def overlapping(
    rows: Sequence[np.ndarray], families: Sequence[str], most: float = OVERLAP
) -> Iterable[tuple[int, int]]:
    """Pairs of parents of one family whose P have an IoU above `most`."""
    pairs: list[tuple[int, int]] = []
    for family in dict.fromkeys(families):
        members = [i for i, f in enumerate(families) if f == family]
        width = 1 + max((int(rows[i].max(initial=0)) for i in members), default=0)
        indptr = np.cumsum([0, *(len(rows[i]) for i in members)])
        index = np.concatenate([rows[i] for i in members])
        on = csr_array((np.ones(len(index)), index, indptr), shape=(len(members), width))
        both = (on @ on.T).toarray()
        size = np.diff(indptr)
        either = size[:, None] + size[None] - both
        found = np.argwhere(np.triu(both > most * np.maximum(either, 1), k=1))
        pairs += [(members[a], members[b]) for a, b in found]
    return pairs
