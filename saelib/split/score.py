"""Has a feature split? A verdict that a program can decide, with an interval beside every number.

`P` are the held-out tokens on which the parent exceeds tau; context classes label them from the text alone. Children are
chosen on the select split (`saelib.split.evidence`); everything here is measured on the test split, over the labelled tokens
of P. Intervals are 95% percentiles of a bootstrap that draws documents, since tokens of one document are not independent.

    precision = hits / tokens on which the child fires        recall = hits / tokens of the class
    win rate = share of the class's tokens on which the child is the top feature
    margin = median over the class's tokens on which the child fires of (a_j - max other) / a_j
    fires elsewhere = share of the other classes' tokens on which the child fires at all

`split`: every class has a child whose precision, recall and win rate pass with the lower end of their intervals and
whose firing elsewhere passes with the upper end, and the children are distinct. `partial k/m`: k of m classes do.
`not split`: none does. `undecided`: a class has too few test tokens to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from saelib.base.errors import UserError
from saelib.split.evidence import Columns


@dataclass(frozen=True)
class Bounds:
    """What a child must pass."""

    candidate_precision: float = 0.8
    """A child fires where the parent does: P(parent fires | child fires) is at least this ..."""
    candidate_share: float = 0.01
    """... on at least this share of P."""
    precision: float = 0.8
    """Lower end of precision for the class is at least this."""
    recall: float = 0.5
    """Lower end of recall is at least this."""
    win_rate: float = 0.5
    """Lower end of the win rate is above this."""
    fires_elsewhere: float = 0.05
    """Upper end of firing on the other classes' tokens is at most this."""
    cosine: float = 0.9
    """Decoder cosine between any two children is below this."""
    tokens: int = 30
    """A class with fewer test tokens in P is undecided."""


BOUNDS = Bounds()
"""Frozen on 2026-11-22 at the values the definition began with, after the calibration on synthetic features with known
answers (notebook `08_calibration`, `tests/test_calibration.py`), before any of the study's runs was scored."""

BOOTSTRAP_DRAWS = 1000


class Interval(tuple[float, float, float]):
    """A value with the ends of its 95% interval."""

    __slots__ = ()

    @property
    def value(self) -> float:
        """The value on all documents."""
        return self[0]

    @property
    def low(self) -> float:
        """2.5% point of the bootstrap."""
        return self[1]

    @property
    def high(self) -> float:
        """97.5% point of the bootstrap."""
        return self[2]


# --- quantities: pure functions of arrays, one entry a token --------------------------------------------------------------


