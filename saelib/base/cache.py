"""The cache folder: where it is, how things are named in it, and how they are written: whole or not at all.

What is written here can be checked when it is read: a folder has a file `SHA256SUMS`, which `sha256sum -c` reads too, and a
*sealed* JSON file holds the hash of its own content. Nothing depends on the clock or on a file's date.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from saelib.base.errors import UserError
from saelib.base.seals import seal_holds, sealed

SUMS_FILE = "SHA256SUMS"
_DISK_ERRORS = {
    errno.ENOSPC: "disk must have room for what is written",
    errno.EDQUOT: "disk quota must have room for what is written",
    errno.EFBIG: "file size limit must allow what is written",
    errno.EIO: "disk must be able to read and write",
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
    """Turn a full, failing, read-only or forbidden disk into one clear line; let every other error through."""
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
def temporary_beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new file (or folder) beside `path`, removed at the end if it is still there.

    The process that makes it holds a lock on it. One without a lock was left behind by a process that was killed; it is
    removed the next time `path` is written.
    """
    ensure_dir(path.parent)
    with disk_errors(path):
        _remove_abandoned(path)
        temporary, held = _held_temporary(path, folder)
        try:
            yield temporary
        finally:
            _remove(temporary)
            os.close(held)


def _held_temporary(path: Path, folder: bool) -> tuple[Path, int]:
    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        else:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            os.close(descriptor)
            temporary = Path(name)
        held = _hold(temporary, mine=True)
        if held is not None:
            return temporary, held  # else another process removed it before it was locked


def _hold(path: Path, mine: bool = False) -> int | None:
    """A descriptor with a lock on `path`, or None when another process has the lock or the path is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        held = False
    except (
        OSError
    ):  # some network file systems cannot lock a folder: then our own counts as locked, and others are left alone
        held = mine
    if held:
        return descriptor
    os.close(descriptor)
    return None


def _remove_abandoned(path: Path) -> None:
    ours = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]{8}\.tmp")
    for entry in path.parent.iterdir():
        if ours.fullmatch(entry.name) and (held := _hold(entry)) is not None:
            _remove(entry)
            os.close(held)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync and rename it there, on any failure remove it."""
    with temporary_beside(path) as temporary:
        yield temporary
        temporary.chmod(_FILE_MODE)
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Like `atomic_path` for a whole folder: all of its files appear at once, with their `SHA256SUMS`.

    An older folder at `path` is replaced.
    """
    with temporary_beside(path, folder=True) as temporary:
        yield temporary
        files = sorted(file for file in temporary.rglob("*") if file.is_file() and file.name != SUMS_FILE)
        lines = [f"{file_sha256(file)}  {file.relative_to(temporary).as_posix()}\n" for file in files]
        (temporary / SUMS_FILE).write_text("".join(lines))
        temporary.chmod(_FILE_MODE | (_FILE_MODE & 0o444) >> 2)
        for file in temporary.rglob("*"):
            fsync_path(file)
        if not (path.is_dir() and _exchange(temporary, path)):
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
        fsync_path(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step where the system can (Linux). Returns whether it did."""
    with contextlib.suppress(AttributeError, OSError):
        at_cwd, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return ctypes.CDLL(None).renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), swap) == 0
    return False


def damage_in(folder: Path) -> str | None:
    """The first file that differs from what the folder's `SHA256SUMS` says, or None; None too if there is no such file."""
    sums = folder / SUMS_FILE
    if not sums.exists():
        return None
    with disk_errors(folder):
        *lines, after = sums.read_text(errors="replace").split("\n")
        if after or not lines:
            return str(sums)
        for line in lines:
            match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
            if match is None:
                return str(sums)
            file = folder / match[2]
            if not file.is_file():
                return f"no {file}"
            if file_sha256(file) != match[1]:
                return str(file)
    return None


def require_intact(folder: Path, what: str, remedy: str) -> None:
    """Raise a `UserError` that names the damaged file, if `damage_in` finds one."""
    damage = damage_in(folder)
    if damage is not None:
        raise UserError(f"{what} must be as it was written ({SUMS_FILE})", damage, remedy)


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Read a sealed JSON object; one without a seal is an older version's and is taken as it is.

    Raises:
        UserError: it is damaged; the message names the file and ends with `remedy`.
    """
    content = read_json(path, remedy)
    if not isinstance(content, dict) or ("sha256" in content and not seal_holds(content)):
        raise UserError("file must be as it was written", path, remedy)
    return content


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, human-readable."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path, remedy: str = "delete it; it will be made again") -> Any:
    """Read JSON; a damaged file is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("file must hold valid JSON", path, remedy) from error


def kept_json(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """The value of `compute()` after a round trip through JSON: computed once a key, then read from `<cache>/<kind>/<key>.json`.

    A damaged file is computed again, with a warning.
    """
    path = cache_dir() / kind / f"{key}.json"
    with locked(path):
        if path.exists() and (kept := _kept_value(path)) is not None:
            return kept[0]
        write_json(path, sealed({"value": compute()}))
        return read_json(path)["value"]


def _kept_value(path: Path) -> tuple[Any] | None:
    with contextlib.suppress(UserError):
        content = read_json(path)
        if seal_holds(content):
            return (content["value"],)
        if not (isinstance(content, dict) and content.keys() & {"value", "sha256"}):
            return (content,)  # an older version's
    warnings.warn(f"damaged {path}; it is made again", stacklevel=3)
    return None


def kept_folder(path: Path, make: Callable[[Path], None]) -> Path:
    """The folder `path`, filled by `make(folder)` once; filled again, with a warning, when a file in it is damaged."""
    with locked(path):
        damage = damage_in(path) if path.exists() else None
        if damage is not None:
            warnings.warn(f"damaged {damage}; it is made again", stacklevel=2)
        if damage is not None or not (path / SUMS_FILE).exists():
            with atomic_dir(path) as temporary:
                make(temporary)
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an inter-process lock named after `path`, so that two processes never build the same thing at once."""
    ensure_dir(path.parent)
    lock = filelock.FileLock(path.parent / f".{path.name}.lock")
    with disk_errors(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
