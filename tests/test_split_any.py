"""`saelib split` on real text with the real model, at the smallest size; bad input; classes of any parent."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from saelib import cli
from saelib.acts.store import POSITIONS
from saelib.base.errors import UserError
from saelib.base.progress import PROGRESS_ENV, Display, report_progress, shown_progress
from saelib.lm.model import OneLayerModel, load_embedded
from saelib.report.split_any import SplitRequest
from saelib.sae.sae import SAEConfig, init_random, save_sae
from saelib.split.context_classes import Rows, label_tokens
from saelib.text.own_text import split_documents, text_store

WORDS = ["long", "multi", "3", "twin", "7", "single", "well", "double"]


@pytest.fixture(scope="module")
def model() -> OneLayerModel:
    return load_embedded()


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Made-up lines with every kind of hyphen."""
    rng = np.random.default_rng(0)
    nouns = ["term", "headed", "point", "standing", "day", "known"]
    return [
        " ".join(
            f"The {rng.choice(WORDS)}-{rng.choice(nouns)} plan number {rng.integers(99)} was read." for _ in range(40)
        )
        for _ in range(120)
    ]


@pytest.fixture
def sae_folder(tmp_path: Path, model: OneLayerModel) -> Path:
    cfg = SAEConfig(d_in=256, d_sae=16, hook_name=model.hook_name, model_name=model.name, center_writing_weights=False)
    return save_sae(init_random(cfg, torch.Generator().manual_seed(0)), tmp_path / "sae")


def test_split_from_the_command_line_then_again_from_the_cache(
    sae_folder: Path, documents: list[str], tmp_path: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text", tmp_path / "out"
    text.mkdir()
    for i, document in enumerate(documents):
        (text / f"{i}.txt").write_text(document)
    command = ["split", "--sae", sae_folder, "--feature", "3", "--text", text, "--out", out, "--tokens", "12288"]
    command = [str(part) for part in [*command, "--seeds", "1", "--width", "1", "--l1", "2", "--classes", "previous"]]
    assert cli.main(command) == 0
    record = json.loads((out / "split.json").read_text())
    assert record["verdict"] in {"split", "not split", "undecided"} or record["verdict"].startswith("partial")
    assert record["automatic_classes"] and len(record["classes"]) == 3 and record["parent_tokens"]["test"] > 0
    assert [row["data"] for row in record["runs"]] == ["context", "all data (control)"]
    controls = {row["control"] for row in record["controls"]}
    assert {"permuted labels", "k-means on the parent activation", "k-means on the activation vector"} <= controls
    assert "made by a program" in (out / "index.html").read_text()
    assert (out / "parent.html").exists() and (out / "sae" / "cfg.json").exists()
    assert not list(empty_cache.glob("runs/*/checkpoints/*"))
    trained = {path: path.stat().st_mtime_ns for path in empty_cache.glob("runs/*/summary.json")}
    capsys.readouterr()
    assert cli.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in empty_cache.glob("runs/*/summary.json")} == trained
    assert "verdict: " in capsys.readouterr().out


