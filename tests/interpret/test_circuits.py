"""Circuits on a two-head toy whose answer is known: head 0 copies the token before, head 1 half as strongly the one before it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_model import BOS, HYPHEN, A, B, D, axis, toy_model

from saelib.base.errors import UserError
from saelib.interpret.circuits import Parts, ablation, contrast_parts, direct_effect, incoming, tokens_for_share
from saelib.interpret.damage import Behaviour, behaviour, best_features, curves, damage_at, log_odds_gradient
from saelib.lm.model import OneLayerModel, load_embedded


@pytest.fixture(scope="module")
def toy() -> OneLayerModel:
    return toy_model()


READ = torch.eye(D)[3]
CONTEXTS = torch.tensor([[BOS, A, A, HYPHEN], [BOS, A, A, HYPHEN], [BOS, B, B, HYPHEN]])
IN_CLASS = np.array([True, True, False])


def at_hyphens(model: OneLayerModel, contexts: torch.Tensor = CONTEXTS, offsets: int = 3):
    return incoming(model, contexts, torch.full((len(contexts),), 3), offsets)


def contrast_of(parts: Parts) -> np.ndarray:
    """Mean over the class less mean over the others: of every component, then of the error; they add up to the whole."""
    values = np.column_stack([parts.parts, parts.error])
    return values[IN_CLASS].mean(0) - values[~IN_CLASS].mean(0)


def test_the_components_add_up_to_what_the_mlp_reads(toy: OneLayerModel) -> None:
    found = at_hyphens(toy)
    torch.testing.assert_close(found.residual_mid, toy.residual_mid(CONTEXTS)[:, 3])
    assert found.names[:3] == ("direct", "head 0, offset 0", "head 0, offset 1")
    assert found.names[4] == "head 0, offset >=3" and len(found.names) == 1 + 2 * 4
    # LayerNorm makes +-2 of +-axis 0; head 0 finds it one place back, head 1 two
    expected = torch.zeros(3, 2, 4)
    expected[:2, 0, 1] = expected[:2, 1, 2] = 2
    expected[2, 0, 1] = expected[2, 1, 2] = -2
    torch.testing.assert_close(found.mixed[..., 0], expected, atol=1e-3, rtol=0)


def test_the_components_of_the_embedded_model_add_up() -> None:
    model = load_embedded()
    tokens = torch.randint(3, 8192, (3, 128), generator=torch.Generator().manual_seed(0))
    position = torch.tensor([0, 5, 127])
    found = incoming(model, tokens, position)
    expected = model.residual_mid(tokens)[torch.arange(3), position]
    torch.testing.assert_close(found.residual_mid, expected, atol=1e-4, rtol=1e-4)


def test_the_contrast_is_two_thirds_the_previous_token_and_one_third_the_one_before(toy: OneLayerModel) -> None:
    parts = contrast_parts(toy, at_hyphens(toy), READ, IN_CLASS, points=64)
    contrast = contrast_of(parts)
    # m = +-6 axis 0 + axis 1 + axis 5, |m|^2 = 2 (36 + 1 + 1), sd = sqrt(76 / 16); the MLP gives +-6 / sd
    whole = 12 / math.sqrt(76 / 16)
    assert contrast.sum() == pytest.approx(whole, rel=1e-3)
    shares = dict(zip((*parts.names, "error"), contrast / whole, strict=True))
    assert shares["head 0, offset 1"] == pytest.approx(2 / 3, abs=2e-3)
    assert shares["head 1, offset 2"] == pytest.approx(1 / 3, abs=2e-3)
    rest = {name: s for name, s in shares.items() if name not in ("head 0, offset 1", "head 1, offset 2")}
    assert max(map(abs, rest.values())) < 2e-3  # the hyphen itself is the same in both


def test_what_all_tokens_share_has_no_part(toy: OneLayerModel) -> None:
    """Head 1 finds A everywhere; linear maps differ from token to token, but there is nothing to map."""
    contexts = torch.tensor([[BOS, A, A, HYPHEN], [BOS, A, B, HYPHEN]])
    parts = contrast_parts(toy, at_hyphens(toy, contexts), READ, np.array([True, False]), points=64)
    found = dict(zip(parts.names, parts.parts.T, strict=True))
    assert np.abs(found["head 1, offset 2"]).max() < 1e-3 and np.abs(found["direct"]).max() < 1e-5
    np.testing.assert_allclose(found["head 0, offset 1"], parts.actual, rtol=2e-3)


def test_the_linearisation_s_error_is_what_the_parts_leave_and_falls_with_the_points(toy: OneLayerModel) -> None:
    errors = []
    for points in (1, 4, 16):
        parts = contrast_parts(toy, at_hyphens(toy), READ, IN_CLASS, points)
        np.testing.assert_allclose(parts.parts.sum(1) + parts.error, parts.actual)
        errors.append(abs(contrast_of(parts)[-1]))
    # half way, at 3 axis 0: sd = sqrt(22 / 16), slope 1 / sd - 3 * 2 * 3 / 16 / sd^3 (d sd / d a = 2 a / 16 / sd), both sides
    sd = math.sqrt(22 / 16)
    slope = 1 / sd - 9 * 2 / 16 / sd**3
    assert errors[0] == pytest.approx(abs(12 / math.sqrt(76 / 16) - 12 * slope), rel=1e-3)
    assert errors[0] > errors[1] > errors[2]


def test_a_class_without_siblings_and_a_place_outside_are_refused(toy: OneLayerModel) -> None:
    with pytest.raises(UserError, match="tokens of the class and others; got 3 of 3"):
        contrast_parts(toy, at_hyphens(toy), READ, np.ones(3, dtype=bool))
    with pytest.raises(UserError, match="position must be in"):
        incoming(toy, CONTEXTS, torch.tensor([1, 2, 4]))
    with pytest.raises(UserError, match="offsets must be at least 1"):
        incoming(toy, CONTEXTS, torch.tensor([1, 2, 3]), 0)


# --- what it does ----------------------------------------------------------------------------------------------------------


def log_p(logit: float) -> float:
    """log p of A when its logit is this and the four others are 0."""
    return logit - math.log(math.exp(logit) + 4)


@pytest.mark.parametrize(("taken", "frozen", "true"), [(0.5, 1.0, 0.5 / math.sqrt(2.5 / 16)), (2.0, -2.0, -2.0)])
def test_ablation_is_predicted_with_the_last_layernorm_frozen(
    toy: OneLayerModel, taken: float, frozen: float, true: float
) -> None:
    """r = axis 0 + axis 1 has sd 1/2: the logit of A is 2. Taking 2 axis 0 leaves the length as it was, half of it does not."""
    r = (axis(0) + axis(1))[None]
    found = ablation(toy, r, taken * axis(0)[None], torch.tensor([A]))
    assert found.predicted[0] == pytest.approx(log_p(frozen) - log_p(2), abs=1e-3)
    assert found.measured[0] == pytest.approx(log_p(true) - log_p(2), abs=1e-3)
    assert float(found.changed[A]) == pytest.approx(math.exp(log_p(frozen)) - math.exp(log_p(2)), abs=1e-3)
    assert float(found.changed.sum()) == pytest.approx(0, abs=1e-6)


def test_direct_effect_is_centred_and_its_tokens_are_counted(toy: OneLayerModel) -> None:
    effect = direct_effect(toy, 3 * axis(0) + torch.ones(D))  # LayerNorm takes the mean away
    torch.testing.assert_close(effect, torch.tensor([-0.6, -0.6, 2.4, -0.6, -0.6]))
    assert tokens_for_share(torch.tensor([0.5, -3.0, 1.0, 0.5])) == 3  # 3 + 1 of 5 is 80%, with another half 90%
    assert tokens_for_share(torch.tensor([0.0, -3.0]), 0.9) == 1
    assert tokens_for_share(torch.zeros(4)) == 0
    with pytest.raises(UserError, match="share must be in"):
        tokens_for_share(torch.ones(2), 0.0)


# --- is it cleaner to act on? ----------------------------------------------------------------------------------------------


def test_behaviour_takes_what_follows_the_class_more_often_and_what_follows_it_less() -> None:
    following = np.array([7, 7, 8, 9, 8, 9, 9, -1])
    in_class = np.array([True, True, True, False, False, False, False, True])
    found = behaviour(following, in_class)
    assert found.own.tolist() == [7, 8]  # 2/3 against 0, 1/3 against 1/4
    assert found.other.tolist() == [9]
    assert behaviour(following, in_class, most=1).own.tolist() == [7]
    with pytest.raises(UserError, match="must differ in what follows"):
        behaviour(np.array([7, 7]), np.array([True, False]))


def test_curves_of_the_toy(toy: OneLayerModel) -> None:
    r = (axis(0) + axis(1)).repeat(2, 1)
    removed = torch.stack([axis(0), torch.zeros(D)])
    found = curves(toy, r, removed, Behaviour(torch.tensor([A]), torch.tensor([B])), strengths=(1.0, 2.0))
    np.testing.assert_allclose(found.fall, [[2, 4], [0, 0]], atol=1e-3)  # the logit of A falls from 2 to 0 and -2
    p = np.array([math.exp(2), 1, 1, 1, 1]) / (math.exp(2) + 4)
    assert found.kl[0, 0] == pytest.approx(float((p * np.log(p * 5)).sum()), abs=1e-3)
    assert found.kl[1].tolist() == [0, 0]
    with pytest.raises(UserError, match="strengths must ascend"):
        curves(toy, r, removed, Behaviour(torch.tensor([A]), torch.tensor([B])), strengths=(1.0, 1.0))


def test_the_gradient_of_the_log_odds_is_the_slope(toy: OneLayerModel) -> None:
    r = (axis(0) + axis(1))[None]
    g = log_odds_gradient(toy, r, Behaviour(torch.tensor([A]), torch.tensor([B])))
    # logit(a axis 0 + axis 1) = a / sqrt((2 a^2 + 2) / 16); its slope at 1 along axis 0: 2 - 1 = 1
    assert float(g[0] @ axis(0)) == pytest.approx(1.0, abs=1e-3)


def test_damage_is_read_where_the_effect_first_reaches_the_level() -> None:
    effect, damage = np.array([[0.5, 1.0, 0.2], [0.1, 0.2, 0.3]]), np.array([[0.1, 0.3, 1.0], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(damage_at(effect, damage, 0.75), [0.2, np.nan])
    np.testing.assert_allclose(damage_at(effect, damage, 0.25), [0.05, 2.5])
    with pytest.raises(UserError, match="level must be above 0"):
        damage_at(effect, damage, 0.0)


def test_the_best_feature_is_worth_much_on_the_class_and_little_on_its_siblings() -> None:
    worth = torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.0, 0.0], [-2.5, 0.1, 0.0]])
    in_class = np.array([True, True, False])
    assert best_features(worth, in_class).tolist() == [1]
    assert best_features(worth, in_class, 2).tolist() == [1, 0]
    with pytest.raises(UserError, match="count must be in"):
        best_features(worth, in_class, 4)
