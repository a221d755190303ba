"""`scripts/sizes.py` counts what a reader would count."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SOURCE = """
class A:
    def __init__(self, a, b): ...
    def _hidden(self, a): ...

def f(a, /, b, *args, c=1, **options):
    def inner(x): ...

class _B:
    def g(self): ...
"""
NOTEBOOK = "# %% [markdown]\n# # Title\n\n# %%\na = 1\n\n# a comment\nb = 2\n\n# %%\nc = 3\n"


def test_counts(root: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("sizes", root / "scripts" / "sizes.py")
    assert spec is not None and spec.loader is not None
    sizes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sizes)
    (tmp_path / "a.py").write_text(SOURCE)
    assert [found[1:] for found in sizes.functions(tmp_path / "a.py")] == [
        ("A.__init__", 2, True), ("A._hidden", 1, False), ("f", 3, True), ("f.inner", 1, False), ("_B.g", 0, False),
    ]  # fmt: skip
    (tmp_path / "n.py").write_text("\n" + NOTEBOOK)
    assert sizes.cells(tmp_path / "n.py") == [2, 1]
