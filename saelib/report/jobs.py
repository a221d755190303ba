"""Run pieces of work side by side, each in a process of its own whose thread count is set before it starts.

One loop in one thread starts the processes, waits for them, draws the progress and samples memory. Whatever ends this
process (Ctrl-C, an error, kill -9) ends the work too: on the way out the whole tree is killed, and each child watches
its parent and takes its kernel down with it when the parent is gone. What they left behind is resumed by the next run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil

from saelib.base.cache import atomic_path, disk_errors
from saelib.base.errors import UserError
from saelib.base.progress import PROGRESS_ENV, Display, clock, read_progress, so_far
from saelib.report.notebook_runner import NotebookFailed, run_notebook

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_POLL = 0.1  # seconds between two looks at the running processes
_WATCH = 0.5  # seconds between two looks at the parent


class JobFailed(RuntimeError):
    """A process ended without an answer: killed, or an error outside a notebook."""


@dataclass(frozen=True)
class Job:
    """One piece of work: `function` ("package.module:name") called with `arguments`, in `threads` threads.

    A function that takes long reports through `saelib.base.progress.report_progress`. Its return value must be JSON.
    """

    label: str
    function: str
    arguments: dict[str, Any]
    threads: int = 1


@dataclass
class Memory:
    """Peak memory of this process and all below it, sampled: what is a sum of RSS would count shared pages many times.

    On Linux `peak_bytes` is the sum of PSS (shared pages divided among those who share them, memory-mapped files
    included as far as they are resident) and `peak_private_bytes` the anonymous part of it, which cannot be dropped.
    Elsewhere both are the sum of RSS. A sample is skipped while sampling would take over 1% of the time.
    """

    interval: float = 2.0
    peak_bytes: int = 0
    peak_private_bytes: int = 0
    measure: str = field(default="sum of PSS" if sys.platform == "linux" else "sum of RSS")
    _next: float = 0.0

    def sample(self) -> None:
        """Take a sample if one is due."""
        now = time.monotonic()
        if now < self._next:
            return
        total = private = 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                size, anonymous = _process_memory(process)
                total, private = total + size, private + anonymous
        self.peak_bytes = max(self.peak_bytes, total)
        self.peak_private_bytes = max(self.peak_private_bytes, private)
        self._next = time.monotonic() + max(self.interval, 100 * (time.monotonic() - now))


def _process_memory(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes of one process, shared pages in proportion; and the anonymous part."""
    if sys.platform != "linux":
        rss = int(process.memory_info().rss)
        return rss, rss
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount = line.split(":")
        fields[name] = int(amount.split()[0]) * 1024
    return fields["Pss"], fields.get("Pss_Anon", 0) + fields.get("Pss_Shmem", 0)


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    folder: Path
    began: float

    @property
    def progress(self) -> str:
        state = read_progress(self.folder / "progress.json")
        return so_far(self.job.label, state, self.began) if state else f"{self.job.label}: starting"


def run_jobs(
    jobs: Sequence[Job],
    *,
    width: int = 1,
    display: Display | None = None,
    memory: Memory | None = None,
    summary: Callable[[int], str] = lambda finished: "",
    on_done: Callable[[Job, Any, float], None] = lambda job, value, seconds: None,
) -> list[Any]:
    """Run all jobs, `width` at a time, and return their values in order.

    The first failure stops the rest and is raised here: `UserError`, `NotebookFailed` or `JobFailed`. `on_done` is
    called in this process as each job finishes, `summary` with the number finished for the status line.
    """
    display = display or Display()
    memory = memory or Memory()
    values: dict[int, Any] = {}
    waiting = list(enumerate(jobs))
    running: dict[int, _Running] = {}
    with _scratch() as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < width:
                    index, job = waiting.pop(0)
                    running[index] = _start(job, scratch / str(index))
                    display.event(f"{job.label}: started")
                time.sleep(_POLL)
                memory.sample()
                for index, work in list(running.items()):
                    if work.process.poll() is None:
                        continue
                    del running[index]
                    seconds = time.monotonic() - work.began
                    values[index] = _outcome(work)
                    display.event(f"{work.job.label}: finished in {clock(seconds)}")
                    on_done(work.job, values[index], seconds)
                if running:
                    lead = summary(len(values))
                    display.status([*([lead] if lead else []), *(work.progress for work in running.values())])
        finally:
            display.clear()
            for work in running.values():
                kill_tree(work.process.pid)
                work.process.wait()
    return [values[index] for index in range(len(jobs))]


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with disk_errors(Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix="saelib-jobs-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


def _start(job: Job, folder: Path) -> _Running:
    folder.mkdir()
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(job.threads))
    environment |= {PROGRESS_ENV: str(folder / "progress.json"), "TOKENIZERS_PARALLELISM": "false"}
    request = {"function": job.function, "arguments": job.arguments, "parent": os.getpid(), "path": sys.path}
    request["answer"] = str(folder / "answer.json")  # a file: a pipe that nobody reads holds up whoever fills it
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "saelib.report.jobs"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends the others in order
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
    return _Running(job, process, folder, time.monotonic())


