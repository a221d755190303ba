"""The study's own profile through the command line and the notebooks, offline, on stand-ins in full size for all it reads.

`make test-gelu-1l` runs this; the loading code itself is in every run of the tests (`test_gelu_1l`, `test_hub_data`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from snapshot import SIZES, digits_tokenizer, snapshot_folder, write_gelu_1l, write_tokenizer

from saelib.lm.gelu_1l_files import REPOSITORY, TOKENIZER_REPOSITORY
from saelib.report.run_views import PUBLISHED
from saelib.sae.initial import kaiming_uniform, unit_rows
from saelib.text.hub_data import INTERPRETATION, PRETOKENISED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("SAELIB_TEST_GELU_1L" not in os.environ, reason="takes minutes: make test-gelu-1l"),
]
SAELIB = Path(sys.executable).parent / "saelib"
PHRASES = ("multi - millionaire", "3 - point", "long - standing")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A hub cache with model, tokenizer and both data sets, and run-25's files; the environment that names them."""
    root = tmp_path_factory.mktemp("gelu")
    home, cache = root / "huggingface", root / "cache"
    write_gelu_1l(snapshot_folder(home, REPOSITORY))
    write_tokenizer(snapshot_folder(home, TOKENIZER_REPOSITORY))
    tokenizer, generator = digits_tokenizer(), np.random.default_rng(0)
    rows = generator.integers(4, 300, (300, 1024))
    phrases = [tokenizer.encode(phrase).ids for phrase in PHRASES]
    for row in rows:
        for start in range(8, 1000, 24):
            row[start : start + 3] = phrases[generator.integers(3)]
    tokens = snapshot_folder(home, PRETOKENISED, "datasets")
    pyarrow.parquet.write_table(pyarrow.table({"tokens": list(rows)}), tokens / "train-00000-of-00001.parquet")
    texts = snapshot_folder(home, INTERPRETATION, "datasets")
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [tokenizer.decode(row.tolist()) for row in rows[:40]]}),
        texts / "train-00000-of-00001.parquet",
    )
    draw, d_in, d_sae = torch.Generator().manual_seed(0), SIZES["d_model"], 4096
    state = {
        "W_enc": kaiming_uniform((d_in, d_sae), draw), "W_dec": unit_rows(kaiming_uniform((d_sae, d_in), draw)),
        "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in),
    }  # fmt: skip
    torch.save(state, root / "25.pt")
    cfg = {
        "seed": 49, "l1_coeff": 3e-4, "model_name": "gelu-1l", "site": "mlp_out", "layer": 0, "enc_dtype": "fp32",
        "act_name": "blocks.0.hook_mlp_out", "act_size": d_in, "dict_size": d_sae,
    }  # fmt: skip
    (root / "25_cfg.json").write_text(json.dumps(cfg))
    return {"HF_HOME": str(home), "SAELIB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "RUN_25": str(root / "25.pt")}


def saelib(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SAELIB_GELU", "SAELIB_C4"))}
    done = subprocess.run([str(SAELIB), *map(str, arguments)], capture_output=True, text=True, env=env | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_run_of_the_profile_at_reduced_tokens(stand_ins: dict[str, str], tmp_path: Path) -> None:
    saelib("reproduce", "--profile", "gelu-1l-smoke", "--run", "9", "--reports", tmp_path, **stand_ins)
    record = json.loads((tmp_path / "gelu-1l-smoke" / "run-09.json").read_text())
    assert record["headline"]["d_sae"] == 4096 and record["headline"]["tokens"] == 20 * 512
    assert record["headline"]["S_2"] is not None


def test_figures_2_to_5_are_made_from_run_25_when_it_is_at_hand_and_the_page_says_when_not(
    stand_ins: dict[str, str], tmp_path: Path
) -> None:
    command = ("notebook", "12_published_sae", "--profile", "gelu-1l-smoke", "--reports", tmp_path)
    page = tmp_path / "gelu-1l-smoke" / "12_published_sae.html"
    saelib(*command, **stand_ins)
    assert "SAELIB_RUN_25" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["headline"]["at_hand"] is False
    saelib(*command, **stand_ins, SAELIB_RUN_25=stand_ins["RUN_25"])
    headline, text = json.loads(page.with_suffix(".json").read_text())["headline"], page.read_text()
    assert headline["at_hand"] is True and headline["largest_difference"] > 0
    assert INTERPRETATION in text and all(f"{activation:g}" in text for _, _, activation in PUBLISHED)
