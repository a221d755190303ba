"""Find files of the Hugging Face hub: in a folder the user names, in an existing hub cache, or on the hub, in this order.

Libraries that ask an unreachable hub retry for some 20 s. Here the caches are searched first, a connection is tried for at
most a second, and what is missing is said in one line.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from saelib.base.errors import UserError


class Address(NamedTuple):
    """Where a connection goes."""

    scheme: str
    host: str
    port: int


def hub_address() -> Address:
    """The hub: the mirror that `HF_ENDPOINT` names, as huggingface_hub itself has it, or the hub's own.

    Raises:
        UserError: `HF_ENDPOINT` is no address.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    found = _address(endpoint)
    if found is None:
        raise UserError("HF_ENDPOINT must be the address of a hub", endpoint, "unset it, or write it as https://host")
    return found


def _address(url: str) -> Address | None:
    parts = urlsplit(url)
    ports = {"http": 80, "https": 443}
    try:
        port = parts.port or ports.get(parts.scheme)
    except ValueError:
        port = None
    return Address(parts.scheme, parts.hostname, port) if parts.hostname and port and parts.scheme in ports else None


def _first_hop() -> Address:
    """Where a connection to the hub goes first: the proxy that the environment names, else the hub itself."""
    hub = hub_address()
    proxies = {} if proxy_bypass(hub.host) else getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all") or ""
    return _address(proxy if "://" in proxy else f"http://{proxy}") or hub


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it has fetched: `HF_HUB_CACHE`, or `HF_HOME`/hub, or the default."""
    explicit = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def cached_snapshot(repo: str, kind: str = "models") -> Path | None:
    """The snapshot of a repository in the hub cache: the one that `main` points at, else the last by name; None without one."""
    folder = hub_cache() / f"{kind}--{repo.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file() and (snapshot := folder / "snapshots" / main.read_text().strip()).is_dir():
        return snapshot
    snapshots = sorted((folder / "snapshots").glob("*"))
    return snapshots[-1] if snapshots else None


def hub_reachable(seconds: float = 0.8) -> bool:
    """Whether the hub may be asked: not when `HF_HUB_OFFLINE` forbids it, nor without a connection within the time.

    Name resolution has no time limit of its own, so the attempt is made in a thread that is left behind.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    hop = _first_hop()
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((hop.host, hop.port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])


@contextlib.contextmanager
def offline(switched_off: bool = True) -> Iterator[None]:
    """While inside, huggingface_hub takes what is in the cache and asks nobody: no retries, no waiting.

    The variable is what it reads when it is first imported, the constant what it looks at afterwards.
    """
    if not switched_off:
        yield
        return
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constant, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = constant if before is not None else False
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def named_path(variable: str | None) -> Path | None:
    """What an environment variable names; None when it is not set, or there is no such variable."""
    value = os.environ.get(variable) if variable else None
    return Path(value).expanduser() if value else None


def named_folder(variable: str) -> Path | None:
    """The folder that an environment variable names.

    Raises:
        UserError: it names something else.
    """
    folder = named_path(variable)
    if folder is not None and not folder.is_dir():
        raise UserError(f"{variable} must name a folder", os.environ[variable], "set it to the folder, or unset it")
    return folder


def missing(what: str, needs: str, variable: str) -> UserError:
    """The one line that says what is missing and the three ways to supply it."""
    host = hub_address().host
    return UserError(
        f"{what} must be at hand ({needs})",
        f"none under {variable}, none in the hub cache {hub_cache()}, and {host} not reachable or switched off",
        f"set {variable} to a local folder, or HF_HOME to a cache that holds it, or connect to {host}",
    )


def fetch_snapshot(repo: str, patterns: Sequence[str]) -> Path:
    """Fetch the files of a model repository that match into the hub cache, and return the snapshot.

    Raises:
        UserError: the hub does not give them.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    except Exception as error:  # a dozen kinds, from HTTP to file locks
        reason = f"{repo} ({type(error).__name__})"
        raise UserError("the hub must give the files", reason, "try again, or use a local folder") from error
