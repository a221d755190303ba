"""The last two states of a training run on disk, each with its hash: a killed run continues from them.

A checkpoint is `step-N.safetensors` and then `step-N.json`, which holds the hash of both. It counts only once the JSON is
there. When the newest is damaged, the one before takes its place, and a warning says so in one line.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from saelib.base.cache import atomic_path, ensure_dir
from saelib.base.errors import UserError
from saelib.base.seals import seal_holds, sealed

KEPT_CHECKPOINTS = 2


class Checkpoint(NamedTuple):
    """What was saved of a run's state."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]
    """Everything that is no tensor; read back from JSON."""


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, run_key: str, name: str) -> None:
        self.folder, self.run_key, self.name = ensure_dir(folder), run_key, name

    def paths(self) -> list[Path]:
        """JSON files, newest first."""
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def write(self, step: int, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Write the state after `step` updates, then remove all but the last two."""
        path = self.folder / f"step-{step:09d}.json"
        data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        with atomic_path(path.with_suffix(".safetensors")) as temporary:
            temporary.write_bytes(data)
        content = {"run": self.run_key, "tensors": hashlib.sha256(data).hexdigest(), "scalars": scalars}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(sealed(content)) + "\n")
        for old in self.paths()[KEPT_CHECKPOINTS:]:
            old.unlink()
        kept = {p.stem for p in self.paths()}
        for tensors_path in self.folder.glob("step-*.safetensors"):  # also one whose JSON was never written
            if tensors_path.stem not in kept:
                tensors_path.unlink()

    def newest(self, tensors: Collection[str], scalars: Collection[str]) -> Checkpoint | None:
        """The newest intact checkpoint with exactly these names; None if there is no checkpoint at all.

        Raises:
            UserError: there are checkpoints but none is intact, or they belong to another run.
        """
        damaged: list[str] = []
        for path in self.paths():
            try:
                found = self._read(path)
                odd = (found.tensors.keys() ^ set(tensors)) | (found.scalars.keys() ^ set(scalars))
                if odd:
                    raise _DamagedError(f"{path} (of another version, by its {', '.join(sorted(odd))})")
            except _DamagedError as damage:
                damaged.append(str(damage))
                continue
            if damaged:
                message = f"{self.name}: damaged checkpoint {damaged[0]}; continuing from the older {path.name}"
                warnings.warn(message, stacklevel=3)
            return found
        if damaged:
            remedy = f"delete {self.folder} to train again from the start"
            raise UserError(f"{self.name}: one checkpoint must be intact", f"damage in {' and '.join(damaged)}", remedy)
        return None

    def _read(self, path: Path) -> Checkpoint:
        tensors_path = path.with_suffix(".safetensors")
        try:
            content = json.loads(path.read_text())
            if not seal_holds(content):
                raise _DamagedError(path)
            run_key, tensors_sha256, scalars = content["run"], content["tensors"], content["scalars"]
            data = tensors_path.read_bytes() if tensors_path.is_file() else b""
            if hashlib.sha256(data).hexdigest() != tensors_sha256:
                raise _DamagedError(tensors_path)
            tensors = safetensors.torch.load(data)
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise _DamagedError(path) from error
        if run_key != self.run_key:
            rule = f"{self.name}: a checkpoint must belong to this run ({self.run_key})"
            raise UserError(rule, f"{run_key} in {path}", "give this run a folder of its own, or delete that one")
        return Checkpoint(tensors, scalars)


class _DamagedError(Exception):
    """A checkpoint file that is not what was written; its text is the file."""
