"""A table as a dataclass: columns in order, there and back through JSON and CSV."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from saelib.base.table import as_row, column, columns_of, frame_of, from_row, meanings, write_csv
from saelib.split.verdict import Verdict


@dataclass(frozen=True)
class Inner:
    S_2: float = column("separation")
    feature: int | None = column("its number")


@dataclass(frozen=True)
class Outer:
    run: int = column("number")
    inner: Inner = columns_of(Inner)
    verdict: Verdict = column("the verdict", enum=Verdict)


def test_there_and_back(tmp_path: Path) -> None:
    assert meanings(Outer) == {"run": "number", "S_2": "separation", "feature": "its number", "verdict": "the verdict"}
    rows = [Outer(1, Inner(float(np.float64(0.25)), 7), Verdict.SPLIT), Outer(2, Inner(math.nan, None), Verdict.GRADED)]
    kept = json.loads(json.dumps([as_row(row) for row in rows], allow_nan=False))
    assert kept[1] == {"run": 2, "S_2": None, "feature": None, "verdict": "graded"}
    again = [from_row(Outer, row) for row in kept]
    assert again[0] == rows[0] and again[1].verdict is Verdict.GRADED and math.isnan(again[1].inner.S_2)
    write_csv(Outer, kept, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "run,S_2,feature,verdict\n1,0.25,7,split\n2,,,graded\n"
    read = pd.read_csv(tmp_path / "t.csv")
    assert list(read.columns) == list(meanings(Outer)) == list(frame_of(Outer, []).columns)
