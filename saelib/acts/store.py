"""Activations harvested once, kept on disk in bf16, read a run of rows at a time.

A store holds the activations at one site for the first `n_contexts` contexts of a split, positions 1 to 127 (the BOS
position is left out: its activation is one constant vector). Row `r` is context `r // 127`, position `r % 127 + 1`.

The rows are kept in chunks of 256 contexts, each with its checksum in the manifest: xxh3, which finds damage as SHA-256 does in a
fifteenth of the time. The size of the file is checked whenever a store is opened, each chunk the first time a process reads
from it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import xxhash
from jaxtyping import BFloat16, Float, Integer
from torch import Tensor

from saelib.base.cache import cache_dir, content_key, disk_errors, ensure_dir, locked, read_sealed, write_json
from saelib.base.device import in_key
from saelib.base.errors import UserError
from saelib.base.seals import sealed
from saelib.lm.model import HarvestDtype, LanguageModel
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore

POSITIONS = CONTEXT_LENGTH - 1
"""Tokens a context contributes."""
_CHUNK_CONTEXTS = 256
_BYTES = 2
_CHECKSUM = "xxh3_128"
"""Of new stores; those of older versions have SHA-256."""
HARVEST_VERSION = 1
"""Part of the key: raise it when a harvest's values change by more than 1e-5, the bound that every harvest is checked against."""


