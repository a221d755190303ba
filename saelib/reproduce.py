"""The whole study, from text to report: which notebooks run in which order, what each builds on, and what is kept.

    prepare -> 01 narrow SAE -> 02 parent -> 03 filter -> 04 one training run each, side by side -> 05 results -> 06

Every notebook's key is known before anything runs (it hashes inputs, not outputs), so a bad plan fails at once, and a
second command finds what is finished and starts with what is not.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelib.cache import cache_dir, content_key, disk_errors, ensure_dir, file_sha256, read_json, write_json
from saelib.errors import UserError
from saelib.notebook_runner import (
    ExecutedNotebook,
    Scalar,
    cached_notebook,
    load_notebook,
    notebook_key,
    notebooks_dir,
)
from saelib.progress import Display, clock

if TYPE_CHECKING:
    import pandas as pd

    from saelib.jobs import Job, Memory
    from saelib.profiles import Profile
    from saelib.report import Page as ReportPage

TRAINING_RUN = "04_training_run"
BEFORE_RUNS = ("01_narrow_sae", "02_choose_parent", "03_filter")
AFTER_RUNS = ("05_results", "06_training_efficiency", "09_split_page")
CLAIMS = "07_claims"
EVIDENCE = (CLAIMS, "08_calibration")
"""What `--claims` adds: many seeds an arm take longer than the study's own runs."""
PREPARE = "saelib.jobs:prepare_job"
_FOR_A_RUN = ("01_narrow_sae", "02_choose_parent")
_BUILDS_ON: dict[str, tuple[str, ...]] = {
    "01_narrow_sae": (),
    "02_choose_parent": ("01_narrow_sae",),
    "03_filter": _FOR_A_RUN,
    TRAINING_RUN: _FOR_A_RUN,
    CLAIMS: _FOR_A_RUN,
    "10_split_any_feature": (),
    "08_calibration": (),
}
_WITH_FIGURES = (
    "02_choose_parent",
    "05_results",
    "06_training_efficiency",
    *EVIDENCE,
)  # whose figures the index shows, too
_SAE_FACTS = ("parent", "tau", "max_activation", "l1_coeff", "meets_rule", "l0", "fvu", "loss_recovered")
_GIB = 2**30
_MEMORY_PER_RUN = 2 * _GIB  # what `jobs` allows for each training run
_TABLE = (
    "run",
    "size",
    "seed",
    "init",
    "filter",
    "loss",
    "published",
    "verdict",
    "l0",
    "fvu",
    "loss_recovered",
    "seconds",
)


@dataclass(frozen=True)
class Page:
    """One notebook with its parameters: what is executed, under which key, and the page it becomes."""

    notebook: str
    parameters: dict[str, Scalar]
    key_extra: dict[str, Any]
    key: str
    title: str
    stem: str

    @property
    def label(self) -> str:
        """How this is called in progress lines and in `run.json`."""
        return self.notebook if self.run is None else f"{self.notebook} run {self.run}"

    @property
    def run(self) -> int | None:
        """Number of the training run; None for a notebook that is not one."""
        run = self.parameters.get("run")
        return run if self.notebook == TRAINING_RUN and isinstance(run, int) else None

    def finished(self) -> ExecutedNotebook | None:
        """The result in the cache, if this has been run."""
        return cached_notebook(self.key)


# --- planning --------------------------------------------------------------------------------------------------------


def plan_page(profile: str, notebook: str, parameters: dict[str, Any] | None = None) -> Page:
    """Check the parameters of one notebook and work out its key; `UserError` for a bad name or value."""
    source = load_notebook(notebook)
    given = dict(parameters or {})
    if "profile" in source.parameters:
        given.setdefault("profile", profile)
    resolved = source.resolve(given)
    default = source.resolve({k: given[k] for k in ("profile", "run") if k in given})
    extra = _key_extra(profile, notebook, resolved)
    key = notebook_key(source, resolved, extra)
    is_run = notebook == TRAINING_RUN
    stem = f"run-{resolved['run']:02d}" if is_run else notebook
    title = f"Run {resolved['run']}" if is_run else source.title
    if resolved != default:  # a page of one's own, beside the study's
        stem += f"-{key[:6]}"
    return Page(notebook, resolved, extra, key, title, stem)


