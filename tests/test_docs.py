"""README and docs: links lead somewhere, names are those of the code, numbers are those of the reports."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
import yaml

import saelib

ROOT = Path(__file__).resolve().parent.parent
CODE = "".join(path.read_text() for room in ("saelib", "scripts", "tests") for path in (ROOT / room).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NUMBERS_ONLY = {"README.md": "## What came out", "docs/results.md": "# What came out"}
"""Sections in which every number is written from a report."""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def numbers() -> ModuleType:
    return script("update_numbers")


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.append(slug + (f"-{found.count(slug)}" if slug in found else ""))
    return set(found)


def broken_links(page: Path) -> list[str]:
    """The relative links and anchors of a page that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# A `code` heading, with: signs\n")
    (tmp_path / "a.md").write_text(
        "[1](b.md) [2](b.md#a-code-heading-with-signs) [3](c.md) [4](b.md#none) [5](#here) [6](https://x.org/c.md)\n"
    )
    assert broken_links(tmp_path / "a.md") == ["c.md", "b.md#none", "#here"]


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in readme, f"README does not link {page.name}"


def test_paths_in_the_docs_exist() -> None:
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # tells of what is gone
            continue
        for path in re.findall(
            r"`((?:saelib|scripts|tests|benchmarks|notebooks|reports|docs)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def _defines(module: Path, name: str) -> bool:
    defined: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    return name in defined


def missing_name(name: str) -> bool:
    """Whether `saelib.room.module.thing` is nowhere in the code (a part after the thing is not looked at)."""
    place, parts = ROOT / "saelib", name.split(".")[1:]
    if len(parts) == 1 and parts[0] in saelib.__all__:
        return False
    while parts:
        part = parts.pop(0)
        if (place / part).is_dir():
            place = place / part
        elif (place / f"{part}.py").is_file():
            return bool(parts) and not _defines(place / f"{part}.py", parts[0])
        else:
            return True
    return False


def test_names_in_the_docs_are_in_the_code() -> None:
    assert missing_name("saelib.split.engine.nothing") and missing_name("saelib.nowhere")
    assert not missing_name("saelib.split.engine.split_feature") and not missing_name("saelib.load_sae")
    for page in PAGES:
        if page.name != "CHANGELOG.md":
            for name in re.findall(
                r"\b(saelib(?:\.\w+)+)", re.sub(r"[\w/]*saelib/[\w./-]+", "", prose(page.read_text()))
            ):
                assert not missing_name(name), f"{page.name} names {name}"
            for name in re.findall(
                r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)`", page.read_text()
            ):  # an environment's name is code too
                assert re.search(rf"\b{name}\b", CODE), f"{page.name} names {name}"


# --- the front page --------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_names_the_post() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    assert "Towards Efficient Feature-Splitting" in readme
    assert "(https://wenx.io/posts/towards-efficient-feature-splitting)" in readme


def test_the_five_lines_are_the_library() -> None:
    (block,) = re.findall(r"```python\n(import saelib\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in block.splitlines() if line and line != "import saelib"]
    assert len(lines) == 5
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "saelib":
            assert node.attr in saelib.__all__


def test_the_picture_is_of_the_committed_report() -> None:
    readme_picture = script("readme_picture")
    assert readme_picture.PICTURE.read_text() == readme_picture.current_picture(), "run scripts/readme_picture.py"


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_reports(numbers: ModuleType) -> None:
    for path in numbers.pages():
        found = numbers.numbers(path.read_text(), path.name)
        wrong = [f"{n.page}:{n.line}: {n.shown} is {n.wanted}" for n in found if n.shown != n.wanted]
        assert not wrong, f"{wrong}: run python scripts/update_numbers.py"


@pytest.mark.parametrize(("page", "heading"), NUMBERS_ONLY.items())
def test_where_results_are_told_no_number_is_written_by_hand(numbers: ModuleType, page: str, heading: str) -> None:
    text = prose((ROOT / page).read_text())
    begin = text.index(heading + "\n") + len(heading)
    end = text.find("\n## ", begin) if heading.startswith("## ") else -1
    assert not by_hand(text[begin : end if end > 0 else None], numbers.MARKED)


def by_hand(text: str, marked: re.Pattern[str]) -> list[str]:
    """Numbers of a text that no comment gives."""
    plain = re.sub(r"<!--.*?-->", "", marked.sub("", text))
    plain = re.sub(r"`[^`\n]*`|\]\([^)]*\)|S_\d|95% interval|\(95%\)|\w*[A-Za-z]\w*-?\w*", "", plain)
    return re.findall(r"\d[\d.,]*\d|\d", plain)


def test_the_numbers_of_a_page(numbers: ModuleType, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "a.csv").write_text("name,x,verdict\nk-means,0.656,yes\nrest alone,2,no\n")
    (reports / "b.json").write_text(json.dumps({"seconds": 125, "rows": [{"x": 3}], "verdict": "not split"}))
    text = (
        "S is 0.5<!-- a.csv; name=k-means/x; .2f --> (1<!-- a.csv; max(x); .1f -->), 9<!-- a.csv; count(verdict=yes); d --> "
        "of 9<!-- a.csv; count(); d -->, 1<!-- b.json; seconds; minutes --> min, **x**<!-- b.json; verdict; s -->, "
        "3<!-- b.json; rows/0/x; d -->"
    )
    wanted = [(n.shown, n.wanted) for n in numbers.numbers(text, root=tmp_path)]
    assert wanted == [
        ("0.5", "0.66"), ("1", "2.0"), ("9", "1"), ("9", "2"), ("1", "2"), ("**x**", "**not split**"), ("3", "3"),
    ]  # fmt: skip
    new = numbers.updated(text, tmp_path)
    assert new.startswith("S is 0.66<!-- a.csv") and "(2.0<!--" in new and "**not split**<!--" in new
    assert numbers.updated(new, tmp_path) == new
    assert by_hand("it was 0.4 and " + text, numbers.MARKED) == ["0.4"]
    for gone in ("none.csv; count(); d", "a.csv; name=none/x; .2f", "b.json; rows/1/x; d", "b.json; verdict; .2f"):
        with pytest.raises(KeyError, match=r"reports/.* has no"):
            numbers.numbers(f"1<!-- {gone} -->", root=tmp_path)


# --- the citation ----------------------------------------------------------------------------------------------------


def test_the_citation_is_whole() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license", "type", "references"} <= set(cff)
    assert cff["cff-version"] == "1.2.0" and cff["type"] == "software"
    assert str(cff["version"]) == saelib.__version__ and cff["license"] == "MIT"
    (post,) = cff["references"]
    assert post["title"] == "Towards Efficient Feature-Splitting" and post["url"].startswith("https://wenx.io/")
    for work in (cff, post):
        assert work["authors"] and all({"name"} <= set(author) for author in work["authors"])
