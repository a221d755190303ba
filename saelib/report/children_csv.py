"""children.csv: the children method, a row a seed, beside the runs of results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saelib.base.cache import atomic_path
from saelib.report.index_page import GRADED_COLUMNS

CHILDREN_COLUMNS: dict[str, str] = {
    "seed": "seed of the children's training",
    "K": "children that were trained: chosen by the rule of the children method at the first seed",
    "children": "children that were kept, of those trained: the ones that carry something",
    **GRADED_COLUMNS,
    "S_2_on_P": "S_2 on the hyphens on which the parent exceeds its threshold, in place of all that join words",
    "fvu": "fraction of variance unexplained on held-out text, of the SAE with its children",
    "fvu_on_P": "the same on test tokens on which the parent exceeds its threshold",
    "fvu_on_P_before": "the same of the narrow SAE as it was",
    "l0": "features active a token on held-out text, mean",
    "loss_recovered": "share of the model's loss that the SAE keeps",
    "tokens": "tokens trained on, repeats included",
    "seconds": "wall time of the training",
    "seconds_in_all": "wall time of the whole split: finding the parent's tokens, choosing K (first seed), training, measuring",
    "reason": "why nothing was measured; empty where it was",
}
"""Name and meaning of each column of children.csv, in its order."""


def write_children_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> pd.DataFrame:
    """Write children.csv atomically: the columns of `CHILDREN_COLUMNS`, one row a seed. Returns the frame as written."""
    frame = pd.DataFrame([dict(row) for row in rows]).reindex(columns=[*CHILDREN_COLUMNS])
    with atomic_path(Path(path)) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return frame