def plan_study(profile: str, runs: Sequence[int] | None = None, claims: bool = False) -> list[list[Page]]:
    """The notebooks of the study in stages; those of one stage may run side by side. With `runs`, only what they need.

    The claims and the calibration are there when asked for, or when they are finished already.
    """
    numbers = _run_numbers()
    for run in runs or ():
        if run not in numbers:
            raise UserError("run must be a row of the run table", run, f"use one of {min(numbers)} to {max(numbers)}")
    first = [[plan_page(profile, name)] for name in (BEFORE_RUNS if runs is None else _FOR_A_RUN)]
    training = [
        plan_page(profile, TRAINING_RUN, {"run": run}) for run in (numbers if runs is None else sorted(set(runs)))
    ]
    last = [plan_page(profile, name) for name in AFTER_RUNS] if runs is None else []
    evidence = [plan_page(profile, name) for name in EVIDENCE] if runs is None or claims else []
    last += [page for page in evidence if claims or page.finished() is not None]
    return [*first, training, *([page] for page in last)]


def results_table(profile: str) -> pd.DataFrame:
    """One row for each finished run of the study, in order: the headline numbers its notebook recorded."""
    pages = [plan_page(profile, TRAINING_RUN, {"run": run}) for run in _run_numbers()]
    return _table(pages)


def _table(pages: Iterable[Page]) -> pd.DataFrame:
    import pandas as pd

    done = [(page, page.finished()) for page in pages]
    return pd.DataFrame([{"run": page.parameters["run"], **found.result["headline"]} for page, found in done if found])


def _key_extra(profile: str, notebook: str, parameters: dict[str, Scalar]) -> dict[str, Any]:
    """What a notebook's result depends on besides its own text and parameters."""
    from saelib.profiles import get_profile
    from saelib.runs import RUNS

    settings = get_profile(profile)
    sizes = {name: value for name, value in dataclasses.asdict(settings).items() if name != "jobs"}
    extra: dict[str, Any] = {"profile": sizes, "model": _model_fingerprint(settings.model)}
    outside = _outside_inputs(settings)
    if outside:
        extra["outside"] = outside
    if notebook == TRAINING_RUN:
        rows = [dataclasses.asdict(row) for row in RUNS if row.run == parameters.get("run")]
        if not rows:
            known = _run_numbers()
            remedy = f"use one of {min(known)} to {max(known)}"
            raise UserError("run must be a row of the run table", parameters.get("run"), remedy)
        extra["run"] = rows[0]
    if notebook in _BUILDS_ON:
        extra["upstream"] = [plan_page(profile, name).key for name in _BUILDS_ON[notebook]]
    else:
        runs = [plan_page(profile, TRAINING_RUN, {"run": run}) for run in _run_numbers()]
        extra["upstream"] = [page.key for page in [plan_page(profile, BEFORE_RUNS[-1]), *runs]]
    return extra


@cache
def _model_fingerprint(model: str) -> str | None:
    """Hash of an embedded model's files; None for a model that is not embedded."""
    files = sorted((Path(__file__).parent / "models" / model).glob("*"))
    digests = {path.name: file_sha256(path) for path in files if path.suffix in (".json", ".safetensors")}
    return content_key(**digests) if digests else None


