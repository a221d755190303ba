"""The verdict's error rates where the answer is known: synthetic parents, and implants in real activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from saelib.base.errors import UserError
from saelib.split import calibration
from saelib.split.engine import make_beside, make_product
from saelib.split.implants import Implant, clustered, implanted
from saelib.split.synthetic import ARCS, IMPOSTORS, make_case
from saelib.split.tokens import SPLITS
from saelib.split.verdict import BOUNDS, Bounds, Verdict

pytestmark = [pytest.mark.calibration, pytest.mark.slow]
SEEDS = range(100, 103)
"""Not the seeds of the calibration's own report."""


def rows(names: tuple[str, ...], effect: float) -> pd.DataFrame:
    return pd.DataFrame([calibration.synthetic_row(name, effect, seed) for name in names for seed in SEEDS])


def test_true_splits_are_found_at_the_stated_effect() -> None:
    found = rows(("tree", "seven clusters"), calibration.STATED_EFFECT)
    rate = found.groupby("case")["split"].mean()
    assert rate["tree"] == 1 and rate["seven clusters"] >= 0.6 and not found["false"].any()


def test_impostors_do_not_pass() -> None:
    assert not rows(IMPOSTORS, calibration.STATED_EFFECT)["false"].any()


def test_an_effect_too_small_to_see_is_not_found() -> None:
    assert not rows(("tree",), 0.5)["split"].any()


def test_a_bound_keeps_an_impostor_out() -> None:
    """What the checks above would say if a bound were loosened by hand."""
    case = make_case("loose direction", calibration.STATED_EFFECT, 100)
    product = make_product(case.work, calibration.SYNTHETIC)
    beside = make_beside(case.work, calibration.SYNTHETIC, product)
    separation, _ = case.work.separate(product.made)

    def passes(bounds: Bounds) -> bool:
        return bool(case.work.judge(product.made, separation, beside.stability, bounds).contexts[0].passed)

    assert not passes(BOUNDS) and passes(replace(BOUNDS, precision=0.1))


def test_a_case_is_what_its_seed_says_and_an_unknown_one_is_refused() -> None:
    a, b, other = (make_case("tree", 7.0, seed, n_parent=60).work.tokens.on["test"] for seed in (3, 3, 4))
    assert a.x.equal(b.x) and not a.x.equal(other.x)
    arcs = make_case("circle", 7.0, 3, n_parent=60)
    assert arcs.truly_split == (False,) * ARCS and make_case("tree", 7.0, 3, n_parent=60).truly_split == (True,) * 3
    with pytest.raises(UserError, match="case must be one of tree, seven clusters"):
        make_case("honest", 7.0, 3)


def test_an_implant_moves_some_tokens_along_one_direction() -> None:
    work = make_case("no children", 0.0, 0, n_parent=300).work
    before = work.tokens
    there, nothing = (implanted(work.original, before, Implant(delta, 0.2, 5)) for delta in (4.0, 0.0))
    for split in SPLITS:
        moved = there.tokens.on[split].x - before.on[split].x
        inside = there.labels.member[split][:, 0]
        assert torch.equal(nothing.tokens.on[split].x, before.on[split].x)
        assert np.array_equal(nothing.labels.member[split], there.labels.member[split])
        assert not moved[~torch.from_numpy(inside)].any()
        u = moved[torch.from_numpy(inside)]
        assert torch.allclose(u, u[:1].expand_as(u), atol=1e-4)
        assert abs(float(torch.nn.functional.cosine_similarity(u[0], work.original.W_dec[0].detach(), dim=0))) < 1e-5
        assert 0.1 < inside.mean() < 0.3
    sd = float((before.on["train"].x @ torch.nn.functional.normalize(u[0], dim=0)).std())
    assert float(u[0].norm()) == pytest.approx(4 * sd, rel=1e-4)


def test_documents_differ_in_how_many_tokens_are_chosen() -> None:
    document = np.repeat(np.arange(400), 20)
    chosen = clustered(document, 0.2, np.random.default_rng(0))
    each = chosen.reshape(400, 20).mean(1)
    assert chosen.mean() == pytest.approx(0.2, abs=0.05)
    assert each.std() > 2 * np.sqrt(0.2 * 0.8 / 20)  # a Beta(0.4, 1.6) has standard deviation 0.23


def test_implants_in_a_made_parent_are_found_and_their_absence_is_not() -> None:
    work = make_case("no children", 0.0, 1).work
    there, nothing = (
        calibration.implant_row(work.original, work.tokens, Implant(delta, 0.2, 0)) for delta in (8.0, 0.0)
    )
    assert there["verdict"] == Verdict.SPLIT and there["ceiling"] > 0.9
    assert nothing["verdict"] == Verdict.NOT_SPLIT and nothing["ceiling"] < 0.2


def test_the_implants_tables_by_hand() -> None:
    table = pd.DataFrame(
        {
            "delta": [0.0, 0.0, 8.0, 8.0],
            "share": [0.2] * 4,
            "seed": [0, 1, 0, 1],
            "verdict": ["not split", "not split", "split", "already told apart"],
            "ceiling": [0.1, 0.0, 0.9, 0.95],
            "S_2": [0.0, 0.1, 0.9, 0.9],
        }
    )
    summary = calibration.implants_summary(table)
    assert summary["rate"].tolist() == [0, 0.5] and summary["told_apart"].tolist() == [0, 1]
    seen = calibration.implants_seen(table)
    assert (seen["cases"].tolist(), seen["split"].tolist(), seen["rate"].tolist()) == ([1], [1], [1])


def test_the_counts_that_decide_by_hand() -> None:
    synthetic = calibration.synthetic_summary(
        pd.DataFrame(
            [
                {"case": "tree", "effect": 6.0, "parent_tokens": 1500, "split": True, "false": False},
                {"case": "tree", "effect": 6.0, "parent_tokens": 1500, "split": False, "false": False},
                {"case": "tree", "effect": 8.0, "parent_tokens": 1500, "split": True, "false": False},
                {"case": "seven clusters", "effect": 6.0, "parent_tokens": 1500, "split": True, "false": False},
                {"case": "circle", "effect": 3.0, "parent_tokens": 1500, "split": True, "false": True},
            ]
        )
    )
    assert synthetic.set_index(["case", "effect"])["rate"].to_dict() == {
        ("tree", 6.0): 0.5, ("tree", 8.0): 1.0, ("seven clusters", 6.0): 1.0, ("circle", 3.0): 1.0,
    }  # fmt: skip
    implants = pd.DataFrame(
        {"delta": [0.0, 8.0, 8.0], "share": 0.2, "verdict": ["split", "split", "not split"], "ceiling": [0.1, 0.9, 0.9]}
    )
    assert calibration.conclusion(synthetic, implants) == {
        "detected": 1, "true_cases": 2, "clusters_detected": 1, "clusters": 1, "false": 1, "impostors": 1,
        "implants_found": 1, "implants_seen": 2, "absent_split": 1, "absent": 1,
    }  # fmt: skip
