"""Contrasts and means over draws of documents, rank correlation, and the ways of acting, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_split import hyphen_sae
from toy_model import D, axis, toy_model

from saelib.acts.activations import harvest_documents
from saelib.base.errors import UserError
from saelib.interpret.circuits import Incoming, ablation
from saelib.lm.model import load_embedded
from saelib.report.study_figures import previous_token_figure
from saelib.sae.sae import SAE, SAEConfig
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.yardstick import Documents
from saelib.study import circuit_answer, circuits
from saelib.study.circuit_cases import CaseTokens, feature_way, neuron_way, rotation_way, worth, written
from saelib.study.circuit_tables import PREVIOUS, Case, contrast_draws, mean_draws, rank_correlation

pytestmark = pytest.mark.slow

NAN = math.nan


def test_means_and_contrasts_of_drawn_documents_are_those_of_their_tokens() -> None:
    """Documents 0 and 1; the draws hold both, the first twice, the second twice."""
    documents = Documents(np.array([0, 0, 1, 1]), np.array([[1.0, 1], [2, 0], [0, 2]]))
    values = np.array([[1.0], [5.0], [3.0], [7.0]])
    in_class = np.array([True, False, True, False])
    assert contrast_draws(documents, values, in_class)[:, 0].tolist() == [2 - 6, 1 - 5, 3 - 7]
    assert mean_draws(documents, values, in_class)[:, 0].tolist() == [2, 1, 3]
    alone = mean_draws(documents, values, np.array([True, True, False, False]))[:, 0]
    assert alone[:2].tolist() == [3, 3] and math.isnan(alone[2])


def test_rank_correlation_leaves_out_what_is_not_known_and_says_what_could_be_seen() -> None:
    found = rank_correlation(np.array([1.0, 2, 3, 4, 5, NAN]), np.array([1.0, 4, 9, 16, NAN, 36]))
    assert (found["value"], found["n"]) == (1.0, 4)
    rng = np.random.default_rng(0)
    many = rank_correlation(rng.normal(size=60), rng.normal(size=60))
    assert many["smallest"] == pytest.approx(2.8016 / math.sqrt(57)) and 0.36 < many["smallest"] < 0.38
    assert many["low"] < 0 < many["high"]
    assert math.isnan(rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]))["value"])
    assert math.isnan(rank_correlation(np.arange(9.0), np.ones(9))["value"])


# --- ways of acting ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sae() -> SAE:
    """Feature j reads axis j and writes axis j + 1."""
    out = SAE(SAEConfig(4, 3, "hook", "model"))
    with torch.no_grad():
        for j in range(3):
            out.W_enc[j, j] = 2
            out.W_dec[j, j + 1] = 1
    return out


X = torch.tensor([[1.0, 0, 3, 0], [0, -1, 0, 5]])


def tokens_of(x: torch.Tensor, mid: torch.Tensor | None = None) -> CaseTokens:
    n, d = x.shape
    nothing = Incoming(x, torch.zeros(n, 1, 2, 1), torch.zeros(1, 1, d))
    none = np.zeros(n, dtype=np.int64)
    return CaseTokens(nothing, x if mid is None else mid, x, np.zeros(n, dtype=bool), none, none)


def test_what_features_write_is_their_activation_times_their_row(sae: SAE) -> None:
    torch.testing.assert_close(written(sae, torch.tensor([0, 2]), X), torch.tensor([[0, 2.0, 0, 6], [0, 0, 0, 0]]))
    one, two = (feature_way("name", "child", sae, torch.tensor(numbers)) for numbers in ([2], [0, 2]))
    assert one.read is not None and one.read.tolist() == [0, 0, 2, 0] and two.read is None
    torch.testing.assert_close(one.removed(tokens_of(X)), torch.tensor([[0, 0, 0, 6.0], [0, 0, 0, 0]]))


def test_a_rotation_takes_the_part_along_one_direction_of_the_span(sae: SAE) -> None:
    children = torch.tensor([0, 2])
    way = rotation_way(sae, children, seed=1)
    removed = way.removed(tokens_of(X))[0]
    g = torch.randn(2, generator=torch.Generator().manual_seed(1))
    r = torch.tensor([0, g[0], 0, g[1]]) / g.norm()
    torch.testing.assert_close(removed, (2 * r[1] + 6 * r[3]) * r)
    assert way.read is not None
    torch.testing.assert_close(way.read, torch.tensor([2 * g[0], 0, 2 * g[1], 0]))


def test_neurons_are_taken_with_what_they_write() -> None:
    """The toy's neuron 0 passes axis 0 of the normalised stream on, 20 more than it is, to dimension 3."""
    model = toy_model()
    mid = (axis(0) + axis(1))[None]  # squared length 4: LayerNorm doubles it
    found = neuron_way(model, torch.tensor([0])).removed(tokens_of(torch.zeros(1, D), mid))
    assert found[0, 3].item() == pytest.approx(22, abs=1e-3) and found[0].count_nonzero() == 1
    both = neuron_way(model, torch.tensor([0, 1]))
    assert (both.size, both.name) == (2, "2 neurons")