@cache
def _outside_inputs(settings: Profile) -> dict[str, str]:
    """Files outside the package that a profile reads, by name, size and time; what is missing is told before anything runs."""
    from saelib import gelu_1l, hub_data

    found: dict[str, str] = {}
    if settings.model == "gelu-1l":
        found["model"] = _files_key(path for folder in gelu_1l.find_gelu_1l() for path in folder.iterdir())
    elif Path(settings.model).is_dir():
        found["model"] = _files_key(Path(settings.model).iterdir())
    if settings.text == (hub_data.PRETOKENISED,):
        found["data"] = _files_key(hub_data.require_source(hub_data.PRETOKENISED, hub_data.PRETOKENISED_VARIABLE))
    narrow = os.environ.get(settings.narrow_sae_variable) if settings.narrow_sae_variable else None
    if narrow:
        path = Path(narrow).expanduser()
        found["narrow"] = _files_key(path.iterdir() if path.is_dir() else [path])
    return found


def _files_key(paths: Iterable[Path]) -> str:
    return content_key(
        files=sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file())
    )


def _run_numbers() -> list[int]:
    from saelib.runs import RUNS

    return [row.run for row in RUNS]


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
    from saelib.jobs import Memory
    from saelib.profiles import get_profile

    settings = get_profile(profile)
    folder = reports_dir(reports, profile)
    stages = plan_study(profile, runs, claims)
    threads = settings.threads_per_run
    width = jobs or default_jobs(settings)
    check_writable(cache_dir())

    display, memory = Display(), Memory()
    began = time.monotonic()
    found_trainings = any((cache_dir() / "runs").glob("*"))
    pages = [page for stage in stages for page in stage]
    unfinished = [page for page in pages if force or page.finished() is None]
    display.event(f"profile {profile}: {len(pages)} notebooks, {len(pages) - len(unfinished)} already finished")
    seconds = {"prepare": _prepare(profile, display, memory) if unfinished else 0.0}
    for stage in stages:
        is_training = stage[0].notebook == TRAINING_RUN
        shape = (width, threads) if is_training else (1, cores())
        if stage[0].notebook == CLAIMS and (force or stage[0].finished() is None):
            seconds["claim arms"] = _train_arms(profile, width, threads, display, memory)
        _run_stage(stage, pages, folder, display, memory, shape, force)
    seconds |= {page.label: _finished(page).result["seconds"] for page in pages}

    results = _table(page for page in pages if page.run is not None)
    how = {"jobs": width, "threads_per_run": threads, "cores": cores(), "found_trainings": found_trainings}
    record = _record(pages, unfinished, seconds, time.monotonic() - began, memory, how)
    if runs is None:
        _write_record(folder / "run.json", record)
        shown = finish_report(folder, profile, results, pages, record)
    else:
        shown = folder / f"{pages[-1].stem}.html"
    _print_outcome(results, record, shown)
    return shown


def run_one_notebook(
    profile: str, notebook: str, parameters: dict[str, Any], reports: Path | None, force: bool
) -> Path:
    """Run one notebook (it makes what it needs itself), render its page and return that page."""
    from saelib.jobs import Memory
    from saelib.profiles import get_profile

    settings = get_profile(profile)
    page = plan_page(profile, notebook, parameters)
    folder = reports_dir(reports, profile)
    check_writable(cache_dir())
    threads = settings.threads_per_run if notebook == TRAINING_RUN else cores()
    _run_stage([page], [], folder, Display(), Memory(), (1, threads), force)
    return folder / f"{page.stem}.html"


def _run_stage(
    stage: list[Page],
    pages: list[Page],
    folder: Path,
    display: Display,
    memory: Memory,
    shape: tuple[int, int],
    force: bool,
) -> None:
    """Run what is not finished of `stage`, `shape` = (how many side by side, threads of each), and render every page."""
    from saelib.jobs import run_jobs

    width, threads = shape
    waiting = [page for page in stage if force or page.finished() is None]
    for page in stage:
        if page not in waiting:
            display.event(f"{page.label}: already finished")
            render(page, folder, pages)
    durations: list[float] = []

    def on_done(job: Job, value: Any, seconds: float) -> None:
        durations.append(seconds)
        page = waiting[job.arguments["index"]]
        if value["key"] != page.key:  # the result is kept, but under what it was made from, and the plan is another
            remedy = "start the command again; what still holds is kept"
            raise UserError(
                "saelib and its notebooks must stay as they are during a run", f"a change before {job.label}", remedy
            )
        for line in _finished(page).result["warnings"]:
            display.event(f"{page.label}: {line}")
        render(page, folder, pages)

    def summary(finished: int) -> str:
        if len(stage) == 1:
            return ""
        text = f"{len(stage) - len(waiting) + finished}/{len(stage)} runs finished"
        if durations:  # each remaining run takes as long as those before it, `width` at a time
            left = (len(waiting) - finished) * sum(durations) / len(durations) / width
            text += f", about {clock(left)} left at most"
        return text

    work = [_job(page, index, threads, force) for index, page in enumerate(waiting)]
    run_jobs(work, width=width, display=display, memory=memory, summary=summary, on_done=on_done)


