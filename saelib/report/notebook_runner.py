"""Run one notebook through papermill: checked parameters, a cached result, and errors a person can act on.

papermill only warns about a misspelt parameter or a missing `parameters` tag and then runs with the defaults, so both
are checked here first. A finished notebook is kept under a key of everything that determines it and is not run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelib import __version__
from saelib.base.cache import atomic_dir, cache_dir, content_key, damage_in, disk_errors, ensure_dir, locked, read_json
from saelib.base.code_version import imported, source_hash
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.provenance import provenance, versions
from saelib.report.notebook_source import NotebookSource, Scalar, load_notebook, read_percent

if TYPE_CHECKING:
    from nbformat import NotebookNode

HEADLINE_MIME = "application/vnd.saelib.headline+json"

# Modules that start, show and render work but cannot change what it computes: no notebook's key follows them.
_NOT_PART_OF_RESULTS = {
    "cli", "doctor", "figures", "index_page", "jobs", "left_open", "notebook_runner", "page", "progress",
    "provenance", "report", "reproduce", "run_plan", "run_record", "side_work",
}  # fmt: skip


class NotebookFailed(RuntimeError):
    """A cell raised something that is not the user's mistake. `path` is the notebook as far as it got."""

    def __init__(self, name: str, reason: str, path: Path) -> None:
        self.name, self.reason, self.path = name, reason, path
        super().__init__(f"notebook {name} failed: {' '.join(reason.split())[:500]}; as far as it got: {path}")


@dataclass(frozen=True)
class ExecutedNotebook:
    """A finished notebook: `path` of the executed file, its cache `key` and its `result` (see `run_notebook`)."""

    path: Path
    key: str
    result: dict[str, Any]


# --- keys ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def code_fingerprint(text: str) -> str:
    """Hash of the modules that a notebook's imports reach: comments, layout and docstrings do not count, nor does orchestration.

    A notebook that cannot be parsed reaches none; it fails when it is run.
    """
    try:
        return content_key(files=[_hash_of(path) for path in imported(text, leave_out=_NOT_PART_OF_RESULTS)])
    except SyntaxError:
        return content_key(files=[])


@cache  # most notebooks reach the same modules
def _hash_of(path: Path) -> str:
    return source_hash([path])


def notebook_key(source: NotebookSource, parameters: dict[str, Scalar], key_extra: dict[str, Any] | None = None) -> str:
    """Cache key of a notebook: its text, parameters, the version of saelib, the code it imports, torch, what it builds on."""
    return content_key(
        notebook=source.text,
        parameters=parameters,
        saelib=__version__,
        code=code_fingerprint(source.text),
        torch=versions().get("torch"),
        extra=key_extra or {},
    )


def _result_folder(key: str) -> Path:
    return cache_dir() / "notebooks" / key


def cached_notebook(key: str) -> ExecutedNotebook | None:
    """The finished notebook of this key, or None. A damaged result counts as none, so it is made again."""
    folder = _result_folder(key)
    path = folder / "executed.ipynb"
    if not (path.is_file() and (folder / "result.json").is_file()) or damage_in(folder) is not None:
        return None
    try:
        return ExecutedNotebook(path, key, read_json(folder / "result.json"))
    except UserError:
        return None


# --- running ---------------------------------------------------------------------------------------------------------


def run_notebook(
    name: str,
    parameters: dict[str, Any],
    *,
    key_extra: dict[str, Any] | None = None,
    notebooks: Path | None = None,
    force: bool = False,
) -> ExecutedNotebook:
    """Run `<name>.py` with `parameters` in a fresh kernel of this interpreter, or return its finished result.

    `result` holds name, title, key, parameters (defaults included), headline (what the notebook recorded through
    `saelib.report.report.headline`), seconds, started, threads, warnings, and versions, commit and machine of
    `saelib.base.provenance`.

    Raises `UserError` for a bad name, parameter or disk and for a `UserError` in a cell; `NotebookFailed` for any other
    failing cell, which leaves the partial notebook in the cache.
    """
    source = load_notebook(name, notebooks)
    resolved = source.resolve(parameters)
    key = notebook_key(source, resolved, key_extra)
    report_progress("waiting for another process at this notebook", 0, 1)
    with locked(_result_folder(key)):
        finished = None if force else cached_notebook(key)
        return finished or _execute(source, resolved, key)