def _outcome(work: _Running) -> Any:
    """The value a finished process answered with, or its error raised here."""
    try:
        message = json.loads((work.folder / "answer.json").read_bytes())
    except (OSError, ValueError):
        log = (work.folder / "log").read_text(errors="replace").strip().splitlines()
        reason = f"exit code {work.process.returncode}" + (f": {log[-1]}" if log else "")
        raise JobFailed(f"{work.job.label} ended without a result ({reason})") from None
    if "user_error" in message:
        raise UserError(message["user_error"])
    if "notebook_failed" in message:
        raise NotebookFailed(message["name"], message["notebook_failed"], Path(message["path"]))
    if "error" in message:
        raise JobFailed(f"{work.job.label} failed: {message['error']}")
    return message["value"]


def kill_tree(pid: int) -> None:
    """Kill a process that this one started, and everything below it."""
    try:
        top = psutil.Process(pid)
        tree = [*top.children(recursive=True), top]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


# --- the child's side ------------------------------------------------------------------------------------------------


def execute_notebook_job(**arguments: Any) -> dict[str, Any]:
    """`run_notebook` with JSON arguments and answer."""
    folder = arguments.pop("notebooks", None)
    arguments.pop("index", None)  # the caller's own
    done = run_notebook(**arguments, notebooks=Path(folder) if folder else None)
    return {"path": str(done.path), "key": done.key}


def prepare_job(profile: str) -> dict[str, float]:
    """Text, tokens and activations of a profile: all that the notebooks read. Returns the seconds of each part."""
    from saelib.study.profiles import get_profile
    from saelib.study.study import prepare

    return prepare(get_profile(profile))


def _resolve(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _watch_parent(parent: int) -> None:
    """Take this process and its kernel down once the parent is gone; the kernel first, while the locks are still held."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


def _child() -> NoReturn:
    """Read the request on stdin, do it, answer with one JSON object in the file that it names; all output is the log."""
    request = json.loads(sys.stdin.buffer.read())
    sys.path[:] = request["path"]
    threading.Thread(target=_watch_parent, args=(request["parent"],), daemon=True).start()
    try:
        message: dict[str, Any] = {"value": _resolve(request["function"])(**request["arguments"])}
    except UserError as error:
        message = {"user_error": str(error)[:4000]}
    except NotebookFailed as error:
        message = {"notebook_failed": error.reason[:4000], "name": error.name, "path": str(error.path)}
    except Exception as error:  # a bug in prepare, say: the log has its traceback, the terminal one line
        import traceback

        traceback.print_exc()
        message = {"error": f"{type(error).__name__}: {error}"[:4000]}
    with atomic_path(Path(request["answer"])) as temporary:
        temporary.write_text(json.dumps(message))
    sys.stdout.flush()
    os._exit(0)  # no interpreter shutdown: a library's worker threads must not hold up the study


if __name__ == "__main__":
    from saelib.report import jobs  # the same classes as everyone else's, not those of `__main__`

    jobs._child()
