"""`scripts/sizes.py` counts what a reader would count, and nothing is over its limits without a reason."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

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


@pytest.fixture(scope="module")
def sizes(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sizes", root / "scripts" / "sizes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts(sizes: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    assert [found[1:] for found in sizes.functions(tmp_path / "a.py")] == [
        ("A.__init__", 2, True), ("A._hidden", 1, False), ("f", 3, True), ("f.inner", 1, False), ("_B.g", 0, False),
    ]  # fmt: skip
    (tmp_path / "n.py").write_text("\n" + NOTEBOOK)
    assert sizes.cells(tmp_path / "n.py") == [2, 1]


def test_all_is_within_the_limits_or_has_a_reason(sizes: ModuleType, root: Path) -> None:
    assert sizes.over(root) == []
    assert {name for name, limit in sizes.excused(root) if limit == "parameters"} == {"base/kernels.py"}
    told = re.search(r"`saelib/` now has (\d+)k in (\d+) files", (root / "docs" / "architecture.md").read_text())
    modules = [path.read_text().count("\n") for path in (root / "saelib").rglob("*.py")]
    assert told is not None and (sum(modules), len(modules)) == pytest.approx(
        (1000 * int(told[1]), int(told[2])), rel=0.05
    )


def test_what_is_over_a_limit_is_told(sizes: ModuleType, tmp_path: Path) -> None:
    for folder in ("saelib/base", "notebooks", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "saelib" / "base" / "long.py").write_text("\n" * 301)
    (tmp_path / "saelib" / "base" / "wide.py").write_text("def f(a, b, c, d, e, g, h): ...\n")
    (tmp_path / "saelib" / "base" / "fine.py").write_text("\n" * 300)
    (tmp_path / "notebooks" / "01_x.py").write_text("\n# %%\n" + "x = 1\n" * 6)
    (tmp_path / "docs" / "architecture.md").write_text("| `base/fine.py` | lines | no more |\n")
    assert sizes.over(tmp_path) == [
        "base/long.py: too many lines, and no reason",
        "base/wide.py: too many parameters, and no reason",
        "base/fine.py: no longer has too many lines",
        "01_x.py: more than 5 lines in the median code cell",
    ]
    (tmp_path / "docs" / "architecture.md").write_text(
        "| `base/long.py` | lines | a |\n| `base/wide.py` | parameters | b |\n"
    )
    assert sizes.over(tmp_path) == ["01_x.py: more than 5 lines in the median code cell"]
