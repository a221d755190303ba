"""Where children fire, read from the tokens a split already holds: each example with the parent's activation beside the child's.

Tokens of P are encoded once for all children; only the few tokens around the examples are read from the activation store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer

from saelib.acts.activations import Activations
from saelib.acts.store import POSITIONS
from saelib.sae.sae import SAE
from saelib.sae.stream import Encoder
from saelib.split.tokens import TokenSet

BANDS = (("where it is strongest", 1.0, 4), ("around its median", 0.5, 3), ("where it is weak", 0.1, 2))
"""Name, quantile among the tokens on which it fires, and number of examples."""
SILENT = "where the parent is silent"
BEFORE, AFTER = 9, 5
MOST_ROWS = 20_000
"""Tokens of a set that are looked at."""


@dataclass(frozen=True)
class Example:
    """A token with the text around it."""

    band: str
    """From where among the child's firings it comes."""
    parent: float
    """The parent's activation on the token."""
    child: float
    """The child's."""
    tokens: tuple[str, ...]
    """The text around."""
    parent_around: tuple[float, ...]
    """The parent's activation on each of `tokens`."""
    child_around: tuple[float, ...]
    """The child's."""
    at: int
    """Where in `tokens` the token is."""


@dataclass(frozen=True)
class Passage:
    """A piece of text with the parent's and every child's activation."""

    tokens: tuple[str, ...]
    parent: Float[np.ndarray, " t"]
    children: Float[np.ndarray, "t k"]
    caption: str = ""


