"""The short version of `make faults`: nothing is lost when a process is killed, a disk fills up or a file is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

KINDS = ["SIGKILL", "truncated", "bit flipped", "two processes", "disk full", "clock", "unsound training"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_fault_loses_anything(root: Path, tmp_path: Path) -> None:
    """A process of its own: it forks, and 20 s of it are imports."""
    command = [sys.executable, str(root / "tests" / "faults.py"), "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "faults.csv")
    assert table["fault"].drop_duplicates().tolist() == KINDS
    assert table["kills"].sum() >= 8
    assert table["outcome"].str.contains("same hashes").all()
    record = json.loads((tmp_path / "faults.json").read_text())
    assert record["total"]["lost"] == 0 and record["total"]["cases"] == len(table)
    page = (tmp_path / "index.html").read_text()
    assert f"{len(table)} faults" in page and str(tmp_path) not in page


def test_the_committed_table_is_of_a_full_run_without_a_loss(root: Path) -> None:
    record = json.loads((root / "reports" / "faults" / "faults.json").read_text())
    table = pd.read_csv(root / "reports" / "faults" / "faults.csv")
    assert record["parameters"]["kills"] >= 1000 and record["total"]["kills"] == table["kills"].sum() >= 1000
    assert record["total"]["lost"] == 0 and table["outcome"].str.contains("same hashes").all()
    assert table["fault"].drop_duplicates().tolist() == [KINDS[0], "Dask worker killed", *KINDS[1:]]
    killed = table[table["fault"] == "SIGKILL"]
    stages = {"text", "harvest", "filter", "training", "scoring", "report", "split", "bench"}
    assert set(killed["stage"]) == stages
