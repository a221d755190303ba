"""SAEs and models by name: from faithful snapshots in a hub cache, and one line at once for what is not there.

`make test-saelens` runs the tests that need sae-lens itself.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from saelib.base import hub
from saelib.base.errors import UserError
from saelib.sae.hub_release import find_release, is_release
from saelib.sae.initial import init_random
from saelib.sae.load import load_sae
from saelib.sae.sae import SAEConfig

DIRECTORY = """\
some-release:
  config_overrides:
    model_from_pretrained_kwargs:
      center_writing_weights: true
  conversion_func: null
  model: gpt2-small
  repo_id: someone/some-saes
  saes:
  - id: blocks.8.hook_resid_pre
    path: blocks.8.hook_resid_pre
  - id: layer_1/width_16k
    path: l1/w16k
other-release:
  model: gpt2-small
  repo_id: someone/other
  saes:
  - id: 3
    path: 3
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sae-lens that may be looked up but not imported."""
    package = tmp_path / "packages" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "pretrained_saes.yaml").write_text(DIRECTORY)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "sae_lens", raising=False)
    importlib.invalidate_caches()
    return package


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with nothing in it, and no hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def test_what_looks_like_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpt2-small-res-jb/blocks.8.hook_resid_pre", "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"):
        assert is_release(name)
    for name in ("my-sae", "/abs/sae", "./my/sae", "../my/sae", "~/sae", "with space/x", str(tmp_path)):
        assert not is_release(name)
    (tmp_path / "runs" / "sae").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_release("runs/sae"), "a folder that is there is a folder"


@pytest.mark.usefixtures("directory")
def test_the_directory_is_looked_up_without_importing() -> None:
    found = find_release("some-release/layer_1/width_16k")
    assert (found.name, found.sae_id, found.repo, found.path) == (
        "some-release", "layer_1/width_16k", "someone/some-saes", "l1/w16k",
    )  # fmt: skip
    assert found.loading == {"center_writing_weights": True}
    assert find_release("other-release/3").path == "3"
    own = find_release("someone/else/folder/x")
    assert (own.name, own.sae_id, own.repo, own.path) == ("someone/else", "folder/x", "someone/else", "folder/x")


@pytest.mark.usefixtures("directory", "empty_hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some-releas/x", "release must be one of sae-lens's; got 'some-releas': did you mean some-release"),
        ("some-releas/x/y", "release must be one of sae-lens's; got 'some-releas': did you mean some-release"),
        ("nowhere/x", "release must be one of sae-lens's; got 'nowhere': mend it, or name a folder"),
        (
            "some-release/blocks.8.hook_resid_post",
            "id must be one of the 2 in release some-release; got 'blocks.8.hook_resid_post': did you mean blocks.8.",
        ),
        (
            "some-release/layer_1/width_16k",
            "some-release/layer_1/width_16k must be at hand; got someone/some-saes not in the hub cache ",
        ),
        ("someone/else/x", "someone/else/x must be at hand; got someone/else not in the hub cache "),
    ],
)
def test_what_is_not_there_is_one_line_at_once(name: str, message: str) -> None:
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_sae(name)
    assert str(caught.value).startswith(message)
    assert time.perf_counter() - began < 1


def test_without_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"got a/b, which is no folder, and no sae-lens: mend the path, or pip install"):
        load_sae("a/b")


def test_an_unreachable_hub_costs_a_second_at_most(
    directory: Path, empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that never answers: the name resolves, and the connection hangs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def hangs(*args: Any, **options: Any) -> Any:
        time.sleep(1.5)
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", hangs)
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"huggingface\.co not reachable or switched off"):
        load_sae("some-release/layer_1/width_16k")
    assert time.perf_counter() - began < 2


def test_offline_is_switched_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with hub.offline():
        assert constants.is_offline_mode() and hub.os.environ["HF_HUB_OFFLINE"] == "1"
    assert not constants.is_offline_mode() and hub.os.environ["HF_HUB_OFFLINE"] == "0"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with hub.offline(), pytest.raises(KeyError):
        raise KeyError
    assert not constants.is_offline_mode() and "HF_HUB_OFFLINE" not in hub.os.environ
    with hub.offline(False):
        assert not constants.is_offline_mode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gated"}, "an SAE must be one of standard, jumprelu, topk; got 'gated' in .*: pass an SAE"),
        ({"architecture": "temporal"}, "architecture of an SAE must be one of .*; got 'temporal'"),
        ({"architecture": "transcoder"}, "an SAE must rebuild the one activation that it reads; got a transcoder in "),
        ({"architecture": "jumprelu_skip_transcoder"}, "got a transcoder in "),
        ({"d_out": 8}, "got a transcoder in "),
        ({"metadata": {"hook_name": "blocks.0.hook_mlp_in", "hook_name_out": "blocks.0.hook_mlp_out"}}, "got a transcoder in "),
        ({"architecture": "crosscoder"}, "got a crosscoder in "),
        ({"metadata": {"hook_name": ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]}}, "got a crosscoder in "),
    ],
)  # fmt: skip
def test_kinds_that_are_not_read(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    cfg = SAEConfig(16, 32, "blocks.0.hook_mlp_out", "made", False)
    folder = init_random(cfg, torch.Generator().manual_seed(0)).save(tmp_path / "sae")
    (folder / "SHA256SUMS").unlink()
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **change}))
    (folder / "sae_weights.safetensors").write_bytes(b"not read")
    with pytest.raises(UserError, match=message):
        load_sae(folder)
