"""The run table: the study's twelve runs and the plain control it lacks, one row a run. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from saelib.base.errors import UserError


@dataclass(frozen=True)
class RunSpec:
    """One run: what was varied, and the verdict published for it."""

    run: int
    """Number in the study's table; 13 and above are ours."""
    size: str
    """`wide` (the study: 4096 features) or `narrow` (512)."""
    seed: int
    """Seed of initialisation and of the order of tokens."""
    init_from_narrow: bool
    """I. initialisation: the narrow SAE's weights and biases copied in, or random."""
    normalised: bool
    """II. decoder rows normalised at that initialisation."""
    filtered: bool
    """III. training data filtered by the parent, or all."""
    zero_parent: bool
    """IV. the parent's activation set to zero in the loss."""
    published: str
    """The study's verdict, judged by eye on three prompts; empty for runs it did not make."""
    short: bool = False
    """The study's run 9 saw 26.2M tokens only, the others up to 2e9."""
    note: str = ""


RUNS = (
    RunSpec(1, "wide", 40, True, True, False, True, "yes, not robust"),
    RunSpec(2, "wide", 10, True, True, False, True, "no"),
    RunSpec(3, "wide", 10, True, False, False, True, "no"),
    RunSpec(4, "wide", 10, False, True, True, False, "yes"),
    RunSpec(5, "wide", 49, False, True, True, False, "yes"),
    RunSpec(6, "wide", 42, False, True, True, False, "yes"),
    RunSpec(7, "wide", 42, True, False, True, False, "yes"),
    RunSpec(8, "wide", 48, True, False, True, False, "yes"),
    RunSpec(9, "wide", 43, True, False, True, False, "yes (26.2M tokens only)", short=True),
    RunSpec(10, "wide", 42, True, True, True, False, "no"),
    RunSpec(
        11, "wide", 43, True, False, True, True, "2/3: none for '-' after a number",
        note="the published table says not normalised, the prose says normalised; the table is followed",
    ),
    RunSpec(12, "narrow", 42, False, True, True, False, "no"),
    RunSpec(13, "wide", 10, False, True, False, False, "", note="plain control, absent from the published table"),
    RunSpec(14, "wide", 42, False, True, False, False, "", note="plain control, absent from the published table"),
    RunSpec(15, "wide", 49, False, True, False, False, "", note="plain control, absent from the published table"),
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One cell of the study's design, trained with many seeds for `notebooks/07_claims`."""

    name: str
    text: str
    init_from_narrow: bool = False
    normalised: bool = True
    filter_by: str = "context"
    """`none`, `context` or `token`; `other` filters contexts by another feature of equal density."""
    zero_parent: bool = False
    size: str = "wide"
    headline: bool = True
    """Whether it has `claim_seeds` seeds; other arms have half as many."""
    runs: tuple[int, ...] = ()
    """The runs of the study's table it stands for."""

    def spec(self, seed: int) -> RunSpec:
        """The run of one seed."""
        number = 101 + [arm.name for arm in ARMS].index(self.name)
        filtered = self.filter_by != "none"
        return RunSpec(
            number, self.size, seed, self.init_from_narrow, self.normalised, filtered, self.zero_parent, published=""
        )


ARMS = (
    Arm("random", "random start, contexts filtered", runs=(4, 5, 6)),
    Arm("random-all", "random start, all data", filter_by="none", runs=(13, 14, 15)),
    Arm("random-token", "random start, tokens filtered", filter_by="token", headline=False),
    Arm("random-other", "random start, contexts filtered by another feature of equal density", filter_by="other", headline=False),
    Arm("warm", "warm start, contexts filtered", init_from_narrow=True, normalised=False, runs=(7, 8, 9)),
    Arm("warm-normalised", "warm start normalised, contexts filtered", init_from_narrow=True, runs=(10,)),
    Arm(
        "warm-zeroed", "warm start, contexts filtered, parent zeroed",
        init_from_narrow=True, normalised=False, zero_parent=True, headline=False, runs=(11,),
    ),
    Arm("narrow-size", "narrow size, random start, contexts filtered", size="narrow", runs=(12,)),
)  # fmt: skip
"""The arms that the study's claims compare."""


def get_run(run: int) -> RunSpec:
    """The row of a run number."""
    for spec in RUNS:
        if spec.run == run:
            return spec
    raise UserError(f"run must be one of 1 to {RUNS[-1].run}", run, "see the run table in saelib/study/runs.py")
