"""The whole study, from text to report: run what the plan says and is not finished, render every page, write the index.

prepare (text, tokens, activations) -> the notebooks of `saelib.report.study_plan`, stage by stage -> index.html and its tables
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelib.base.cache import cache_dir, content_key, kept_json
from saelib.base.errors import UserError
from saelib.base.progress import Display, clock
from saelib.report.finish import check_writable, finish_report, render, reports_dir
from saelib.report.notebook_source import notebooks_dir
from saelib.report.run_record import GIB, Seconds, keep_record, make_record, print_outcome
from saelib.report.study_plan import CLAIMS, TRAINING_RUN, PlannedPage, plan_page, plan_study

if TYPE_CHECKING:
    from saelib.report.index_page import Tables
    from saelib.report.jobs import Job, Memory
    from saelib.study.profiles import Profile

PREPARE = "saelib.report.jobs:prepare_job"
TABLES = "saelib.study.results:tables_job"
_MEMORY_PER_RUN = 2 * GIB  # what `jobs` allows for each training run


# --- running ---------------------------------------------------------------------------------------------------------


def reproduce(
    profile: str,
    runs: Sequence[int] | None = None,
    jobs: int | None = None,
    reports: Path | None = None,
    force: bool = False,
    claims: bool = False,
) -> Path:
    """Run the study (or `runs` and what they need), render its pages and return the page to open.

    `jobs` training runs go side by side; by default as many as cores and memory allow. `force` runs notebooks anew
    that are finished; `claims` adds the arms of many seeds.

    Raises `UserError`, `NotebookFailed` or `JobFailed`; what was finished stays finished.
    """
    from saelib.report.jobs import Memory
    from saelib.study.profiles import get_profile

    settings = get_profile(profile)
    folder = reports_dir(reports, profile)
    stages = plan_study(profile, runs, claims)
    threads = settings.threads_per_run
    width = jobs or default_jobs(settings)
    check_writable(cache_dir())

    display, memory = Display(), Memory()
    began = time.monotonic()
    found_work = any((cache_dir() / kind).is_dir() for kind in ("runs", "activations"))
    pages = [page for stage in stages for page in stage]
    unfinished = [page for page in pages if force or page.finished() is None]
    display.event(f"profile {profile}: {len(pages)} notebooks, {len(pages) - len(unfinished)} already finished")
    seconds = Seconds(_prepare(profile, display, memory) if unfinished else {})
    for stage in stages:
        side_by_side = min(width, len(stage))
        training = stage[0].notebook == TRAINING_RUN
        shape = (width, threads) if training else (side_by_side, max(1, cores() // side_by_side))
        if any(page.notebook == CLAIMS and page in unfinished for page in stage):
            seconds.arms = _train_arms(profile, width, threads, display, memory)
        seconds.rendering += _run_stage(stage, pages, folder, display, memory, shape, force)

    tables = _tables(profile, pages, runs is None, display, memory)
    how = {"jobs": width, "threads_per_run": threads, "cores": cores(), "found_work": found_work}
    record = make_record(pages, unfinished, seconds, time.monotonic() - began, memory, how)
    if runs is None:
        keep_record(folder / "run.json", record)
        shown = finish_report(folder, profile, tables, pages, record)
    else:
        shown = folder / f"{pages[-1].stem}.html"
    print_outcome(tables["runs"], record, shown)
    return shown


def run_one_notebook(
    profile: str, notebook: str, parameters: dict[str, Any], reports: Path | None, force: bool
) -> Path:
    """Run one notebook (it makes what it needs itself), render its page and its line on the index, and return that page."""
    from saelib.report.jobs import Memory, run_jobs
    from saelib.report.left_open import renew_left_open
    from saelib.report.side_work import LEFT_OPEN, side_work
    from saelib.study.profiles import get_profile

    settings = get_profile(profile)
    page = plan_page(profile, notebook, parameters)
    folder = reports_dir(reports, profile)
    check_writable(cache_dir())
    threads = settings.threads_per_run if notebook == TRAINING_RUN else cores()
    display, memory, width = Display(), Memory(), default_jobs(settings)
    work = side_work(notebook, str(page.parameters.get("profile", profile)), width, settings.threads_per_run)
    if work and page.finished() is None:
        run_jobs(work, width=width, display=display, memory=memory)
    _run_stage([page], [], folder, display, memory, (1, threads), force)
    if notebook in LEFT_OPEN:
        renew_left_open(folder)
    return folder / f"{page.stem}.html"


def _run_stage(
    stage: list[PlannedPage],
    pages: list[PlannedPage],
    folder: Path,
    display: Display,
    memory: Memory,
    shape: tuple[int, int],
    force: bool,
) -> float:
    """Run what is not finished of `stage`, `shape` = (how many side by side, threads of each), and render every page.

    Returns the seconds that rendering took.
    """
    from saelib.report.jobs import run_jobs

    rendering = 0.0

    def show(page: PlannedPage) -> None:
        nonlocal rendering
        began = time.monotonic()
        render(page, folder, pages)
        rendering += time.monotonic() - began

    width, threads = shape
    waiting = [page for page in stage if force or page.finished() is None]
    for page in stage:
        if page not in waiting:
            display.event(f"{page.label}: already finished")
            show(page)
    durations: list[float] = []

    def on_done(job: Job, value: Any, seconds: float) -> None:
        durations.append(seconds)
        page = waiting[job.arguments["index"]]
        if value["key"] != page.key:  # the result is kept, but under what it was made from, and the plan is another
            remedy = "start the command again; what still holds is kept"
            raise UserError(
                "saelib and its notebooks must stay as they are during a run", f"a change before {job.label}", remedy
            )
        for line in page.require_finished().result["warnings"]:
            display.event(f"{page.label}: {line}")
        show(page)

    def summary(finished: int) -> str:
        if len(stage) == 1:
            return ""
        text = f"{len(stage) - len(waiting) + finished}/{len(stage)} notebooks finished"
        if durations and stage[0].notebook == TRAINING_RUN:  # each remaining run takes as long as those before it
            left = (len(waiting) - finished) * sum(durations) / len(durations) / width
            text += f", about {clock(left)} left at most"
        return text

    work = [_job(page, index, threads, force) for index, page in enumerate(waiting)]
    run_jobs(work, width=width, display=display, memory=memory, summary=summary, on_done=on_done)
    return rendering


def _job(page: PlannedPage, index: int, threads: int, force: bool) -> Job:
    from saelib.report.jobs import Job

    arguments = {
        "index": index,
        "name": page.notebook,
        "parameters": page.parameters,
        "key_extra": page.key_extra,
        "notebooks": str(notebooks_dir()),
        "force": force,
    }
    return Job(page.label, "saelib.report.jobs:execute_notebook_job", arguments, threads)


def _prepare(profile: str, display: Display, memory: Memory) -> dict[str, float]:
    """Text, tokens and activations, in a process of their own so that their memory is given back. Returns seconds."""
    from saelib.report.jobs import Job, run_jobs

    seconds: dict[str, float] = {}
    job = Job("prepare", PREPARE, {"profile": profile}, cores())
    run_jobs([job], display=display, memory=memory, on_done=lambda job, value, _: seconds.update(value))
    return seconds


def _train_arms(profile: str, width: int, threads: int, display: Display, memory: Memory) -> float:
    """Every run of the claims: each arm's coefficient, then narrow SAE by narrow SAE, `width` side by side. Returns seconds."""
    from saelib.report.jobs import Job, run_jobs
    from saelib.study.profiles import get_profile
    from saelib.study.runs import ARMS

    began = time.monotonic()
    calibrate, measure = "saelib.study.arms:calibrate_job", "saelib.study.arms:block_job"
    arms = [Job(f"L0 of {arm.name}", calibrate, {"profile": profile, "arm": arm.name}, threads) for arm in ARMS]
    run_jobs(arms[:1], display=display, memory=memory)  # what the others are matched to
    run_jobs(arms[1:], width=width, display=display, memory=memory)
    blocks = range(get_profile(profile).claim_blocks)
    jobs = [Job(f"arms on narrow SAE {b}", measure, {"profile": profile, "block": b}, threads) for b in blocks]
    run_jobs(jobs, width=width, display=display, memory=memory)
    return time.monotonic() - began


def _tables(profile: str, pages: Sequence[PlannedPage], whole: bool, display: Display, memory: Memory) -> Tables:
    """The rows of every table, from what is kept; made once for these finished notebooks."""
    from saelib.report.jobs import Job, run_jobs

    runs = [page.run for page in pages if page.run is not None]
    claims = any(page.notebook == CLAIMS for page in pages)
    arguments = {"profile": profile, "runs": runs, "whole": whole, "claims": claims}

    def make() -> Any:
        return run_jobs([Job("tables", TABLES, arguments, cores())], display=display, memory=memory)[0]

    tables: Tables = kept_json("tables", content_key(pages=[page.key for page in pages], whole=whole), make)
    return tables


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(profile: Profile) -> int:
    """Runs side by side: the profile's number, as far as cores and free memory (2 GiB a run) allow."""
    import psutil

    room = int(psutil.virtual_memory().available // _MEMORY_PER_RUN)
    return max(1, min(profile.jobs, cores() // profile.threads_per_run, room))
