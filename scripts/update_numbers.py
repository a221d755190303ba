"""Numbers in README.md and docs/ that come from the reports: each stands before a comment that names its cell.

    python scripts/update_numbers.py            # write what the files say now
    python scripts/update_numbers.py --check    # only name what differs; exit code 1 if anything does

In the text:

    S_2 is 0.69<!-- split-hyphen/split.json; separation/S_2; .2f -->

The comment has a file below `reports/`, a path in it and a format. What stands directly before it (one word, or words in
`**bold**`) is replaced. A path goes down by keys and list indices; in a list of records or a CSV file `name=k-means` picks the
first record in which `name` is `k-means`, and `count(verdict=yes)`, `count()`, `min(l0)`, `max(l0)` and `mean(l0)` go over all of
them. The format is Python's, or `minutes` or `hours` for seconds, or `s` for words.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(
    r"(?P<shown>\*\*[^*\n]+\*\*|[^\s<>|()*]+)"
    r"(?P<comment><!-- (?P<file>[\w./-]+\.(?:csv|json)); (?P<path>[^;\n]+); (?P<format>\S+) -->)"
)
OVER_ALL = re.compile(r"(count|min|max|mean)\((?:(\w+)(?:=([^)]*))?)?\)")


class Number(NamedTuple):
    """A marked number of a page."""

    page: str
    line: int
    shown: str
    wanted: str


def pages() -> list[Path]:
    """The pages that may hold marked numbers."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def cell(file: str, path: str, how: str, root: Path = ROOT) -> str:
    """A cell of a report, as it is shown.

    Raises:
        KeyError: the file has no such cell; the message names it.
    """
    source = root / "reports" / file
    try:
        value = _read(source)
        for part in path.split("/"):
            value = _down(value, part)
    except (KeyError, IndexError, StopIteration, ValueError, TypeError, OSError) as error:
        raise KeyError(f"reports/{file} has no {path}") from error
    if how == "s":
        return str(value)
    try:
        value = float(value)
    except (TypeError, ValueError) as error:
        raise KeyError(f"reports/{file} has no number at {path}") from error
    if how in ("minutes", "hours"):
        return f"{value / (60 if how == 'minutes' else 3600):.0f}"
    return format(int(value) if how.endswith(("d", ",")) else value, how)


def _read(source: Path) -> Any:
    with open(source, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if source.suffix == ".csv" else json.load(file)


def _down(value: Any, part: str) -> Any:
    if over := OVER_ALL.fullmatch(part):
        what, name, wanted = over.groups()
        if what == "count":
            return sum(name is None or str(row[name]) == wanted for row in value)
        numbers = [float(row[name]) for row in value if row[name] not in ("", None)]
        return sum(numbers) / len(numbers) if what == "mean" else {"min": min, "max": max}[what](numbers)
    if isinstance(value, dict):
        return value[part]
    if "=" in part:
        name, _, wanted = part.partition("=")
        return next(row for row in value if str(row[name]) == wanted)
    return value[int(part)]


def numbers(text: str, page: str = "", root: Path = ROOT) -> list[Number]:
    """The marked numbers of a page, with what the reports say."""
    found = []
    for match in MARKED.finditer(text):
        wanted = cell(match["file"], match["path"], match["format"], root)
        if match["shown"].startswith("**"):
            wanted = f"**{wanted}**"
        found.append(Number(page, text.count("\n", 0, match.start()) + 1, match["shown"], wanted))
    return found


def updated(text: str, root: Path = ROOT) -> str:
    """The page with what the reports say in place of what it showed."""
    wanted = iter(numbers(text, root=root))
    return MARKED.sub(lambda match: next(wanted).wanted + match["comment"], text)


def main(arguments: list[str]) -> int:
    """Update the pages, or with --check name what differs."""
    differing = 0
    for path in pages():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        for number in numbers(text, name):
            if number.shown != number.wanted:
                differing += 1
                print(f"{name}:{number.line}: {number.shown} is {number.wanted} in the reports")
        if "--check" not in arguments:
            path.write_text(updated(text), encoding="utf-8")
    return int("--check" in arguments and differing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