def _job(page: Page, index: int, threads: int, force: bool) -> Job:
    from saelib.jobs import Job

    arguments = {
        "index": index,
        "name": page.notebook,
        "parameters": page.parameters,
        "key_extra": page.key_extra,
        "notebooks": str(notebooks_dir()),
        "force": force,
    }
    return Job(page.label, "saelib.jobs:execute_notebook_job", arguments, threads)


def _prepare(profile: str, display: Display, memory: Memory) -> float:
    """Text, tokens and activations, in a process of their own so that their memory is given back. Returns seconds."""
    from saelib.jobs import Job, run_jobs

    began = time.monotonic()
    job = Job("prepare", PREPARE, {"profile": profile}, cores())
    run_jobs([job], display=display, memory=memory)
    return time.monotonic() - began


def _train_arms(profile: str, width: int, threads: int, display: Display, memory: Memory) -> float:
    """Every arm of the claims, `width` side by side. Returns seconds."""
    from saelib.jobs import Job, run_jobs
    from saelib.runs import ARMS

    began = time.monotonic()
    jobs = [
        Job(f"arm {arm.name}", "saelib.claims:run_arm_job", {"profile": profile, "arm": arm.name}, threads)
        for arm in ARMS
    ]
    run_jobs(jobs, width=width, display=display, memory=memory)
    return time.monotonic() - began


def _finished(page: Page) -> ExecutedNotebook:
    found = page.finished()
    if found is None:
        raise UserError(
            "finished notebooks must stay in the cache during a run", f"none of {page.label}", "start again"
        )
    return found


# --- pages and figures of the run ------------------------------------------------------------------------------------


def render(page: Page, folder: Path, pages: Sequence[Page] = ()) -> Path:
    """Render a finished notebook to `<stem>.html` and its JSON sibling; `pages` are those to link to."""
    from saelib.report import render_page

    found = _finished(page)
    out = folder / f"{page.stem}.html"
    render_page(found.path, out, title=page.title, result=found.result, pages=_links(pages))
    return out


def finish_report(
    folder: Path, profile: str, results: pd.DataFrame, pages: Sequence[Page], record: dict[str, Any]
) -> Path:
    """Write `results.csv` and `index.html`; `record` is what `run.json` holds."""
    from saelib.report import build_index, write_results_csv

    write_results_csv(results, folder / "results.csv")
    return build_index(folder, profile, results, _links(pages), facts=_facts(folder, profile, results, pages, record))


