"""What a command of the study took: seconds by notebook and by kind of work, memory, disk; kept as `run.json`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelib.base.cache import cache_dir, read_json, write_json
from saelib.base.progress import clock
from saelib.report.study_plan import BEFORE_RUNS, PlannedPage

if TYPE_CHECKING:
    from saelib.report.jobs import Memory

GIB = 2**30
_SHOWN = (
    "run",
    "size",
    "seed",
    "loss",
    "published_classes",
    "prompts",
    "S_2",
    "verdict",
    "l0",
    "fvu",
    "loss_recovered",
    "seconds",
)


@dataclass
class Seconds:
    """Where a command's time went."""

    prepare: dict[str, float] = field(default_factory=dict)
    """`text` and `harvest`."""
    arms: float = 0.0
    """Training the arms of the claims."""
    rendering: float = 0.0
    """Writing pages."""

    def by_label(self, pages: Sequence[PlannedPage]) -> dict[str, float]:
        """Of each part of preparing and each notebook, whenever it ran."""
        notebooks = {page.label: page.require_finished().result["seconds"] for page in pages}
        return self.prepare | ({"claim arms": self.arms} if self.arms else {}) | notebooks

    def by_work(self, pages: Sequence[PlannedPage]) -> dict[str, float]:
        """The study's own notebooks by kind of work, whatever ran side by side; `render` counts pages of this command."""
        found = {page: page.require_finished().result for page in pages if not page.is_evidence}
        total = sum(result["seconds"] for result in found.values())
        narrow = sum(result["seconds"] for page, result in found.items() if page.notebook == BEFORE_RUNS[0])
        train = sum(result["headline"].get("seconds", 0.0) for page, result in found.items() if page.run is not None)
        shown = {"narrow SAE": narrow, "training": train, "scores and figures": total - narrow - train}
        return self.prepare | shown | {"rendering": self.rendering}


def cache_bytes(root: Path | None = None) -> int:
    """Size of the cache folder, or of another, on disk (allocated blocks)."""
    total = 0
    for folder, _, files in os.walk(root or cache_dir()):
        for name in files:
            try:
                total += Path(folder, name).lstat().st_blocks * 512
            except OSError:
                continue  # a temporary file that is gone by now
    return total


def make_record(
    pages: Sequence[PlannedPage],
    executed: Sequence[PlannedPage],
    seconds: Seconds,
    wall: float,
    memory: Memory,
    how: Mapping[str, int],
) -> dict[str, Any]:
    """What `run.json` holds of one command; `how` says with what it ran."""
    return {
        "keys": {page.label: page.key for page in pages},
        "seconds": {label: round(value, 1) for label, value in seconds.by_label(pages).items()},
        "command": {
            "wall_seconds": round(wall, 1),
            "executed": [page.label for page in executed],
            "work_seconds": {work: round(value, 1) for work, value in seconds.by_work(pages).items()},
            "peak_memory_bytes": memory.peak_bytes,
            "peak_private_memory_bytes": memory.peak_private_bytes,
            "memory_measure": f"{memory.measure} over the process tree, sampled about every {memory.interval:g} s",
            "cache_bytes": cache_bytes(),
            **how,
        },
    }


def keep_record(path: Path, record: dict[str, Any]) -> None:
    """Write it. Beside this command's figures stand those of the one that ran the study in one go, while they still hold."""
    executed, keys = record["command"]["executed"], record["keys"]
    if len(executed) == len(keys) and not record["command"]["found_work"]:
        record["uninterrupted"] = record["command"]
    elif path.exists():
        before = read_json(path)
        whole = before.get("uninterrupted")
        if whole and all(keys.get(label) == before["keys"].get(label) for label in whole["executed"]):
            record["uninterrupted"] = whole
    write_json(path, record)


def print_outcome(runs: Sequence[Mapping[str, Any]], record: dict[str, Any], shown: Path) -> None:
    """The table of runs, what they took, and the page to open."""
    import pandas as pd

    results = pd.DataFrame([dict(row) for row in runs])
    results = results[[name for name in _SHOWN if name in results.columns]]
    print()
    print(results.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="-"))
    print("\nseconds: " + ", ".join(f"{label} {value:.0f}" for label, value in record["seconds"].items()))
    command = record["command"]
    print(
        f"wall time {clock(command['wall_seconds'])}, peak memory {command['peak_memory_bytes'] / GIB:.1f} GiB "
        f"({command['memory_measure']}), cache {command['cache_bytes'] / GIB:.1f} GiB at {cache_dir()}"
    )
    print(f"open {shown}")
