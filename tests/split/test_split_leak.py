"""Leak of children, by hand and at natural rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelib.base.errors import UserError
from saelib.base.stats import wilson_interval
from saelib.split.leak import Firings, choose_theta, foreign_share, leak
from saelib.split.tokens import ParentTokens, TokenSet


def firings(on: list[float], weak: list[float], off: list[float], inside: list[int]) -> Firings:
    """One child; a sampled weak token stands for 2 tokens, an off one for 3."""
    acts = {"on": on, "weak": weak, "off": off}
    return Firings(
        acts={name: np.array(values)[:, None] for name, values in acts.items()},
        document={name: np.arange(len(values)) for name, values in acts.items()},
        weight={"on": 1.0, "weak": 2.0, "off": 3.0},
        in_context=np.array(inside, dtype=bool)[:, None],
    )


def test_leak_by_hand() -> None:
    made = firings([1, 2, 3, 4, 5, 6, 0.5, 0], [0.7, 0, 0.2], [2, 9, 0, 0.5], [1, 0, 1, 0])
    found = leak(made, np.array([0.5]))
    # above 0.5: six of P, one weak (2), two off (6), of which one is in the context
    assert found.firings.tolist() == [14]
    assert found.n.tolist() == [pytest.approx(14 / 3)]
    assert found.missed[0].value == pytest.approx(3 / 14)
    assert found.foreign[0].value == pytest.approx(3 / 14)
    assert found.draws[0, 0] == pytest.approx(3 / 14)
    assert found.foreign[0].low < 3 / 14 < found.foreign[0].high
    assert leak(made, np.array([3.0])).missed[0].value == 0
    assert leak(made, np.array([3.0])).foreign[0].value == pytest.approx(3 / 6)
    assert foreign_share(made) == pytest.approx(6 / 20)  # above 0: seven of P, two weak (4), three off (9)


def test_none_seen_is_not_none() -> None:
    found = leak(firings([1.0] * 60, [0.0], [0.0] * 50, [0] * 50), np.array([0.0]))
    assert found.foreign[0].value == 0
    assert found.foreign[0].high == pytest.approx(wilson_interval(0.0, 20)[1])
    silent = leak(firings([0.0] * 5, [0.0], [0.0] * 5, [0] * 5), np.array([0.0]))
    assert silent.foreign[0] == (0, 0, 1)


def test_documents_widen_the_interval() -> None:
    """The same firings in few documents say less."""
    made = firings([1.0] * 300, [0.0], [1.0] * 20 + [0.0] * 280, [0] * 300)
    spread = leak(made, np.array([0.0])).foreign[0]
    made.document["off"][:] = np.arange(300) // 20
    made.document["on"][:] = 1000 + np.arange(300)
    clustered = leak(made, np.array([0.0])).foreign[0]
    assert clustered.value == spread.value == pytest.approx(60 / 360)
    assert clustered.high > spread.high + 0.05


def test_theta_is_the_lowest_with_little_leak() -> None:
    on = np.arange(1, 101) / 10  # 0.1 to 10
    made = firings(list(on), [0.0], [2.05, 3.0, 5.2] + [0.0] * 7, [0] * 10)
    assert choose_theta(made, most=0.1)[0] == 0  # foreign 9 of 109
    # foreign is 9 of 94 at the quantile 0.15, 6 of 86 at 0.2, 6 of 81 at 0.25, 3 of 73 at 0.3
    assert choose_theta(made, most=0.05)[0] == pytest.approx(3.07)
    assert choose_theta(made, most=0.075)[0] == pytest.approx(2.08)


def test_a_child_that_always_leaks_gets_its_best_threshold() -> None:
    made = firings([1.0, 2.0, 3.0, 4.0], [0.0], [5.0] * 10 + [1.5] * 5, [0] * 15)
    # above 0: 45 of 49; from 1.5, of which 1.6 is the first candidate, 30 of 33
    assert choose_theta(made)[0] == pytest.approx(1.6)
    assert choose_theta(made, most=0.9, strict=True)[0] == np.inf  # 30 of 33 are above it
    assert choose_theta(made, most=0.91, strict=True)[0] == pytest.approx(1.6)
    inside = firings([1.0, 2.0, 3.0, 4.0], [0.0], [5.0] * 10 + [1.5] * 5, [1] * 15)
    assert choose_theta(inside)[0] == 0  # what is in the context is no leak
    assert choose_theta(firings([0.0] * 4, [0.0], [5.0], [0]))[0] == 0


def test_natural_rates_come_from_the_parents_tokens() -> None:
    def part(n: int) -> dict[str, TokenSet]:
        zeros, none = np.zeros(n, dtype=np.float32), np.zeros(n, dtype=int)
        return {"test": TokenSet(np.arange(n), torch.zeros(n, 2), zeros, none, none, none, none)}

    tokens = ParentTokens(0, 1.0, part(4), part(5), part(6), {"test": 1000}, {"test": 4}, {"test": 20}, {"test": 976})
    acts = {"on": np.zeros((4, 2)), "weak": np.zeros((5, 2)), "off": np.zeros((6, 2))}
    made = Firings.of(tokens, "test", acts, np.zeros((6, 2), dtype=bool))
    assert made.weight == {"on": 1, "weak": 4, "off": pytest.approx(976 / 6)}
    with pytest.raises(UserError, match=r"a row a token, \[4, 5, 6, 6\]; got \[4, 5, 6, 3\]"):
        Firings.of(tokens, "test", acts, np.zeros((3, 2), dtype=bool))


def test_theta_marks_the_context_best_among_those_with_little_leak() -> None:
    """Activations 0.1 to 10; the context's tokens are those from 6.0 on, and two that take no part lie among the others."""
    on = np.arange(1, 101) / 10
    inside = (on > 5.95).astype(np.int8)[:, None]
    inside[[3, 40]] = -1
    quiet = firings(list(on), [0.0], [0.0] * 10, [0] * 10)
    assert choose_theta(quiet, inside)[0] == pytest.approx(
        np.quantile(on, 0.6)
    )  # 6.04: one of 41 is missed, none is wrong
    loud = firings(list(on), [0.0], [7.5] + [0.0] * 9, [0] * 10)
    assert choose_theta(loud, inside, most=0.01)[0] == pytest.approx(
        np.quantile(on, 0.75)
    )  # the first above what leaks
