"""Run one notebook through papermill: checked parameters, a cached result, and errors a person can act on.

papermill only warns about a misspelt parameter or a missing `parameters` tag and then runs with the defaults, so both
are checked here first. A finished notebook is kept under a key of everything that determines it and is not run again.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelib import __version__
from saelib.base.cache import atomic_dir, cache_dir, content_key, damage_in, disk_errors, ensure_dir, locked, read_json
from saelib.base.code_version import source_hash
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.provenance import provenance, versions

if TYPE_CHECKING:
    from nbformat import NotebookNode

HEADLINE_MIME = "application/vnd.saelib.headline+json"
NOTEBOOKS_ENV = "SAELIB_NOTEBOOKS"
Scalar = str | int | float | bool | None

# Modules that start, show and render work but cannot change what it computes: editing them keeps finished notebooks.
_NOT_PART_OF_RESULTS = {
    "cli", "doctor", "figures", "index_page", "jobs", "left_open", "model_card", "notebook_runner", "page", "progress",
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


@dataclass(frozen=True)
class Parameter:
    """One assignment of the `parameters` cell."""

    name: str
    default: Scalar
    annotation: str | None


@dataclass(frozen=True)
class NotebookSource:
    """A py:percent notebook: its text, its title (first H1) and its parameters."""

    name: str
    path: Path
    text: str
    title: str
    parameters: dict[str, Parameter]

    def resolve(self, given: dict[str, Any]) -> dict[str, Scalar]:
        """Defaults overridden by `given` (values or command-line text); `UserError` for an unknown name or a wrong type."""
        unknown = [name for name in given if name not in self.parameters]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.parameters, n=1, cutoff=0.5)
            known = ", ".join(self.parameters)
            remedy = f"did you mean {near[0]!r}? known: {known}" if near else f"use one of {known}"
            raise UserError(f"notebook {self.name} must have the parameter", repr(unknown[0]), remedy)
        defaults: dict[str, Scalar] = {name: parameter.default for name, parameter in self.parameters.items()}
        return defaults | {name: _checked(self.parameters[name], value) for name, value in given.items()}


# --- where notebooks are and what they declare ---------------------------------------------------------------------


def notebooks_dir() -> Path:
    """`SAELIB_NOTEBOOKS` if set, else `notebooks/` beside the installed package, else in the working folder."""
    explicit = os.environ.get(NOTEBOOKS_ENV)
    if explicit:
        return Path(explicit).absolute()
    beside = Path(__file__).resolve().parents[2] / "notebooks"
    return beside if beside.is_dir() else Path.cwd() / "notebooks"


def notebook_names(folder: Path | None = None) -> list[str]:
    """Names of the notebooks in reading order."""
    return sorted(path.stem for path in (folder or notebooks_dir()).glob("*.py"))


def load_notebook(name: str, folder: Path | None = None) -> NotebookSource:
    """Read `<name>.py`; `UserError` for an unknown name or a source without a usable `parameters` cell."""
    folder = folder or notebooks_dir()
    path = folder / f"{name}.py"
    names = notebook_names(folder)
    if not names:
        raise UserError(
            "notebook folder must hold the study's notebooks", folder, f"set {NOTEBOOKS_ENV} to that folder"
        )
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError("notebook must be one of those in the folder", repr(name), f"{hint}known: {', '.join(names)}")
    return _parse_source(name, path, path.read_text(encoding="utf-8"))


def _parse_source(name: str, path: Path, text: str) -> NotebookSource:
    notebook = _read_percent(text)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        remedy = 'tag the cell of scalars as `# %% tags=["parameters"]`'
        raise UserError("notebook must have one cell tagged parameters", f"{len(tagged)} in {path}", remedy)
    headings = re.findall(r"^# (.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    title = headings[0].strip() if headings else name
    return NotebookSource(name, path, text, title, _declared_parameters(path, tagged[0].source))


def _read_percent(text: str) -> NotebookNode:
    import jupytext

    return jupytext.reads(text, fmt="py:percent")


def _declared_parameters(path: Path, source: str) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            raise UserError("parameters cell must hold only `name = scalar` lines", f"{ast.unparse(node)!r} in {path}")
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        try:
            default = ast.literal_eval(node.value) if node.value is not None else None
        except ValueError:
            default = ...
        if not isinstance(default, str | int | float | bool | None):
            raise UserError(
                "parameter must be a plain scalar", f"{ast.unparse(node)!r} in {path}", "compute it in a later cell"
            )
        annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else None
        found[targets[0].id] = Parameter(targets[0].id, default, annotation)
    return found


def _checked(parameter: Parameter, value: Any) -> Scalar:
    """`value` as the parameter's type. Text that stands for a number or a truth value is read as one."""
    kinds, given = _kinds(parameter), value
    if isinstance(value, str) and "str" not in kinds:
        value = _from_text(value, kinds)
    accepted = (
        ("bool" in kinds and isinstance(value, bool))
        or ("int" in kinds and isinstance(value, int) and not isinstance(value, bool))
        or (
            "float" in kinds and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        or ("str" in kinds and isinstance(value, str))
        or ("None" in kinds and value is None)
    )
    if not accepted:
        rule = f"parameter {parameter.name!r} must be {' or '.join(sorted(kinds))}"
        raise UserError(rule, repr(given), f"its default is {parameter.default!r}")
    return float(value) if "float" in kinds and "int" not in kinds and isinstance(value, int) else value


def _kinds(parameter: Parameter) -> set[str]:
    kinds = {"None" if parameter.default is None else type(parameter.default).__name__}
    if parameter.annotation is not None:
        kinds |= set(re.findall(r"\b(str|int|float|bool|None)\b", parameter.annotation))
    return kinds if kinds != {"None"} else {"str", "int", "float", "bool", "None"}


def _from_text(text: str, kinds: set[str]) -> Any:
    word = text.strip().lower()
    if "bool" in kinds and word in ("true", "false"):
        return word == "true"
    if "None" in kinds and word == "none":
        return None
    for kind, convert in (("int", int), ("float", float)):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return convert(text)
    return text


# --- keys ------------------------------------------------------------------------------------------------------------


@cache
def code_fingerprint() -> str:
    """Hash of the code that computes results: comments, layout and docstrings do not count, nor does orchestration."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return source_hash(path for path in files if path.stem not in _NOT_PART_OF_RESULTS)


def notebook_key(source: NotebookSource, parameters: dict[str, Scalar], key_extra: dict[str, Any] | None = None) -> str:
    """Cache key of a notebook: its text, every parameter, the version and code of saelib, torch, and what it builds on."""
    return content_key(
        notebook=source.text,
        parameters=parameters,
        saelib=__version__,
        code=code_fingerprint(),
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

    notebook = _read_percent(source.text)
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
