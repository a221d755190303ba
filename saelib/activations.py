"""Activations harvested once, kept on disk in bf16, read through a memory map, served shuffled without copying the store.

A store holds the activations at one site for the first `n_contexts` contexts of a split, positions 1 to 127 (the BOS
position is left out: its activation is one constant vector). Row `r` is context `r // 127`, position `r % 127 + 1`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Integer
from torch import Tensor

from saelib.cache import cache_dir, content_key, disk_errors, ensure_dir, locked, read_json, write_json
from saelib.errors import UserError
from saelib.mini_lm import PlainBlock
from saelib.model import HOOK_NAME, LanguageModel
from saelib.tokens import CONTEXT_LENGTH, TokenStore

POSITIONS = CONTEXT_LENGTH - 1
"""Tokens a context contributes."""
_CHUNK_CONTEXTS = 256
_BYTES = 2
GROUP_BATCHES = 64
"""Batches that are held in memory and shuffled together: 134 MB at d_in 256 and batch 4096."""
HARVEST_VERSION = 2
HarvestDtype = Literal["float32", "bfloat16"]
HARVEST_TOLERANCE: dict[HarvestDtype, float] = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest difference from transformer_lens that is accepted, relative to the largest entry."""


@dataclass(frozen=True)
class ActivationStore:
    """Harvested activations and the tokens they belong to."""

    folder: Path
    manifest: dict[str, Any]
    contexts: Integer[np.ndarray, "n_contexts 128"]
    """The token ids, BOS first."""

    @property
    def key(self) -> str:
        """Hash of everything that determines the activations."""
        return str(self.manifest["key"])

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        return int(self.manifest["d_in"])

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return int(self.manifest["n_contexts"]) * POSITIONS

    @property
    def token_ids(self) -> Integer[np.ndarray, " n_tokens"]:
        """The token of each row."""
        return np.asarray(self.contexts[:, 1:]).reshape(-1)

    def _raw(self) -> np.ndarray:
        return np.memmap(self.folder / "acts.bin", dtype=np.int16, mode="r", shape=(self.n_tokens, self.d_in))

    def rows(self, index: np.ndarray | slice) -> Float[Tensor, "rows d_in"]:
        """The activations of some rows, fp32."""
        return torch.from_numpy(np.array(self._raw()[index])).view(torch.bfloat16).float()

    def read(self, rows: Integer[np.ndarray, " rows"]) -> BFloat16[Tensor, "rows d_in"]:
        """The activations of ascending rows, as stored: one read for each run of neighbours, nothing left mapped."""
        out = np.empty((len(rows), self.d_in), dtype=np.int16)
        begins = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
        width = self.d_in * _BYTES
        with open(self.folder / "acts.bin", "rb", buffering=0) as file:
            for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
                if os.preadv(file.fileno(), [out[begin:end].data], int(rows[begin]) * width) != (end - begin) * width:
                    raise UserError("activation file must be whole", self.folder, "delete the folder")
        return torch.from_numpy(out).view(torch.bfloat16)

    def blocks(self, size: int = 65_536) -> Iterator[tuple[slice, Float[Tensor, "rows d_in"]]]:
        """All rows in order, a block at a time."""
        for begin in range(0, self.n_tokens, size):
            rows = slice(begin, min(begin + size, self.n_tokens))
            yield rows, self.read(np.arange(rows.start, rows.stop)).float()


