"""The cache folder: where it is, how things are named in it, and how they are written so that nothing is ever half there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from saelib.errors import UserError

_DISK_ERRORS = {
    errno.ENOSPC: "disk must have room for what is written",
    errno.EDQUOT: "disk quota must have room for what is written",
    errno.EROFS: "cache folder must be writable",
    errno.EACCES: "cache folder must be writable",
    errno.EPERM: "cache folder must be writable",
    errno.ENOTDIR: "cache folder must be a folder",
    errno.EEXIST: "cache folder must be a folder",
}


def _file_mode() -> int:
    """The mode an ordinary `open` gives a new file; temporary files start out private."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


_FILE_MODE = _file_mode()


def cache_dir() -> Path:
    """The root of all working data: `SAELIB_CACHE` if set, else `$XDG_CACHE_HOME/saelib`, else `~/.cache/saelib`."""
    explicit = os.environ.get("SAELIB_CACHE")
    if explicit:
        return Path(explicit).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saelib"


def content_key(**parts: Any) -> str:
    """16 hex digits of SHA-256 over the canonical JSON of everything that determines a result."""
    canonical = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into one clear line; let every other error through."""
    try:
        yield
    except OSError as error:
        rule = _DISK_ERRORS.get(error.errno or 0)
        if rule is None:
            raise
        remedy = "free some space or set SAELIB_CACHE to another folder"
        raise UserError(rule, f"{path} ({error.strerror})", remedy) from error


def ensure_dir(path: Path) -> Path:
    """Make a folder with its parents; errors as in `disk_errors`."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync and rename it there, on any failure remove it."""
    ensure_dir(path.parent)
    with disk_errors(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(_FILE_MODE)
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Like `atomic_path` for a whole folder: all of its files appear at once, replacing an older folder."""
    ensure_dir(path.parent)
    with disk_errors(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(_FILE_MODE | (_FILE_MODE & 0o444) >> 2)
            for file in temporary.rglob("*"):
                fsync_path(file)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            fsync_path(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, human-readable."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("file must hold valid JSON", path, "delete it; it will be made again") from error


def kept_json(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """What `compute` returns, as JSON gives it back: computed once for a key, then read from `<cache>/<kind>/<key>.json`."""
    path = cache_dir() / kind / f"{key}.json"
    with locked(path):
        if not path.exists():
            write_json(path, compute())
        return read_json(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an inter-process lock named after `path`, so that two processes never build the same thing at once."""
    ensure_dir(path.parent)
    with filelock.FileLock(path.parent / f".{path.name}.lock"):
        yield
