"""Tables that a notebook's answer rests on, written as CSV beside its page.

In a notebook: `keep_table(frame)` records it. Afterwards `write_tables` writes `<page>.csv`, or `<page>-<name>.csv` for a table
with a name; what the page's answer says is computed from the same numbers.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from saelib.base.cache import atomic_path

TABLE_MIME = "application/vnd.saelib.table+json"


def keep_table(frame: pd.DataFrame, name: str = "") -> pd.DataFrame:
    """Record a table of the running notebook, and return it as it reads from its file (6 digits)."""
    text = frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display({TABLE_MIME: {"name": name, "csv": text}, "text/plain": ""}, raw=True)
    return pd.read_csv(io.StringIO(text))


def write_tables(notebook: Any, folder: Path, page: str) -> list[Path]:
    """Write the tables of an executed notebook beside its page; of two with one name the later wins."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if (table := output.get("data", {}).get(TABLE_MIME)) is not None:
                found[table["name"]] = table["csv"]
    paths = []
    for name, text in found.items():
        path = folder / f"{page}{'-' if name else ''}{name}.csv"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
