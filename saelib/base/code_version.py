"""Which code made a result: a hash of the source of the modules that compute it, for the keys of what is kept.

Comments, layout and docstrings do not count. Modules are named, not followed through their imports: a key should change
when the arithmetic does, not when a progress line does.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
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
