"""The verdict's quantities by hand, its intervals, and what each bound decides."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from saelib.base.errors import UserError
from saelib.split.evidence import Columns
from saelib.split.score import (
    BOUNDS,
    Score,
    auroc,
    best_threshold,
    cosines,
    coverage,
    document_bootstrap,
    jaccard,
    judge,
    logit_cosines,
    median_margin,
    overall,
    precision_recall_f1,
)


def flags(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


def test_precision_recall_f1_by_hand() -> None:
    assert precision_recall_f1(flags("1110"), flags("0111")) == (2 / 3, 2 / 3, 2 / 3)
    assert precision_recall_f1(flags("0000"), flags("0111")) == (0, 0, 0)
    assert precision_recall_f1(flags("1000"), flags("0000")) == (0, 0, 0)


def test_auroc_by_hand_with_ties() -> None:
    assert auroc(np.array([3.0, 2.0, 1.0]), flags("110")) == 1
    assert auroc(np.array([1.0, 1.0]), flags("10")) == 0.5
    assert auroc(np.array([0.0, 2.0, 1.0]), flags("110")) == 0.5
    assert math.isnan(auroc(np.array([1.0]), flags("1")))


def test_best_threshold_parts_no_ties() -> None:
    values, member = np.array([5.0, 4.0, 4.0, 1.0]), flags("1100")
    threshold = best_threshold(values, member)
    assert threshold == 1.0  # above 1: three tokens, F1 0.8; above 4: one token, F1 2/3
    assert best_threshold(np.array([2.0, 1.0]), flags("11")) == -math.inf


def test_margin_coverage_cosine_jaccard_by_hand() -> None:
    assert median_margin(np.array([4.0, 2.0, 0.0]), np.array([1.0, 3.0, 9.0])) == pytest.approx((0.75 - 0.5) / 2)
    assert math.isnan(median_margin(np.zeros(2), np.ones(2)))
    columns = columns_of("11", fires="10", parent=[3.0, 1.0])
    assert coverage(columns) == (0.5, 0.75)
    assert cosines(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))[0, 1] == pytest.approx(0.5**0.5)
    assert jaccard(np.array([[1, 1], [1, 0], [0, 1]], dtype=bool))[0, 1] == pytest.approx(1 / 3)
    assert jaccard(np.zeros((2, 2), dtype=bool)).tolist() == [[0, 0], [0, 0]]


def test_logit_cosine_by_hand() -> None:
    W_U = torch.tensor(
        [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]
    )  # effects (3, 0, 0) and (0, 3, 0); less their mean: (2, -1, -1), (-1, 2, -1)
    assert logit_cosines(torch.eye(2), W_U)[0, 1] == pytest.approx(-0.5)
    assert logit_cosines(torch.eye(2), W_U + 7)[0, 1] == pytest.approx(-0.5)  # all logits shifted alike
    pair = judged(columns_of("1" * 60 + "0" * 60, "1" * 60 + "0" * 60), W_U=W_U)
    assert pair.max_logit_cosine == pytest.approx(-0.5) and pair.max_cosine == 0
    assert math.isnan(judged(columns_of("10", "10")).max_logit_cosine)


def columns_of(own: str, fires: str, parent: list[float] | None = None, documents: int = 1_000_000) -> Columns:
    """One class; `own` marks its tokens, `fires` the child's; nothing else fires."""
    n = len(own)
    child = flags(fires).astype(np.float32)[:, None]
    return Columns(
        child=child,
        other=np.zeros_like(child),
        top=np.where(flags(fires), 0, -1),
        best_fires=child > 0,
        covered=child[:, 0] > 0,
        parent=np.array(parent if parent is not None else np.ones(n)),
        label=np.where(flags(own), 0, 1),
        document=np.arange(n) % documents,
    )


