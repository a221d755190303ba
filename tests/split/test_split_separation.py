"""Separation: every quantity on cases worked out by hand, what must hold for any input, and what the scale means at its ends."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse import csc_array

from saelib.base.errors import UserError
from saelib.split import probe as probes
from saelib.split.contexts import Context, Kind, Labels
from saelib.split.detectors import RIDGE, _fit, best_threshold, feature_mcc, forward_path, mcc
from saelib.split.probe import Marked
from saelib.split.separation import Separation, Yardstick, added, make_yardstick, measure, summary
from saelib.split.tokens import SPLITS, TokenSet
from saelib.split.yardstick import Documents, Reason, _reason, baseline, interval

SIZES = {"train": 900, "select": 500, "test": 500}


def token_set(x: np.ndarray, parent: np.ndarray, document: np.ndarray, current: np.ndarray) -> TokenSet:
    nothing = np.full(len(x), -1)
    return TokenSet(
        rows=np.arange(len(x)),
        x=torch.from_numpy(x.astype(np.float32)),
        parent=parent.astype(np.float32),
        document=document,
        previous=nothing,
        current=current,
        next=nothing,
    )


def contexts(*primary: bool, kind: Kind = "class") -> tuple[Context, ...]:
    return tuple(Context(f"c{i}", kind, p, f"c{i}") for i, p in enumerate(primary))


@pytest.fixture(scope="module")
def world() -> tuple[dict[str, TokenSet], Labels]:
    """Four contexts: two directions of x with noise, one that nothing tells, one told by the parent's size."""
    rng = np.random.default_rng(0)
    tokens, member = {}, {}
    for split, n in SIZES.items():
        which = rng.integers(0, 4, n)
        x = rng.standard_normal((n, 12)) * 0.7
        x[which == 0, 0] += 2
        x[which == 1, 1] += 2
        parent = rng.uniform(1, 2, n) + 2 * (which == 3)
        x[:, 2] += parent
        noise = rng.random(n) < 0.3
        tokens[split] = token_set(x, parent, rng.integers(0, 40, n), np.zeros(n, dtype=int))
        member[split] = np.stack([which == 0, which == 1, noise, which == 3], axis=1)
    return tokens, Labels(
        contexts(True, True, True, True), member, {s: np.ones(n, dtype=bool) for s, n in SIZES.items()}
    )


@pytest.fixture(scope="module")
def yardstick(world: tuple[dict[str, TokenSet], Labels]) -> Yardstick:
    return make_yardstick(*world)


# --- thresholds -----------------------------------------------------------------------------------------------------------


def test_mcc_by_hand() -> None:
    tp, fp, fn, tn = np.array([3, 2, 0, 5]), np.array([1, 0, 0, 5]), np.array([2, 0, 3, 0]), np.array([4, 7, 4, 0])
    expected = [(3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6), 1, 0, 0]  # fires nowhere; fires everywhere
    np.testing.assert_allclose(mcc(tp, fp, fn, tn), expected)
    assert mcc(np.array(0), np.array(4), np.array(4), np.array(0)) == -1


def test_best_threshold_by_hand() -> None:
    member = np.array([True, False, True, False])
    assert best_threshold(np.array([5.0, 2.0, 4.0, 3.0]), member) == (3.0, 1.0)
    # equal values are never parted: {2, 2} of which one is in, against {1}
    cut = best_threshold(np.array([2.0, 2.0, 1.0]), np.array([True, False, False]))
    assert cut == (1.0, pytest.approx(0.5))
    assert best_threshold(np.array([1.0, 2.0]), np.array([True, False])) == (np.inf, 0)  # larger outside
    assert best_threshold(np.array([1.0, 1.0]), np.array([True, False])) == (np.inf, 0)
    assert best_threshold(np.zeros(0), np.zeros(0, dtype=bool)) == (np.inf, 0)