@dataclass(frozen=True)
class ActivationStore:
    """Harvested activations and the tokens they belong to."""

    folder: Path
    manifest: dict[str, Any]
    contexts: Integer[np.ndarray, "n_contexts 128"]
    """The token ids, BOS first."""
    _checked: set[int] = field(default_factory=set, init=False, compare=False, repr=False)
    """Chunks that this process has compared with their checksums."""

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

    def rows(self, index: np.ndarray | slice) -> Float[Tensor, "rows d_in"]:
        """The activations of some rows, fp32."""
        self.check(np.arange(self.n_tokens)[index])
        stored = np.memmap(self.folder / "acts.bin", dtype=np.int16, mode="r", shape=(self.n_tokens, self.d_in))
        return torch.from_numpy(np.array(stored[index])).view(torch.bfloat16).float()

    def read(self, rows: Integer[np.ndarray, " rows"]) -> BFloat16[Tensor, "rows d_in"]:
        """The activations of ascending rows, as stored: one read for each run of neighbours, nothing left mapped."""
        self.check(rows)
        out = np.empty((len(rows), self.d_in), dtype=np.int16)
        begins = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
        width = self.d_in * _BYTES
        with open(self.folder / "acts.bin", "rb", buffering=0) as file:
            for begin, end in zip(begins, np.append(begins, len(rows))[1:], strict=True):  # none for no rows
                if os.preadv(file.fileno(), [out[begin:end].data], int(rows[begin]) * width) != (end - begin) * width:
                    raise self._damaged("activation file must be whole", self.folder / "acts.bin")
        return torch.from_numpy(out).view(torch.bfloat16)

    def check(self, rows: Integer[np.ndarray, " rows"]) -> None:
        """Compare the chunks of these rows with their checksums, each once; a store of an older version has none.

        Raises:
            UserError: a chunk is not as it was harvested; the message names the file and the contexts.
        """
        if len(self._checked) == len(self.manifest.get("chunks", [])):
            return
        path = self.folder / "acts.bin"
        chunks = sorted(set(np.unique(rows // self._chunk_rows).tolist()) - self._checked)
        if not chunks:
            return
        width = self.d_in * _BYTES
        with disk_errors(path), open(path, "rb", buffering=0) as file:
            ends = [self._rows_of(chunk) for chunk in chunks]
            kind = self.manifest.get("checksum", "sha256")
            with ThreadPoolExecutor(min(len(chunks), os.cpu_count() or 1)) as pool:  # hashing lets other threads go on
                found = pool.map(lambda e: _digest_at(file.fileno(), e[0] * width, (e[1] - e[0]) * width, kind), ends)
            for chunk, digest in zip(chunks, found, strict=True):
                self._compare(chunk, digest)

    def chunks(self, first: int = 0, step: int = 1) -> Iterator[tuple[slice, BFloat16[Tensor, "rows d_in"]]]:
        """Every `step`-th chunk from `first` on, as stored, in a buffer that the next one overwrites.

        Each is read once, and compared with its checksum on the way; threads that share a pass take every `step`-th each.

        Raises:
            UserError: a chunk is not as it was harvested, or the file is short.
        """
        digests, kind = self.manifest.get("chunks", []), self.manifest.get("checksum", "sha256")
        buffer = np.empty((min(self._chunk_rows, self.n_tokens), self.d_in), dtype=np.int16)
        path, width = self.folder / "acts.bin", self.d_in * _BYTES
        with disk_errors(path), open(path, "rb", buffering=0) as file:
            for chunk in range(first, -(-self.n_tokens // self._chunk_rows), step):
                begin, end = self._rows_of(chunk)
                part = buffer[: end - begin]
                if os.preadv(file.fileno(), [part.data], begin * width) != part.nbytes:
                    raise self._damaged("activation file must be whole", path)
                if digests and chunk not in self._checked:
                    digest = _digest(kind)
                    digest.update(part.data)
                    self._compare(chunk, digest.hexdigest())
                yield slice(begin, end), torch.from_numpy(part).view(torch.bfloat16)

    @property
    def _chunk_rows(self) -> int:
        return int(self.manifest.get("chunk_contexts", _CHUNK_CONTEXTS)) * POSITIONS

    def _rows_of(self, chunk: int) -> tuple[int, int]:
        """The first row of a chunk, and the one after its last."""
        return chunk * self._chunk_rows, min((chunk + 1) * self._chunk_rows, self.n_tokens)

    def _compare(self, chunk: int, digest: str) -> None:
        """Take a chunk's checksum for right, or refuse the chunk."""
        if digest != self.manifest["chunks"][chunk]:
            begin, end = self._rows_of(chunk)
            contexts = f"contexts {begin // POSITIONS} to {end // POSITIONS - 1}"
            raise self._damaged("activations must be as they were harvested", f"{self.folder / 'acts.bin'}, {contexts}")
        self._checked.add(chunk)

    def _damaged(self, rule: str, got: object) -> UserError:
        return UserError(rule, got, f"delete {self.folder}; they will be harvested again")

    def blocks(self, size: int = 8192) -> Iterator[tuple[slice, Float[Tensor, "rows d_in"]]]:
        """All rows in order, a block at a time."""
        for begin in range(0, self.n_tokens, size):
            rows = slice(begin, min(begin + size, self.n_tokens))
            yield rows, self.read(np.arange(rows.start, rows.stop)).float()


def harvest_key(model: LanguageModel, tokens: TokenStore, split: str, n_contexts: int, dtype: HarvestDtype) -> str:
    """The key of a store: all that determines its activations."""
    return content_key(
        model=model.key,
        text=tokens.key,
        split=split,
        n_contexts=n_contexts,
        hook=model.hook_name,
        version=HARVEST_VERSION,
        **({} if dtype == "float32" else {"dtype": dtype}),
        **in_key(model.device),
    )


def harvest(
    model: LanguageModel,
    tokens: TokenStore,
    split: str,
    n_contexts: int,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    dtype: HarvestDtype = "float32",
) -> ActivationStore:
    """Harvest (or open) the activations at the model's hook of the first `n_contexts` contexts of a split.

    Computed in `dtype`, stored in bf16 either way (which rounds by up to 0.4% of an entry). Computing in bf16 is about twice
    as fast where the processor multiplies bf16; its error, about 1% of the largest entry, is in the manifest.

    Chunks are appended to a `.part` file, each with its checksum; an interrupted harvest goes on after the last one that
    holds.

    Raises:
        UserError: the plain arithmetic disagrees with transformer_lens, an activation is not finite, the disk is full or
            read-only, or the finished file is not whole.
    """
    contexts = tokens.contexts(split)[:n_contexts]
    n_contexts = len(contexts)
    key = harvest_key(model, tokens, split, n_contexts, dtype)
    folder = cache_dir() / "activations" / f"{split}-{key}"
    part, finished = folder / "acts.part", folder / "acts.bin"
    with locked(folder):
        if not (folder / "manifest.json").exists():
            error = model.check(torch.from_numpy(contexts[:8].astype(np.int64)), dtype)
            ensure_dir(folder)
            if finished.exists():  # killed before the manifest was written
                os.replace(finished, part)
            digests = _write_chunks(model, dtype, contexts, part, progress, f"harvest {split}")
            with disk_errors(folder):
                os.replace(part, finished)
            manifest = {
                "key": key, "split": split, "n_contexts": n_contexts, "d_in": model.d_in,
                "dtype": "bfloat16", "computed_in": dtype, "hook_name": model.hook_name,
                "model_name": model.name, "model_key": model.key, "text_key": tokens.key,
                "center_writing_weights": model.center_writing_weights, "error_against_transformer_lens": error,
                "chunk_contexts": _CHUNK_CONTEXTS, "checksum": _CHECKSUM, "chunks": digests,
            }  # fmt: skip
            write_json(folder / "manifest.json", sealed(manifest))
        _digest_file(part).unlink(missing_ok=True)
    remedy = f"delete {folder}; they will be harvested again"
    store = ActivationStore(folder, read_sealed(folder / "manifest.json", remedy), contexts)
    expected = n_contexts * POSITIONS * model.d_in * _BYTES
    actual = finished.stat().st_size if finished.exists() else 0
    if actual != expected:
        raise UserError(f"activation file must hold {expected} bytes", f"{finished} with {actual}", remedy)
    return store


@torch.no_grad()
def _write_chunks(
    model: LanguageModel,
    dtype: HarvestDtype,
    contexts: np.ndarray,
    path: Path,
    progress: Callable[[str, int, int], None] | None,
    label: str,
) -> list[str]:
    """Append the chunks that `path` does not hold yet; the checksum of every chunk."""
    bulk, step = model.bulk(dtype), model.contexts_at_a_time
    context_bytes = POSITIONS * model.d_in * _BYTES
    with disk_errors(path), open(path, "a+b") as file, open(_digest_file(path), "a+", errors="replace") as digest_file:
        digests = _whole_chunks(file.fileno(), digest_file, len(contexts), context_bytes)
        done = min(len(digests) * _CHUNK_CONTEXTS, len(contexts))
        file.truncate(done * context_bytes)
        digest_file.truncate(0)
        digest_file.writelines(f"{digest}\n" for digest in digests)
        for begin in range(done, len(contexts), _CHUNK_CONTEXTS):
            digest = _digest(_CHECKSUM)
            for part in range(begin, min(begin + _CHUNK_CONTEXTS, len(contexts)), step):
                tokens = torch.from_numpy(contexts[part : min(part + step, begin + _CHUNK_CONTEXTS)].astype(np.int64))
                acts = bulk(tokens)[:, 1:]  # (b, 127, d_in)
                if not acts.isfinite().all():
                    got = f"NaN or infinity in contexts {part} to {part + len(tokens) - 1} at {model.hook_name}"
                    raise UserError(f"{label}: activations must be finite", got, "check the language model's weights")
                rows = acts.bfloat16().reshape(-1, acts.shape[-1]).view(torch.int16).cpu().numpy()
                data = rows.data.cast("B")
                digest.update(data)
                file.write(data)
            file.flush()
            digest_file.write(f"{digest.hexdigest()}\n")
            digest_file.flush()
            digests.append(digest.hexdigest())
            if progress:
                progress(label, min(begin + _CHUNK_CONTEXTS, len(contexts)), len(contexts))
        os.fsync(file.fileno())
    return digests


def _digest_file(part: Path) -> Path:
    return part.with_suffix(f".{_CHECKSUM}")


def _whole_chunks(descriptor: int, digest_file: TextIO, n_contexts: int, context_bytes: int) -> list[str]:
    """Checksums of the chunks on disk that are intact, up to the first that is not."""
    digest_file.seek(0)
    found: list[str] = []
    for line in digest_file.read().splitlines():
        begin = len(found) * _CHUNK_CONTEXTS
        size = min(_CHUNK_CONTEXTS, n_contexts - begin) * context_bytes
        if size <= 0 or _digest_at(descriptor, begin * context_bytes, size, _CHECKSUM) != line:
            break
        found.append(line)
    return found


def _digest(kind: str) -> Any:
    return xxhash.xxh3_128() if kind == _CHECKSUM else hashlib.new(kind)


def _digest_at(descriptor: int, offset: int, size: int, kind: str) -> str:
    """Checksum of a range of a file, in hex; a file that ends before it gives that of less."""
    digest, buffer = _digest(kind), bytearray(min(size, 1 << 20))
    while size > 0:
        got = os.preadv(descriptor, [memoryview(buffer)[: min(size, len(buffer))]], offset)
        if got == 0:
            break
        digest.update(memoryview(buffer)[:got])
        offset, size = offset + got, size - got
    return str(digest.hexdigest())
