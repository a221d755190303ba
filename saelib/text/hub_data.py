"""The data of the 2024 post: a data set of tokens, and one of text to interpret features on; local or streamed.

`NeelNanda/c4-code-tokenized-2b` has a column `tokens` of rows of 1024 tokens of gelu-1l's tokenizer. As in the post each row
is cut into contexts of 128 whose first token is overwritten with BOS. Rows go to splits by their number: of every ten,
one to select, one to test, eight to train. Only as many rows are read as the profile needs; they are kept as 2 bytes a
token, and an interrupted build goes on at the row it had reached.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saelib.base.cache import cache_dir, content_key, disk_errors, ensure_dir, fsync_path, locked, read_json, write_json
from saelib.base.errors import UserError
from saelib.base.hub import cached_snapshot, hub_reachable, missing, named_folder
from saelib.text.cut import Vocabulary, token_dtype
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore

PRETOKENISED = "NeelNanda/c4-code-tokenized-2b"
PRETOKENISED_VARIABLE = "SAELIB_C4_CODE_TOKENS"
"""Environment variable that names a local folder of parquet or arrow files."""
INTERPRETATION = "NeelNanda/c4-code-20k"
INTERPRETATION_VARIABLE = "SAELIB_C4_CODE_20K"
_SUFFIXES = (".parquet", ".arrow")
_CHUNK_ROWS = 1_000
DATA_VERSION = 1


def split_of_row(row: int) -> str:
    """`train`, `select` or `test`, by the row's number."""
    return {0: "select", 1: "test"}.get(row % 10, "train")


def local_files(repo: str, variable: str) -> list[Path]:
    """The data files of a folder the user names, or of the hub cache; none when neither is there.

    Raises:
        UserError: the named folder holds no such file.
    """
    named = named_folder(variable)
    folder = named or cached_snapshot(repo, "datasets")
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES) if folder else []
    if named and not files:
        raise UserError("a data set's folder must hold .parquet or .arrow files", named, f"mend {variable}")
    return files


def read_column(files: list[Path], column: str, skip: int = 0) -> Iterator[Any]:
    """One column of some data files, row by row, some 1000 rows in memory at a time.

    Raises:
        UserError: a file is damaged or has no such column.
    """
    for path in files:
        for batch in _batches(path, column):
            if skip >= len(batch):
                skip -= len(batch)
                continue
            yield from batch[skip:].to_pylist()
            skip = 0


