"""The verdict's error rates where the answer is known: synthetic parents, and implants in real activations."""

from __future__ import annotations

import pytest

from saelib.split import calibration
from saelib.split.synthetic import IMPOSTORS, TRUE

pytestmark = pytest.mark.calibration
SEEDS = range(100, 103)
"""Not the seeds of the calibration's own report."""


def test_true_splits_are_found_at_the_stated_effect() -> None:
    found = calibration.synthetic_table(TRUE, (calibration.STATED_EFFECT,), seeds=SEEDS)
    assert (found["split"] == found["cases"]).all() and not found["false"].any()


def test_impostors_do_not_pass() -> None:
    found = calibration.synthetic_table(IMPOSTORS, (calibration.STATED_EFFECT,), seeds=SEEDS)
    assert (found["case"].nunique(), found["false"].sum()) == (len(IMPOSTORS), 0)


def test_an_effect_too_small_to_see_is_not_found() -> None:
    assert calibration.synthetic_table(("tree",), (0.5,), seeds=SEEDS)["split"].sum() == 0
