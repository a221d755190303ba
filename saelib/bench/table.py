"""The table of SplitBench, a row a parent, method and seed: its columns, and how it is written and read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saelib.base.cache import atomic_path
from saelib.base.errors import UserError
from saelib.bench.matching import FALSE, FOUND
from saelib.split.judged import COLUMNS

KNOWN: dict[str, str] = {
    "true_children": "true children, where they are known",
    "matched_f1": "mean F1 of true children and the children matched with them",
    "found": f"share of true children found (F1 of at least {FOUND:g})",
    "false": f"share of children that are false (F1 below {FALSE:g} with every true feature, child or background); not for "
    "wide SAEs",
}
REST: dict[str, str] = {
    "stability": "IoU on P of the first seed's features with those of other seeds that they are matched to",
    "peak_memory": "most memory the process held, in bytes, since the piece began; a GPU's own does not count",
    "scorer": "version of what measures",
    "device": "where it was made: cpu, or cuda",
    "reason": "why there is no row of numbers",
}
ROW: dict[str, str] = {
    "parent": "the SAE's name and the feature",
    "origin": "the SAE",
    "side": "dev, test or known",
    "stratum": "separable, or none: fewer than three contexts that a probe tells apart",
    "feature": "the parent's number",
    "method": "see docs/splitbench.md",
    "kind": "local, readout or wide",
    "seed": "of the method",
    **COLUMNS,
    **KNOWN,
    **REST,
}
"""Name and meaning of the columns of splitbench.csv, in order."""
PLACES = 3
"""Of measures, in the file."""
TIMES = ("seconds", "seconds_shared", "peak_memory")
"""Those that are the machine's, and not the same twice; all others are the same bits wherever a processor makes them."""


def first_parent_seconds(rows: Any) -> Any:
    """Seconds that the first parent costs, of a row or of a table: a training that serves all parents counts in full."""
    return rows["seconds"] + rows["seconds_shared"]


def as_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the table of `ROW`, sorted by parent, method and seed: the same wherever and in whatever order they were made."""
    frame = pd.DataFrame([dict(row) for row in rows], columns=[*ROW])
    text = ("parent", "origin", "side", "stratum", "method", "kind", "verdict", "scorer", "device", "reason")
    for name in frame.columns:
        if name not in text:
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame.sort_values(["origin", "feature", "method", "seed"], kind="stable").reset_index(drop=True)


def write_table(frame: pd.DataFrame, path: Path) -> Path:
    """Write splitbench.csv; shares, correlations and separations to three places, counts whole."""
    measures = frame.select_dtypes("float").columns.difference([*TIMES, "arithmetic", "tokens_sae", "tokens_lm"])
    with atomic_path(path) as temporary:
        frame.round(dict.fromkeys(measures, PLACES)).to_csv(
            temporary, index=False, lineterminator="\n", float_format="%.6g"
        )
    return path


def read_table(path: Path) -> pd.DataFrame:
    """Read splitbench.csv.

    Raises:
        UserError: it is missing or has other columns.
    """
    if not path.is_file():
        raise UserError("results must be in a CSV", path, "run saelib bench first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        frame = pd.read_csv(path)
    if list(frame.columns) == [name for name in ROW if name != "device"]:  # written before there was a choice
        frame.insert([*ROW].index("device"), "device", "cpu")
    if list(frame.columns) != [*ROW]:
        raise UserError(
            "splitbench.csv must have its columns",
            ", ".join(map(str, frame.columns)),
            "move the file away and run saelib bench anew",
        )
    return frame
