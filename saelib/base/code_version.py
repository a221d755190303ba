"""Which code made a result: a hash of the source of the modules that compute it, for the keys of what is kept.

Comments, layout and docstrings do not count. The key of a kept result names its modules, so that it changes when the arithmetic
does, not when a progress line does. A notebook's key is taken over all modules that its imports reach (`imported`).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""Where the modules lie."""


def code_version(*modules: str) -> str:
    """16 hex digits over the source of some modules of the package, named from inside it: `code_version("sae.step")`."""
    return _version(tuple(sorted(set(modules))), PACKAGE)


@cache  # what runs is what was there when the process began
def _version(modules: tuple[str, ...], package: Path) -> str:
    return source_hash(package.joinpath(*name.split(".")).with_suffix(".py") for name in modules)


def source_hash(files: Iterable[Path]) -> str:
    """16 hex digits over what some Python files compute and their names."""
    digest = hashlib.sha256()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            # a string that stands alone: a docstring, or what is written under a field
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def imported(source: str, leave_out: Collection[str] = (), package: Path = PACKAGE) -> tuple[Path, ...]:
    """The files of the package that some Python text imports, in functions too, and what these import, and so on.

    `from saelib.sae import step` reaches `sae/step.py`, a name that is no module its package. Targets in strings, like
    `"saelib.study.circuits:run_part_job"`, count as imports; the package's own `__init__` does where it is asked for itself.

    Args:
        leave_out: names of modules (without their room) that are neither given nor followed.
    """
    found: dict[Path, None] = {}
    ahead = list(_named_in(source, package))
    while ahead:
        path = ahead.pop()
        if path not in found and path.stem not in leave_out:
            found[path] = None
            ahead += _imports_of(path, package)
    return tuple(sorted(found))


@cache
def _imports_of(path: Path, package: Path) -> tuple[Path, ...]:
    return tuple(_named_in(path.read_text(encoding="utf-8"), package))


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of what some Python text imports from a package, docstrings left out and targets in strings not.

    Raises:
        SyntaxError: a relative import, or no Python.
    """
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == package)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SyntaxError(f"line {node.lineno}: imports name the whole path, {package}.room.module")
            if (node.module or "").split(".")[0] == package:
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            if re.fullmatch(rf"{package}(\.\w+)+(:\w+)?", node.value):  # for importlib, or "module:function" of a job
                yield node.lineno, node.value.partition(":")[0]


def _named_in(source: str, package: Path) -> Iterator[Path]:
    for _, name in imported_names(source, package.name):
        if path := _file_of(name.split(".")[1:], package):
            yield path


def _file_of(parts: list[str], package: Path) -> Path | None:
    """The longest part of a dotted name that is a module, or the package that it is a name of."""
    for end in range(len(parts), -1, -1):
        at = package.joinpath(*parts[:end])
        for path in (at.with_suffix(".py"), at / "__init__.py"):
            if path.is_file() and (end or path.parent == package):
                return path
    return None
