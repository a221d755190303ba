"""What a feature does for the model, and what an SAE keeps of the hyphens, by hand on a model whose logits are linear.

p(A) = 2^x0 / (2^x0 + 2^x1 + 3). A hyphen after A has x = (3, 0), one after B has (0, 3), so the next token is A (or B) with
probability 8/12, with 4/8 where x0 is 2 in place of 3, with 1/5 where x is 0; the other of the two with 1/12 and 1/8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE, SAEConfig
from saelib.study import effects, study
from saelib.study.profiles import Profile, get_profile

BOS, HYPHEN, A, B, OTHER = range(5)
HYPHENS = ((0, 60, A, A), (0, 90, B, B), (1, 10, A, B), (1, 30, A, A))
"""Context, position, the token before and the one after."""
ROWS = np.array([context * POSITIONS + position - 1 for context, position, _, _ in HYPHENS])
COUNT, NUMBER = 0, 1


class LinearModel(LanguageModel):
    """x tells which token stood before a hyphen; logits are x ln 2 on A and B, 0 on the other three tokens."""

    name = key = "linear"
    hook_name, center_writing_weights = "made.hook", False
    n_ctx = property(lambda self: POSITIONS + 1)
    d_vocab = property(lambda self: 5)
    d_in = property(lambda self: 2)
    W_U = property(lambda self: math.log(2) * torch.eye(2, 5).roll(A, dims=1))

    def activations(self, tokens: Tensor) -> Tensor:
        before = tokens.roll(1, dims=1)
        hyphen = tokens == HYPHEN
        return torch.stack([3.0 * (hyphen & (before == token)) for token in (A, B)], dim=-1)

    def splice(self, tokens: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        return self.activations(tokens), lambda x, at=None: (x if at is None else x[at]) @ self.W_U


def made(W_enc: list[list[float]], W_dec: list[list[float]]) -> SAE:
    sae = SAE(SAEConfig(2, len(W_dec), "made.hook", "linear", False)).requires_grad_(False)
    sae.W_enc.copy_(torch.tensor(W_enc))
    sae.W_dec.copy_(torch.tensor(W_dec))
    return sae


EXACT = made([[1, 0], [0, 1]], [[1, 0], [0, 1]])
TWO_EACH = made([[1, 0, 4, 0], [0, 1, 0, 4]], [[2 / 3, 0], [0, 2 / 3], [1 / 12, 0], [0, 1 / 12]])
"""Features 0 and 1 write 2 of the 3; features 2 and 3 are on at 12, the larger activation, and write the other 1."""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Two of the three hyphens after A are looked at, and the only one after B; no compound."""
    contexts = np.full((2, POSITIONS + 1), OTHER, dtype=np.uint16)
    contexts[:, 0] = BOS
    for context, position, before, after in HYPHENS:
        contexts[context, position - 1 : position + 2] = before, HYPHEN, after
    model = LinearModel()
    x = model.activations(torch.from_numpy(contexts.astype(np.int64)))[:, 1:].reshape(-1, 2)
    (tmp_path / "acts.bin").write_bytes(x.bfloat16().view(torch.int16).numpy().tobytes())
    store = ActivationStore(tmp_path, {"key": "linear", "d_in": 2, "n_contexts": 2}, contexts)
    labels = np.array([COUNT, NUMBER, COUNT, COUNT], dtype=np.int8)
    monkeypatch.setattr(study, "language_model", lambda profile: model)
    monkeypatch.setattr(study, "activations", lambda profile, split: store)
    monkeypatch.setattr(study, "joining_hyphens", lambda profile, split: (ROWS, labels))
    return replace(get_profile("smoke"), causal_tokens=2)


def test_taking_a_feature_away_lowers_its_own_classs_next_tokens(profile: Profile) -> None:
    """Feature 2 gone leaves x0 = 2 after A: its next A falls from 8/12 to 4/8, its next B rises from 1/12 to 1/8."""
    found = effects.causal_effects(profile, TWO_EACH, [3, 2])
    up_and_down = (math.log(3 / 4) + math.log(3 / 2)) / 2
    np.testing.assert_allclose(found[:, :2], [[0, math.log(3 / 4)], [up_and_down, 0]], atol=1e-6)
    assert np.isnan(found[:, 2]).all()  # no compound
    table = effects.causal_table(profile, TWO_EACH, {"count": 2})
    assert list(table.index) == ["count: feature 2"] and table.loc["count: feature 2", "on count"] == found[1, 0]


def test_what_saes_keep_at_the_smallest_l0_by_hand(profile: Profile) -> None:
    """On one hyphen after A and one after B. One feature a token: `TWO_EACH` keeps what writes most, 2 of the 3."""
    table = effects.usefulness(replace(profile, causal_tokens=1), {"exact": EXACT, "two each": TWO_EACH})
    assert table["l0"].tolist() == [1, 2] and table["k"].tolist() == [1, 1] and table["tokens"].tolist() == [2, 2]
    np.testing.assert_allclose(table["fvu"], [0, 2 / 9], atol=1e-6)  # 1 of variance 4.5 a token
    zero, clean, two = (-math.log(p) for p in (1 / 5, 8 / 12, 4 / 8))
    np.testing.assert_allclose(table["loss_recovered"], [1, (zero - two) / (zero - clean)], atol=1e-6)


def test_an_sae_alone_keeps_all_its_features(profile: Profile) -> None:
    alone = effects.usefulness(profile, {"two each": TWO_EACH}).loc["two each"]
    assert alone["k"] == 2 and alone["tokens"] == 4 and alone["fvu"] == pytest.approx(0, abs=1e-9)
    assert alone["loss_recovered"] == pytest.approx(1)
