"""`saelib split` on a tiny model, through the command line: what it prints, and one line for everything it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_split import documents, hyphen_sae

from saelib import cli
from saelib.acts.activations import Activations, harvest_documents
from saelib.lm.model import load_embedded
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.methods import get_method
from saelib.split.result import Split

FEATURE, DEAD = 3, 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and an SAE whose feature 3 is the hyphen's and whose feature 5 never fires."""
    folder = tmp_path_factory.mktemp("split")
    (folder / "texts").mkdir()
    for i, text in enumerate(documents()):
        (folder / "texts" / f"{i}.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELIB_CACHE", str(folder / "cache"))
        acts: Activations = harvest_documents(load_embedded(), folder / "texts")
    sae = hyphen_sae(acts)
    with torch.no_grad():
        sae.b_enc[DEAD] = -1e6
    sae.save(folder / "sae")
    narrow = SAE(type(sae.cfg)(16, 8, sae.cfg.hook_name, "made", False))
    narrow.save(folder / "narrow")
    for kind in ("gated", "transcoder", "crosscoder"):
        sae.save(folder / kind)
        config = json.loads((folder / kind / "cfg.json").read_text())
        (folder / kind / "cfg.json").write_text(json.dumps({**config, "architecture": kind}))
    (folder / "file").write_text("")
    (folder / "nothing.json").write_text(json.dumps({"a": "no such", "b": "text"}))
    (folder / "all.json").write_text(json.dumps({"all": r".*-", "none": r"x-"}))  # the first that matches counts
    (folder / "coin.json").write_text(json.dumps({"heads": r"[a-m]-", "tails": r"[^a-m]-"}))
    return folder


@pytest.fixture
def command(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SAELIB_CACHE", str(place / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.chdir(place)
    return ["split", "--sae", "sae", "--feature", str(FEATURE), "--text", "texts", "--K", "4"]


REFUSED = {
    "a gated SAE": (["--sae", "gated"], "architecture of an SAE must be one of standard, jumprelu, topk; got 'gated' in gated"),
    "a transcoder": (["--sae", "transcoder"], "an SAE must rebuild the one activation that it reads; got a transcoder in "),
    "a crosscoder": (["--sae", "crosscoder"], "an SAE must rebuild the one activation that it reads; got a crosscoder in "),
    "too few tokens in P": (["--tau", "1e9"], "tau must be a number from 0 to below the parent's largest activation, "),
    "a dead parent": (["--feature", str(DEAD)], f"the parent must fire on the text; got feature {DEAD} never fires on "),
    "contexts with no tokens": (["--contexts", "nothing.json"], "a context needs at least 30 of the parent's tokens on "),
    "a context that is everything": (["--contexts", "all.json"], "at least one context must be told apart by a linear probe "),
    "a prompt without the parent": (
        ["--prompt", "No such thing"], "a prompt must hold a token on which feature 3 exceeds 0; got 'No such thing'",
    ),
    "a prompt without children": (["--method", "rest", "--prompt", "A"], "prompts are shown with children; got rest"),
    "two numbers of children": (["--method", "children-16"], "children-16 makes 16 children; got K=4"),
    "out is a file": (["--out", "file"], "out must be a writable folder; got "),
    "another width": (["--sae", "narrow"], "the SAE's d_in must be the activations' 256; got 16: pass an SAE of this model"),
    "no such release": (["--sae", "no-such/release"], "an SAE must be a folder, or with the package sae-lens RELEASE/ID "),
    "no such model": (["--model", "no/such"], "model no/such must be at hand; got no such folder, none in the hub cache "),
    "no GPU": (["--device", "cuda"], "device cuda needs a GPU that torch can use; got none "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_and_exit_2(
    case: str, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = REFUSED[case]
    if case == "no such release":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if case == "no GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("saelib.split.engine.train_children", lambda *a, **k: pytest.fail("children were trained"))
    began = time.perf_counter()
    assert cli.main([*command, *change]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {message}") and err.splitlines()[-1] == lines[0]
    assert ": " in lines[0].partition("; got ")[2], "with a remedy"
    assert out == "" and "Traceback" not in err
    assert time.perf_counter() - began < 30


def test_a_parent_with_too_few_tokens(command: list[str], capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """Above a threshold that only the strongest tokens exceed."""
    acts = harvest_documents(load_embedded(), place / "texts")
    sae = load_sae(place / "sae").requires_grad_(False)
    strongest = np.sort(sae.encode_feature(acts.stores["select"].rows(slice(None)), FEATURE).numpy())[-3]
    assert cli.main([*command, "--tau", str(strongest)]) == 2
    assert "the parent must exceed tau=" in capsys.readouterr().err


def test_named_contexts_that_nothing_tells_apart(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by name they are refused before anything is trained; found automatically they make a page."""
    monkeypatch.setattr("saelib.split.yardstick.LEAST_GAIN", 2.0)  # more than any probe can gain
    monkeypatch.setattr("saelib.split.engine.train_children", lambda *a, **k: pytest.fail("children were trained"))
    assert cli.main([*command, "--contexts", "coin.json"]) == 2
    err = capsys.readouterr().err
    assert (
        "error: at least one context must be told apart by a linear probe on the parent's tokens, and hold at most"
        in err
    )
    assert "half of them; got heads: " in err and "tails: " in err
    assert ": choose other contexts, or another parent" in err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short training and no controls."""
    children = ChildrenConfig(n_steps=30, batch_on=64, batch_weak=16, batch_off=64)

    def split_quickly(sae: SAE, feature: int, acts: Activations, cfg: SplitConfig, first: object) -> Split:
        return split_feature(sae, feature, acts, replace(cfg, seeds=1, controls=False, least=20, children=children))

    monkeypatch.setattr("saelib.split.engine.split_feature", split_quickly)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("contexts", "method"), [("hyphen", "named"), ("automatic", "children")])
def test_a_split_prints_its_children_and_prompts(
    contexts: str,
    method: str,
    command: list[str],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt, out = "A long-standing 3-point plan", place / f"out-{contexts}"
    if contexts == "automatic":  # contexts that were found are judged as they are: a page says that nothing splits
        monkeypatch.setattr("saelib.split.yardstick.LEAST_GAIN", 2.0)
    options = ["--contexts", contexts, "--method", method, "--device", "cpu", "--prompt", prompt, "--out", str(out)]
    assert cli.main([*command, *options]) == 0
    shown = capsys.readouterr().out
    assert "verdict: " in shown and f"\n{prompt}\n" in shown and "'-'  parent" in shown
    said = f"by --method {method}: {get_method(method).about}"
    assert all((said in text) == (method != "children") for text in (shown, unescape((out / "index.html").read_text())))
    assert (out / "index.html").is_file() and load_sae(out / "sae").cfg.architecture == "jumprelu"


@pytest.mark.slow
def test_bad_input_in_a_process_of_its_own(command: list[str], place: Path) -> None:
    for change, message in (
        (["--feature", "99"], "feature must be in [0, d_sae=12); got 99: pass a feature of the SAE"),
        (
            ["--sae", "gated"],
            "architecture of an SAE must be one of standard, jumprelu, topk; got 'gated' in gated/cfg.json",
        ),
    ):
        run = [sys.executable, "-m", "saelib.cli", *command, *change]
        done = subprocess.run(run, capture_output=True, text=True, cwd=place)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].startswith(f"error: {message}") and "Traceback" not in done.stderr
