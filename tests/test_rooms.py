"""Imports between the rooms of `saelib/` point one way, and the picture of them in the docs is that of today's imports."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

KNOWN_UPWARD: dict[tuple[str, str], str] = {}
"""(file, room it imports from): why that arrow points up, for as long as it does."""


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


def test_long_modules_and_long_signatures_have_a_reason(root: Path) -> None:
    page = (root / "docs" / "architecture.md").read_text().split("## Long modules")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", page, flags=re.MULTILINE))
    package, long, many = root / "saelib", set(), set()
    for path in package.rglob("*.py"):
        name, text = path.relative_to(package).as_posix(), path.read_text()
        if text.count("\n") > 300:
            long.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([n for n in names if n not in ("self", "cls")]) > 6:
                    many.add(name)
    assert long == listed, f"without a reason: {long - listed}; no longer so long: {listed - long}"
    assert many <= {"base/kernels.py"}, many
