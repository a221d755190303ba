"""A text of the user's own: read, split by document, tokenised and cut into contexts, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from saelib.base.cache import atomic_dir, cache_dir, content_key, disk_errors, locked, write_json
from saelib.base.errors import UserError
from saelib.text.cut import Vocabulary, cut, tokenised, write_split
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore

SPLIT = "text"
OWN_TEXT_VERSION = 2
"""Part of the store's key: raise it when the contexts of the same documents change."""


def own_tokens(model: Vocabulary, documents: Sequence[str]) -> TokenStore:
    """Documents as a token store with the one split `SPLIT`, made when first asked for and kept in the cache.

    Raises:
        UserError: the documents hold fewer tokens than one context.
    """
    digest = hashlib.sha256("\0".join(documents).encode("utf-8", "replace")).hexdigest()
    key = content_key(text=digest, model=model.key, context_length=CONTEXT_LENGTH, version=OWN_TEXT_VERSION)
    folder = cache_dir() / "tokens" / f"{SPLIT}-{key}"
    with locked(folder):
        if not (folder / "manifest.json").exists():
            _write(model, documents, key, folder)
    return TokenStore.open(folder)


SHARES = {"select": 0.1, "test": 0.1}
"""Documents go to select and test with these shares, the rest to train."""


def split_documents(text: str | Path | Sequence[str]) -> dict[str, list[str]]:
    """A text's documents in three splits, each by the hash of its own words: train, select, test.

    A text of fewer than 30 documents is cut at blank lines first, so that a single file can be split, too.

    Raises:
        UserError: as `read_documents`; or a split is left without a document.
    """
    documents = read_documents(text)
    if len(documents) < 30:
        documents = [part for document in documents for part in document.split("\n\n") if part.strip()]
    splits: dict[str, list[str]] = {"train": [], "select": [], "test": []}
    for document in dict.fromkeys(documents):
        share = int(hashlib.sha256(document.encode("utf-8", "replace")).hexdigest()[:8], 16) / 2**32
        name = "select" if share < SHARES["select"] else "test" if share < sum(SHARES.values()) else "train"
        splits[name].append(document)
    for name, found in splits.items():
        if not found:
            rule = "the text must hold enough documents for three splits"
            raise UserError(rule, f"{len(documents)}, none for {name}", "pass a longer text, or a folder of files")
    return splits


def read_documents(text: str | Path | Sequence[str]) -> list[str]:
    """The documents of a text.

    Args:
        text: a text file (one document), a folder of `.txt` files (a document each), or a list of documents.

    Raises:
        UserError: the file is not there or is not UTF-8.
    """
    if not isinstance(text, str | Path):
        return list(text)
    path = Path(text).expanduser()
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError("text must be a file, or a folder with .txt files", path, "pass a path that is there")
    found = []
    for file in files:
        try:
            with disk_errors(file):
                found.append(file.read_bytes().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError("text must be UTF-8", file, "convert the file") from error
    return found


def _write(model: Vocabulary, documents: Sequence[str], key: str, folder: Path) -> None:
    contexts = cut(tokenised(model.tokenizer, documents), model.bos, model.eos, model.d_vocab)
    if not len(contexts.tokens):
        rule = f"the text must fill at least one context of {CONTEXT_LENGTH - 1} tokens"
        raise UserError(rule, f"{contexts.n_stream} tokens", "pass a longer text, or several documents")
    with atomic_dir(folder) as temporary:
        splits = {SPLIT: write_split(temporary, SPLIT, contexts)}
        manifest = {"key": key, "name": SPLIT, "dtype": str(contexts.tokens.dtype), "splits": splits}
        write_json(temporary / "manifest.json", manifest)
