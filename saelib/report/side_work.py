"""The independent pieces of a notebook's work, which run side by side before the notebook collects them from the cache."""

from __future__ import annotations

from saelib.report.jobs import Job

DATA_NEEDED, REPLACING, CIRCUITS = "13_data_needed", "14_replacing", "15_circuits"
LEFT_OPEN = (DATA_NEEDED, REPLACING, CIRCUITS)
"""The notebooks that answer what the 2024 post left open."""


def side_work(notebook: str, profile: str, width: int, threads: int) -> list[Job]:
    """The pieces of a notebook, none where it has no such work; the longest first. `width` run side by side."""
    if notebook == DATA_NEEDED:
        from saelib.study.data_needed import ARM_NAMES

        return [
            Job(
                f"data needed, {arm}", "saelib.study.data_needed:run_arm_job", {"profile": profile, "arm": arm}, threads
            )
            for arm in ARM_NAMES
        ]
    if notebook == REPLACING:
        from saelib.study.replacing import ARMS

        return [
            Job(
                f"replacing, {arm.name}",
                "saelib.study.replacing:run_arm_job",
                {"profile": profile, "arm": arm.name},
                threads,
            )
            for arm in reversed(ARMS)
        ]
    if notebook == CIRCUITS:
        return [
            Job(
                f"circuits, part {part + 1}", "saelib.study.circuits:run_parents_job",
                {"profile": profile, "part": part, "parts": width}, threads,
            )
            for part in range(width)
        ]  # fmt: skip
    return []
