"""A table as a frozen dataclass: a documented field a column, with one way to a frame, to a CSV and back from JSON.

@dataclass(frozen=True)
class Row:
    run: int = column("number in the table")
    graded: Graded = columns_of(Graded)        # its columns stand here
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pandas as pd

from saelib.base.cache import atomic_path


def column(meaning: str, *, default: Any = MISSING, enum: type[Enum] | None = None) -> Any:
    """A field of a table's dataclass: what the column means; an `enum` is read back as such."""
    return field(default=default, metadata={"meaning": meaning, "enum": enum})


def columns_of(part: type) -> Any:
    """A field that holds another table's row: its columns stand in this place."""
    return field(metadata={"part": part})


def meanings(table: type) -> dict[str, str]:
    """Name and meaning of each column, in order."""
    found: dict[str, str] = {}
    for f in fields(table):
        found |= meanings(f.metadata["part"]) if "part" in f.metadata else {f.name: f.metadata["meaning"]}
    return found


def as_row(record: Any) -> dict[str, Any]:
    """A row as JSON holds it, column by column: what is not finite is None."""
    found: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if "part" in f.metadata:
            found |= as_row(value)
            continue
        found[f.name] = plain_value(value)
    return found


def plain_value(value: Any) -> Any:
    """A value as JSON holds it, inside mappings and lists too: an enum's value, numpy's numbers as Python's, None for what is
    not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    value = value.value if isinstance(value, Enum) else value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_row(table: type, row: Mapping[str, Any]) -> Any:
    """The dataclass from what `as_row` made: None in a column of numbers is NaN."""
    given: dict[str, Any] = {}
    for f in fields(table):
        if "part" in f.metadata:
            given[f.name] = from_row(f.metadata["part"], row)
        elif (enum := f.metadata["enum"]) is not None:
            given[f.name] = enum(row[f.name])
        elif f.type == "float":
            given[f.name] = math.nan if row[f.name] is None else float(row[f.name])
        else:
            given[f.name] = row[f.name]
    return table(**given)


def frame_of(table: type, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row each, with every column of the table in its order; what a row lacks is empty."""
    return pd.DataFrame([dict(row) for row in rows]).reindex(columns=[*meanings(table)]).convert_dtypes()


def write_csv(table: type, rows: Iterable[Mapping[str, Any]], path: Path) -> pd.DataFrame:
    """Write the rows atomically, six digits a number, empty where nothing was measured. Returns the frame as written."""
    frame = frame_of(table, rows)
    with atomic_path(Path(path)) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return frame
