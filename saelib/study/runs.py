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
    """The post's verdict in its words, judged by eye on three prompts; empty for runs it did not make."""
    published_classes: int | None
    """That verdict as a number: classes, of three, seen to have a feature of their own; None for runs it did not make."""
    short: bool = False
    """The study's run 9 saw 26.2M tokens only, the others up to 2e9."""
    note: str = ""
    l1_scale: float = 1.0
    """Its L1 coefficient as a multiple of the narrow SAE's: arms of the claims are matched in L0 by it."""


RUNS = (
    RunSpec(1, "wide", 40, True, True, False, True, "yes, not robust", 3),
    RunSpec(2, "wide", 10, True, True, False, True, "no", 0),
    RunSpec(3, "wide", 10, True, False, False, True, "no", 0),
    RunSpec(4, "wide", 10, False, True, True, False, "yes", 3),
    RunSpec(5, "wide", 49, False, True, True, False, "yes", 3),
    RunSpec(6, "wide", 42, False, True, True, False, "yes", 3),
    RunSpec(7, "wide", 42, True, False, True, False, "yes", 3),
    RunSpec(8, "wide", 48, True, False, True, False, "yes", 3),
    RunSpec(9, "wide", 43, True, False, True, False, "yes (26.2M tokens only)", 3, short=True),
    RunSpec(10, "wide", 42, True, True, True, False, "no", 0),
    RunSpec(
        11, "wide", 43, True, False, True, True, "2/3: none for '-' after a number", 2,
        note="the published table says not normalised, the prose says normalised; the table is followed",
    ),
    RunSpec(12, "narrow", 42, False, True, True, False, "no", 0),
    RunSpec(13, "wide", 10, False, True, False, False, "", None, note="plain control, absent from the published table"),
    RunSpec(14, "wide", 42, False, True, False, False, "", None, note="plain control, absent from the published table"),
    RunSpec(15, "wide", 49, False, True, False, False, "", None, note="plain control, absent from the published table"),
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One cell of the study's design, trained on several narrow SAEs for `notebooks/07_claims`."""

    name: str
    text: str
    init_from_narrow: bool = False
    normalised: bool = True
    filter_by: str = "context"
    """`none`, `context` or `token`; `other` filters contexts by another feature of equal density."""
    zero_parent: bool = False
    size: str = "wide"
    runs: tuple[int, ...] = ()
    """The runs of the post's table it stands for."""

    def spec(self, seed: int, l1_scale: float = 1.0) -> RunSpec:
        """The run of one seed."""
        return RunSpec(
            101 + [arm.name for arm in ARMS].index(self.name), self.size, seed, self.init_from_narrow, self.normalised,
            self.filter_by != "none", self.zero_parent, published="", published_classes=None, l1_scale=l1_scale,
        )  # fmt: skip


ARMS = (
    Arm("all data", "random start, all data", filter_by="none", runs=(13, 14, 15)),
    Arm("filtered", "random start, contexts filtered", runs=(4, 5, 6)),
    Arm("token-filtered", "random start, tokens filtered", filter_by="token"),
    Arm("other filter", "random start, contexts filtered by another feature of equal density", filter_by="other"),
    Arm("warm", "warm start, contexts filtered", init_from_narrow=True, normalised=False, runs=(7, 8, 9)),
    Arm("warm, normalised", "warm start normalised, contexts filtered", init_from_narrow=True, runs=(10,)),
    Arm(
        "warm, zeroed", "warm start, contexts filtered, parent zeroed in the loss",
        init_from_narrow=True, normalised=False, zero_parent=True, runs=(11,),
    ),
    Arm("narrow size", "narrow size, random start, contexts filtered", size="narrow", runs=(12,)),
)  # fmt: skip
"""The trained arms that the claims compare; the first is the plain control. `saelib.study.arms` adds the children's."""


def get_run(run: int) -> RunSpec:
    """The row of a run number."""
    for spec in RUNS:
        if spec.run == run:
            return spec
    raise UserError(f"run must be one of 1 to {RUNS[-1].run}", run, "see the run table in saelib/study/runs.py")
