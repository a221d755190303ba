"""The claims put to the test: what each says as a difference of S_2, its interval over narrow SAEs, and a verdict.

    effect of a block = mean over its seeds of S_2 in the first arm - the same in the second
    interval          = mean of the n block effects +- t.975 s / sqrt(n),   n - 1 degrees of freedom
    smallest effect   = (t.975 + t.80) s / sqrt(n)

Narrow SAEs are the unit: two wide runs on one narrow SAE are not independent, and each arm is run on all of them.

supported       the interval excludes 0, in the direction claimed, and p by Holm is below `LEVEL`
not supported   the interval excludes an effect of `MATTERS` in that direction
undecided       neither

A claim that two things are as good as each other is supported when the interval lies within +-`MATTERS` and p by Holm is below
`LEVEL`, and not supported when it lies outside. p is Student's, or for such a claim the larger of two one-sided ones against
+-`MATTERS`; Holm's correction is over all claims but the controls, which are judged by their intervals alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from saelib.base.stats import TTest, equivalence_p, holm, smallest_effect, t_test
from saelib.base.table import column
from saelib.split.verdict import Verdict
from saelib.study.arms import EARLY, END, SAME_PARENT_TOKENS, ArmRun
from saelib.study.children_rows import CHILDREN, RANDOM_DECODER

MATTERS = 0.10
"""An effect on S_2 that matters."""
LEVEL = 0.05
"""What p by Holm must be below for a claim to be supported."""


class ClaimVerdict(StrEnum):
    """What the runs say of a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    UNDECIDED = "undecided"


class Kind(StrEnum):
    """Whose claim it is."""

    PUBLISHED = "published"
    OURS = "ours"
    CONTROL = "control"


class Measure(StrEnum):
    """What a block's effect is."""

    DIFFERENCE = "difference"
    SPREAD = "spread of seeds"
    PERMUTED = "permuted labels"


@dataclass(frozen=True)
class Claim:
    """A claim as something that each block has a value of."""

    text: str
    kind: Kind
    published: str
    """The evidence published for it."""
    first: tuple[str, str]
    """Arm, and when it is measured."""
    second: tuple[str, str] | None = None
    measure: Measure = Measure.DIFFERENCE
    within: bool = False
    """It says that there is no effect that matters, not that there is one."""