@dataclass(frozen=True)
class Beside:
    """The parent in its own SAE and the children in theirs, on one activation store."""

    original: SAE
    feature: int
    """The parent's number in `original`."""
    sae: SAE
    children: Integer[np.ndarray, " k"]
    """The children's numbers in `sae`."""
    acts: Activations

    def encode(self, x: Float[torch.Tensor, "n d"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
        """The parent's activation and the children's."""
        parents, children = Encoder(self.original, np.array([self.feature])), Encoder(self.sae, self.children)
        blocks = [(parents.values(b)[:, 0], children.values(b)) for b in x.split(4096)]
        if not blocks:
            return np.zeros(0, dtype=np.float32), np.zeros((0, len(self.children)), dtype=np.float32)
        return torch.cat([p for p, _ in blocks]).numpy(), torch.cat([c for _, c in blocks]).numpy()

    def children_on(self, x: Float[torch.Tensor, "n d"]) -> Float[np.ndarray, "n k"]:
        """The children's activations."""
        encoder = Encoder(self.sae, self.children)
        blocks = [encoder.values(b) for b in x.split(4096)]
        return torch.cat(blocks).numpy() if blocks else np.zeros((0, len(self.children)), dtype=np.float32)

    def window(self, row: int, before: int, after: int) -> tuple[int, int]:
        """First row, and row after the last, around a row within its context."""
        first = row - row % POSITIONS
        return max(first, row - before), min(first + POSITIONS, row + after + 1)

    def read(self, windows: Sequence[tuple[int, int]]) -> list[tuple[tuple[str, ...], np.ndarray, np.ndarray]]:
        """For each window of test rows, its tokens and the activations on them."""
        store = self.acts.stores["test"]
        if not windows:
            return []
        rows = np.concatenate([np.arange(*window) for window in windows])
        unique, place = np.unique(rows, return_inverse=True)
        parent, children = self.encode(store.read(unique).float())
        parent, children = parent[place], children[place]
        ends = np.cumsum([end - start for start, end in windows])
        found = []
        for (start, end), last in zip(windows, ends, strict=True):
            part = slice(last - (end - start), last)
            tokens = tuple(self.acts.model.to_str_tokens(np.asarray(store.token_ids[start:end]).astype(np.int64)))
            found.append((tokens, parent[part], children[part]))
        return found


def child_examples(
    beside: Beside, on: TokenSet, off: TokenSet, fires: Float[np.ndarray, "n k"], shown: Sequence[int]
) -> dict[int, list[Example]]:
    """Examples of some children: strong, middling and weak ones of P, and up to two where the parent is silent.

    Args:
        on, off: test tokens of P, and some on which the parent is silent.
        fires: the children's activations on `on`.
        shown: places of children, columns of `fires`.

    Returns:
        for each place in `shown` its examples. No document gives a band two of them.
    """
    off = off.where(np.arange(min(len(off), MOST_ROWS)))
    leaks = beside.children_on(off.x.float())
    chosen: list[tuple[int, str, int]] = []
    for j in shown:
        for name, quantile, count in BANDS:
            chosen += [(j, name, int(on.rows[i])) for i in _near(fires[:, j], on, quantile, count)]
        chosen += [(j, SILENT, int(off.rows[i])) for i in _near(leaks[:, j], off, 1.0, 2)]
    windows = [beside.window(row, BEFORE, AFTER) for _, _, row in chosen]
    found: dict[int, list[Example]] = {j: [] for j in shown}
    for (j, name, row), (start, _), (tokens, parent, children) in zip(
        chosen, windows, beside.read(windows), strict=True
    ):
        at = row - start
        around = tuple(parent.tolist()), tuple(children[:, j].tolist())
        found[j].append(Example(name, float(parent[at]), float(children[at, j]), tokens, *around, at))
    return found


def _near(values: Float[np.ndarray, " n"], tokens: TokenSet, quantile: float, count: int) -> list[int]:
    """`count` places whose ranks among the positive values are nearest to the quantile, each of another document.

    Tokens near an end of their context, with little text around, are taken only where there are no others.
    """
    place = tokens.rows % POSITIONS
    inside = (place >= BEFORE // 2) & (place < POSITIONS - AFTER // 2)
    active = np.flatnonzero((values > 0) & inside)
    if len(active) < count:
        active = np.flatnonzero(values > 0)
    order = active[np.argsort(-values[active], kind="stable")]
    start = round((1 - quantile) * len(order))
    taken: dict[int, int] = {}
    for i in order[start : start + 50 * count].tolist():
        taken.setdefault(int(tokens.document[i]), i)
        if len(taken) == count:
            break
    return list(taken.values())


def parent_examples(beside: Beside, on: TokenSet, weak: TokenSet) -> list[Example]:
    """Examples of the parent: strong and middling ones of P, and weaker ones below its threshold."""
    chosen = [("where it is strongest", int(on.rows[i])) for i in _near(on.parent, on, 1.0, 5)]
    chosen += [("around the median of P", int(on.rows[i])) for i in _near(on.parent, on, 0.5, 3)]
    chosen += [("below the threshold", int(weak.rows[i])) for i in _near(weak.parent, weak, 0.5, 3)]
    windows = [beside.window(row, BEFORE, AFTER) for _, row in chosen]
    found = []
    for (name, row), (start, _), (tokens, parent, _) in zip(chosen, windows, beside.read(windows), strict=True):
        values = tuple(parent.tolist())
        found.append(Example(name, float(parent[row - start]), 0.0, tokens, values, values, row - start))
    return found


def passages(beside: Beside, on: TokenSet, fires: Float[np.ndarray, "n k"], count: int = 4) -> list[Passage]:
    """Pieces of the test text in which the most different children fire on tokens of P."""
    strongest = np.where(fires.max(1, initial=0) > 0, fires.argmax(1) if fires.shape[1] else -1, -1)
    met: dict[int, set[int]] = {}
    last: dict[int, list[int]] = {}
    for row, child in zip(on.rows.tolist(), strongest.tolist(), strict=True):
        if child >= 0:
            met.setdefault(row // 48, set()).add(child)
            last.setdefault(row // 48, []).append(row)
    best = sorted(met, key=lambda place: (-len(met[place]), len(last[place]), place))
    taken: dict[int, int] = {}  # one of each document
    document = dict(zip(on.rows.tolist(), on.document.tolist(), strict=True))
    for place in best:
        if len(taken) == count:
            break
        taken.setdefault(document[last[place][0]], place)
    windows = []
    for place in taken.values():
        begin, end = min(last[place]), max(last[place])
        windows.append(beside.window(begin, 14, end - begin + 12))
    return [Passage(tokens, parent, children) for tokens, parent, children in beside.read(windows)]
