"""What `saelib split` leaves behind: a folder with the page, its tables and the SAE, and a table on the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saelib.acts.activations import Activations
from saelib.acts.store import POSITIONS
from saelib.base.cache import ensure_dir
from saelib.base.errors import UserError
from saelib.report.children_page import children_page
from saelib.report.children_words import (
    beaten_by,
    cell_value,
    leak_sentence,
    leaks,
    method_words,
    named_sentence,
    parent_sentence,
    verdict_sentence,
)
from saelib.sae.sae import SAE
from saelib.sae.stream import Encoder
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


def first_page(split: Split, out: Path, prompts: Sequence[str] = ()) -> Path:
    """Write the page of a split whose other seeds and controls are still trained; it says so, and `write_split` replaces it.

    Returns:
        the page.

    Raises:
        UserError: as of `write_split`.
    """
    return children_page(split, prompts, finished=False).save(ensure_dir(Path(out).expanduser()) / "index.html")


def check_prompts(sae: SAE, feature: int, acts: Activations, prompts: Sequence[str], tau: float | None = None) -> None:
    """Refuse prompts on which the parent never fires, before anything is trained.

    Args:
        tau: the parent's threshold where it was given; a threshold that is found later may refuse more prompts.

    Raises:
        UserError: a prompt without a token of the parent.
    """
    parent = Encoder(sae, np.array([feature]))
    for prompt in prompts:
        reached = parent.values(acts.model.activations(acts.model.to_tokens(prompt))[0, 1:])
        if not float(reached.max() if len(reached) else 0.0) > (tau or 0.0):
            rule = f"a prompt must hold a token on which feature {feature} exceeds {tau or 0:g}"
            raise UserError(rule, repr(prompt), "pass a text in which the parent fires")


def split_text(split: Split, prompts: Sequence[str] = ()) -> str:
    """A split for a terminal: the parent, the children as a table ("!" where one leaks too much), the verdict; what
    controls do better comes first.

    Args:
        prompts: texts of which each token that is in P is shown with the children that fire on it.

    Raises:
        UserError: a prompt without a token of the parent.
    """
    frame = split.children
    shown = pd.DataFrame(
        {
            "child": frame["feature"].astype(int),
            "share of P": frame["share"].map("{:.1%}".format),
            "says when": frame["name_mcc"].map(_two),
            "rest": frame["rest_mcc"].map(_two),
            "adds": frame["added"].where(frame["added_high"] > 0).map(_two),
            "leak": [_leak(row) for _, row in frame.iterrows()],
            "name": frame["name"].astype(str),
        }
    )
    lines = [parent_sentence(split), *(f"{words}." for words in method_words(split)), ""]
    if len(shown):
        wide = shutil.get_terminal_size((110, 24)).columns
        table = shown.head(MOST_ROWS).to_string(index=False, max_colwidth=max(wide - 50, 20), justify="right")
        lines += [line[: max(wide, 60)] for line in table.splitlines()]
        if len(shown) > MOST_ROWS:
            lines.append(f"and {len(shown) - MOST_ROWS} more")
        lines.append("")
    said = [named_sentence(frame), *filter(None, [leak_sentence(frame)])] if len(frame) else []
    lines += [*said, *beaten_by(split)]
    lines.append(f"verdict: {verdict_sentence(split)}")
    for prompt in prompts:
        lines += ["", prompt, *_fired(split, prompt)]
    return "\n".join(lines)


def _fired(split: Split, prompt: str) -> list[str]:
    """A line for each token of a prompt on which the parent or a child fires."""
    frame = split.on(prompt)
    names = [str(name) for name in frame.columns[3:]]
    lines = []
    for row in frame.to_dict("records"):
        fired = [f"{name} ({row[name]:.2f})" for name in names if row[name] > 0]
        if row["parent"] > split.parent.tau or fired:
            lines.append(f"{row['token']!r:>14}  parent {row['parent']:5.2f}  {', '.join(fired) or 'no child'}")
    return lines


def _leak(row: pd.Series) -> str:
    """A child's leak, with a mark where it is too much."""
    value = cell_value(row, "leak")
    return "" if value != value else f"{value:.1%} {'!' if leaks(row) else ' '}"


def _two(value: float) -> str:
    return "" if value != value else f"{value:z.2f}"


def example_text(split: Split, before: int = 20, after: int = 12) -> str:
    """A piece of the test text around the token on which the parent is strongest."""
    on, store = split.tokens.on["test"], split.acts.stores["test"]
    row = int(on.rows[on.parent.argmax()])
    first = row - row % POSITIONS
    ids = store.token_ids[max(first, row - before) : min(first + POSITIONS, row + after)]
    return "".join(split.acts.model.to_str_tokens(np.asarray(ids).astype(np.int64)))