CLAIMS = (
    Claim(
        "Filtering contexts makes the split better", Kind.PUBLISHED, "runs 4-6: 3 of 3 split; unfiltered runs 1-3: 1 of 3",
        ("filtered", END), ("all data", END),
    ),
    Claim(
        "The filter needs a wide SAE", Kind.PUBLISHED, "runs 4-6: 3 of 3; run 12, narrow: no",
        ("filtered", END), ("narrow size", END),
    ),
    Claim(
        "Normalising at a warm start hurts", Kind.PUBLISHED, "runs 7-9: 3 of 3; run 10, normalised: no",
        ("warm", END), ("warm, normalised", END),
    ),
    Claim(
        "Zeroing the parent does not help, it hurts", Kind.PUBLISHED, "runs 7-9: 3 of 3; run 11, zeroed: 2 of 3 classes",
        ("warm", END), ("warm, zeroed", END),
    ),
    Claim(
        "A warm start is ahead early", Kind.PUBLISHED, "loss at step 50: 140.0 against 149.7 and 148.6",
        ("warm", EARLY), ("filtered", EARLY),
    ),
    Claim(
        "With a warm start few tokens suffice", Kind.PUBLISHED, "run 9: yes after 26.2M of 2,000M tokens",
        ("warm", END), ("warm", EARLY), within=True,
    ),
    Claim(
        "Seeds agree", Kind.PUBLISHED, "runs 4-6: 3 of 3 split", ("filtered", END), measure=Measure.SPREAD, within=True
    ),
    Claim("Filtering tokens does better than contexts", Kind.OURS, "", ("token-filtered", END), ("filtered", END)),
    Claim("Filtering tokens does better than all data", Kind.OURS, "", ("token-filtered", END), ("all data", END)),
    Claim("Children do better than a wide SAE", Kind.OURS, "", (CHILDREN, END), ("all data", END)),
    Claim("Children do better than filtering tokens", Kind.OURS, "", (CHILDREN, END), ("token-filtered", END)),
    Claim("It is this feature's filter that counts", Kind.CONTROL, "", ("filtered", END), ("other filter", END)),
    Claim(
        "The filter helps at the same parent-active tokens", Kind.CONTROL, "",
        ("filtered", SAME_PARENT_TOKENS), ("all data", END),
    ),
    Claim("Children do better than a random decoder", Kind.CONTROL, "", (CHILDREN, END), (RANDOM_DECODER, END)),
    Claim(
        "Nothing is read into permuted labels", Kind.CONTROL, "", (CHILDREN, END), measure=Measure.PERMUTED, within=True
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ClaimResult:
    """One row of claims.csv."""

    claim: str = column("what is claimed: that the effect is above 0, or, where the test says so, that none matters")
    kind: Kind = column("whose claim: published by the post, ours, or a control", enum=Kind)
    published: str = column("the evidence published for it")
    arms: str = column("the arms that are compared, first less second, with the time where it is not the end")
    blocks: int = column("narrow SAEs of different seeds")
    seeds: int = column("wide runs on each")
    first_S_2: float = column("S_2 of the first arm, mean over blocks")
    second_S_2: float = column("S_2 of the second arm")
    effect: float = column(
        "mean over blocks of the difference in S_2 (of two seeds: its size; under permuted labels: S_2)"
    )
    low: float = column("lower end of its 95% interval over blocks")
    high: float = column("upper end")
    test: str = column("how p is computed")
    p: float = column("p of that test")
    p_holm: float = column("p by Holm over the claims; controls stand outside")
    smallest_effect: float = column("the effect that would have been seen with 80% power")
    verdict: ClaimVerdict = column(
        "supported: the interval excludes 0 and p by Holm is below 0.05; not supported: it excludes 0.10; else undecided",
        enum=ClaimVerdict,
    )
    first_strict: float = column("share of the first arm's runs whose strict verdict is split")
    second_strict: float = column("share of the second's")
    first_passed: float = column("classes (number, count) that pass the strict verdict in the first arm, mean")
    second_passed: float = column("the same in the second")
    first_l0: float = column("L0 on hyphens of the first arm, mean")
    second_l0: float = column("L0 on hyphens of the second")


def judge_claims(runs: Sequence[ArmRun], claims: Sequence[Claim] = CLAIMS) -> tuple[ClaimResult, ...]:
    """Every claim from the runs of all arms, in order."""
    values = [block_effects(claim, runs) for claim in claims]
    p = [_p(claim, v) for claim, v in zip(claims, values, strict=True)]
    adjusted = holm([math.nan if claim.kind is Kind.CONTROL else one for claim, one in zip(claims, p, strict=True)])
    return tuple(_judge(*row, runs) for row in zip(claims, values, p, adjusted, strict=True))


def claim_verdict(found: TTest, p_holm: float, within: bool = False) -> ClaimVerdict:
    """The verdict from an interval and p by Holm (NaN for a control); the module's docstring has the rule."""
    if not math.isfinite(found.low):
        return ClaimVerdict.UNDECIDED
    if (found.low > -MATTERS and found.high < MATTERS if within else found.low > 0) and not p_holm >= LEVEL:
        return ClaimVerdict.SUPPORTED
    outside = found.low > MATTERS or found.high < -MATTERS if within else found.high < MATTERS
    return ClaimVerdict.NOT_SUPPORTED if outside else ClaimVerdict.UNDECIDED


def block_effects(claim: Claim, runs: Sequence[ArmRun]) -> np.ndarray:
    """The claim's value on each narrow SAE, in their order."""
    first, second = _by_block(claim.first, runs), _by_block(claim.second, runs)
    if claim.measure is Measure.SPREAD:
        return np.array([_spread([run.outcome.graded.S_2 for run in part]) for part in first.values()])
    if claim.measure is Measure.PERMUTED:
        return np.array([np.mean([run.S_2_permuted for run in part]) for part in first.values()])
    return np.array([_mean_S_2(part) - _mean_S_2(second[block]) for block, part in first.items() if block in second])


def _p(claim: Claim, values: np.ndarray) -> float:
    return equivalence_p(values, MATTERS) if claim.within else t_test(values).p


def _judge(claim: Claim, values: np.ndarray, p: float, p_holm: float, runs: Sequence[ArmRun]) -> ClaimResult:
    found = t_test(values)
    arms = [[run for part in _by_block(which, runs).values() for run in part] for which in (claim.first, claim.second)]
    strict = [_mean([float(run.outcome.strict.verdict is Verdict.SPLIT) for run in arm]) for arm in arms]
    passed = [_mean([float(run.outcome.strict.passed) for run in arm]) for arm in arms]
    S_2, l0 = ([_mean([get(run) for run in arm]) for arm in arms] for get in (_S_2, lambda run: run.outcome.l0_hyphens))
    how = f"|effect| < {MATTERS:g}, two one-sided t" if claim.within else "t"
    return ClaimResult(
        claim=claim.text,
        kind=claim.kind,
        published=claim.published,
        arms=_arms_text(claim),
        blocks=len(values),
        seeds=round(len(arms[0]) / max(len(values), 1)),
        first_S_2=S_2[0],
        second_S_2=S_2[1],
        effect=found.mean,
        low=found.low,
        high=found.high,
        test=f"{how} over {len(values)} block means",
        p=p,
        p_holm=p_holm,
        smallest_effect=smallest_effect(values),
        verdict=claim_verdict(found, p_holm, claim.within),
        first_strict=strict[0],
        second_strict=strict[1],
        first_passed=passed[0],
        second_passed=passed[1],
        first_l0=l0[0],
        second_l0=l0[1],
    )


def _arms_text(claim: Claim) -> str:
    def name(which: tuple[str, str]) -> str:
        return which[0] if which[1] == END else f"{which[0]} ({which[1]})"

    if claim.measure is Measure.DIFFERENCE and claim.second is not None:
        return f"{name(claim.first)} - {name(claim.second)}"
    return f"{name(claim.first)}, {claim.measure.value}"


def _by_block(which: tuple[str, str] | None, runs: Sequence[ArmRun]) -> dict[int, list[ArmRun]]:
    found: dict[int, list[ArmRun]] = {}
    for run in runs:
        if (run.arm, run.at) == which:
            found.setdefault(run.block, []).append(run)
    return dict(sorted(found.items()))


def _S_2(run: ArmRun) -> float:
    return run.outcome.graded.S_2


def _mean_S_2(runs: Sequence[ArmRun]) -> float:
    return _mean([_S_2(run) for run in runs])


def _spread(values: Sequence[float]) -> float:
    """Mean distance of two values; NaN for one."""
    pairs = [abs(a - b) for i, a in enumerate(values) for b in values[:i]]
    return _mean(pairs)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
