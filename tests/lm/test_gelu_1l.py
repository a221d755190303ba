"""gelu-1l by the true loading code, offline, on stand-ins with its file names, configuration keys and tensor shapes."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
import torch
from snapshot import SIZES, gelu_state, snapshot_folder, write_gelu_1l, write_tokenizer

from saelib.base import hub
from saelib.base.errors import UserError
from saelib.lm.gelu_1l import load_gelu_1l, load_gelu_folder
from saelib.lm.gelu_1l_files import REPOSITORY, TOKENIZER_REPOSITORY
from saelib.lm.hooked import hook_value, hooked_model, transformer_lens_version
from saelib.lm.model import HOOK_NAME
from saelib.split.classes import hyphen_token

SMALL = {"d_model": 32, "d_mlp": 128, "n_heads": 4, "d_head": 8, "n_ctx": 64, "d_vocab": 96}


@pytest.fixture(scope="module")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF_HOME whose cache holds the model and its tokenizer, in full size."""
    home = tmp_path_factory.mktemp("huggingface")
    write_gelu_1l(snapshot_folder(home, REPOSITORY))
    write_tokenizer(snapshot_folder(home, TOKENIZER_REPOSITORY))
    return home


@pytest.fixture
def at_home(hub_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_at_hand(monkeypatch, hub_home)


def nothing_at_hand(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "SAELIB_GELU_1L"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = write_gelu_1l(tmp_path / "small", SMALL)
    write_tokenizer(folder, SMALL["d_vocab"])
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("at_home", "empty_cache")
def test_full_size_from_a_hub_cache_offline() -> None:
    model = load_gelu_1l()
    assert (model.d_in, model.d_vocab, model.n_ctx, model.center_writing_weights) == (512, 48_262, 1024, True)
    tokens = model.to_tokens("I am a multi-millionaire")
    assert tokens[0, 0] == model.bos == 1 and hyphen_token(model) in tokens[0]
    assert model.to_str_tokens(tokens[0])[0] == "<|BOS|>" and model.eos == 0
    acts = model.activations(tokens)
    assert acts.mean(-1).abs().max() < 1e-6, "centred: no mean over d_model"
    assert model.splice(tokens)[1](acts).shape == (1, tokens.shape[1], 48_262)
    assert model.check(tokens) <= 1e-5, "transformer_lens has the same activations"


def test_processing_changes_what_it_should_and_nothing_else(small: Path) -> None:
    plain, centred = load_gelu_folder(small, small, False), load_gelu_folder(small, small, True)
    assert plain.key != centred.key and (plain.center_writing_weights, centred.center_writing_weights) == (False, True)
    tokens = torch.randint(3, 96, (3, 40), generator=torch.Generator().manual_seed(0))
    a, a_logits = plain.splice(tokens)
    b, b_logits = centred.splice(tokens)
    torch.testing.assert_close(a - a.mean(-1, keepdim=True), b, rtol=1e-4, atol=1e-5)
    assert a.mean(-1).abs().max() > 1e-3
    torch.testing.assert_close(a_logits(a).log_softmax(-1), b_logits(b).log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert centred.W_U.mean(0).abs().max() < 1e-6


def test_the_hooked_model_has_the_same_logits_and_activations(small: Path) -> None:
    tokens = torch.randint(3, 96, (3, 40), generator=torch.Generator().manual_seed(0))
    for model in (load_gelu_folder(small, small, False), load_gelu_folder(small, small, True)):
        acts, logits = model.splice(tokens)
        torch.testing.assert_close(hook_value(model.hooked, tokens, HOOK_NAME), acts, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.hooked(tokens), logits(acts), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    transformer_lens_version() >= (4, 0), reason="transformer_lens 4 has no load_and_process_state_dict"
)
def test_processing_is_that_of_transformer_lens_3(small: Path) -> None:
    model = load_gelu_folder(small, small, True)
    state = {k: v for k, v in gelu_state(SMALL).items() if not k.endswith(("mask", "IGNORE"))}
    theirs = hooked_model(state, n_ctx=SMALL["n_ctx"], act_fn="gelu", name="small")
    theirs.load_and_process_state_dict(dict(state), fold_ln=True, center_writing_weights=True, center_unembed=True)
    tokens = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.activations(tokens), hook_value(theirs, tokens, HOOK_NAME), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.W_U, theirs.W_U, rtol=1e-4, atol=1e-5)


def test_misspelt_hooks_are_refused(small: Path) -> None:
    model = load_gelu_folder(small, small)
    tokens = torch.tensor([[1, 5, 6]])
    with pytest.raises(
        UserError, match=r"hook must be one of the model's; got 'blocks\.0\.hook_mlpout': pass for example"
    ):
        hook_value(model.hooked, tokens, "blocks.0.hook_mlpout")
    assert not [name for name, point in model.hooked.hook_dict.items() if getattr(point, "fwd_hooks", None)]


def test_a_local_folder_comes_first(
    small: Path, hub_home: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    nothing_at_hand(monkeypatch, hub_home)
    monkeypatch.setenv("SAELIB_GELU_1L", str(small))
    assert load_gelu_1l().d_in == 32
    monkeypatch.setenv("SAELIB_GELU_1L", str(small / "nowhere"))
    with pytest.raises(UserError, match=r"SAELIB_GELU_1L must name a folder; got .*nowhere"):
        load_gelu_1l()


@pytest.mark.parametrize("why", ["offline", "unreachable"])
def test_nothing_at_hand_is_told_within_a_second(
    why: str, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_at_hand(monkeypatch, tmp_path)
    if why == "unreachable":
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", "https://192.0.2.1")  # an address that answers nobody
    began = time.perf_counter()
    with pytest.raises(UserError, match="gelu-1l must be at hand") as caught:
        load_gelu_1l()
    assert time.perf_counter() - began < 1.0
    message = str(caught.value)
    assert "\n" not in message and all(way in message for way in ("SAELIB_GELU_1L", "HF_HOME", "connect to"))


@pytest.mark.parametrize("through", ["HF_ENDPOINT", "HTTPS_PROXY", "all_proxy"])
def test_a_mirror_or_a_proxy_is_asked_in_the_hubs_place(through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://192.0.2.1")
    assert not hub.hub_reachable(0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(through, f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.hub_reachable()
        if through != "HF_ENDPOINT":
            monkeypatch.setenv("NO_PROXY", "192.0.2.1")
            assert not hub.hub_reachable(0.1)


def test_the_proxy_is_that_of_the_mirrors_scheme_at_any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1:8080")
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.2:3128")
    assert hub._first_hop() == ("http", "192.0.2.1", 8080)
    monkeypatch.setenv("HTTP_PROXY", "192.0.2.3:3128")
    assert hub._first_hop() == ("http", "192.0.2.3", 3128)


@pytest.mark.parametrize("endpoint", ["mirror", "ftp://mirror", "https://mirror:port"])
def test_an_endpoint_that_is_no_address_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UserError, match=f"HF_ENDPOINT must be the address of a hub; got {endpoint}"):
        hub.hub_address()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 2}, "n_layers of a gelu-1l model must be 1; got 2 in .*config.json"),
        ({"act_fn": "solu_ln"}, "act_fn of a gelu-1l model must be 'gelu'"),
        ({"normalization": "RMS"}, "normalization of a gelu-1l model must be 'LN'"),
        ({"d_model": 64}, r"embed.W_E must have the shape \(96, 64\); got \(96, 32\)"),
    ],
)
def test_another_model_is_refused(small: Path, changes: dict[str, object], message: str) -> None:
    config = json.loads((small / "config.json").read_text()) | changes
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_gelu_folder(small, small)


@pytest.mark.parametrize("name", ["config.json", "model_final.pth", "tokenizer.json"])
def test_a_missing_file_is_named(small: Path, name: str) -> None:
    (small / name).unlink()
    with pytest.raises(UserError, match=f"a gelu-1l folder must hold .*{name[-9:]}"):
        load_gelu_folder(small, small)


def test_sizes_are_those_of_gelu_1l() -> None:
    matrices = [t for n, t in gelu_state().items() if n.startswith("blocks.0") and ".W_" in n]
    assert sum(tensor.numel() for tensor in matrices) == 3_145_728  # "3.1M", as its page says, embeddings left out
    assert SIZES["d_mlp"] == 4 * SIZES["d_model"]