def _batches(path: Path, column: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            _require_column(file.schema_arrow.names, column, path)
            for batch in file.iter_batches(batch_size=_CHUNK_ROWS, columns=[column]):
                yield batch.column(0)
            return
        with pyarrow.memory_map(str(path)) as source:
            try:
                stream = pyarrow.ipc.open_stream(source)
                batches: Iterator[Any] = iter(stream)
            except pyarrow.ArrowInvalid:  # the other of arrow's two layouts
                stream = pyarrow.ipc.open_file(source)
                batches = (stream.get_batch(i) for i in range(stream.num_record_batches))
            _require_column(stream.schema.names, column, path)
            for batch in batches:
                yield batch.column(column)
    except pyarrow.ArrowException as error:
        raise UserError("data file must be intact parquet or arrow", path, "copy it again") from error


def _require_column(names: list[str], column: str, path: Path) -> None:
    if column not in names:
        raise UserError(f"data file must have the column {column!r}", f"{names} in {path}", "pass the right data set")


def require_source(repo: str, variable: str) -> list[Path]:
    """The local files of a data set; none when it can be streamed.

    Raises:
        UserError: neither is to be had; the three ways to supply it are named, within a second.
    """
    files = local_files(repo, variable)
    if not files and not hub_reachable():
        raise missing(repo, "parquet or arrow files", variable)
    return files


def rows_of(repo: str, variable: str, column: str, skip: int) -> Iterator[Any]:
    """One column of a data set from row `skip` on: local files when at hand, else streamed from the hub.

    Raises:
        UserError: as `require_source`.
    """
    files = require_source(repo, variable)
    if files:
        return read_column(files, column, skip)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("streaming needs the package datasets", "none", "pip install 'saelib[hub]'") from error
    stream = load_dataset(repo, split="train", streaming=True).skip(skip)
    return (row[column] for row in stream)


def pretokenised_store(
    model: Vocabulary,
    n_contexts: Mapping[str, int],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> TokenStore:
    """Build (or open) the token store of `c4-code-tokenized-2b`, with at least `n_contexts` of each split.

    Disk: 256 bytes a context. A build that was stopped goes on with the row after the last whole chunk.

    Raises:
        UserError: the data is not at hand, ends too early, or holds tokens that the model does not have.
    """
    key = content_key(
        data=PRETOKENISED, n_contexts=dict(n_contexts), bos=model.bos, vocabulary=model.d_vocab, version=DATA_VERSION,
        source=[(path.name, path.stat().st_size) for path in local_files(PRETOKENISED, PRETOKENISED_VARIABLE)],
    )  # fmt: skip
    folder = cache_dir() / "tokens" / f"c4-code-{key}"
    with locked(folder):
        if not (folder / "manifest.json").exists():
            _build(ensure_dir(folder), key, model, n_contexts, progress)
    return TokenStore.open(folder)


def _build(
    folder: Path,
    key: str,
    model: Vocabulary,
    n_contexts: Mapping[str, int],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    state_file = folder / "state.json"
    nothing: dict[str, Any] = {"rows": 0, "contexts": dict.fromkeys(n_contexts, 0)}
    state: dict[str, Any] = read_json(state_file) if state_file.exists() else nothing
    dtype = np.dtype(token_dtype(model.d_vocab))
    _truncate(folder, state, dtype)
    source = rows_of(PRETOKENISED, PRETOKENISED_VARIABLE, "tokens", state["rows"])
    total = sum(n_contexts.values())
    while any(state["contexts"][split] < wanted for split, wanted in n_contexts.items()):
        chunk = list(itertools.islice(source, _CHUNK_ROWS))
        if not chunk:
            got = ", ".join(f"{split} {count}" for split, count in state["contexts"].items())
            remedy = f"pass more of the data set (rows of tokens; {state['rows']} were read)"
            raise UserError(f"data must fill {dict(n_contexts)} contexts", got, remedy)
        _append(folder, chunk, state, n_contexts, model, dtype)
        write_json(state_file, state)
        if progress:
            progress("reading c4-code", min(sum(state["contexts"].values()), total), total)
    write_json(folder / "manifest.json", _manifest(folder, key, model, state, dtype))


def _truncate(folder: Path, state: dict[str, Any], dtype: np.dtype[Any]) -> None:
    """Cut off what a killed build wrote after the last chunk it had noted."""
    for split, count in state["contexts"].items():
        for name, size in ((f"{split}.bin", count * CONTEXT_LENGTH * dtype.itemsize), (f"{split}.documents.bin", None)):
            path = folder / name
            path.touch()
            os.truncate(path, state.get("documents", {}).get(split, 0) * 8 if size is None else size)


def _append(
    folder: Path,
    chunk: list[Any],
    state: dict[str, Any],
    n_contexts: Mapping[str, int],
    model: Vocabulary,
    dtype: np.dtype[Any],
) -> None:
    documents = state.setdefault("documents", dict.fromkeys(n_contexts, 0))
    by_split: dict[str, list[np.ndarray]] = {split: [] for split in n_contexts}
    starts: dict[str, list[int]] = {split: [] for split in n_contexts}
    counts = dict(state["contexts"])
    for row in chunk:
        split = split_of_row(state["rows"])
        state["rows"] += 1
        ids = np.asarray(row, dtype=np.int64)
        if counts[split] >= n_contexts[split]:
            continue
        if ids.ndim != 1 or len(ids) < CONTEXT_LENGTH:
            rule = f"a row must hold at least {CONTEXT_LENGTH} tokens"
            raise UserError(rule, f"{ids.shape} in row {state['rows'] - 1}", "pass the tokenised data set")
        if ids.min() < 0 or ids.max() >= model.d_vocab:
            rule = f"tokens must be in [0, d_vocab={model.d_vocab})"
            raise UserError(
                rule, f"{ids.max()} in row {state['rows'] - 1}", "pass the data set of this model's tokenizer"
            )
        contexts = ids[: len(ids) // CONTEXT_LENGTH * CONTEXT_LENGTH].reshape(-1, CONTEXT_LENGTH).astype(dtype)
        contexts[:, 0] = model.bos
        starts[split].append(counts[split] * (CONTEXT_LENGTH - 1))
        by_split[split].append(contexts)
        counts[split] += len(contexts)
    for split, blocks in by_split.items():
        with disk_errors(folder):
            with open(folder / f"{split}.bin", "ab") as file:
                for block in blocks:
                    file.write(block.tobytes())
            with open(folder / f"{split}.documents.bin", "ab") as file:
                file.write(np.array(starts[split], dtype=np.int64).tobytes())
            for name in (f"{split}.bin", f"{split}.documents.bin"):
                fsync_path(folder / name)
        documents[split] += len(starts[split])
    state["contexts"] = counts


def _manifest(folder: Path, key: str, model: Vocabulary, state: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    splits = {}
    for split, count in state["contexts"].items():
        ids = np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r")
        hyphen = model.tokenizer.token_to_id("-")
        hyphens = sum(int((ids[i : i + 2**24] == hyphen).sum()) for i in range(0, len(ids), 2**24))
        splits[split] = {
            "documents": state["documents"][split], "contexts": count, "tokens": count * (CONTEXT_LENGTH - 1),
            "hyphens": hyphens,
        }  # fmt: skip
    totals = {name: sum(split[name] for split in splits.values()) for name in ("documents", "tokens", "hyphens")}
    source = {
        "package": PRETOKENISED, "version": "as of the build", "sha256": "", "kind": "web text and code",
        "what": "80% C4, 20% code, in rows of tokens", "licence": "as the data set's page states it", **totals,
    }  # fmt: skip
    return {
        "key": key, "name": "c4-code", "context_length": CONTEXT_LENGTH, "dtype": str(dtype), "splits": splits,
        "sources": [source], "rows_read": state["rows"], "vocabulary": model.d_vocab,
    }  # fmt: skip


def interpretation_texts(n: int) -> list[str]:
    """The first texts of `c4-code-20k`, on which the post reads features (column `text`); none when it is not at hand."""
    files = local_files(INTERPRETATION, INTERPRETATION_VARIABLE)
    return [str(text) for text in itertools.islice(read_column(files, "text"), n)]