def harvest(
    model: LanguageModel,
    tokens: TokenStore,
    split: str,
    n_contexts: int,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    dtype: HarvestDtype = "float32",
) -> ActivationStore:
    """Harvest (or open) the `mlp_out` activations of the first `n_contexts` contexts of a split.

    Computed in `dtype`, stored in bf16 either way (which rounds by up to 0.4% of an entry). Computing in bf16 is about twice
    as fast where the processor multiplies bf16; its error, about 1% of the largest entry, is in the manifest.

    Chunks are appended to a `.part` file and flushed; an interrupted harvest goes on after the last whole chunk.

    Raises:
        UserError: the plain arithmetic disagrees with transformer_lens, or the disk is full or read-only.
    """
    available = tokens.contexts(split)
    n_contexts = min(n_contexts, len(available))
    key = content_key(
        model=model.key, text=tokens.key, split=split, n_contexts=n_contexts, hook=HOOK_NAME, version=HARVEST_VERSION,
        dtype=dtype,
    )  # fmt: skip
    folder = cache_dir() / "activations" / f"{split}-{key}"
    contexts = available[:n_contexts]
    d_in = model.cfg.d_model
    with locked(folder):
        if not (folder / "manifest.json").exists():
            plain = model.plain(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
            some = torch.from_numpy(contexts[:8].astype(np.int64))
            error = model.check_against_hooked(some, HARVEST_TOLERANCE[dtype], plain)
            _write_chunks(plain, d_in, contexts, ensure_dir(folder) / "acts.part", progress, f"harvest {split}")
            with disk_errors(folder):
                os.replace(folder / "acts.part", folder / "acts.bin")
            manifest = {
                "key": key, "split": split, "n_contexts": n_contexts, "d_in": d_in, "dtype": "bfloat16",
                "computed_in": dtype,
                "hook_name": HOOK_NAME, "model_name": model.name, "model_key": model.key, "text_key": tokens.key,
                "center_writing_weights": model.center_writing_weights, "error_against_transformer_lens": error,
            }  # fmt: skip
            write_json(folder / "manifest.json", manifest)
    expected = n_contexts * POSITIONS * d_in * _BYTES
    actual = (folder / "acts.bin").stat().st_size if (folder / "acts.bin").exists() else 0
    if actual != expected:
        raise UserError(f"activation file must hold {expected} bytes", f"{folder} with {actual}", "delete the folder")
    return ActivationStore(folder, read_json(folder / "manifest.json"), contexts)


@torch.no_grad()
def _write_chunks(
    plain: PlainBlock,
    d_in: int,
    contexts: np.ndarray,
    path: Path,
    progress: Callable[[str, int, int], None] | None,
    label: str,
) -> None:
    """Append the chunks that `path` does not hold yet."""
    chunk_bytes = _CHUNK_CONTEXTS * POSITIONS * d_in * _BYTES
    done = path.stat().st_size // chunk_bytes if path.exists() else 0
    with disk_errors(path), open(path, "r+b" if path.exists() else "wb") as file:
        file.truncate(done * chunk_bytes)
        file.seek(done * chunk_bytes)
        for begin in range(done * _CHUNK_CONTEXTS, len(contexts), _CHUNK_CONTEXTS):
            for part in range(begin, min(begin + _CHUNK_CONTEXTS, len(contexts)), 32):
                tokens = torch.from_numpy(contexts[part : min(part + 32, begin + _CHUNK_CONTEXTS)].astype(np.int64))
                acts = plain.mlp_out(tokens)[:, 1:]  # (b, 127, d_in)
                file.write(acts.bfloat16().reshape(-1, acts.shape[-1]).view(torch.int16).numpy().tobytes())
            if progress:
                progress(label, min(begin + _CHUNK_CONTEXTS, len(contexts)), len(contexts))
        file.flush()
        os.fsync(file.fileno())


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
        self._blocks = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """The activations of one step, fp32."""
        epoch, within = divmod(step, self.view.n_tokens // self.batch_size)
        group, slot = divmod(within, GROUP_BATCHES)
        if (epoch, group) != self._group:
            self._load(epoch, group)
        chosen = self._order[slot * self.batch_size : (slot + 1) * self.batch_size]
        return self._rows[torch.from_numpy(chosen)].float()

    def _load(self, epoch: int, group: int) -> None:
        positions = self.group_positions(epoch, group)
        self._rows = self.view.store.read(positions if self.view.index is None else self.view.index[positions])
        self._order = np.random.default_rng([self.seed, epoch, group]).permutation(len(positions))
        self._group = (epoch, group)

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