def test_worth_is_activation_times_slope() -> None:
    acts, rows = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, -1]])
    gradient = torch.tensor([[3.0, 1], [1, 4]])
    assert worth(acts, rows, gradient).tolist() == [[6, 0], [0, -4]]


# --- a whole case ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case() -> Case:
    """The hyphen of made-up text, in which a number is followed by other words than the rest."""
    rng = np.random.default_rng(0)
    after = {"3": ["point", "day"], "7": ["point", "day"], "long": ["term", "lived"], "well": ["known", "made"]}

    def line() -> str:
        word = str(rng.choice(list(after)))
        return f"The {word}-{rng.choice(after[word])} plan number {rng.integers(99)} was read."

    acts = harvest_documents(load_embedded(), [" ".join(line() for _ in range(40)) for _ in range(70)])
    sae = hyphen_sae(acts)
    cfg = SplitConfig(contexts="hyphen", K=6, seeds=1, controls=False, children=ChildrenConfig(n_steps=150))
    split = split_feature(sae, 3, acts, cfg)
    number = [context.name for context in split.contexts].index("number")
    return Case(split, number, sae, most=40)


def test_a_case_takes_tokens_of_both_sides_and_reads_the_model_s_own_activations(case: Case) -> None:
    assert case.test.in_class.sum() == 40 and (~case.test.in_class).sum() == 40
    of = {case.split.acts.model.vocabulary[i].strip() for i in case.behaviour.own.tolist()}
    assert of & {"point", "day"} and not of & {"term", "known"}
    rows = case.split.tokens.on["test"]
    x = rows.x[torch.cdist(case.test.x, rows.x).argmin(1)]  # bf16 in the store
    assert float((case.test.x - x).norm() / x.norm()) < 0.01


def test_shares_of_the_contrast_with_the_error_add_up_to_one(case: Case) -> None:
    table = case.sources()
    assert {"parent", "child", "wide", "rotation"} == set(table["family"])
    for _, part in table.groupby("object"):
        total = part.loc[part["component"] != PREVIOUS, "share"].sum()
        assert total == pytest.approx(1, abs=1e-4)
    previous = table[table["component"].str.endswith("offset 1")].groupby("object")["share"].sum()
    named = table[table["component"] == PREVIOUS].set_index("object")["share"]
    pd.testing.assert_series_equal(previous, named.loc[previous.index], check_names=False)


def test_what_leaves_the_residual_s_length_as_it_was_is_taken_away_as_predicted(case: Case) -> None:
    """A little, at right angles to the residual stream: there freezing the last LayerNorm leaves nothing out."""
    table = case.effects()
    assert set(table["side"]) == {"class", "siblings"} and (table["tokens_90"] > 0).all()
    assert set(table["family"]) == {"parent", "child", "wide"}
    removed, r = 0.01 * case.ways[0].removed(case.test), case.test.residual
    centred = torch.nn.functional.normalize(r - r.mean(1, keepdim=True), dim=1)
    removed -= (removed * centred).sum(1, keepdim=True) * centred
    found = ablation(case.model, case.test.residual, removed, torch.from_numpy(case.test.next))
    assert np.corrcoef(found.predicted, found.measured)[0, 1] > 0.99
    parent = table[(table["family"] == "parent") & (table["side"] == "class")].iloc[0]
    assert parent["low"] <= parent["measured"] <= parent["high"] and parent["measured"] < 0


def test_damage_is_compared_at_one_level_with_the_parent_as_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    odds = case.odds("select")
    assert not math.isfinite(case.level) or 0 < case.level <= odds.value / 2
    way = next(way for way in case.ways if way.family == "parent")
    reach = float(case.curves(way).fall[case.test.in_class].mean(0).max())
    monkeypatch.setitem(case.__dict__, "level", max(reach, 0.02) / 2)
    table = circuit_answer.damage_table(case)
    assert set(table["family"]) == {"parent", "child", "wide", "neuron", "rotation"} and len(table) == len(case.ways)
    parent = table[table["family"] == "parent"].iloc[0]
    if math.isfinite(parent["damage"]):
        assert parent["ratio"] == 1 and parent["damage"] > 0
    assert set(case.damage(("parent", "child"))["family"]) == {"parent", "child"}
    effect = case.curves(way)
    at = np.interp(parent["strength"], (0, *effect.strengths), (0, *effect.fall[case.test.in_class].mean(0)))
    assert at == pytest.approx(case.level)  # at that multiple of its ablation the parent has the effect
    monkeypatch.setitem(case.__dict__, "level", NAN)
    assert case.damage().empty and "strength" in circuit_answer.damage_table(case)


# --- the answer ---------------------------------------------------------------------------------------------------------------


