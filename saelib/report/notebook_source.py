"""Notebooks as text: which there are, their cells, and the parameters they declare."""

from __future__ import annotations

import ast
import contextlib
import difflib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelib.base.errors import UserError

NOTEBOOKS_ENV = "SAELIB_NOTEBOOKS"

if TYPE_CHECKING:
    from nbformat import NotebookNode


Scalar = str | int | float | bool | None


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
    notebook = read_percent(text)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        remedy = 'tag the cell of scalars as `# %% tags=["parameters"]`'
        raise UserError("notebook must have one cell tagged parameters", f"{len(tagged)} in {path}", remedy)
    headings = re.findall(r"^# (.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    title = headings[0].strip() if headings else name
    return NotebookSource(name, path, text, title, _declared_parameters(path, tagged[0].source))


def read_percent(text: str) -> NotebookNode:
    """A percent script as a notebook."""
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
