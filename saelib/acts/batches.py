"""Rows of a store served in shuffled order, without copying the store: what a training sees, step by step."""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base import kernels
from saelib.base.cache import content_key
from saelib.base.errors import UserError

GROUP_BATCHES = 64
"""Batches that are held in memory and shuffled together: 134 MB at d_in 256 and batch 4096."""


@dataclass(frozen=True)
class View:
    """Some rows of a store, by index; nothing is copied."""

    store: ActivationStore
    index: Integer[np.ndarray, " n_tokens"] | None = None
    """Row numbers, ascending; None is all of them."""
    name: str = "all"
    """Part of the key of what is trained on the view."""

    @property
    def n_tokens(self) -> int:
        """Number of rows in the view."""
        return self.store.n_tokens if self.index is None else len(self.index)


class ShuffledBatches:
    """Batches of a view in shuffled order: `batch(step)` depends on the view, the seed and the step alone.

    Each epoch draws the view's contexts in a fresh order, `GROUP_BATCHES` batches' worth at a time into memory, and
    serves the tokens of each group in shuffled order (the study: a buffer of 384 batches, refilled when half used). A
    batch of 4096 tokens thus comes from some 2,000 contexts, disk reads are whole contexts, and a run can resume at
    any step.
    """

    def __init__(self, view: View, batch_size: int, seed: int) -> None:
        if view.n_tokens < batch_size:
            raise UserError(
                f"training data must hold at least one batch of {batch_size} tokens",
                f"{view.n_tokens} in view {view.name!r}",
                "lower the threshold, filter by context, or choose another parent",
            )
        self.view, self.batch_size, self.seed = view, batch_size, seed
        self.d_in = view.store.d_in
        index = b"" if view.index is None else view.index.tobytes()
        self.key = content_key(store=view.store.key, index=hashlib.sha256(index).hexdigest(), seed=seed)
        """Identifies the data: a checkpoint of a run on other data is refused."""
        self._group, self._epoch = (-1, -1), -1
        self._rows, self._order = torch.empty(0), np.empty(0, dtype=np.int64)
        self._order_there = torch.empty(0)
        self._upcoming: tuple[tuple[int, int], Future[tuple[Tensor, np.ndarray]]] | None = None
        self._blocks = np.empty(0, dtype=np.int64)

    def batch(self, step: int, out: Float[Tensor, "batch d_in"] | None = None) -> Float[Tensor, "batch d_in"]:
        """The activations of one step, fp32; written into `out` when given, since fresh memory costs more than filling it.

        With `out` on a GPU a whole group of batches is sent there and drawn from there, while the next one is read.
        """
        epoch, within = divmod(step, self.view.n_tokens // self.batch_size)
        group, slot = divmod(within, GROUP_BATCHES)
        out = torch.empty(self.batch_size, self.d_in) if out is None else out
        if (epoch, group) != self._group or self._rows.device != out.device:
            self._load((epoch, group), out.device)
        part = slice(slot * self.batch_size, (slot + 1) * self.batch_size)
        if out.device.type != "cpu":
            return out.copy_(self._rows[self._order_there[part]])
        chosen = self._order[part]
        if not kernels.serve(out) or not out.is_contiguous():
            return out.copy_(self._rows[torch.from_numpy(chosen)])
        source, target = self._rows.view(torch.int16).numpy().view(np.uint16), out.numpy().view(np.uint32)
        kernels.spread(kernels.take_bfloat16, kernels.even(self.batch_size), chosen, source, target)
        return out

    def _load(self, group: tuple[int, int], device: torch.device) -> None:
        """Hold a group, given by its epoch and its number there."""
        foreseen, reading = self._upcoming or (None, None)
        found = reading.result() if reading else None  # one reads at a time
        self._rows, self._order = found if found and foreseen == group else self._read(*group)
        self._group, self._upcoming = group, None
        if device.type != "cpu":
            self._rows, self._order_there = self._rows.to(device), torch.from_numpy(self._order).to(device)
            epoch, number = group
            last = (self.view.n_tokens // self.batch_size - 1) // GROUP_BATCHES
            following = (epoch, number + 1) if number < last else (epoch + 1, 0)
            self._upcoming = following, self._reader.submit(self._read, *following)

    @functools.cached_property
    def _reader(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="saelib-batches")

    def _read(self, epoch: int, group: int) -> tuple[Tensor, Integer[np.ndarray, " n"]]:
        """A group's rows, and the order in which its batches take them."""
        positions = self.group_positions(epoch, group)
        rows = self.view.store.read(positions if self.view.index is None else self.view.index[positions])
        return rows, np.random.default_rng([self.seed, epoch, group]).permutation(len(positions))

    def group_positions(self, epoch: int, group: int) -> Integer[np.ndarray, " n"]:
        """Which rows of the view a group holds, ascending. Costs no more for a large store than for a small one, but for
        the order of its contexts."""
        n_tokens = self.view.n_tokens
        if epoch != self._epoch:
            self._blocks = np.random.default_rng([self.seed, epoch]).permutation(-(-n_tokens // POSITIONS))
            self._epoch = epoch
        size = GROUP_BATCHES * self.batch_size
        place = np.arange(group * size, min((group + 1) * size, n_tokens))  # in the shuffled order of all rows
        # The last context may be short: what is missing of it is left out of the order, and all after it move up.
        missing = len(self._blocks) * POSITIONS - n_tokens
        short_end = (int(np.flatnonzero(self._blocks == len(self._blocks) - 1)[0]) + 1) * POSITIONS - missing
        place[np.searchsorted(place, short_end) :] += missing
        return np.sort(self._blocks[place // POSITIONS] * POSITIONS + place % POSITIONS)