def counted(fires: np.ndarray, member: np.ndarray) -> float:
    cells = (fires & member, fires & ~member, ~fires & member, ~fires & ~member)
    return float(mcc(*(np.array(cell.sum()) for cell in cells)))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 10_000))
def test_thresholds_are_the_best_of_all(n: int, largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    acts, member = rng.integers(0, largest + 1, (n, 3)).astype(np.float32), rng.random((n, 2)) < 0.4
    table = feature_mcc(csc_array(acts), member)
    for j, c in product(range(3), range(2)):
        best = max(0.0, *(counted(acts[:, j] > t, member[:, c]) for t in range(-1, largest + 1)))
        cut = best_threshold(acts[:, j], member[:, c])
        assert cut.mcc == pytest.approx(best) == table[j, c]
        assert counted(acts[:, j] > cut.t, member[:, c]) == pytest.approx(best)


# --- forward selection ----------------------------------------------------------------------------------------------------


def path(acts: np.ndarray, member: np.ndarray, select: np.ndarray | None = None) -> tuple[tuple[int, ...], list[float]]:
    """The features chosen and the select MCCs, train and test being alike."""
    parts = {"train": csc_array(acts), "select": csc_array(acts if select is None else select), "test": csc_array(acts)}
    found = forward_path(
        parts, {"train": member, "select": member}, feature_mcc(parts["select"], member[:, None])[:, 0]
    )
    return found.features, [found.select_mcc[k] for k in (1, 2, 4)]


def test_two_features_that_share_a_context_are_both_found() -> None:
    member = np.arange(400) < 100
    acts = np.zeros((400, 3))
    acts[:60, 0], acts[60:100, 1], acts[300:, 2] = 1, 1, 1
    features, scores = path(acts, member)
    assert features == (0, 1)
    assert scores == [pytest.approx(60 * 300 / np.sqrt(60 * 100 * 300 * 340)), pytest.approx(1), pytest.approx(1)]


def test_four_parts_need_four_features() -> None:
    member = np.arange(400) < 100
    acts = np.zeros((400, 5))
    for j, (begin, end) in enumerate([(0, 30), (30, 56), (56, 80), (80, 100), (200, 400)]):
        acts[begin:end, j] = 1
    features, scores = path(acts, member)
    assert set(features) == {0, 1, 2, 3}
    assert scores[0] < scores[1] < scores[2] == pytest.approx(1)


def test_weights_are_not_negative() -> None:
    """Features of A and B do not make one of "neither"."""
    member = np.arange(300) >= 200
    acts = np.zeros((300, 3))
    acts[:100, 0], acts[100:200, 1], acts[150:280, 2] = 1, 1, 1
    features, scores = path(acts, member)
    assert features == (2,)  # with a negative weight for feature 1, all but 20 tokens would be told
    assert scores[0] == scores[1] == scores[2] == pytest.approx(counted(acts[:, 2] > 0, member))


def test_fit_is_the_minimum_with_weights_at_least_zero() -> None:
    """Three features, one of them more frequent outside: a bounded minimiser of the same loss says the same."""
    rng = np.random.default_rng(3)
    member = rng.random(400) < 0.3
    x = (rng.random((400, 3)) < np.where(member[:, None], [0.6, 0.3, 0.1], [0.1, 0.1, 0.5])) * rng.uniform(
        1, 3, (400, 3)
    )
    scale = np.append(1, np.sqrt((x**2).mean(0)))

    def loss(b: np.ndarray) -> float:
        z = b[0] + x @ b[1:]
        return float((np.logaddexp(0, z) - member * z).sum() + RIDGE / 2 * ((b * scale) ** 2).sum())

    best = minimize(loss, np.zeros(4), bounds=[(None, None), (0, None), (0, None), (0, None)], method="L-BFGS-B")
    found = _fit(x, member, np.zeros(4))
    assert loss(found) <= best.fun + 1e-4
    np.testing.assert_allclose(found, best.x, atol=1e-3)
    assert found[3] == 0 and found[1:3].min() > 0.1
    np.testing.assert_allclose(_fit(x, member, np.array([0, 0.1, 0.1, 2.0])), found, atol=1e-3)  # from any start


def test_a_feature_that_helps_on_train_alone_is_not_added() -> None:
    member = np.arange(400) < 100
    acts = np.zeros((400, 2))
    acts[:60, 0], acts[60:100, 1] = 1, 1
    select = acts.copy()
    select[:, 1] = 0
    select[200:240, 1] = 1
    features, scores = path(acts, member, select)
    assert features == (0,)
    assert scores[0] == scores[1] == scores[2]


def test_nothing_fires() -> None:
    assert path(np.zeros((10, 2)), np.arange(10) < 5) == ((), [0, 0, 0])


# --- the probe ------------------------------------------------------------------------------------------------------------


def test_probe_is_the_minimum_of_its_loss() -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((200, 3)) * [1, 2, 0.3]
    y = (z @ [1, -1, 2] + rng.standard_normal(200) > 1).astype(float)
    ridge = 0.01

    def loss(w: np.ndarray) -> float:
        logit = z @ w[:3] + w[3]
        return float((np.logaddexp(0, logit) - y * logit).mean() + ridge / 2 * (w[:3] ** 2).sum())

    found = probes.ridge_logistic(
        torch.from_numpy(z).float(),
        torch.from_numpy(y).float()[:, None],
        torch.tensor([ridge]),
        torch.tensor([1.0, 4.0, 0.1]),
    )
    best = minimize(loss, np.zeros(4), tol=1e-10)
    assert loss(found[:, 0].double().numpy()) - best.fun < 1e-5
    assert loss(np.zeros(4)) - best.fun > 0.1


def test_probe_finds_directions_and_no_more(yardstick: Yardstick) -> None:
    select = yardstick.ceiling.select_mcc
    assert select[[0, 1, 3]].min() > 0.7
    assert select[2] < 0.2


# --- the floor ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_floor_takes_the_parent_either_way(sign: int) -> None:
    member = np.arange(6)[:, None] < 2
    part = token_set(np.zeros((6, 1)), 10 - sign * np.arange(6), np.zeros(6, dtype=int), np.zeros(6, dtype=int))
    floor = baseline(dict.fromkeys(SPLITS, part), dict.fromkeys(SPLITS, member), contexts(True))
    assert floor.select_mcc[0] == 1
    np.testing.assert_array_equal(floor.fires, member)


def test_floor_of_a_previous_token_knows_the_current_one() -> None:
    """Shares on train: token 7 always in, token 8 half, token 9 never; a token never seen has the overall share, 1/2."""
    current, member = np.array([7, 7, 8, 8, 9, 9]), np.array([1, 1, 1, 0, 0, 0], dtype=bool)[:, None]
    flat = np.ones(6)
    parts = {s: token_set(np.zeros((6, 1)), flat, np.zeros(6, dtype=int), current) for s in SPLITS}
    parts["test"] = token_set(np.zeros((4, 1)), flat[:4], np.zeros(4, dtype=int), np.array([7, 8, 9, 5]))
    every = dict.fromkeys(SPLITS, member)
    floor = baseline(parts, every, contexts(True, kind="previous"))
    # cuts: {7}: tp 2 fn 1 fp 0 tn 3; {7, 8}: tp 3 fp 1 fn 0 tn 2; both MCC = 6 / sqrt(72)
    assert floor.select_mcc[0] == pytest.approx(6 / np.sqrt(72))
    assert floor.fires[:, 0].tolist() == [True, False, False, False]
    assert baseline(parts, every, contexts(True)).select_mcc[0] == 0  # a class has no such rule
    on_select = every | {"select": np.array([1, 1, 1, 1, 0, 0], dtype=bool)[:, None]}
    lower = baseline(parts, on_select, contexts(True, kind="next"))
    assert lower.select_mcc[0] == 1
    assert lower.fires[:, 0].tolist() == [True, True, False, True]  # the token never seen, 1/2, is above token 9's 1/6


# --- documents ------------------------------------------------------------------------------------------------------------


def test_documents_move_together() -> None:
    document = np.array([5, 5, 9, 9, 9])
    drawn = Documents.drawn(document, draws=200, seed=0)
    assert drawn.weights[0].tolist() == [1, 1]
    assert set(drawn.weights[1:].sum(1)) == {2}
    sums = drawn.sums(np.array([[1.0], [2], [10], [20], [30]]))[:, 0]
    assert sums[0] == 63
    assert set(sums[1:]) == {6, 63, 120}  # the first twice, each once, the second twice
    np.testing.assert_array_equal(Documents.drawn(document, 200, 0).weights, drawn.weights)


def test_mcc_in_every_draw_is_that_of_the_drawn_tokens() -> None:
    rng = np.random.default_rng(2)
    document, fires, member = rng.integers(0, 5, 60), rng.random((60, 1)) < 0.5, rng.random((60, 1)) < 0.5
    drawn = Documents.drawn(document, draws=20, seed=0)
    found = drawn.mcc(fires, member)[:, 0]
    for weight, value in zip(drawn.weights, found, strict=True):
        rows = np.repeat(np.arange(60), weight[drawn.index].astype(int))
        assert value == pytest.approx(counted(fires[rows, 0], member[rows, 0]))
    assert interval(found).value == pytest.approx(counted(fires[:, 0], member[:, 0]))


# --- what is judged -------------------------------------------------------------------------------------------------------


def test_reasons(yardstick: Yardstick, world: tuple[dict[str, TokenSet], Labels]) -> None:
    assert yardstick.reasons == (Reason.NONE, Reason.NONE, Reason.NOT_SEPARABLE, Reason.TOLD_BY_SIZE)
    tokens, labels = world
    member = {s: m.copy() for s, m in labels.member.items()}
    member["test"][np.flatnonzero(member["test"][:, 0])[29:], 0] = False
    few = make_yardstick(tokens, Labels(labels.contexts, member, labels.counts), draws=10)
    assert few.reasons[0] is Reason.TOO_FEW
    assert few.reasons[1] is Reason.NONE


@pytest.mark.parametrize(
    ("ceiling", "floor", "reason"),
    [
        (0.75, 0.25, Reason.NONE),
        (0.75, 0.5, Reason.TOLD_BY_SIZE),
        (0.25, 0.0, Reason.NOT_SEPARABLE),
        (0.2, 0.5, Reason.NOT_SEPARABLE),
    ],
)
def test_judged_from_ceiling_less_floor_on_select(ceiling: float, floor: float, reason: Reason) -> None:
    blank = np.zeros((30, 1), dtype=bool)
    member = dict.fromkeys(SPLITS, ~blank)
    assert _reason(0, Marked(np.array([ceiling]), blank), Marked(np.array([floor]), blank), member) is reason


def test_tokens_that_take_no_part_and_those_beyond_the_most_are_left_out(
    world: tuple[dict[str, TokenSet], Labels],
) -> None:
    tokens, labels = world
    counts = {s: np.arange(n) >= 100 for s, n in SIZES.items()}
    some = make_yardstick(tokens, Labels(labels.contexts, labels.member, counts), most=300, draws=10)
    assert {s: len(rows) for s, rows in some.used.items()} == {"train": 300, "select": 300, "test": 300}
    assert all(rows.min() >= 100 and (np.diff(rows) > 0).all() for rows in some.used.values())
    np.testing.assert_array_equal(some.member["test"], labels.member["test"][some.used["test"]])
    acts = {s: np.maximum(part.x.numpy(), 0) for s, part in tokens.items()}
    of_used = measure(some, {s: part[some.used[s]] for s, part in acts.items()})
    assert measure(some, acts).raw == of_used.raw
    assert measure(some, {s: csc_array(part) for s, part in acts.items()}).raw == of_used.raw


# --- the scale ------------------------------------------------------------------------------------------------------------


def test_the_probes_own_score_has_separation_one(
    yardstick: Yardstick, world: tuple[dict[str, TokenSet], Labels]
) -> None:
    tokens, labels = world
    logits = probes._logits({s: tokens[s].x for s in SPLITS}, torch.from_numpy(labels.member["train"]))
    acts = {s: np.exp(logit) for s, logit in logits.items()} | {"train": np.zeros((SIZES["train"], 16))}
    found = measure(yardstick, acts)
    assert found.S[1] == pytest.approx((1, 1, 1), abs=1e-9)


def test_the_parents_activation_has_separation_zero(
    yardstick: Yardstick, world: tuple[dict[str, TokenSet], Labels]
) -> None:
    tokens, _ = world
    acts = {s: np.stack([part.parent, 10 - part.parent], axis=1) for s, part in tokens.items()}
    found = measure(yardstick, acts)
    assert found.S[1] == pytest.approx((0, 0, 0), abs=1e-9)
    assert abs(found.S[2].value) < 0.1


def test_truth_goes_beyond_the_probe_and_is_not_clipped(
    yardstick: Yardstick, world: tuple[dict[str, TokenSet], Labels]
) -> None:
    _, labels = world
    found = measure(yardstick, {s: member.astype(np.float32) for s, member in labels.member.items()})
    assert found.raw[1] == (1, 1, 1)
    ceiling, floor = yardstick.ceiling_draws[0, :2].sum(), yardstick.floor_draws[0, :2].sum()
    assert found.S[1].value == pytest.approx((2 - floor) / (ceiling - floor))
    assert found.S[1].value > 1.05
    assert [c.features for c in found.contexts] == [(0,), (1,), (2,), (3,)]


def test_ratio_of_sums_by_hand(yardstick: Yardstick) -> None:
    """Three contexts judged, of which the last is not primary; one is not judged."""
    ceiling, floor = np.array([[0.8, 0.9, 0.9, 0.9]] * 3), np.array([[0.2, 0.1, 0.1, 0.1]] * 3)
    made = replace(
        yardstick, contexts=contexts(True, True, True, False), ceiling_draws=ceiling, floor_draws=floor,
        reasons=(Reason.NONE, Reason.NONE, Reason.NOT_SEPARABLE, Reason.NONE),
    )  # fmt: skip
    draws = np.array([[0.5, 0.3, 0.9, 0.9], [0.4, 0.3, 0.9, 0.9], [0.6, 0.3, 0.9, 0.9]])
    S, raw = summary(made, {2: draws})
    assert S[2].value == pytest.approx((0.3 + 0.2) / (0.6 + 0.8))
    assert S[2].low == pytest.approx((0.4 + 0.025 * 0.2 * 1) / 1.4)
    assert S[2].high == pytest.approx((0.6 - 0.025 * 0.2 * 1) / 1.4)
    assert raw[2].value == pytest.approx(0.4)
    S, raw = summary(replace(made, reasons=(Reason.TOO_FEW,) * 4), {2: draws})
    assert np.isnan([*S[2], *raw[2]]).all()


def test_added_by_hand(yardstick: Yardstick) -> None:
    m, draws = 4, 3
    made = replace(
        yardstick, ceiling=Marked(np.full(m, 0.9), yardstick.ceiling.fires),
        ceiling_draws=np.full((draws, m), 0.9), floor_draws=np.zeros((draws, m)),
        contexts=contexts(True, True, True, False), reasons=(Reason.NONE,) * 4,
    )  # fmt: skip

    def separation(values: list[float]) -> Separation:
        rows, blank = np.array([values] * draws), np.zeros((1, m), dtype=bool)
        return Separation(
            (),
            {},
            {},
            dict.fromkeys((1, 2, 4), rows[0]),
            dict.fromkeys((1, 2, 4), blank),
            dict.fromkeys((1, 2, 4), rows),
        )

    found = added(separation([0.4, 0.8, 0.5, 0.1]), separation([0.6, 0.85, 0.5, 0.9]), made)
    assert found.defined[2].tolist() == [True, False, True, True]
    assert [v.value for v in found.values[2]] == pytest.approx([0.2 / 0.5, np.nan, 0, 1], nan_ok=True)
    assert found.reasons[2] == (Reason.NONE, Reason.TOLD_APART, Reason.NONE, Reason.NONE)
    assert found.ratio[2].value == pytest.approx((0.2 + 0) / (0.5 + 0.4))  # the last is not primary


def test_more_features_never_lower_the_select_mcc(
    yardstick: Yardstick, world: tuple[dict[str, TokenSet], Labels]
) -> None:
    tokens, _ = world
    directions = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    dense = {s: torch.relu(part.x @ directions - 2) for s, part in tokens.items()}
    found = measure(yardstick, dense)
    assert (found.select_mcc[1] <= found.select_mcc[2]).all()
    assert (found.select_mcc[2] <= found.select_mcc[4]).all()
    assert found.select_mcc[4][0] > found.select_mcc[1][0] + 0.02
    for other in (
        {s: csc_array(part.numpy()) for s, part in dense.items()},
        {s: part.numpy()[yardstick.used[s]] for s, part in dense.items()},
    ):
        assert measure(yardstick, other).S == found.S
    frame = found.frame()
    assert frame["mcc_2"].tolist() == [c.mcc[2].value for c in found.contexts]
    assert {"ceiling_low", "floor_high", "reason", "features"} <= set(frame)


def test_contexts_that_are_not_asked_for_are_not_a_number_and_change_nothing(
    yardstick: Yardstick, world: tuple[dict[str, TokenSet], Labels]
) -> None:
    acts = {split: part.x.clamp_min(0) for split, part in world[0].items()}
    every, some = measure(yardstick, acts), measure(yardstick, acts, yardstick.judged)
    assert not yardstick.judged.all()
    assert some.S == every.S and some.raw == every.raw
    for k, draws in some.draws.items():
        np.testing.assert_array_equal(draws[:, yardstick.judged], every.draws[k][:, yardstick.judged])
        assert np.isnan(draws[:, ~yardstick.judged]).all()
    assert [c.features for c in some.contexts if not c.judged] == [()] * int((~yardstick.judged).sum())


def test_tokens_are_packed_where_that_changes_nothing(world: tuple[dict[str, TokenSet], Labels]) -> None:
    part = world[0]["test"]
    assert part.packed() is part
    stored = replace(part, x=part.x.bfloat16().float())
    assert stored.packed().x.dtype == torch.bfloat16
    assert torch.equal(stored.packed().x.float(), stored.x)


def test_bad_input_is_one_line(yardstick: Yardstick, world: tuple[dict[str, TokenSet], Labels]) -> None:
    tokens, labels = world
    ones = {s: np.ones((n, 2)) for s, n in SIZES.items()}
    with pytest.raises(
        UserError, match=r"a row for each of the 500 tokens of P, or of the 500 used; got 3 rows of test"
    ):
        measure(yardstick, ones | {"test": np.ones((3, 2))})
    with pytest.raises(UserError, match=r"must have the same features; got \[2, 3\]"):
        measure(yardstick, ones | {"test": np.ones((500, 3))})
    for value in (-1, np.nan, np.inf):
        with pytest.raises(UserError, match="finite and at least 0"):
            measure(yardstick, ones | {"select": np.full((500, 2), value)})
    with pytest.raises(UserError, match="one row of labels; got 900 labels, 500 tokens of train"):
        make_yardstick(tokens | {"train": tokens["test"]}, labels)
    nobody = Labels(labels.contexts, labels.member, labels.counts | {"select": np.zeros(500, dtype=bool)})
    with pytest.raises(UserError, match="some select tokens of the parent must be in a context; got 0"):
        make_yardstick(tokens, nobody)
