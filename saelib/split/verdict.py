"""The verdict on a split: a gate, a test a context, and a count.

A context passes when the child that marks it best (on select) adds to the rest of the SAE, marks it precisely, and does not
fire elsewhere: the lower ends of `added_1` and of precision, and the upper end of foreign leak, against `Bounds`. The ends
hold for all m contexts together (Bonferroni): a context's are those of a 1 - 0.05 / m interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.special import ndtri

from saelib.base.errors import UserError
from saelib.base.stats import wilson_interval
from saelib.split.leak import Leak
from saelib.split.separation import LEAST_ROOM, Separation
from saelib.split.yardstick import Interval, Reason, Yardstick


class Verdict(StrEnum):
    """What came of a split."""

    SPLIT = "split"
    PARTIAL = "partial"
    NOT_SPLIT = "not split"
    UNDECIDED = "undecided"
    NO_SUCH_PARENT = "no such parent"
    ALREADY_TOLD_APART = "already told apart"
    GRADED = "graded"


@dataclass(frozen=True)
class Bounds:
    """What a child and a parent must pass."""

    added: float = 0.1
    """Lower end of `added_1`, what the child adds to the rest of the SAE, is at least this."""
    precision: float = 0.5
    """Lower end of the share of the child's firings on P that are in the context is at least this."""
    foreign: float = 0.2
    """Upper end of the child's foreign leak is at most this."""
    tokens: int = 30
    """A context with fewer test tokens is undecided."""
    purity: float = 0.5
    """A parent with a smaller share of P in the contexts asked about is none of theirs."""
    stability: float = 0.5
    """Children of passing contexts that agree less than this between seeds (matched IoU on P) cut a continuum."""
    level: float = 0.05
    """Chance, over all contexts together, that an interval misses its value."""


BOUNDS = Bounds()
FROZEN = "2026-11-26"
"""The bounds stand since this day, before any run of the second edition was judged by them. Leak has been counted on all silent
tokens, not on a sample, since six hours later, which narrows its interval. Notebook `08_calibration` says how often the verdict
is right, with leak of a sample."""


@dataclass(frozen=True)
class ContextEvidence:
    """What one context's verdict rests on; draws hold the value of all documents first."""

    context: str
    """Its name."""
    primary: bool
    """Whether it counts."""
    n_test: int
    """Its tokens on test."""
    reason: Reason
    """Why it is not judged, or `TOLD_APART`; `NONE` where a child is required."""
    child: int | None
    """The child that marks it best on select; None when none does."""
    added: Float[np.ndarray, " draws"] = field(repr=False)
    """added_1 of rest + this child; 0 where the rest marks the context better on select."""
    precision: Float[np.ndarray, " draws"] = field(repr=False)
    """Share of the child's firings on P that are in the context."""
    n_firings: float
    """The child's firings on P."""
    foreign: Float[np.ndarray, " draws"] = field(repr=False)
    """The child's foreign leak."""
    n_leak: float
    """Trials that the leak's interval counts (see `Leak.n`)."""


@dataclass(frozen=True)
class ContextVerdict:
    """One context's verdict; the intervals are simultaneous."""

    context: str
    child: int | None
    """The child that marks it best on select."""
    passed: bool | None
    """None where no child is required, or too few tokens say."""
    failed: tuple[str, ...]
    """The bounds that are not passed."""
    reason: str
    """Why no child is required."""
    added: Interval
    precision: Interval
    foreign: Interval


@dataclass(frozen=True)
class Judgement:
    """The verdict with what it rests on."""

    verdict: Verdict
    text: str
    """In words: `split: 6 of 8 contexts`, `partial 1/2`."""
    contexts: tuple[ContextVerdict, ...]

    @property
    def passed(self) -> int:
        """Contexts that pass."""
        return sum(bool(c.passed) for c in self.contexts)

    def frame(self) -> pd.DataFrame:
        """One row a context; an interval fills three columns."""
        rows = []
        for c in self.contexts:
            row = {"context": c.context, "child": c.child, "passed": c.passed, "failed": ", ".join(c.failed)}
            row["reason"] = c.reason
            for name in ("added", "precision", "foreign"):
                value, low, high = getattr(c, name)
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)


def gather_evidence(
    yardstick: Yardstick,
    rest: Separation,
    children: Separation,
    fires: Bool[np.ndarray, "n_test K"],
    leak: Leak,
) -> tuple[ContextEvidence, ...]:
    """The evidence of every context from what was measured.

    Args:
        rest: the SAE without the parent.
        children: the children alone; `ContextSeparation.features[0]` is the child that marks a context best on select.
        fires: whether each child exceeds its theta on the yardstick's used test tokens.
        leak: one entry a *context*: that of its best child, tokens of that context being the harmless ones (any
            child where it has none).

    Raises:
        UserError: firings or leaks of another number.
    """
    member = yardstick.member["test"]
    if len(fires) != len(member) or len(leak.foreign) != member.shape[1]:
        got = f"{len(fires)} tokens, {len(leak.foreign)} leaks"
        rule = f"evidence needs {len(member)} tokens and a leak for each of {member.shape[1]} contexts"
        raise UserError(rule, got, "measure them with this yardstick")
    out = []
    for c, context in enumerate(yardstick.contexts):
        chosen = children.contexts[c].features
        child = chosen[0] if chosen else None
        better = children.select_mcc[1][c] > rest.select_mcc[1][c]
        gain = (children.draws[1][:, c] - rest.draws[1][:, c]) * better
        room = yardstick.ceiling_draws[:, c] - rest.draws[1][:, c]
        fired = fires[:, child] if child is not None else np.zeros(len(fires), dtype=bool)
        hits, firings = yardstick.documents.sums(np.stack([fired & member[:, c], fired], axis=1)).T
        apart = yardstick.ceiling.select_mcc[c] - rest.select_mcc[1][c] < LEAST_ROOM
        out.append(
            ContextEvidence(
                context=context.name,
                primary=context.primary,
                n_test=int(member[:, c].sum()),
                reason=Reason.TOLD_APART if apart and yardstick.judged[c] else yardstick.reasons[c],
                child=child,
                added=np.divide(gain, room, out=np.zeros_like(room), where=room > 0),
                precision=np.divide(hits, firings, out=np.zeros_like(hits), where=firings > 0),
                n_firings=float(firings[0]),
                foreign=leak.draws[:, c],
                n_leak=float(leak.n[c]),
            )
        )
    return tuple(out)


