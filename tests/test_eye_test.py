"""The mechanical eye test on SAEs built by hand: one that splits, and ones that must not pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from saelib.lm.model import LanguageModel, load_embedded
from saelib.sae.sae import SAE, SAEConfig
from saelib.split.classes import CLASSES
from saelib.study import eye_test as module
from saelib.study.eye_test import HyphenSet, choose_children, eye_test, f1_table, overall

D_IN = 256


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_embedded()


def hyphen_set(n: int = 60, classes: int = 3) -> HyphenSet:
    """Class c lies along axis c; its true next tokens are 100 + c."""
    label = np.arange(n * classes) % classes
    x = torch.zeros(n * classes, D_IN)
    x[torch.arange(n * classes), torch.from_numpy(label)] = 2.0
    return HyphenSet(x, label.astype(np.int8), 100 + label, np.arange(n * classes))


def made_sae(firing: dict[int, list[int]], model: LanguageModel) -> SAE:
    """Feature j fires on the axes `firing[j]`; its decoder row points along the unembedding of its first class."""
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=8, hook_name="h", model_name="m", center_writing_weights=False))
    with torch.no_grad():
        sae.W_enc.zero_(), sae.b_enc.fill_(-1.0), sae.W_dec.zero_(), sae.b_dec.zero_()
        for j, axes in firing.items():
            sae.W_enc[axes, j] = 1.0
            direction = model.W_U[:, 100 + axes[0]]
            sae.W_dec[j] = direction / direction.norm()
    return sae


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's prompts behave like their class."""
    axes = {name: torch.eye(D_IN)[c] * 2 for c, name in enumerate(CLASSES)}
    monkeypatch.setattr(module, "prompt_hyphens", lambda model: axes)


@pytest.mark.usefixtures("prompts")
def test_one_clean_feature_a_class_is_a_split(model: LanguageModel) -> None:
    result = eye_test(made_sae({4: [0], 2: [1], 7: [2]}, model), model, hyphen_set(), hyphen_set())
    assert result.verdict == "yes"
    assert [row.child for row in result.classes] == [4, 2, 7]
    assert all(row.win_rate == 1 and row.fires_elsewhere == 0 and row.f1 == 1 for row in result.classes)
    assert list(result.frame()["context_class"]) == list(CLASSES)


@pytest.mark.usefixtures("prompts")
def test_one_feature_for_all_is_no_split(model: LanguageModel) -> None:
    result = eye_test(made_sae({3: [0, 1, 2]}, model), model, hyphen_set(), hyphen_set())
    assert result.verdict == "no"


@pytest.mark.usefixtures("prompts")
def test_a_missing_class_is_partial(model: LanguageModel) -> None:
    result = eye_test(made_sae({4: [0], 2: [1]}, model), model, hyphen_set(), hyphen_set())
    assert result.verdict == "2/3"


@pytest.mark.usefixtures("prompts")
def test_words_without_the_prompt_do_not_pass(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = {name: torch.zeros(D_IN) for name in CLASSES}
    monkeypatch.setattr(module, "prompt_hyphens", lambda model: silent)
    result = eye_test(made_sae({4: [0], 2: [1], 7: [2]}, model), model, hyphen_set(), hyphen_set())
    assert all(row.words_pass and not row.prompts_pass for row in result.classes) and result.verdict == "no"


@pytest.mark.usefixtures("prompts")
def test_a_close_rival_on_the_prompt_fails_it(model: LanguageModel) -> None:
    sae = made_sae({4: [0], 2: [1], 7: [2], 5: [0]}, model)
    with torch.no_grad():
        sae.b_enc[5] = -1.4  # active at 0.6 where the child is at 1.0
    row = eye_test(sae, model, hyphen_set(), hyphen_set()).classes[0]
    assert row.prompt_top and not row.prompt_alone and not row.passed


@pytest.mark.usefixtures("prompts")
def test_a_child_that_lowers_its_own_words_fails(model: LanguageModel) -> None:
    sae = made_sae({4: [0], 2: [1], 7: [2]}, model)
    with torch.no_grad():
        sae.W_dec[4] *= -1
    row = eye_test(sae, model, hyphen_set(), hyphen_set()).classes[0]
    assert row.boost < 0 and not row.words_pass


@pytest.mark.usefixtures("prompts")
def test_too_few_or_no_test_tokens_are_undecided(model: LanguageModel) -> None:
    sae = made_sae({4: [0], 2: [1], 7: [2]}, model)
    few = hyphen_set(n=10)
    assert eye_test(sae, model, hyphen_set(), few).verdict == "undecided"
    without = hyphen_set(classes=2)
    assert eye_test(sae, model, hyphen_set(), without).verdict == "undecided"


def test_children_are_chosen_on_the_select_split_only(model: LanguageModel) -> None:
    select = hyphen_set()
    swapped = dataclasses.replace(select, label=(select.label + 1) % 3)
    sae = made_sae({4: [0], 2: [1], 7: [2]}, model)
    assert choose_children(sae, select) == [4, 2, 7]
    assert choose_children(sae, swapped) == [7, 4, 2]


def test_f1_by_hand() -> None:
    acts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    table = f1_table(acts, np.array([0, 0, 1, 1]))
    assert table[0].tolist() == pytest.approx([2 * 2 / (3 + 2), 0.0])
    assert table[1].tolist() == pytest.approx([2 * 1 / (3 + 2), 1.0])


@pytest.mark.parametrize(
    ("passed", "verdict"),
    [([True] * 3, "yes"), ([True, False, True], "2/3"), ([False] * 3, "no"), ([True, None, True], "undecided")],
)
def test_overall(passed: list[bool | None], verdict: str) -> None:
    assert overall(passed) == verdict
