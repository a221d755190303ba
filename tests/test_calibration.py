"""The verdict's error rates on synthetic features with known answers, and that every bound is needed for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saelib.split import calibration
from saelib.split.score import BOUNDS
from saelib.split.synthetic import IMPOSTORS, make_case

pytestmark = pytest.mark.calibration
SEEDS = range(100, 106)
"""Not the seeds of the calibration's own report."""


def test_at_least_ninety_percent_of_true_splits_are_found_at_the_stated_effect() -> None:
    found = calibration.sensitivity((calibration.STATED_EFFECT,), (calibration.STATED_TOKENS,), seeds=range(100, 120))
    assert found["rate"].item() >= calibration.DETECTION_MIN


def test_at_most_five_percent_of_impostors_pass() -> None:
    false = calibration.false_positives(seeds=SEEDS)
    assert false["passed"].sum() <= calibration.FALSE_POSITIVES_MAX * false["cases"].sum()
    assert (false["passed"] <= 1).all()  # no kind gets through on its own


def test_an_effect_too_small_to_see_is_not_found() -> None:
    assert calibration.sensitivity((3.0,), (calibration.STATED_TOKENS,), seeds=range(4))["found"].item() == 0


@pytest.mark.parametrize(
    ("loosened", "impostor"),
    [
        ({"cosine": 0.95}, "near-copies"),
        ({"win_rate": -1.0}, "shadowed child"),
        ({"precision": 0.55}, "leaky child"),
        ({"recall": 0.25, "win_rate": 0.25}, "fragment"),
        ({"fires_elsewhere": 0.12}, "dense child"),
        ({"candidate_precision": 0.6}, "generic feature"),
    ],
)
def test_every_bound_keeps_an_impostor_out(loosened: dict[str, float], impostor: str) -> None:
    """What the check above would say if a bound were loosened by hand."""
    false = calibration.false_positives([impostor], seeds=range(100, 104), bounds=replace(BOUNDS, **loosened))
    assert false["rate"].item() > calibration.FALSE_POSITIVES_MAX


def test_a_case_is_what_its_seed_says_and_an_unknown_impostor_is_refused() -> None:
    a, b = make_case(7.0, 3, n_parent=60), make_case(7.0, 3, n_parent=60)
    assert a.select.x.equal(b.select.x) and not a.select.x.equal(make_case(7.0, 4, n_parent=60).select.x)
    assert set(IMPOSTORS) >= {"permuted labels", "childless parent", "near-copies", "dense child"}
    with pytest.raises(ValueError, match="impostor must be one of"):
        make_case(7.0, 3, impostor="honest")
