"""The embedded model: through transformer_lens, through plain arithmetic, and as its card describes it."""

from __future__ import annotations

import importlib.util
import math
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from saelib.base.cache import read_json
from saelib.base.errors import UserError
from saelib.interpret.examples import quantile_rows, top_rows
from saelib.interpret.features import logit_effects, prompt_activations, top_features
from saelib.lm.mini_lm import MiniLM, MiniLMConfig
from saelib.lm.model import EMBEDDED_FOLDER, HOOK_NAME, OneLayerModel, load_embedded
from saelib.sae.evaluate import LossEnds, loss_ends, loss_recovered, next_token_loss, sae_quality
from saelib.sae.sae import SAE, SAEConfig
from saelib.split.classes import hyphen_token


@pytest.fixture(scope="module")
def model_card(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_model_card", root / "scripts" / "write_model_card.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> OneLayerModel:
    return load_embedded()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    tokens = torch.randint(3, 8192, (4, 128), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


@pytest.mark.slow
def test_logits_and_mlp_out_equal_transformer_lens(model: OneLayerModel, tokens: torch.Tensor) -> None:
    logits, cache = model.hooked.run_with_cache(tokens)
    with torch.no_grad():
        mid = model.residual_mid(tokens)
        mlp_out = model.mlp_out(mid)
        torch.testing.assert_close(mid, cache["blocks.0.hook_resid_mid"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mlp_out, cache[HOOK_NAME], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(model.logits(mid + mlp_out), logits, rtol=1e-4, atol=1e-3)
    assert model.check_against_hooked(tokens) <= 1e-5


def test_training_form_is_the_same_model(model: OneLayerModel, tokens: torch.Tensor) -> None:
    trainable = MiniLM(model.cfg, torch.Generator().manual_seed(0))
    assert set(trainable.tensors()) == set(model.weights)
    for name, tensor in trainable.tensors().items():
        tensor.copy_(model.weights[name])
    with torch.no_grad():
        mid = model.residual_mid(tokens)
        expected = model.logits(mid + model.mlp_out(mid))
        torch.testing.assert_close(
            trainable.residual(tokens) @ trainable["unembed.W_U"], expected, rtol=1e-4, atol=1e-3
        )


def test_weights_are_a_function_of_the_seed() -> None:
    cfg = MiniLMConfig(d_model=16, n_heads=2, d_vocab=32)
    first, again, other = (MiniLM(cfg, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first["embed.W_E"], again["embed.W_E"]) and not torch.equal(
        first["embed.W_E"], other["embed.W_E"]
    )


def test_tokens_round_trip_and_special_tokens_have_names(model: OneLayerModel) -> None:
    tokens = model.to_tokens("A 3-point landing")
    words = model.to_str_tokens(tokens[0])
    assert words[0] == "<|bos|>" and "".join(words[1:]) == "A 3-point landing" and "-" in words and " 3" in words
    assert words.index("-") == tokens[0].tolist().index(hyphen_token(model))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_incomplete_model_folder_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mini"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"embedded model must be complete; got no .*{name}"):
        load_embedded(folder)


@pytest.mark.slow
def test_card_holds_when_measured_again_on_a_sample(
    model_card: ModuleType, model: OneLayerModel, study_text: list[np.ndarray]
) -> None:
    card = read_json(EMBEDDED_FOLDER / "card.json")
    again = model_card.measure_sample(model, study_text)
    for name, value in card["sample"].items():
        assert again[name] == pytest.approx(value, abs=2e-3), name
    assert again["loss_zero_ablated"] - again["validation_loss"] > 0.25, "the MLP matters"
    assert card["rise_zero_ablated"] > 0.25 and card["rise_mean_ablated"] > 0.25
    assert card["validation_loss"] < card["bigram_loss"] < card["unigram_loss"]
    assert card["training_tokens"] >= 13e6


def test_count_models_by_hand(model_card: ModuleType) -> None:
    counts = model_card.CountModel((np.array([0, 0, 1]), np.array([1, 1, 0])), 2)
    assert counts.unigram.tolist() == pytest.approx([2 / 5, 3 / 5])
    assert counts.unigram_loss((np.array([0]), np.array([1]))) == pytest.approx(-np.log(3 / 5))
    # P(1 | 0) = (2 + 1 * 3/5) / (2 + 1)
    assert counts.bigram_loss((np.array([0]), np.array([1])), k=1.0) == pytest.approx(-np.log(2.6 / 3))


def test_loss_recovered_by_hand() -> None:
    ends = LossEnds(clean=3.0, zero=5.0)
    assert loss_recovered(3.5, ends) == 0.75  # 1.5 of the 2 nats that zeros cost
    assert loss_recovered(3.0, ends) == 1 and loss_recovered(5.0, ends) == 0
    assert loss_recovered(7.0, ends) == -1, "worse than zeros"
    assert loss_recovered(350.0, LossEnds(300.0, 500.0)) == 0.75, "sums over the same predictions do as well"
    assert math.isnan(loss_recovered(4.0, LossEnds(4.0, 4.0))), "where zeros cost nothing there is nothing to recover"


def made_sae(d_sae: int, d_in: int) -> SAE:
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, hook_name=HOOK_NAME, model_name="m", center_writing_weights=False))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    return sae


def test_quality_of_a_perfect_and_of_an_empty_sae(model: OneLayerModel, tokens: torch.Tensor, tmp_path: Path) -> None:
    from saelib.acts.store import ActivationStore

    d = model.cfg.d_model
    store = ActivationStore(tmp_path, {"key": "made", "n_contexts": 4, "d_in": d}, tokens.numpy().astype(np.uint16))
    perfect = made_sae(2 * d, d)  # x = relu(x) - relu(-x)
    with torch.no_grad():
        perfect.W_enc[:, :d], perfect.W_enc[:, d:] = torch.eye(d), -torch.eye(d)
        perfect.W_dec[:d], perfect.W_dec[d:] = torch.eye(d), -torch.eye(d)
    quality = sae_quality(perfect, model, store, 4)
    assert quality.l0 == pytest.approx(d, abs=0.5) and quality.fvu < 1e-10
    assert quality.loss_recovered == pytest.approx(1, abs=1e-4) and quality.tokens == 4 * 127
    empty = sae_quality(made_sae(4, d), model, store, 4)
    assert empty.l0 == 0 and empty.fvu >= 1 and empty.loss_recovered == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        mid = model.residual_mid(tokens)
        clean = next_token_loss(model, tokens, mid, model.mlp_out(mid))[:, 1:].mean().item()
    assert quality.loss_clean == pytest.approx(clean, rel=1e-5)
    assert sae_quality(perfect, model, store, 4, loss_ends(model, store, 4)) == quality


def test_logits_at_a_few_positions_are_those_of_all(model: OneLayerModel, tokens: torch.Tensor) -> None:
    acts, logits = model.splice(tokens)
    at = (torch.tensor([0, 1]), torch.tensor([5, 9]))
    torch.testing.assert_close(logits(acts, at), logits(acts)[at])


def test_logit_effects_rank_the_unembedding(model: OneLayerModel) -> None:
    direction = model.W_U[:, 500] / model.W_U[:, 500].norm()
    effect = direction @ model.W_U
    frame = logit_effects(direction, model, k=5)
    assert frame["top_logit"].iloc[0] == pytest.approx(effect.max().item())
    assert frame["bottom_logit"].iloc[0] == pytest.approx(effect.min().item())
    assert frame["top_logit"].is_monotonic_decreasing and frame["bottom_logit"].is_monotonic_increasing


def test_top_rows_and_quantile_rows() -> None:
    acts = np.array([0.0, 3.0, 0.0, 1.0, 2.0], dtype=np.float32)
    assert top_rows(acts, 10).tolist() == [1, 4, 3]
    assert top_rows(acts, 2).tolist() == [1, 4]
    assert quantile_rows(acts, 3).tolist() == [1, 4, 3]
    assert quantile_rows(np.zeros(3, dtype=np.float32), 3).tolist() == []


def test_top_features_and_prompt_activations(model: OneLayerModel) -> None:
    frame = top_features(torch.tensor([0.0, 4.0, 1.0, 0.0]), k=3)
    assert frame["feature"].tolist() == [1, 2] and frame["margin"].tolist() == [0.75, 1.0]
    sae = made_sae(2, model.cfg.d_model)
    with torch.no_grad():
        sae.b_enc[1] = 2.0
        sae.W_dec[1, 0] = 3.0
    words, acts = prompt_activations(sae, model, "long-standing")
    assert words[0] == "<|bos|>" and acts[:, 1].tolist() == [6.0] * len(words)  # activation times the row's norm
