"""What `saelib split` leaves behind: a folder with the page, its tables and the SAE, and a table on the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saelib.acts.store import POSITIONS
from saelib.base.cache import ensure_dir
from saelib.report.children_page import beaten_by, children_page, parent_sentence, verdict_sentence
from saelib.split.result import Split

MOST_ROWS = 30


def write_split(split: Split, out: Path, prompts: Sequence[str] = ()) -> Path:
    """Write `index.html` and `index.json`, and what `Split.save` writes: split.json, the tables as CSV, the SAE in `sae/`.

    Returns:
        the page.

    Raises:
        UserError: a prompt without a token of the parent, or the disk refuses.
    """
    page = children_page(split, prompts)  # a bad prompt leaves nothing behind
    out = ensure_dir(Path(out).expanduser())
    split.save(out)
    return page.save(out / "index.html")


def split_text(split: Split) -> str:
    """A split for a terminal: the parent, the children as a table, the verdict; what controls do better comes first."""
    frame = split.children
    shown = pd.DataFrame(
        {
            "child": frame["feature"].astype(int),
            "share of P": frame["share"].map("{:.1%}".format),
            "MCC": frame["mcc"].map(_two),
            "adds": frame["added"].map(_two),
            "leak": frame["leak"].map("{:.1%}".format).replace("nan%", ""),
            "name": frame["name"].astype(str),
        }
    )
    lines = [parent_sentence(split), ""]
    if len(shown):
        wide = shutil.get_terminal_size((110, 24)).columns
        table = shown.head(MOST_ROWS).to_string(index=False, max_colwidth=max(wide - 50, 20), justify="right")
        lines += [line[: max(wide, 60)] for line in table.splitlines()]
        if len(shown) > MOST_ROWS:
            lines.append(f"and {len(shown) - MOST_ROWS} smaller ones")
        lines.append("")
    lines += beaten_by(split)
    lines.append(f"verdict: {verdict_sentence(split)}")
    return "\n".join(lines)


def _two(value: float) -> str:
    return "" if value != value else f"{value:z.2f}"


def example_text(split: Split, before: int = 20, after: int = 12) -> str:
    """A piece of the test text around the token on which the parent is strongest."""
    on, store = split.tokens.on["test"], split.acts.stores["test"]
    row = int(on.rows[on.parent.argmax()])
    first = row - row % POSITIONS
    ids = store.token_ids[max(first, row - before) : min(first + POSITIONS, row + after)]
    return "".join(split.acts.model.to_str_tokens(np.asarray(ids).astype(np.int64)))
