"""The check on three prompts, on SAEs built by hand."""

from __future__ import annotations

import pytest
import torch

from saelib.lm.model import LanguageModel, load_embedded
from saelib.sae.sae import SAE, SAEConfig
from saelib.split.classes import CLASSES, PROMPTS
from saelib.study import prompt_check as module
from saelib.study.prompt_check import prompt_check

D_IN = 256


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_embedded()


def made_sae(firing: dict[int, list[int]], strength: float = 1.0) -> SAE:
    """Feature j fires on the axes `firing[j]`; decoder rows have unit norm."""
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=8, hook_name="h", model_name="m", center_writing_weights=False))
    with torch.no_grad():
        sae.W_enc.zero_(), sae.b_enc.fill_(-1.0), sae.W_dec.zero_(), sae.b_dec.zero_()
        sae.W_dec[:, 0] = 1.0
        for j, axes in firing.items():
            sae.W_enc[axes, j] = strength
    return sae


@pytest.fixture
def on_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hyphen of prompt c lies along axis c."""
    monkeypatch.setattr(module, "prompt_hyphens", lambda model: torch.eye(D_IN)[: len(PROMPTS)] * 2)


@pytest.mark.usefixtures("on_axes")
def test_a_feature_of_its_own_is_alone_and_silent_elsewhere(model: LanguageModel) -> None:
    wins = prompt_check(made_sae({4: [0], 2: [1], 7: [2]}), model)
    assert [(win.context_class, win.feature, win.own) for win in wins] == list(
        zip(CLASSES, (4, 2, 7), (True,) * 3, strict=True)
    )
    assert wins[0].activation == 1.0 and wins[0].runner_up == 0.0

    shared = prompt_check(made_sae({3: [0, 1], 7: [2]}), model)
    assert [win.own for win in shared] == [False, False, True] and not shared[0].silent

    sae = made_sae({4: [0], 5: [0], 7: [2]})
    with torch.no_grad():
        sae.W_enc[0, 5] = 0.75  # 0.5 against 1: just not close
    assert [win.own for win in prompt_check(sae, model)] == [True, False, True]
    with torch.no_grad():
        sae.W_enc[0, 5] = 0.8
    assert [win.own for win in prompt_check(sae, model)] == [False, False, True], (
        "close, and nothing fires on the second"
    )


def test_the_prompts_hold_their_hyphens(model: LanguageModel) -> None:
    x = module.prompt_hyphens(model)
    assert x.shape == (3, D_IN) and x.abs().sum() > 0
    tokens = model.to_tokens(PROMPTS["number"])
    position = model.to_str_tokens(tokens[0].numpy()).index("-")
    torch.testing.assert_close(x[1], model.activations(tokens)[0, position])