def test_the_bootstrap_draws_documents_not_tokens() -> None:
    rng = np.random.default_rng(0)
    per_document = rng.random(40) < 0.5
    alone = document_bootstrap(np.c_[per_document, np.ones(40)], np.arange(40), lambda s: s[..., :1] / s[..., 1:])
    repeated = np.repeat(per_document, 25)
    grouped = document_bootstrap(
        np.c_[repeated, np.ones(1000)], np.repeat(np.arange(40), 25), lambda s: s[..., :1] / s[..., 1:]
    )
    as_if_independent = document_bootstrap(
        np.c_[repeated, np.ones(1000)], np.arange(1000), lambda s: s[..., :1] / s[..., 1:]
    )
    assert grouped == alone  # copies of a token within a document tell nothing new
    assert as_if_independent[0].high - as_if_independent[0].low < 0.4 * (alone[0].high - alone[0].low)
    assert alone[0].low < alone[0].value < alone[0].high


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        rate = rng.beta(6, 4, size=60)  # documents differ
        tokens = rng.random((60, 10)) < rate[:, None]
        interval = document_bootstrap(
            np.c_[tokens.reshape(-1), np.ones(600)],
            np.repeat(np.arange(60), 10),
            lambda s: s[..., :1] / s[..., 1:],
            400,
        )[0]
        covered += interval.low <= 0.6 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def judged(columns: Columns, W_dec: torch.Tensor | None = None, W_U: torch.Tensor | None = None) -> Score:
    W_dec = torch.eye(2) if W_dec is None else W_dec
    two = replace_class(columns)
    return judge(two, ["a", "b"], [0, 1], W_dec, n_candidates=2, parent_thresholds=[0.0, 0.0], W_U=W_U)


def replace_class(columns: Columns) -> Columns:
    """The same with a second child, perfect for the other label."""
    perfect = (columns.label == 1).astype(np.float32)[:, None]
    child = np.concatenate([columns.child, perfect], axis=1)
    return replace(columns, child=child, other=child[:, ::-1].copy(), best_fires=child > 0)


def test_a_perfect_pair_is_a_split_and_each_fault_is_named() -> None:
    own = "1" * 100 + "0" * 100
    assert judged(columns_of(own, own)).verdict == "split"
    missing = judged(columns_of(own, "1" * 40 + "0" * 160))
    assert missing.verdict == "partial 1/2" and missing.classes[0].failed == ("recall", "win rate")
    leaky = judged(columns_of(own, "1" * 100 + "1" * 15 + "0" * 85))
    assert set(leaky.classes[0].failed) == {"fires elsewhere", "precision"} or leaky.classes[0].failed == (
        "fires elsewhere",
    )
    close = judged(columns_of(own, own), W_dec=torch.tensor([[1.0, 0.1], [1.0, 0.0]]))
    assert close.verdict == "not split" and close.classes[0].failed == ("not distinct",)


def test_the_lower_end_decides_not_the_value() -> None:
    own = "1" * 100 + "0" * 1000
    score = judged(columns_of(own, "1" * 55 + "0" * 1045))
    recall = score.classes[0].recall
    assert recall.value == 0.55 > BOUNDS.recall > recall.low and "recall" in score.classes[0].failed


def test_too_few_tokens_are_undecided_and_no_class_is_an_error() -> None:
    own = "1" * 29 + "0" * 100
    assert judged(columns_of(own, own)).verdict == "undecided"
    assert judged(columns_of("1" + own, "1" + own)).verdict == "split"
    assert judged(columns_of("0" * 40, "0" * 40)).verdict == "undecided"  # an empty class
    with pytest.raises(UserError, match="every context class needs one entry"):
        judge(columns_of("1", "1"), [], [], torch.eye(2), n_candidates=0, parent_thresholds=[])


def test_a_class_without_a_child_fails_as_such_and_a_warm_parent_is_looked_for() -> None:
    columns = columns_of("1" * 60, "1" * 60)
    score = judge(columns, ["a"], [None], torch.eye(2), n_candidates=0, parent_thresholds=[0.0], warm_parent=0)
    assert score.verdict == "not split" and score.classes[0].failed == ("no candidate",)
    assert score.parent_still_top == 1.0 and math.isnan(score.max_cosine)
    frame = score.frame()
    assert {"precision", "precision_low", "precision_high", "failed"} <= set(frame.columns)


def test_overall() -> None:
    assert overall([True, True]) == "split" and overall([False, False]) == "not split"
    assert overall([True, False]) == "partial 1/2" and overall([True, None]) == "undecided"
