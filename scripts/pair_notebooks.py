#!/usr/bin/env python
"""Write each notebooks/<name>.ipynb from its <name>.py, without outputs; with --check only say what differs (exit 1).

The .py is the reviewed source and always wins. `jupytext --sync` trusts modification times and can revert a newer .py,
and `jupytext --test` passes on pairs whose tags differ, so neither is used. Cell ids are hashes of the cells: writing
again gives the same bytes, and an edit changes the cells it touches only.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
Shape = tuple[str, str, tuple[str, ...]]


def shapes(notebook: Any) -> list[Shape]:
    """What the pair must agree on: type, source and tags of every cell."""
    return [(c.cell_type, c.source, tuple(c.metadata.get("tags", []))) for c in notebook.cells]


def read_source(path: Path) -> Any:
    return jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")


def paired_text(source: Path) -> str:
    """The text of the .ipynb that belongs to a py:percent source."""
    notebook = nbformat.v4.new_notebook(
        metadata={
            "jupytext": {"cell_metadata_filter": "tags,-all", "formats": "ipynb,py:percent"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    taken: set[str] = set()
    for kind, text, tags in shapes(read_source(source)):
        metadata = {"tags": list(tags)} if tags else {}
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}.get(
            kind, nbformat.v4.new_raw_cell
        )
        cell_id, repeat = "", 0
        while not cell_id or cell_id in taken:  # equal cells get different ids
            cell_id = hashlib.sha256(f"{kind}\n{text}\n{repeat}".encode()).hexdigest()[:8]
            repeat += 1
        taken.add(cell_id)
        notebook.cells.append(make(text, metadata=metadata, id=cell_id))
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def differences(folder: Path) -> list[str]:
    """One line for everything in which the pairs of a folder disagree; empty when they agree."""
    sources, pairs = ({path.stem for path in folder.glob(pattern)} for pattern in ("*.py", "*.ipynb"))
    found = [f"{name}.py has no {name}.ipynb" for name in sorted(sources - pairs)]
    found += [f"{name}.ipynb has no {name}.py" for name in sorted(pairs - sources)]
    for name in sorted(sources & pairs):
        paired = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        ours, theirs = shapes(read_source(folder / f"{name}.py")), shapes(paired)
        if len(ours) != len(theirs):
            found.append(f"{name}: {len(ours)} cells in the .py, {len(theirs)} in the .ipynb")
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=False), start=1):
            for what, left, right in zip(("type", "source", "tags"), mine, other, strict=True):
                if left != right:
                    found.append(
                        f"{name}: cell {number}: {what} differs: {left!r:.80} in the .py, {right!r:.80} in the .ipynb"
                    )
        if any(cell.get("outputs") or cell.get("execution_count") for cell in paired.cells):
            found.append(f"{name}.ipynb holds outputs")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a pair differs")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS)
    arguments = parser.parse_args()
    if arguments.check:
        found = differences(arguments.notebooks)
        print("\n".join(found) or "all pairs agree")
        return bool(found)
    for source in sorted(arguments.notebooks.glob("*.py")):
        target = source.with_suffix(".ipynb")
        text = paired_text(source)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            print(f"wrote {target.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