def precision_recall_f1(fires: np.ndarray, member: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 of "the feature fires" as a detector of the class; 0 where nothing fires or is there."""
    hits, fired, members = int((fires & member).sum()), int(fires.sum()), int(member.sum())
    return (
        hits / fired if fired else 0.0,
        hits / members if members else 0.0,
        2 * hits / (fired + members) if fired + members else 0.0,
    )


def auroc(values: Float[np.ndarray, " n"], member: np.ndarray) -> float:
    """Probability that a token of the class has the larger activation than another, ties counting half; NaN if one-sided."""
    n_in, n_out = int(member.sum()), int((~member).sum())
    if not n_in or not n_out:
        return math.nan
    ranks = rankdata(values)
    return float((ranks[member].sum() - n_in * (n_in + 1) / 2) / (n_in * n_out))


def best_threshold(values: Float[np.ndarray, " n"], member: np.ndarray) -> float:
    """The threshold t at which "value > t" has the highest F1 for the class (to be chosen on select, used on test)."""
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(member[order])
    f1 = 2 * hits / (np.arange(1, len(values) + 1) + max(int(member.sum()), 1))
    ends = np.append(np.diff(values[order]) < 0, True)  # a threshold cannot part equal values
    best = int(np.argmax(np.where(ends, f1, -1)))
    below = values[order][best + 1 :]
    return float(below[0]) if len(below) else -math.inf


def median_margin(child: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Median of (a_j - max other) / a_j over the tokens on which the child fires; NaN when it never does."""
    fires = child > 0
    return float(np.median((child[fires] - other[fires]) / child[fires])) if fires.any() else math.nan


def coverage(columns: Columns) -> tuple[float, float]:
    """Share of P on which at least one candidate child fires; the same weighted by the parent's activation."""
    if not len(columns.parent):
        return math.nan, math.nan
    weight = columns.parent.astype(np.float64)
    return float(columns.covered.mean()), float((columns.covered * weight).sum() / weight.sum())


def cosines(rows: Float[Tensor, "k d"]) -> Float[np.ndarray, "k k"]:
    """Cosine between every two rows."""
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (unit @ unit.T).numpy()


def logit_cosines(rows: Float[Tensor, "k d"], W_U: Float[Tensor, "d d_vocab"]) -> Float[np.ndarray, "k k"]:
    """Cosine between the logit effects `d_j @ W_U` of every two rows, each less its mean: a shift of all logits is none."""
    effect = rows @ W_U
    return cosines(effect - effect.mean(1, keepdim=True))


def jaccard(fires: np.ndarray) -> Float[np.ndarray, "k k"]:
    """Tokens on which both columns of an (n, k) mask fire, over those on which either does."""
    f = fires.astype(np.float64)
    both = f.T @ f
    either = f.sum(0)[:, None] + f.sum(0)[None] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def document_bootstrap(
    counts: Float[np.ndarray, "n k"],
    document: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> list[Interval]:
    """Values and 95% intervals of statistics of summed counts, drawing documents with replacement.

    `counts` has a row a token; `statistic` maps summed counts (..., k) to statistics (..., s). Documents are drawn
    with the seed given, so the same input gives the same interval.
    """
    _, index = np.unique(document, return_inverse=True)
    n_documents = int(index.max(initial=-1)) + 1
    sums = np.zeros((n_documents, counts.shape[1]))
    np.add.at(sums, index, counts)
    whole = statistic(sums.sum(0))
    if n_documents == 0:
        return [Interval((float(value), math.nan, math.nan)) for value in whole]
    weights = np.random.default_rng(seed).multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=draws)
    low, high = np.nanpercentile(statistic(weights @ sums), [2.5, 97.5], axis=0)
    return [Interval((float(v), float(a), float(b))) for v, a, b in zip(whole, low, high, strict=True)]


# --- the verdict -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassScore:
    """One class and its child."""

    context_class: str
    child: int | None
    """The feature chosen on the select split; None when no candidate child fires on the class."""
    test_tokens: int
    """Tokens of the class in P, on test."""
    precision: Interval
    recall: Interval
    f1: Interval
    auroc: float
    parent_f1: float
    """F1 on test of the parent's own activation at the threshold that was best on select."""
    win_rate: Interval
    margin: float
    fires_elsewhere: Interval
    failed: tuple[str, ...]
    """The bounds it does not pass, by name."""
    passed: bool | None
    """None when there are too few test tokens to say."""


@dataclass(frozen=True)
class Score:
    """The verdict on one dictionary for one parent, with its evidence."""

    verdict: str
    """`split`, `partial k/m`, `not split` or `undecided`."""
    classes: tuple[ClassScore, ...]
    parent_tokens: int
    """Test tokens in P."""
    candidates: int
    """Candidate children."""
    coverage: float
    coverage_weighted: float
    parent_still_top: float
    """Share of P on which the feature with the parent's number is the top one; NaN unless the start was warm."""
    max_cosine: float
    """Largest decoder cosine between two children; NaN with fewer than two."""
    best_f1: tuple[float, ...]
    """For each class, the F1 on test of the feature that marked it best on select, candidate or not."""
    max_jaccard: float
    """Largest co-firing Jaccard between two children on P."""
    max_logit_cosine: float = math.nan
    """Largest cosine between the logit effects of two children; NaN with fewer than two, or without an unembedding."""

    @property
    def classes_passed(self) -> int:
        """How many classes have a child that passes."""
        return sum(bool(row.passed) for row in self.classes)

    @property
    def mean_f1(self) -> float:
        """Mean F1 of the children; a class without one counts 0."""
        return float(np.mean([row.f1.value for row in self.classes]))

    def frame(self) -> pd.DataFrame:
        """One row a class; an interval fills three columns, `name`, `name_low`, `name_high`."""
        rows = []
        for score in self.classes:
            row: dict[str, object] = {}
            for name, value in asdict(score).items():
                if isinstance(value, tuple) and name != "failed":
                    row |= {name: value[0], f"{name}_low": value[1], f"{name}_high": value[2]}
                else:
                    row[name] = ", ".join(value) if name == "failed" else value
            rows.append(row)
        return pd.DataFrame(rows).set_index("context_class")


def judge(
    columns: Columns,
    names: Sequence[str],
    children: Sequence[int | None],
    W_dec: Float[Tensor, "d_sae d_in"],
    *,
    n_candidates: int,
    parent_thresholds: Sequence[float],
    W_U: Float[Tensor, "d_in d_vocab"] | None = None,
    warm_parent: int | None = None,
    bounds: Bounds = BOUNDS,
    draws: int = BOOTSTRAP_DRAWS,
) -> Score:
    """The verdict from what was gathered on the test split.

    Args:
        columns: the children's activations on the test tokens of P.
        names: the context classes.
        children: the child of each class, as chosen on select.
        W_dec: the dictionary's decoder.
        n_candidates: how many candidate children there were.
        parent_thresholds: the parent's best threshold for each class, chosen on select.
        W_U: the unembedding, for the children's logit effects.
        warm_parent: the parent's number in the dictionary when it was copied there.

    Raises:
        UserError: there are no classes, or not one entry a class.
    """
    if not names or len(names) != len(children):
        raise UserError("every context class needs one entry", f"{len(names)} classes, {len(children)}", "name classes")
    labelled = columns.label >= 0
    found = [j for j in children if j is not None]
    rows_dec = W_dec.detach()[found]
    cosine = _off_diagonal(cosines(rows_dec))
    overlap = _off_diagonal(jaccard(columns.child[:, [j is not None for j in children]] > 0))
    rows = []
    for c, (name, child) in enumerate(zip(names, children, strict=True)):
        near = child is not None and bool((cosine[found.index(child)] >= bounds.cosine).any())
        part = _measure(columns, labelled, c, parent_thresholds[c], draws)
        rows.append(_class_score(name, child, part, near, bounds))
    shares = coverage(columns)
    still = float((columns.top == warm_parent).mean()) if warm_parent is not None and len(columns.top) else math.nan
    return Score(
        verdict=overall([row.passed for row in rows]),
        classes=tuple(rows),
        parent_tokens=len(columns.parent),
        candidates=n_candidates,
        coverage=shares[0],
        coverage_weighted=shares[1],
        parent_still_top=still,
        max_cosine=float(cosine.max()) if len(found) > 1 else math.nan,
        best_f1=tuple(
            precision_recall_f1(columns.best_fires[labelled, c], columns.label[labelled] == c)[2]
            for c in range(len(names))
        ),
        max_jaccard=float(overlap.max()) if len(found) > 1 else math.nan,
        max_logit_cosine=(
            float(_off_diagonal(logit_cosines(rows_dec, W_U)).max()) if W_U is not None and len(found) > 1 else math.nan
        ),
    )


def overall(passed: Sequence[bool | None]) -> str:
    """`split`, `partial k/m`, `not split`; `undecided` when a class has too few tokens to say."""
    if any(p is None for p in passed):
        return "undecided"
    k = sum(bool(p) for p in passed)
    return "split" if k == len(passed) else "not split" if k == 0 else f"partial {k}/{len(passed)}"


@dataclass(frozen=True)
class _Measured:
    tokens: int
    precision: Interval
    recall: Interval
    f1: Interval
    win_rate: Interval
    elsewhere: Interval
    auroc: float
    parent_f1: float
    margin: float


def _measure(columns: Columns, labelled: np.ndarray, c: int, threshold: float, draws: int) -> _Measured:
    own = columns.label[labelled] == c
    child, other = columns.child[labelled, c], columns.other[labelled, c]
    fires = child > 0
    wins = fires & (child > other)
    counts = np.stack([fires & own, fires & ~own, own, ~own, wins & own], axis=1).astype(np.float64)

    def statistics(sums: np.ndarray) -> np.ndarray:
        hits, false, members, others, won = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [hits / (hits + false), hits / members, 2 * hits / (hits + false + members), won / members]
            return np.stack([*(np.nan_to_num(r) for r in ratios), np.nan_to_num(false / others)], axis=-1)

    precision, recall, f1, win_rate, elsewhere = document_bootstrap(
        counts, columns.document[labelled], statistics, draws
    )
    return _Measured(
        tokens=int(own.sum()),
        precision=precision,
        recall=recall,
        f1=f1,
        win_rate=win_rate,
        elsewhere=elsewhere,
        auroc=auroc(child, own),
        parent_f1=precision_recall_f1(columns.parent[labelled] > threshold, own)[2],
        margin=median_margin(child[own], other[own]),
    )


def _class_score(name: str, child: int | None, m: _Measured, near: bool, bounds: Bounds) -> ClassScore:
    checks = {
        "no candidate": child is not None,
        "precision": m.precision.low >= bounds.precision,
        "recall": m.recall.low >= bounds.recall,
        "win rate": m.win_rate.low > bounds.win_rate,
        "fires elsewhere": m.elsewhere.high <= bounds.fires_elsewhere,
        "not distinct": not near,
    }
    failed = ("no candidate",) if child is None else tuple(check for check, ok in checks.items() if not ok)
    return ClassScore(
        context_class=name,
        child=child,
        test_tokens=m.tokens,
        precision=m.precision,
        recall=m.recall,
        f1=m.f1,
        auroc=m.auroc,
        parent_f1=m.parent_f1,
        win_rate=m.win_rate,
        margin=m.margin,
        fires_elsewhere=m.elsewhere,
        failed=failed,
        passed=None if m.tokens < bounds.tokens else not failed,
    )


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix - np.diag(np.full(len(matrix), np.inf)) if len(matrix) else matrix