def judge(
    evidence: Sequence[ContextEvidence],
    named: bool,
    purity: float,
    stability: Float[np.ndarray, " K"] | None = None,
    bounds: Bounds = BOUNDS,
) -> Judgement:
    """The verdict.

    Args:
        named: whether the contexts were asked about (classes or rules); all of them must pass for `split`. Of automatic
            contexts half must, with two distinct children.
        purity: share of P in the contexts asked about; for automatic contexts it is not looked at.
        stability: each child's IoU on P with the child of another seed it is matched to; None where one seed was run.

    Raises:
        UserError: no contexts.
    """
    if not evidence:
        raise UserError("a verdict needs at least one context", 0, "choose contexts")
    required = [e for e in evidence if _required(e, bounds)]
    rows = tuple(_context(e, max(len(required), 1), bounds) for e in evidence)
    if named and purity < bounds.purity:
        text = f"no such parent: {purity:.0%} of its tokens are in the contexts asked about"
        return Judgement(Verdict.NO_SUCH_PARENT, text, rows)
    primary = [e for e in evidence if e.primary]
    few = [e for e in primary if e.n_test < bounds.tokens or e.reason is Reason.TOO_FEW]
    if few and (named or len(few) == len(primary)):
        names = ", ".join(f"{e.context} has {e.n_test}" for e in few)
        return Judgement(Verdict.UNDECIDED, f"undecided: too few test tokens ({names})", rows)
    if not required:
        if any(e.reason is Reason.TOLD_APART for e in primary):
            return Judgement(Verdict.ALREADY_TOLD_APART, "already told apart by the rest", rows)
        return Judgement(Verdict.NOT_SPLIT, "not split: no context to tell apart", rows)
    passing = [row for row in rows if row.passed]
    k, m = len(passing), len(required)
    distinct = len({row.child for row in passing})
    enough = k == m if named else 2 * k >= m and distinct >= 2
    verdict = Verdict.SPLIT if enough else Verdict.PARTIAL if k else Verdict.NOT_SPLIT
    agree = 1.0 if stability is None or not k else float(np.mean([stability[row.child] for row in passing]))
    if agree < bounds.stability:
        text = f"graded: {k} of {m} contexts, but their children agree between seeds only to IoU {agree:.2f}"
        return Judgement(Verdict.GRADED, text, rows)
    text = {
        Verdict.SPLIT: f"split: {k} of {m} contexts",
        Verdict.PARTIAL: f"partial {k}/{m}",
        Verdict.NOT_SPLIT: f"not split: 0 of {m} contexts",
    }[verdict]
    return Judgement(verdict, text, rows)


def simultaneous(draws: Float[np.ndarray, " draws"], m: int, n: float | None = None, level: float = 0.05) -> Interval:
    """A value with ends that hold for m of them together: z standard deviations of its draws, z at 1 - level / (2 m).

    With `n`, a share of n trials: the wider of these ends and Wilson's at the same z, so that none seen is not none.
    """
    z = float(ndtri(1 - level / (2 * m)))
    value, spread = float(draws[0]), float(np.std(draws[1:]))
    low, high = value - z * spread, value + z * spread
    if n is not None:
        wilson_low, wilson_high = wilson_interval(value, n, z)
        low, high = max(min(low, wilson_low), 0.0), min(max(high, wilson_high), 1.0)
    return Interval(value, low, high)


def _required(e: ContextEvidence, bounds: Bounds) -> bool:
    return e.primary and e.reason is Reason.NONE and e.n_test >= bounds.tokens


def _context(e: ContextEvidence, m: int, bounds: Bounds) -> ContextVerdict:
    added = simultaneous(e.added, m, level=bounds.level)
    precision = simultaneous(e.precision, m, e.n_firings, bounds.level)
    foreign = simultaneous(e.foreign, m, e.n_leak, bounds.level)
    checks = {
        "no child": e.child is not None,
        "added": added.low >= bounds.added,
        "precision": precision.low >= bounds.precision,
        "foreign leak": foreign.high <= bounds.foreign,
    }
    failed = ("no child",) if e.child is None else tuple(name for name, ok in checks.items() if not ok)
    required = _required(e, bounds)
    reason = e.reason or ("" if e.primary else "shown beside")
    return ContextVerdict(
        context=e.context,
        child=e.child,
        passed=not failed if required else None,
        failed=failed if required else (),
        reason=reason,
        added=added,
        precision=precision,
        foreign=foreign,
    )
