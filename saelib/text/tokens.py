"""The token store: 128-token contexts on disk, memory-mapped, with the document each token came from.

A context is the BOS token followed by 127 consecutive tokens of its split's stream of documents, so context `c` at position
`p >= 1` holds stream token `127 c + p - 1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saelib.base.cache import read_json, require_intact
from saelib.base.errors import UserError

CONTEXT_LENGTH = 128


@dataclass(frozen=True)
class TokenStore:
    """A built token store; `manifest` says where its text came from and counts it."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Open a store; a file that is missing, shortened or not as its checksum says is a `UserError` that names it."""
        remedy = f"delete {folder}; the text will be read again"
        manifest = read_json(folder / "manifest.json", remedy)
        for split, counts in manifest["splits"].items():
            path = folder / f"{split}.bin"
            expected = counts["contexts"] * CONTEXT_LENGTH * np.dtype(manifest.get("dtype", "uint16")).itemsize
            actual = path.stat().st_size if path.exists() else 0
            if actual != expected:
                raise UserError(f"token file must hold {expected} bytes", f"{path} with {actual}", remedy)
        require_intact(folder, "a token store", remedy)
        return cls(folder, manifest)

    @property
    def key(self) -> str:
        """Identifies the text, the tokenizer and the way it was cut."""
        return str(self.manifest["key"])

    def contexts(self, split: str) -> np.ndarray:
        """The contexts of a split, `(n_contexts, 128)`, read from disk on access.

        uint16, or uint32 for a vocabulary of more than 65,536.
        """
        shape = (self.manifest["splits"][split]["contexts"], CONTEXT_LENGTH)
        return np.memmap(
            self.folder / f"{split}.bin", dtype=self.manifest.get("dtype", "uint16"), mode="r", shape=shape
        )

    def documents_of(self, split: str, context: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The document index of tokens given by context and position (position >= 1)."""
        starts = np.fromfile(self.folder / f"{split}.documents.bin", dtype=np.int64)
        stream = context.astype(np.int64) * (CONTEXT_LENGTH - 1) + position - 1
        return np.searchsorted(starts, stream, side="right") - 1
