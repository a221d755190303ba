"""Every verdict, every bound and the ends that hold together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from saelib.base.errors import UserError
from saelib.split.contexts import Context
from saelib.split.leak import Leak
from saelib.split.probe import Marked
from saelib.split.separation import ContextSeparation, Interval, Separation, Yardstick
from saelib.split.verdict import ContextEvidence, Verdict, gather_evidence, judge, simultaneous
from saelib.split.yardstick import Documents, Reason


def around(value: float, sd: float = 0.001) -> np.ndarray:
    """Draws whose first is the value and whose spread is sd."""
    return np.concatenate([[value], value + sd * np.tile([-1.0, 1.0], 100)])


def evidence(name: str, child: int | None = 0, **changes: object) -> ContextEvidence:
    """A context that passes, unless changed."""
    made = ContextEvidence(
        context=name, primary=True, n_test=200, reason=Reason.NONE, child=child, added=around(0.3), precision=around(0.9),
        n_firings=500.0, foreign=around(0.02), n_leak=500.0,
    )  # fmt: skip
    return replace(made, **changes)


FAIL = {"added": around(0.0)}


def test_simultaneous_ends_by_hand() -> None:
    draws = around(0.5, 0.1)
    assert simultaneous(draws, 1) == (0.5, pytest.approx(0.5 - 1.959964 * 0.1), pytest.approx(0.5 + 1.959964 * 0.1))
    z = norm.ppf(1 - 0.05 / 20)
    assert simultaneous(draws, 10).low == pytest.approx(0.5 - z * 0.1)
    share = simultaneous(around(0.0, 0.0), 10, n=100.0)
    assert share == (0, 0, pytest.approx(z**2 / (100 + z**2)))


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, ()),
        ({"added": around(0.15, 0.03)}, ("added",)),  # 0.15 - 1.96 x 0.03 is below 0.1
        ({"added": around(0.17, 0.03)}, ()),
        ({"precision": around(0.52, 0.0)}, ("precision",)),  # Wilson's end of 500 firings
        ({"precision": around(0.52, 0.0), "n_firings": 50_000.0}, ()),
        ({"foreign": around(0.19, 0.02)}, ("foreign leak",)),
        ({"foreign": around(0.0, 0.0), "n_leak": 10.0}, ("foreign leak",)),  # none seen, but in ten trials
        ({"foreign": around(0.14, 0.02)}, ()),
        ({"child": None}, ("no child",)),
        ({"added": around(0.0), "foreign": around(0.9)}, ("added", "foreign leak")),
    ],
)
def test_each_bound(changes: dict[str, object], failed: tuple[str, ...]) -> None:
    found = judge([evidence("a", **changes)], named=True, purity=0.9)
    assert found.contexts[0].failed == failed
    assert found.contexts[0].passed is (not failed)
    assert found.verdict is (Verdict.NOT_SPLIT if failed else Verdict.SPLIT)


def test_more_contexts_need_wider_ends() -> None:
    """0.17 - z 0.03 is above 0.1 for one context (z 1.96) but not for ten (z 2.81)."""
    edge = {"added": around(0.17, 0.03)}
    assert judge([evidence("a", **edge)], True, 0.9).passed == 1
    assert judge([evidence(str(i), i, **edge) for i in range(10)], True, 0.9).passed == 0
    beside = [evidence(str(i), i, primary=False) for i in range(9)]
    assert judge([evidence("a", **edge), *beside], True, 0.9).passed == 1  # only those required are counted


def test_named_classes() -> None:
    a, b = evidence("count", 3), evidence("number", 5)
    assert judge([a, b], True, 0.9).text == "split: 2 of 2 contexts"
    found = judge([a, replace(b, **FAIL), evidence("compound", primary=False)], True, 0.9)
    assert (found.verdict, found.text) == (Verdict.PARTIAL, "partial 1/2")
    assert found.contexts[2].passed is None and found.contexts[2].reason == "shown beside"
    found = judge([replace(a, **FAIL), replace(b, **FAIL)], True, 0.9)
    assert (found.verdict, found.text) == (Verdict.NOT_SPLIT, "not split: 0 of 2 contexts")


def test_automatic_contexts_need_half_and_two_children() -> None:
    fails = [evidence(f"f{i}", i, **FAIL) for i in range(2)]
    found = judge([evidence("a", 1), evidence("b", 2), *fails], False, 0.0)
    assert (found.verdict, found.text) == (Verdict.SPLIT, "split: 2 of 4 contexts")
    assert judge([evidence("a", 1), evidence("b", 1), *fails], False, 0.0).text == "partial 2/4"  # one child for both
    assert judge([evidence("a", 1), evidence("b", 2), *fails, evidence("f", **FAIL)], False, 0.0).text == "partial 2/5"
    assert judge(fails, False, 0.0).verdict is Verdict.NOT_SPLIT


def test_gate_of_purity() -> None:
    found = judge([evidence("a")], True, 0.49)
    assert (found.verdict, found.text) == (
        Verdict.NO_SUCH_PARENT,
        "no such parent: 49% of its tokens are in the contexts asked about",
    )
    assert judge([evidence("a")], True, 0.5).verdict is Verdict.SPLIT
    assert judge([evidence("a", 1), evidence("b", 2)], False, 0.0).verdict is Verdict.SPLIT  # not asked about


def test_too_few_tokens() -> None:
    few = evidence("count", n_test=29)
    found = judge([few, evidence("number", 1)], True, 0.9)
    assert (found.verdict, found.text) == (Verdict.UNDECIDED, "undecided: too few test tokens (count has 29)")
    assert judge([replace(few, n_test=30), evidence("number", 1)], True, 0.9).verdict is Verdict.SPLIT
    assert judge([few, evidence("b", 1), evidence("c", 2)], False, 0.0).text == "split: 2 of 2 contexts"
    assert judge([few], False, 0.0).verdict is Verdict.UNDECIDED
    assert judge([replace(few, primary=False), evidence("b", 1)], True, 0.9).verdict is Verdict.SPLIT


def test_already_told_apart_and_nothing_to_tell() -> None:
    apart = evidence("a", reason=Reason.TOLD_APART)
    assert judge([apart], True, 0.9).verdict is Verdict.ALREADY_TOLD_APART
    assert judge([apart, evidence("b")], True, 0.9).text == "split: 1 of 1 contexts"
    small = evidence("s", reason=Reason.TOO_FEW)  # on select
    assert judge([small], True, 0.9).verdict is Verdict.UNDECIDED
    flat = evidence("c", reason=Reason.NOT_SEPARABLE)
    assert judge([flat], True, 0.9).verdict is Verdict.NOT_SPLIT
    assert judge([flat, apart], True, 0.9).verdict is Verdict.ALREADY_TOLD_APART


def test_graded() -> None:
    found = judge([evidence("a", 1), evidence("b", 2)], False, 0.0, stability=np.array([0.9, 0.31, 0.31]))
    assert found.verdict is Verdict.GRADED
    assert found.text == "graded: 2 of 2 contexts, but their children agree between seeds only to IoU 0.31"
    assert (
        judge([evidence("a", 1), evidence("b", 2)], False, 0.0, stability=np.array([0.0, 0.5, 0.5])).verdict
        is Verdict.SPLIT
    )
    assert judge([evidence("a", **FAIL)], True, 0.9, stability=np.array([0.1, 0.1, 0.1])).verdict is Verdict.NOT_SPLIT


def test_frame_and_no_contexts() -> None:
    frame = judge([evidence("a"), evidence("b", None)], True, 0.9).frame()
    assert frame["passed"].tolist() == [True, False]
    assert frame["failed"].tolist() == ["", "no child"]
    assert {"added_low", "precision_low", "foreign_high"} <= set(frame)
    with pytest.raises(UserError, match="at least one context; got 0"):
        judge([], True, 1.0)


def test_evidence_by_hand() -> None:
    """Three contexts of four tokens: a child adds to the rest; the rest is better on select; nothing marks it."""
    m, draws = 3, 3
    member = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    documents = Documents(np.arange(4), np.vstack([np.ones(4), np.eye(4)[0] + 1, np.eye(4)[2] + 1]))
    flat = np.full((draws, m), 0.9)
    marked = Marked(np.array([0.9, 0.9, 0.9]), member)
    yardstick = Yardstick(
        contexts=tuple(Context(f"c{i}", "class", True, f"c{i}") for i in range(m)), n_tokens={"test": 4},
        used={"test": np.arange(4)}, member={"test": member}, documents=documents, ceiling=marked, floor=marked,
        ceiling_draws=flat, floor_draws=flat * 0, reasons=(Reason.NONE,) * 3,
    )  # fmt: skip

    def separation(select: list[float], test: list[float], features: list[tuple[int, ...]]) -> Separation:
        nothing = Interval(0.0, 0.0, 0.0)
        rows = tuple(
            ContextSeparation(f"c{i}", "class", True, 1, 1, {}, f, nothing, nothing, True, Reason.NONE)
            for i, f in enumerate(features)
        )
        return Separation(rows, {}, {}, {1: np.array(select)}, {}, {1: np.array([test] * draws)})

    rest = separation([0.4, 0.6, 0.75], [0.5, 0.5, 0.5], [(9,), (9,), (9,)])
    children = separation([0.6, 0.5, 0.0], [0.7, 0.8, 0.0], [(1, 0), (0,), ()])
    fires = np.array([[0, 1], [0, 1], [1, 1], [1, 0]], dtype=bool)
    shares = np.array([[0.1, 0.2, 0.3]] * draws)
    leaks = Leak(tuple(Interval(*column) for column in shares.T), (), np.ones(m), np.array([7.0, 8, 9]), shares)
    first, second, third = gather_evidence(yardstick, rest, children, fires, leaks)
    assert (first.child, second.child, third.child) == (1, 0, None)
    assert first.added.tolist() == pytest.approx([0.2 / 0.4] * 3)
    assert second.added.tolist() == [0, 0, 0]  # not chosen on select, whatever test says
    np.testing.assert_allclose(first.precision, [2 / 3, 3 / 4, 2 / 4])  # documents 0 and 2 once more
    np.testing.assert_allclose(second.precision, [1 / 2, 1 / 2, 2 / 3])
    assert (first.n_firings, second.n_firings, third.n_firings) == (3, 2, 0)
    assert (first.foreign[0], second.foreign[0], first.n_leak) == (0.1, 0.2, 7)
    assert (first.reason, third.reason) == (Reason.NONE, Reason.TOLD_APART)  # 0.9 - 0.75 is below 0.2
    assert first.n_test == 2
    with pytest.raises(UserError, match="4 tokens and a leak for each of 3 contexts; got 2 tokens, 3 leaks"):
        gather_evidence(yardstick, rest, children, fires[:2], leaks)