def test_what_goes_on_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress("feature 3", Display(line_interval=0.1)):
        for done in range(4):
            report_progress("wide-SAE-1-of-3", done, 3)
            time.sleep(0.3)
    assert re.search(r"\[0:0\d\] feature 3: wide-SAE-1-of-3 3/3 \(100%\), 0:0\d so far", capsys.readouterr().out)
    assert PROGRESS_ENV not in os.environ


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"--sae": "nowhere"}, "an SAE folder must hold cfg.json"),
        ({"--feature": "16"}, r"feature must be in [0, d_sae=16); got 16"),
        ({"--text": "nowhere.txt"}, "text must be a file, or a folder with .txt files"),
        ({"--filter": "paragraph"}, "filter must be context or token; got 'paragraph'"),
        ({"--init": "warm"}, "init must be random or narrow; got 'warm'"),
        ({"--model": "nowhere"}, "nowhere"),
        ({"--tokens": "5"}, "tokens must be at least one batch, 4096; got 5"),
    ],
)
def test_bad_input_is_one_line(
    sae_folder: Path,
    tmp_path: Path,
    empty_cache: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    line: str,
) -> None:
    options = {"--sae": str(sae_folder), "--feature": "3", "--out": str(tmp_path / "out"), "--text": "x.txt"} | change
    assert cli.main(["split", *(part for item in options.items() for part in item)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and line in told and len(told.strip().splitlines()) == 1
    assert not list(empty_cache.glob("runs/*"))


def test_another_hook_and_another_width_are_refused(
    model: OneLayerModel, tmp_path: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, line in (({"hook_name": "blocks.3.hook_mlp_out"}, "blocks.3"), ({"d_in": 64}, "64")):
        cfg = SAEConfig(**({"d_in": 256, "d_sae": 8, "hook_name": model.hook_name, "model_name": "m"} | changes))
        folder = save_sae(init_random(cfg, torch.Generator().manual_seed(0)), tmp_path / line)
        options = ["--sae", str(folder), "--feature", "3", "--out", str(tmp_path / "out"), "--text", "x.txt"]
        assert cli.main(["split", *options]) == 2
        assert line in capsys.readouterr().err


def test_documents_go_to_one_split_each_for_ever(documents: list[str]) -> None:
    splits = split_documents(documents)
    assert sum(map(len, splits.values())) == len(set(documents))
    assert split_documents(documents[::-1])["test"] == splits["test"][::-1]
    one_file = split_documents(["\n\n".join(documents)])
    assert {name: sorted(found) for name, found in one_file.items()} == {n: sorted(f) for n, f in splits.items()}
    with pytest.raises(UserError, match="enough documents for three splits"):
        split_documents(["one", "two"])


def hyphen_rows(model: OneLayerModel, documents: list[str]) -> Rows:
    store = text_store(model, documents)
    return Rows(store, np.flatnonzero(store.token_ids == model.hyphen))


def test_classes_of_a_parent(model: OneLayerModel, documents: list[str], tmp_path: Path, empty_cache: Path) -> None:
    part = hyphen_rows(model, documents)
    labels = label_tokens(model, part, part, "auto")
    assert labels.names == ("count", "number", "compound") and not labels.automatic
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"digit": r"\d-", "rest": "[a-z]-"}))
    ruled = label_tokens(model, part, part, str(rules))
    inside = part.rows % POSITIONS > 3
    assert ((ruled.select == 0) == (labels.select == 1))[inside & (labels.select >= 0)].all()
    made = label_tokens(model, part, part, "previous", k=3)
    assert made.automatic and all(name.startswith("after ") for name in made.names)
    previous = part.store.token_ids[part.rows - 1]
    for token in np.unique(previous[inside]):  # the same token before: the same class
        assert len(set(made.select[inside & (previous == token)])) == 1
    assert set(made.select) <= {-1, 0, 1, 2}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[1, 2]", "rules must be a JSON object"),
        ('{"a": "(", "b": "x"}', "rule must be a regular expression"),
        ("{", "JSON"),
    ],
)
def test_bad_rules_are_one_line(
    model: OneLayerModel, documents: list[str], tmp_path: Path, empty_cache: Path, content: str, line: str
) -> None:
    part, path = hyphen_rows(model, documents[:3]), tmp_path / "rules.json"
    path.write_text(content)
    with pytest.raises(UserError, match=line):
        label_tokens(model, part, part, str(path))
    with pytest.raises(UserError, match="file of rules must be there"):
        label_tokens(model, part, part, str(tmp_path / "no.json"))
    with pytest.raises(UserError, match="classes must be auto"):
        label_tokens(model, part, part, "colours")
    with pytest.raises(UserError, match="the parent must be active on at least 3 tokens"):
        label_tokens(model, Rows(part.store, part.rows[:1]), part, "previous")


def test_a_request_is_checked_when_it_is_made() -> None:
    with pytest.raises(UserError, match="at least 2 classes"):
        SplitRequest("x", 0, n_classes=1)