def summary(saving: list[float]) -> pd.DataFrame:
    sources = pd.DataFrame(
        [
            {"context": "number", "object": f"{family} 1", "family": family, "component": component, "share": share,
             "low": share - spread, "high": share + spread, "amount": amount}
            for family, share, spread in (("parent", -0.4, 0.6), ("child", 0.8, 0.1))
            for component, amount in (
                ("direct", -0.03), (PREVIOUS, 0.008), ("head 0, offset 1", 0.008), ("linearisation error", 0.002),
            )
        ]
    )  # fmt: skip
    effects = pd.DataFrame(
        [
            {"context": "number", "object": "child 1", "family": "child", "side": side, "measured": measured, "predicted": -0.4,
             "low": measured - spread, "high": measured + spread}
            for side, measured, spread in (("class", -0.5, 0.1), ("siblings", 0.0, 0.0))
        ]
    )  # fmt: skip
    damage = pd.DataFrame(
        [
            {"context": "number", "object": f"{family} {i}", "family": family, "ratio": ratio, "ratio_low": low,
             "ratio_high": high, "strength": strength}
            for i, (family, ratio, low, high, strength) in enumerate(
                (("parent", 1.0, 1.0, 1.0, 3.21), ("child", 0.25, 0.2, 0.5, 0.9), ("wide", 4e-5, 0.0, 1e-4, 1.0),
                 ("neuron", 0.04, 0.02, 0.061, 1.5), ("rotation", 0.3, 0.2, 0.4, 2.0), ("rotation", NAN, NAN, NAN, NAN))
            )
        ]
    )  # fmt: skip
    many = pd.DataFrame({"added_2": np.arange(len(saving), dtype=float), "saving": saving})
    return circuit_answer.summary_table(sources, effects, damage, many)


class Levelled(Case):
    def __init__(self, level: float) -> None:
        self.level = level


def test_the_first_context_that_can_be_asked_is_taken_and_one_without_tokens_is_passed_over() -> None:
    levels = {0: None, 1: NAN, 2: NAN, 3: 0.4, 4: 0.5}
    made: dict[int, Case] = {}

    def make(context: int) -> Case:
        if (level := levels[context]) is None:
            raise UserError("a class must have tokens", 0, "choose another")
        made[context] = Levelled(level)
        return made[context]

    assert circuits.first_asked(make, (0, 1, 3, 4)) is made[3]
    assert 4 not in made
    assert circuits.first_asked(make, (0, 2, 1)) is made[2]
    with pytest.raises(UserError, match="must have tokens"):
        circuits.first_asked(make, (0,))


def test_the_summary_holds_a_row_a_number() -> None:
    table = summary([0.1, 0.2, 0.3, 0.4, 0.5])
    assert table["question"].value_counts().to_dict() == {"action": 6, "source": 4, "effect": 4, "prediction": 3}
    assert list(table.columns[:9]) == ["question", "context", "object", "family", "what", "value", "low", "high", "n"]
    source = table[(table["family"] == "parent") & (table["what"] == PREVIOUS)].iloc[0]
    assert source["amount"] == 0.008 and source["contrast"] == pytest.approx(-0.02)
    assert table.loc[table["question"] == "action", "strength"].tolist()[:2] == [3.21, 0.9]


def test_the_answer_is_made_of_the_summary_s_numbers() -> None:
    text = circuit_answer.answer(summary([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert text.startswith(
        "Damage to sibling classes at equal effect, as a share of the parent's: number: the best child 0.25 (95% 0.20 to 0.50), "
        "the best wide feature below 0.005, the best neuron 0.04 (95% 0.02 to 0.061), 1 of 2 random directions get there (0.30); "
        "the parent gets there at 3.2 times its ablation. Over 5 parents the best child does 0.70 (95% 0.50 to 0.90) of the "
        "parent's damage (median)"
    )
    assert "rank correlation 1.00 (95%" in text
    assert (
        "carries: number, parent 0.008 of -0.02 (too uncertain for a share); number, child 0.80 (95% 0.70 to 0.90). "
        in text
    )
    assert text.endswith("by: number, child -0.50 (95% -0.60 to -0.40) and 0.")
    few = circuit_answer.answer(summary([0.1, NAN]))
    assert "Only 1 parents could be compared" in few


def test_the_picture_holds_what_is_acted_on_and_the_children_of_largest_contrast() -> None:
    rows = [
        {"context": "number", "object": name, "family": family, "component": PREVIOUS, "share": 0.5, "low": 0.4, "high": 0.6,
         "amount": amount}
        for name, family, amount in (
            ("parent", "parent", 0.01), ("child 1", "child", -3.0), ("child 2", "child", 0.1), ("child 3", "child", 2.0),
        )
    ]  # fmt: skip
    figure = previous_token_figure(pd.DataFrame(rows), children=2)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == ["child 3", "child 1", "parent"]
