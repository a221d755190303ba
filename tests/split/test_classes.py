"""The hyphen's classes, from text alone."""

from __future__ import annotations

import pytest

from saelib.split.classes import PROMPTS, classify


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("I am a multi", "million", "count"),
        ("a Two", "part", "count"),
        ("A 3", "point", "number"),
        ("in 60", "day", "number"),
        ("the long", "standing", "compound"),
        ("the oversized", " standing", None),  # a dash, not a joint
        ("pages 10", "20", None),  # a range
        ("a -", "x", None),  # after another hyphen
        ("word ", "x", None),
        ("", "x", None),
        ("return x", ">", None),  # an arrow
        ("end", "", None),  # at the context's edge
    ],
)
def test_classify(before: str, after: str, expected: str | None) -> None:
    assert classify(before, after) == expected


def test_prompts_are_of_their_own_class() -> None:
    for name, prompt in PROMPTS.items():
        before, after = prompt.split("-")
        assert classify(before, after) == name
