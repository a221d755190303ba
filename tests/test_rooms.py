"""Imports between the rooms of `saelib/` point one way, and the picture of them in the docs is that of today's imports."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from saelib.base.code_version import imported_names

KNOWN_UPWARD: dict[tuple[str, str], str] = {}
"""(file, room it imports from): why that arrow points up, for as long as it does."""

LEAST_WORDS = 30
"""Of what a room says of itself: what it holds, what it may import, what it offers."""


@pytest.fixture(scope="module")
def rooms(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_rooms", root / "scripts" / "draw_rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_rooms"] = module
    spec.loader.exec_module(module)
    return module


def test_every_room_has_its_place_and_a_paragraph(rooms: ModuleType, root: Path) -> None:
    found = {path.parent.name for path in (root / "saelib").glob("*/__init__.py")}
    assert found <= set(rooms.ROOMS), f"rooms without a place in scripts/draw_rooms.py: {found - set(rooms.ROOMS)}"
    page = (root / "docs" / "architecture.md").read_text()
    for room in found:
        assert f"### `{room}/`" in page, f"docs/architecture.md has no paragraph on {room}/"
        said = ast.get_docstring(ast.parse((root / "saelib" / room / "__init__.py").read_text())) or ""
        assert len(said.split()) >= LEAST_WORDS, f"saelib/{room}/__init__.py says too little"


def test_tests_lie_in_the_room_that_they_test(rooms: ModuleType, root: Path) -> None:
    """What tests one room lies in its folder; beside the folders is what takes several, none, or what lies outside them."""
    folders = {path.parent.name for path in (root / "tests").glob("*/test_*.py")}
    assert folders == {path.parent.name for path in (root / "saelib").glob("*/__init__.py")}
    for path in (root / "tests").glob("test_*.py"):
        if (root / path.stem.removeprefix("test_")).is_dir():
            continue
        imported = {name.split(".")[1] for _, name in imported_names(path.read_text(), "saelib") if "." in name}
        assert len(imported & set(rooms.ROOMS) - {"base"}) != 1, f"{path.name} tests {imported} alone: put it there"


def test_no_memory_grows_with_profiles(root: Path) -> None:
    """What is remembered for each profile (a dozen narrow SAEs and more) has a limit: no `functools.cache` takes one."""
    for path in (root / "saelib").rglob("*.py"):
        source = ast.parse(path.read_text())
        assert "functools.cache(" not in ast.unparse(source), path
        for node in ast.walk(source):
            if isinstance(node, ast.FunctionDef) and "Profile" in ast.unparse(node.args):
                unbounded = {ast.unparse(d) for d in node.decorator_list} & {"cache", "functools.cache"}
                assert not unbounded, f"{path.name}: {node.name}"


def test_imports_point_down(rooms: ModuleType, root: Path) -> None:
    up = rooms.upward(rooms.arrows(root / "saelib"))
    wrong = [f"{a.file}:{a.line} imports from {a.target}" for a in up if (a.file, a.target) not in KNOWN_UPWARD]
    assert not wrong, wrong
    gone = set(KNOWN_UPWARD) - {(a.file, a.target) for a in up}
    assert not gone, f"no longer true, take them out of the list: {gone}"


@pytest.mark.parametrize(
    "line",
    [
        "from saelib.report.page import Page",
        "import saelib.report.page",
        "from saelib import report",
        "def f():\n    from saelib.report import page",
        "if TYPE_CHECKING:\n    from saelib.report.page import Page",
        'job = "saelib.report.jobs:execute"',
        "from saelib import load_sae",
    ],
)
def test_an_arrow_that_points_up_is_found(rooms: ModuleType, tmp_path: Path, line: str) -> None:
    package = tmp_path / "saelib"
    for room in ("split", "report"):
        (package / room).mkdir(parents=True)
    (package / "split" / "result.py").write_text(f'"""See saelib.report."""\nfrom saelib.split import a\n{line}\n')
    (package / "report" / "page.py").write_text("from saelib.split.result import Split\n")
    (arrow,) = rooms.upward(rooms.arrows(package))
    assert (arrow.file, arrow.source) == ("saelib/split/result.py", "split")


def test_the_version_is_no_arrow(rooms: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "saelib"
    (package / "base").mkdir(parents=True)
    (package / "base" / "provenance.py").write_text("from saelib import __version__\n")
    assert rooms.arrows(package) == []


def test_the_picture_has_todays_arrows(rooms: ModuleType, root: Path) -> None:
    drawn = set(re.findall(r"<title>(\w+) imports from (\w+)</title>", rooms.PICTURE.read_text(encoding="utf-8")))
    assert drawn == {(a.source, a.target) for a in rooms.arrows(root / "saelib")}, "run python scripts/draw_rooms.py"