def _execute(source: NotebookSource, parameters: dict[str, Scalar], key: str) -> ExecutedNotebook:
    folder = _result_folder(key)
    partial = folder.with_name(f"{key}.partial.ipynb")
    started, began = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic()
    with disk_errors(folder):
        notebook = _papermill(source, parameters, partial)
    result = provenance() | {
        "name": source.name,
        "title": source.title,
        "key": key,
        "parameters": parameters,
        "headline": _headline(notebook),
        "seconds": round(time.monotonic() - began, 2),
        "started": started,
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "warnings": _warnings(notebook),
    }
    with atomic_dir(folder) as temporary:
        shutil.copyfile(partial, temporary / "executed.ipynb")
        (temporary / "result.json").write_text(json.dumps(result, indent=2, default=str) + "\n")
    partial.unlink()
    return ExecutedNotebook(folder / "executed.ipynb", key, result)


def _papermill(source: NotebookSource, parameters: dict[str, Scalar], partial: Path) -> NotebookNode:
    """Execute through papermill in a throwaway working folder; the file at `partial` follows cell by cell."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    notebook = read_percent(source.text)
    n_code = sum(cell.cell_type == "code" for cell in notebook.cells)
    seen: set[str] = set()

    def on_cell(cell: NotebookNode, **_: Any) -> None:
        seen.add(cell.get("id") or cell.source)
        if len(seen) <= n_code:
            report_progress("cell", len(seen) - 1, n_code)

    ensure_dir(partial.parent)
    with _kernel_home() as home:
        try:
            return papermill.execute_notebook(
                notebook,
                partial,
                parameters=parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=180,
                shutdown_kernel="immediate",  # what cells wrote is written; leaving in order costs seconds
                cwd=home,
                on_cell_execute=on_cell,
            )
        except papermill.PapermillExecutionError as error:
            failure = _translated(error.ename, error.evalue, partial)
            if failure is not None:
                partial.unlink(missing_ok=True)
                raise failure from None
            raise NotebookFailed(source.name, f"{error.ename}: {error.evalue}", partial) from error
        except DeadKernelError as error:
            raise NotebookFailed(source.name, "its kernel died (out of memory?)", partial) from error


def _translated(ename: str, evalue: str, where: Path) -> UserError | None:
    """The `UserError` that a cell's error stands for, if it does: raised as one, or a full or forbidden disk."""
    if ename == "UserError":
        return UserError(evalue)
    errno_text = re.match(r"\[Errno (\d+)\]", evalue)
    if errno_text is None:
        return None
    try:
        with disk_errors(where.parent):
            raise OSError(int(errno_text[1]), evalue)
    except UserError as error:
        return error
    except OSError:
        return None


@contextlib.contextmanager
def _kernel_home() -> Iterator[str]:
    """A temporary folder for the kernel: its working folder, and its own IPython and runtime files.

    So no start-up script of the user's takes part, nothing lands in the repo, and a read-only home does no harm.
    """
    with tempfile.TemporaryDirectory(prefix="saelib-kernel-", ignore_cleanup_errors=True) as home:
        settings = {
            "IPYTHONDIR": f"{home}/ipython",
            "JUPYTER_RUNTIME_DIR": f"{home}/runtime",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            (Path(home) / "work").mkdir()
            yield f"{home}/work"
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _headline(notebook: NotebookNode) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            numbers |= output.get("data", {}).get(HEADLINE_MIME, {})
    return numbers


def _warnings(notebook: NotebookNode) -> list[str]:
    """Warnings the cells wrote to stderr, so that they reach the terminal and not only the page."""
    texts = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("output_type") == "stream" and output.get("name") == "stderr"
    ]
    return re.findall(r"^.*(?i:warning):? .*$", "\n".join(texts), re.M)[:20]
