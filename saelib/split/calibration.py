"""How often the verdict is right, on synthetic features whose true split is known (`saelib.split.synthetic`).

Sensitivity: the share of true splits judged `split`. False-positive rate: the share of impostors of which a class passes
that is not split. Bounds are judged here and nowhere else; the study's own runs have no say in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from saelib.base.stats import wilson_interval
from saelib.split.choose import choose, score_split
from saelib.split.score import BOUNDS, Bounds, Score
from saelib.split.synthetic import IMPOSTORS, SHARES, Case, make_case

STATED_EFFECT = 7.0
"""At this effect size (standard deviations by which a child stands out) ..."""
STATED_TOKENS = 1500
"""... and this many parent tokens a split, the rarest class having 75, at least 90% of true splits are to be found."""
DETECTION_MIN = 0.9
FALSE_POSITIVES_MAX = 0.05
EFFECTS = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0)
PARENT_TOKENS = (800, 1500, 3000, 6000)
_DRAWS = 300


def score_case(case: Case, bounds: Bounds = BOUNDS) -> Score:
    """The verdict on a synthetic case, as any other dictionary gets it."""
    names = [f"class {c}" for c in range(len(case.truly_split))]
    chosen = choose(case.sae, [case.select], [case.select], len(names), case.tau, bounds)
    return score_split(case.sae, names, chosen, [case.test], case.tau, bounds=bounds, draws=_DRAWS)


def is_false_positive(case: Case, score: Score) -> bool:
    """Whether a class passes that is not truly split."""
    return any(row.passed and not true for row, true in zip(score.classes, case.truly_split, strict=True))


def sensitivity(
    effects: Sequence[float] = EFFECTS,
    parent_tokens: Sequence[int] = PARENT_TOKENS,
    seeds: Iterable[int] = range(20),
    bounds: Bounds = BOUNDS,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Share of true splits found. Columns: effect, rare_tokens (of the rarest class), found, cases, rate, low, high."""
    seeds, rows = list(seeds), []
    for n_parent in parent_tokens:
        for effect in effects:
            scores = [score_case(make_case(effect, seed, n_parent=n_parent), bounds) for seed in seeds]
            found = sum(score.verdict == "split" for score in scores)
            low, high = wilson_interval(found, len(seeds))
            rows.append(
                {"effect": effect, "rare_tokens": round(n_parent * min(SHARES)), "found": found, "cases": len(seeds),
                 "rate": found / len(seeds), "low": low, "high": high}
            )  # fmt: skip
            if progress:
                progress("sensitivity", len(rows), len(effects) * len(parent_tokens))
    return pd.DataFrame(rows)


def false_positives(
    impostors: Iterable[str] = IMPOSTORS,
    seeds: Iterable[int] = range(20),
    effect: float = STATED_EFFECT,
    n_parent: int = STATED_TOKENS,
    bounds: Bounds = BOUNDS,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Share of impostors that pass. Columns: impostor, effect, passed, cases, rate, low, high."""
    seeds, rows, names = list(seeds), [], list(impostors)
    for name in names:
        cases = [make_case(effect, seed, impostor=name, n_parent=n_parent) for seed in seeds]
        passed = sum(is_false_positive(case, score_case(case, bounds)) for case in cases)
        low, high = wilson_interval(passed, len(seeds))
        rows.append(
            {"impostor": name, "effect": effect, "passed": passed, "cases": len(seeds),
             "rate": passed / len(seeds), "low": low, "high": high}
        )  # fmt: skip
        if progress:
            progress("false positives", len(rows), len(names))
    return pd.DataFrame(rows)
