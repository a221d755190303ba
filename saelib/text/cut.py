"""Documents to contexts of tokens, in one way for every text: downloaded packages and a user's own files.

The documents' tokens, each document's followed by EOS, make one stream; the stream is cut into pieces of 127 tokens, and BOS
is put before every piece. The incomplete piece at the end of the stream is dropped. A tokenizer's post-processor adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Integer

from saelib.text.tokens import CONTEXT_LENGTH

_BATCH = 512
"""Documents tokenised at once."""


@runtime_checkable
class Vocabulary(Protocol):
    """What cutting a text needs to know of a language model."""

    @property
    def key(self) -> str:
        """Hash of the weights and the tokenizer."""

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """Turns text into tokens."""

    @property
    def bos(self) -> int:
        """The token at the head of every context."""

    @property
    def eos(self) -> int:
        """The token after every document."""

    @property
    def d_vocab(self) -> int:
        """Number of tokens."""


class Contexts(NamedTuple):
    """A stream of documents, cut."""

    tokens: Integer[np.ndarray, "n_contexts 128"]
    """BOS first."""
    starts: Integer[np.ndarray, " n_documents"]
    """Where in the stream each document begins."""
    n_stream: int
    """Tokens of the stream, those that were dropped at its end included."""


def token_dtype(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that holds every token."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


def tokenised(tokenizer: tokenizers.Tokenizer, documents: Sequence[str]) -> Iterator[list[int]]:
    """The tokens of each document and no others: whole, without padding or special tokens."""
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())  # not the caller's, which stays as it is
        tokenizer.no_truncation()
        tokenizer.no_padding()
    for begin in range(0, len(documents), _BATCH):
        for encoding in tokenizer.encode_batch(list(documents[begin : begin + _BATCH]), add_special_tokens=False):
            yield encoding.ids


def cut(documents: Iterable[Sequence[int]], bos: int, eos: int, vocabulary: int) -> Contexts:
    """Cut documents' tokens into contexts; tokens are below `vocabulary`."""
    dtype = token_dtype(vocabulary)
    pieces = [np.array([*ids, eos], dtype=dtype) for ids in documents]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    stream = np.concatenate([np.empty(0, dtype=dtype), *pieces])
    n_contexts = len(stream) // (CONTEXT_LENGTH - 1)
    tokens = np.empty((n_contexts, CONTEXT_LENGTH), dtype=dtype)
    tokens[:, 0] = bos
    tokens[:, 1:] = stream[: n_contexts * (CONTEXT_LENGTH - 1)].reshape(n_contexts, CONTEXT_LENGTH - 1)
    return Contexts(tokens, np.cumsum(lengths) - lengths, len(stream))


def write_split(folder: Path, split: str, contexts: Contexts) -> dict[str, int]:
    """Write a split's files of a token store; what its manifest says of the split."""
    # Not by `tofile`, whose error on a full disk does not say that it is full.
    (folder / f"{split}.bin").write_bytes(contexts.tokens.tobytes())
    (folder / f"{split}.documents.bin").write_bytes(contexts.starts.tobytes())
    n_contexts = len(contexts.tokens)
    return {
        "documents": len(contexts.starts),
        "contexts": n_contexts,
        "tokens": n_contexts * (CONTEXT_LENGTH - 1),
    }
