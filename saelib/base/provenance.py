"""Where a number came from: versions, commit, machine, threads, seeds. Recorded in the kernel that made the number."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from saelib import __version__

PACKAGES = (
    "torch",
    "transformer_lens",
    "numpy",
    "pandas",
    "safetensors",
    "tokenizers",
    "matplotlib",
    "papermill",
    "circuitsvis",
)


def versions() -> dict[str, str]:
    """Versions of Python, saelib and the packages that numbers and pages depend on (those that are installed)."""
    found = {"python": platform.python_version(), "saelib": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(source: Path | None = None) -> tuple[str | None, bool | None]:
    """(commit, whether the tree differs from it) of the repository saelib runs from; (None, None) outside one.

    A copy of saelib installed *inside* some repository's virtual environment is not that repository's source: the file
    must be tracked. Reports are left out of the comparison, or making them would call the code that made them dirty.
    """
    file = (source or Path(__file__)).resolve()
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None, None
    described = _git(file.parent, "rev-parse", "--short=12", "HEAD")
    top = _git(file.parent, "rev-parse", "--show-toplevel")
    if described is None or top is None:
        return None, None
    status = _git(Path(top), "status", "--porcelain", "--", ".", ":(exclude)reports")
    return described, None if status is None else bool(status)


@cache
def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device() -> str:
    """The processor with the cores open to this process, and the GPU when torch is loaded and sees one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{_cpu()}, {cores} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f"; {torch.cuda.get_device_name()}"
    return text


def threads() -> int | None:
    """torch's thread count if torch is loaded (bit-identical results need it equal), else None."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def provenance() -> dict[str, Any]:
    """Everything above, as it is in this process now."""
    described, dirty = commit()
    return {
        "versions": versions(),
        "commit": described,
        "dirty": dirty,
        "device": device(),
        "threads": threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
