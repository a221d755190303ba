"""How large things are: lines of `saelib/`, modules over 300 lines, functions with more than six parameters, notebooks.

python scripts/sizes.py            # print them
python scripts/sizes.py --check    # exit code 1 if something is over a limit and docs/architecture.md gives no reason
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_PARAMETERS, MOST_NOTEBOOK_LINES, MOST_CELL_LINES = 300, 6, 120, 5


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


def excused(root: Path) -> set[tuple[str, str]]:
    """(module, limit) of each exception that docs/architecture.md gives a reason for; the limit is `lines` or `parameters`."""
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \| ([a-z, ]+) \|", page, flags=re.MULTILINE)
    return {(name, limit) for name, limits in rows for limit in limits.split(", ")}


def over(root: Path) -> list[str]:
    """What is over a limit without a reason, and reasons that nothing needs any more."""
    found: set[tuple[str, str]] = set()
    for path in (root / "saelib").rglob("*.py"):
        name = path.relative_to(root / "saelib").as_posix()
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES:
            found.add((name, "lines"))
        if not is_command(path) and any(shown and n > MOST_PARAMETERS for _, _, n, shown in functions(path)):
            found.add((name, "parameters"))
    reasons = excused(root)
    problems = [f"{name}: too many {limit}, and no reason" for name, limit in sorted(found - reasons)]
    problems += [f"{name}: no longer has too many {limit}" for name, limit in sorted(reasons - found)]
    for path in sorted((root / "notebooks").glob("*.py")):
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_NOTEBOOK_LINES:
            problems.append(f"{path.name}: over {MOST_NOTEBOOK_LINES} lines")
        if statistics.median(cells(path)) > MOST_CELL_LINES:
            problems.append(f"{path.name}: more than {MOST_CELL_LINES} lines in the median code cell")
    return problems


def main(arguments: list[str]) -> int:
    """Print, and say whether a limit is passed."""
    modules = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "saelib").rglob("*.py")}
    print(f"saelib/: {sum(modules.values()):,} lines in {len(modules)} files")
    print(f"\nmodules over {MOST_LINES} lines")
    for path, lines in sorted(modules.items(), key=lambda item: -item[1]):
        if lines > MOST_LINES:
            print(f"  {lines:5}  {path.relative_to(ROOT)}")
    print(f"\nfunctions with more than {MOST_PARAMETERS} parameters")
    for path in sorted(modules):
        for line, name, count, shown in functions(path):
            if count > MOST_PARAMETERS:
                kind = "command" if is_command(path) else "public" if shown else "private"
                print(f"  {count:5}  {path.relative_to(ROOT)}:{line} {name} ({kind})")
    print("\nnotebooks: lines, median lines a code cell")
    notebooks = {path: len(path.read_text().splitlines()) for path in sorted((ROOT / "notebooks").glob("*.py"))}
    for path, lines in sorted(notebooks.items(), key=lambda item: -item[1]):
        print(f"  {lines:5}  {path.name}  {statistics.median(cells(path)):g}")
    problems = over(ROOT)
    print("\n" + "\n".join(problems or ["all within the limits, or with a reason in docs/architecture.md"]))
    return int("--check" in arguments and bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
