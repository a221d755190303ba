"""How large things are: lines of `saelib/`, modules over 300 lines, functions with more than six parameters, notebooks.

python scripts/sizes.py            # print them
python scripts/sizes.py --check    # exit code 1 if a public function has more than six, or a notebook over 120 lines
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_PARAMETERS, MOST_NOTEBOOK_LINES = 300, 6, 120


def functions(path: Path) -> Iterator[tuple[int, str, int, bool]]:
    """(line, name, parameters, whether it is public) of each function; self and cls do not count, nor do ** options."""

    def walk(node: ast.AST, within: str, public: bool) -> Iterator[tuple[int, str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                shown = public and not (child.name.startswith("_") and child.name != "__init__")
                if not isinstance(child, ast.ClassDef):
                    names = [a.arg for a in (*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs)]
                    count = len(names) - (names[:1] in (["self"], ["cls"]))
                    yield child.lineno, within + child.name, count, shown
                yield from walk(child, f"{within}{child.name}.", shown if isinstance(child, ast.ClassDef) else False)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "", True)


def is_command(path: Path) -> bool:
    """Whether click calls the functions of a module: its parameters are the options of the command."""
    return path.name == "cli.py"


def cells(path: Path) -> list[int]:
    """Lines of each code cell of a notebook's source, blank lines and comments left out."""
    found = []
    for cell in path.read_text(encoding="utf-8").split("\n# %%")[1:]:
        if not cell.startswith(" [markdown]"):
            lines = [line for line in cell.splitlines()[1:] if line.strip() and not line.startswith("#")]
            found.append(len(lines))
    return found


def main(arguments: list[str]) -> int:
    """Print, and say whether a limit is passed."""
    modules = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "saelib").rglob("*.py")}
    print(f"saelib/: {sum(modules.values()):,} lines in {len(modules)} files")
    print(f"\nmodules over {MOST_LINES} lines")
    for path, lines in sorted(modules.items(), key=lambda item: -item[1]):
        if lines > MOST_LINES:
            print(f"  {lines:5}  {path.relative_to(ROOT)}")
    print(f"\nfunctions with more than {MOST_PARAMETERS} parameters")
    public = 0
    for path in sorted(modules):
        for line, name, count, shown in functions(path):
            if count > MOST_PARAMETERS:
                kind = "command" if is_command(path) else "public" if shown else "private"
                public += kind == "public"
                print(f"  {count:5}  {path.relative_to(ROOT)}:{line} {name} ({kind})")
    print("\nnotebooks: lines, median lines a code cell")
    notebooks = {path: len(path.read_text().splitlines()) for path in sorted((ROOT / "notebooks").glob("*.py"))}
    for path, lines in sorted(notebooks.items(), key=lambda item: -item[1]):
        print(f"  {lines:5}  {path.name}  {statistics.median(cells(path)):g}")
    long = any(lines > MOST_NOTEBOOK_LINES for lines in notebooks.values())
    return int("--check" in arguments and (public > 0 or long))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
