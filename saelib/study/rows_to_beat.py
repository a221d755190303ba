"""The children of the study's parent beside whole wide SAEs: the rows to beat, all measured on the same hyphens.

First what stands in the narrow SAE in the parent's place (children, nothing, a random decoder), then the wide runs by how they
were trained. A wide SAE filtered by token is no run of the table: it is a row where notebook 13 has trained it, and nothing is
trained for it here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from saelib.base.table import as_row, column
from saelib.study import data_needed, graded, selection, study, trainings
from saelib.study.children_rows import CHILDREN, RANDOM_DECODER, SEEDS, ChildrenResult, children_results
from saelib.study.graded import Graded
from saelib.study.profiles import Profile
from saelib.study.results import RunResult, run_result

OURS, REST, RANDOM = "rest + children", "rest alone", "rest + random decoder"
PLAIN, BY_TOKEN = "wide, all data", "wide, filtered by token"
TOKEN_ARM = next(arm for arm in data_needed.ARMS if arm.name == "random, tokens")
WIDE = {
    PLAIN: (13, 14, 15),
    "wide, filtered by context": (4, 5, 6),
    BY_TOKEN: (TOKEN_ARM.spec(0).run,),
    "wide, warm, filtered by context": (7, 8),
    "wide, warm normalised, filtered by context": (10,),
    "wide, warm, filtered by context, parent zeroed": (11,),
    "wide, warm, all data, parent zeroed": (1, 2, 3),
}
"""The wide runs of full length, by how they were trained; run 9 saw a quarter of the tokens."""


@dataclass(frozen=True)
class RowToBeat:
    """One way to dictionaries that tell the hyphen's classes apart: means over its trainings; NaN where hyphens are too few."""

    dictionary: str = column("the narrow SAE with something in the parent's place, or a wide SAE by its training")
    runs: int = column("trainings, each with a seed of its own; 0 where nothing is trained")
    features: int = column("features that are trained; the narrow SAE is there already")
    S_1: float = column("separation by one feature a class")
    S_2: float = column("separation by two features a class: 0 is the parent's own size, 1 a linear probe")
    smallest: float = column("the smallest S_2 of the trainings")
    largest: float = column("the largest")
    low: float = column("lower end of the 95% interval of S_2 over documents, mean over trainings")
    high: float = column("upper end")
    S_4: float = column("separation by four features a class")
    l0_hyphens: float = column("features active on a hyphen that joins words, select")
    fvu: float = column("fraction of variance unexplained on held-out text")
    tokens: float = column("tokens trained on, repeats included")
    seconds: float = column("wall time of the training")


def rows_to_beat(profile: Profile, chosen: selection.Parent, runs: Sequence[RunResult]) -> tuple[RowToBeat, ...]:
    """The children, the rest alone and the random decoder beside these runs and, where they are kept, those filtered by token."""
    rest = graded.measured(profile, chosen, study.narrow_sae(profile).sae, without=chosen.feature)
    every = [*runs, *token_filtered(profile, chosen)]
    return beside(Graded.of(rest), children_results(profile, chosen), every)


def token_filtered(profile: Profile, chosen: selection.Parent) -> list[RunResult]:
    """The wide SAEs that notebook 13 trained on the parent's tokens alone, as far as they are kept; none is trained."""
    found = []
    for seed in range(min(profile.data_seeds, len(SEEDS))):
        spec = TOKEN_ARM.spec(seed)
        trained = trainings.kept_run(profile, spec, chosen, TOKEN_ARM.filter_by, profile.data_steps)
        if trained is not None:
            found.append(run_result(profile, spec, chosen, trained))
    return found


def beside(rest: Graded, children: Sequence[ChildrenResult], runs: Sequence[RunResult]) -> tuple[RowToBeat, ...]:
    """The rows: what is in the parent's place first, then the wide runs by how they were trained, as far as there are any.

    Args:
        rest: the narrow SAE without the parent.
        children: the children and the random decoder of each seed.
    """
    of = {name: [row for row in children if row.dictionary == name] for name in (CHILDREN, RANDOM_DECODER)}
    nothing = RowToBeat(
        REST, 0, 0, rest.S_1, rest.S_2, rest.S_2, rest.S_2, rest.S_2_low, rest.S_2_high, rest.S_4, math.nan, math.nan, 0.0, 0.0
    )  # fmt: skip
    rows = [
        _row(OURS, of[CHILDREN], of[CHILDREN][0].K),
        nothing,
        _row(RANDOM, of[RANDOM_DECODER], of[RANDOM_DECODER][0].children),
    ]
    for name, numbers in WIDE.items():
        if found := [run for run in runs if run.run in numbers]:
            rows.append(_row(name, found, found[0].d_sae))
    return tuple(rows)


def _row(name: str, trained: Sequence[ChildrenResult | RunResult], features: int) -> RowToBeat:
    table = pd.DataFrame([as_row(each) for each in trained])
    columns = ["S_1", "S_2", "S_2_low", "S_2_high", "S_4", "l0_hyphens", "fvu", "tokens", "seconds"]
    numbers = table[columns].astype(float)
    mean = {str(what): float(value) for what, value in numbers.mean().items()}
    ends = {"smallest": float(numbers["S_2"].min()), "largest": float(numbers["S_2"].max())}
    ends |= {"low": mean.pop("S_2_low"), "high": mean.pop("S_2_high")}
    return RowToBeat(dictionary=name, runs=len(trained), features=features, **mean, **ends)


def best_wide(rows: Sequence[RowToBeat]) -> RowToBeat | None:
    """The wide row with the largest S_2; None where none was measured."""
    wide = [row for row in rows if row.dictionary in WIDE and math.isfinite(row.S_2)]
    return max(wide, key=lambda row: row.S_2, default=None)


def who_leads(rows: Sequence[RowToBeat]) -> str:
    """Whether the children or the best wide SAEs are ahead, and by how much, whichever it is."""
    named = {row.dictionary: row for row in rows}
    ours, best = named[OURS], best_wide(rows)
    missing = "" if BY_TOKEN in named else " The wide SAE filtered by token is not among these rows: see 07_claims."
    if not math.isfinite(ours.S_2):
        return f"Nothing can be said of the children: the hyphens, or the parent's tokens, are too few.{missing}"
    if best is None:
        return f"Rest + children have S_2 {_S_2(ours)}; no wide SAE was measured.{missing}"
    gap = round(ours.S_2 - best.S_2, 2)
    where = "ahead of" if gap > 0 else "behind" if gap < 0 else "level with"
    by = f", by {abs(gap):.2f}" if gap else ""
    overlap = ours.smallest <= best.largest and best.smallest <= ours.largest
    others = [named[name] for name in (PLAIN, REST, RANDOM) if name in named and name != best.dictionary]
    gaps = [f"“{row.dictionary}” {ours.S_2 - row.S_2:+z.2f}" for row in others if math.isfinite(row.S_2)]
    return (
        f"Rest + children are {where} the best wide SAEs, “{best.dictionary}”{by}: S_2 {_S_2(ours)} against {_S_2(best)}"
        f"{'; single trainings overlap' if overlap and gap else ''}{'; against ' if gaps else ''}{', '.join(gaps)}. "
        f"{ours.features:,} features are trained, in {ours.seconds:.0f} s, where one of those has {best.features:,} and takes "
        f"{best.seconds:.0f} s.{missing}"
    )


def _S_2(row: RowToBeat) -> str:
    return f"{row.S_2:.2f}" + (f" ({row.smallest:.2f} to {row.largest:.2f})" if row.runs > 1 else "")
