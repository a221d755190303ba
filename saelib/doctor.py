"""What this machine has: the first thing to look at, and to send along, when something does not work."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from saelib.cache import cache_dir, damage_in, file_sha256, read_json, seal_holds
from saelib.errors import UserError
from saelib.page import show_bytes
from saelib.provenance import versions

_HUB = "huggingface.co"


def examine() -> dict[str, Any]:
    """Python, packages, cores, memory, GPU, cache folder with its size, embedded models, text packages, model hub."""
    from saelib.reproduce import cache_bytes, cores

    cache = cache_dir()
    memory = psutil.virtual_memory()
    return {
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "packages": versions(),
        "cores": cores(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "gpu": _gpu(),
        "cache": {"path": str(cache), "bytes": cache_bytes(), "free_bytes": shutil.disk_usage(_existing(cache)).free},
        "embedded_models": _embedded_models(),
        "text": _text_packages(),
        "model_hub_reachable": _reachable(_HUB),
    }


def format_findings(findings: dict[str, Any]) -> str:
    """The findings as lines of text."""
    cache = findings["cache"]
    text = ", ".join(f"{name} {'cached' if cached else 'not cached'}" for name, cached in findings["text"].items())
    rows = {
        "python": findings["python"],
        "platform": findings["platform"],
        "packages": ", ".join(
            f"{name} {version}" for name, version in findings["packages"].items() if name != "python"
        ),
        "cores": f"{findings['cores']} (OMP_NUM_THREADS {findings['threads'] or 'not set'})",
        "memory": f"{show_bytes(findings['memory_available_bytes'])} available of {show_bytes(findings['memory_bytes'])}",
        "gpu": findings["gpu"] or "none (none is needed)",
        "cache": f"{cache['path']}: {show_bytes(cache['bytes'])}, {show_bytes(cache['free_bytes'])} free on that disk",
        "model": ", ".join(findings["embedded_models"]) or "no embedded model in this installation",
        "text": text or "-",
        "model hub": f"{_HUB} {'reachable' if findings['model_hub_reachable'] else 'not reachable (not needed by mini)'}",
    }
    if "verified" in cache:
        rows["verified"] = f"{cache['verified']} things in the cache, {len(cache['damaged'])} of them damaged"
    lines = [f"{name:<10} {value}" for name, value in rows.items()]
    return "\n".join([*lines, *(f"damaged    {path}" for path in cache.get("damaged", []))])


def verify() -> tuple[int, list[str]]:
    """Read everything in the cache whose checksum is known: how many things were looked at, and the damaged files."""
    looked_at = list(_verified(cache_dir()))
    return len(looked_at), [damage for damage in looked_at if damage is not None]


def _verified(cache: Path) -> Iterator[str | None]:
    """For each archive, folder, store, training and kept number: None, or what is damaged."""
    from saelib.sources import LANGUAGE_MODEL_SOURCES, STUDY_SOURCES, archive_path

    for source in (*STUDY_SOURCES, *LANGUAGE_MODEL_SOURCES):
        if archive_path(source).exists():
            yield _unless(file_sha256(archive_path(source)) == source.sha256, archive_path(source))
    for sums in sorted(cache.rglob("SHA256SUMS")):
        yield damage_in(sums.parent)
    for path in sorted([*cache.glob("quality/*.json"), *cache.glob("parents/*.json")]):
        yield _unless(_sealed(path) is not None, path)
    for path in sorted(cache.glob("runs/*/summary.json")):
        summary, history = _sealed(path), path.with_name("history.csv")
        known = summary is None or file_sha256(history) == summary["history_sha256"]
        yield _unless(summary is not None, path) or _unless(known, history)
    for path in sorted(cache.glob("runs/*/checkpoints/*.json")):
        content, tensors = _sealed(path), path.with_suffix(".safetensors")
        known = content is None or (tensors.exists() and file_sha256(tensors) == content["tensors"])
        yield _unless(content is not None, path) or _unless(known, tensors)
    for path in sorted(cache.glob("activations/*/manifest.json")):
        yield _damaged_store(path)


def _sealed(path: Path) -> dict[str, Any] | None:
    """A sealed JSON object, or None when it is damaged (or was written by a version that sealed nothing)."""
    try:
        content = read_json(path)
    except UserError:
        return None
    return content if seal_holds(content) else None


def _unless(intact: bool, path: Path) -> str | None:
    return None if intact else str(path)


def _damaged_store(path: Path) -> str | None:
    import numpy as np

    from saelib.activations import ActivationStore

    manifest = _sealed(path)
    if manifest is None:
        return str(path)
    store = ActivationStore(path.parent, manifest, np.empty((0, 128), dtype=np.uint16))
    try:
        store.check(np.arange(store.n_tokens))
    except UserError as error:
        return str(error.got)
    return None


def _existing(path: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _embedded_models() -> list[str]:
    folder = Path(__file__).parent / "models"
    return sorted({str(path.parent.relative_to(folder)) for path in folder.rglob("*.safetensors")})


def _text_packages() -> dict[str, bool]:
    from saelib.sources import STUDY_SOURCES, archive_path

    return {f"{source.package}=={source.version}": archive_path(source).exists() for source in STUDY_SOURCES}


def _reachable(host: str, seconds: float = 2.0) -> bool:
    """Whether a connection can be made; name resolution has no time limit of its own, so the thread is left behind."""
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=seconds).close()
            answers.append(True)
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])
