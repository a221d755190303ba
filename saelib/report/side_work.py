"""The independent pieces of a notebook's work, which run side by side before the notebook collects them from the cache."""

from __future__ import annotations

from saelib.report.jobs import Job

SIDE_WORK = {
    "08_calibration": "saelib.study.calibrated:run_part_job",
    "13_data_needed": "saelib.study.data_needed:run_part_job",
    "14_replacing": "saelib.study.replacing:run_part_job",
    "15_circuits": "saelib.study.circuits:run_part_job",
}
"""Notebooks, and what does every n-th piece of each one's work."""
LEFT_OPEN = tuple(name for name in SIDE_WORK if name != "08_calibration")
"""The notebooks that answer what the 2024 post left open."""


def side_work(notebook: str, profile: str, width: int, threads: int) -> list[Job]:
    """A notebook's work in `width` parts that run side by side; none where it has no such work."""
    if notebook not in SIDE_WORK:
        return []
    return [
        Job(
            f"{notebook}, part {part + 1} of {width}", SIDE_WORK[notebook],
            {"profile": profile, "part": part, "parts": width}, threads,
        )
        for part in range(width)
    ]  # fmt: skip