def _facts(
    folder: Path, profile: str, results: pd.DataFrame, pages: Sequence[Page], record: dict[str, Any]
) -> dict[str, Any]:
    """What the index tells besides the table, from the model's card, the notebooks' records and `run.json`."""
    from saelib.figures import save_figures
    from saelib.findings import findings
    from saelib.profiles import get_profile

    command = record.get("uninterrupted") or record["command"]
    facts: dict[str, Any] = {
        # a command that found trainings in the cache did not take the time the whole study takes
        "seconds_total": command["wall_seconds"] if "uninterrupted" in record else None,
        "peak_memory_bytes": command["peak_memory_bytes"] or None,
        "cache_bytes": command["cache_bytes"],
    }
    by_notebook = {page.notebook: page for page in pages}
    facts["figures"] = [
        figure
        for name in _WITH_FIGURES
        if name in by_notebook
        for figure in save_figures(_finished(by_notebook[name]).path, folder / "assets", name)
    ]
    headlines = [_finished(by_notebook[name]).result["headline"] for name in _FOR_A_RUN]
    facts["sae"] = {name: value for line in reversed(headlines) for name, value in line.items() if name in _SAE_FACTS}
    recorded = {page.notebook: _finished(page).result["headline"] for page in pages if page.run is None}
    facts["seen"], facts["not_seen"] = findings(results, recorded)
    manifest = read_json(folder / f"{pages[0].stem}.json").get("text_manifest")
    if manifest:
        facts["text_manifest"] = manifest
    card = Path(__file__).parent / "models" / get_profile(profile).model / "card.json"
    if card.exists():
        facts["model"] = read_json(card)
    return facts


def _links(pages: Sequence[Page]) -> list[ReportPage]:
    from saelib.report import Page as ReportPage

    return [ReportPage(page.stem, page.title, page.run) for page in pages]


def reports_dir(reports: Path | None, profile: str) -> Path:
    """`<reports>/<profile>`, by default `reports/` of the checkout; made, and checked to be writable."""
    folder = (reports or notebooks_dir().parent / "reports").absolute() / profile
    check_writable(folder, "reports folder must be writable", "pass --reports with another folder")
    return folder


def check_writable(folder: Path, rule: str | None = None, remedy: str | None = None) -> None:
    """Make a folder and write a byte in it, or raise a `UserError` under the rule and remedy given."""
    try:
        ensure_dir(folder)
        with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
    except UserError as error:
        if rule is None:
            raise
        raise UserError(rule, error.got, remedy) from error


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(profile: Profile) -> int:
    """Runs side by side: the profile's number, as far as cores and free memory (2 GiB a run) allow."""
    import psutil

    room = int(psutil.virtual_memory().available // _MEMORY_PER_RUN)
    return max(1, min(profile.jobs, cores() // profile.threads_per_run, room))


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


def _record(
    pages: list[Page],
    executed: list[Page],
    seconds: dict[str, float],
    wall: float,
    memory: Memory,
    how: dict[str, int],
) -> dict[str, Any]:
    return {
        "keys": {page.label: page.key for page in pages},
        "seconds": {label: round(value, 1) for label, value in seconds.items()},
        "command": {
            "wall_seconds": round(wall, 1),
            "executed": [page.label for page in executed],
            "peak_memory_bytes": memory.peak_bytes,
            "peak_private_memory_bytes": memory.peak_private_bytes,
            "memory_measure": f"{memory.measure} over the process tree, sampled about every {memory.interval:g} s",
            "cache_bytes": cache_bytes(),
            **how,
        },
    }


def _write_record(path: Path, record: dict[str, Any]) -> None:
    """Keep, beside this command's figures, those of the command that ran everything in one go, while they still hold."""
    if len(record["command"]["executed"]) == len(record["keys"]) and not record["command"]["found_trainings"]:
        record["uninterrupted"] = record["command"] | {"prepare_seconds": record["seconds"]["prepare"]}
    elif path.exists():
        before = read_json(path)
        if before.get("keys") == record["keys"] and "uninterrupted" in before:
            record["uninterrupted"] = before["uninterrupted"]
    write_json(path, record)


def _print_outcome(results: pd.DataFrame, record: dict[str, Any], shown: Path) -> None:
    columns = [name for name in _TABLE if name in results.columns] or list(results.columns)
    print()
    print(results[columns].to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="-"))
    print("\nseconds: " + ", ".join(f"{label} {value:.0f}" for label, value in record["seconds"].items()))
    command = record["command"]
    print(
        f"wall time {clock(command['wall_seconds'])}, peak memory {command['peak_memory_bytes'] / _GIB:.1f} GiB "
        f"({command['memory_measure']}), cache {command['cache_bytes'] / _GIB:.1f} GiB at {cache_dir()}"
    )
    print(f"open {shown}")
