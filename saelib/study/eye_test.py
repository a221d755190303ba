"""The study's eye test, made mechanical: does each kind of hyphen have a feature of its own?

The study looked at the hyphen of three prompts and asked for a feature that is highest there, with no other close, silent
on the other two prompts, and boosting the words that fit. Here the same questions are put to those prompts and to every
held-out hyphen of the class. Children are chosen on the select split; everything reported is measured on the test split.
The bounds below were fixed before any run was judged and are the same for all runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saelib.lm.model import LanguageModel
from saelib.sae.sae import SAE
from saelib.sae.scaled import scaled_acts
from saelib.split.classes import CLASSES, PROMPTS

WIN_RATE_MIN = 0.5
"""On held-out hyphens of its class the child must be the top feature more often than this ..."""
FIRES_ELSEWHERE_MAX = 0.05
"""... and on those of the other classes it may fire at most this often."""
CLOSE = 0.5
"""On its prompt, another feature is close when its activation exceeds this share of the child's."""
TOKENS_MIN = 30
"""A class with fewer test tokens than this is undecided."""


@dataclass(frozen=True)
class HyphenSet:
    """Labelled hyphen activations of one split."""

    x: Float[Tensor, "n d_in"]
    label: Integer[np.ndarray, " n"]
    """Index into `CLASSES`."""
    next_token: Integer[np.ndarray, " n"]
    document: Integer[np.ndarray, " n"]

    def counts(self) -> dict[str, int]:
        """Hyphens a class."""
        return {name: int((self.label == c).sum()) for c, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class ClassVerdict:
    """What was measured for one class's child."""

    context_class: str
    child: int
    """The feature chosen on the select split."""
    test_tokens: int
    precision: float
    """Share of hyphens on which the child fires that are of the class."""
    recall: float
    """Share of the class's hyphens on which it fires."""
    f1: float
    win_rate: float
    """Share of the class's hyphens on which it is the top feature."""
    fires_elsewhere: float
    """Share of the other classes' hyphens on which it fires at all."""
    boost: float
    """Mean of `W_dec[child] @ W_U` over the class's true next tokens, less that over the other classes'."""
    prompt_top: bool
    """It is the top feature at the hyphen of the class's prompt ..."""
    prompt_alone: bool
    """... and no other feature comes close ..."""
    prompt_silent: bool
    """... and it is silent on the other two prompts."""
    words_pass: bool
    """Win rate, silence elsewhere and boost pass on held-out words."""
    prompts_pass: bool
    passed: bool | None
    """Both pass; None when there are too few test tokens to say."""


@dataclass(frozen=True)
class EyeTest:
    """The verdict on one SAE."""

    verdict: str
    """`yes` (all classes pass), `k/3`, `no`, or `undecided`."""
    classes: tuple[ClassVerdict, ...]

    def frame(self) -> pd.DataFrame:
        """One row a class."""
        return pd.DataFrame([asdict(row) for row in self.classes])


def f1_table(acts: Float[Tensor, "n d_sae"], label: np.ndarray) -> Float[np.ndarray, "classes d_sae"]:
    """F1 of every feature's firing as a detector of every class, among labelled hyphens."""
    fires = (acts > 0).float()
    member = torch.from_numpy((label[None] == np.arange(len(CLASSES))[:, None]).astype(np.float32))  # (classes, n)
    hits = member @ fires  # (classes, d_sae)
    return (2 * hits / (fires.sum(0) + member.sum(1, keepdim=True)).clamp_min(1)).numpy()


def choose_children(sae: SAE, select: HyphenSet) -> list[int]:
    """One feature a class, by Hungarian assignment on F1 over the select split."""
    rows, columns = linear_sum_assignment(-f1_table(scaled_acts(sae, select.x), select.label))
    return [int(columns[list(rows).index(c)]) for c in range(len(CLASSES))]


def prompt_hyphens(model: LanguageModel) -> dict[str, Float[Tensor, " d_in"]]:
    """The activation at the hyphen of each of the study's prompts."""
    found = {}
    for name, prompt in PROMPTS.items():
        tokens = model.to_tokens(prompt)
        position = tokens[0].tolist().index(model.hyphen)
        with torch.no_grad():
            found[name] = model.activations(tokens)[0, position]
    return found


def eye_test(sae: SAE, model: LanguageModel, select: HyphenSet, test: HyphenSet) -> EyeTest:
    """Put the study's questions to one SAE."""
    children = choose_children(sae, select)
    acts = scaled_acts(sae, test.x)
    prompts = {name: scaled_acts(sae, x[None])[0] for name, x in prompt_hyphens(model).items()}
    boosts = sae.W_dec.detach()[children] @ model.W_U  # (classes, d_vocab)
    rows = [_judge(c, children[c], acts, test, prompts, boosts[c]) for c in range(len(CLASSES))]
    return EyeTest(overall([row.passed for row in rows]), tuple(rows))


def _judge(
    c: int,
    child: int,
    acts: Float[Tensor, "n d_sae"],
    test: HyphenSet,
    prompts: Mapping[str, Float[Tensor, " d_sae"]],
    boost: Float[Tensor, " d_vocab"],
) -> ClassVerdict:
    own = test.label == c
    fires = (acts[:, child] > 0).numpy()
    top = (acts.argmax(1) == child).numpy() & fires
    hits, fired, members = int((fires & own).sum()), int(fires.sum()), int(own.sum())
    win_rate = float(top[own].mean()) if members else 0.0
    elsewhere = float(fires[~own].mean()) if (~own).any() else 0.0
    effect = boost.numpy()[test.next_token]
    gain = float(effect[own].mean() - effect[~own].mean()) if members and (~own).any() else 0.0
    here = prompts[CLASSES[c]]
    others = here.clone()
    others[child] = 0
    prompt_top = bool(here[child] > 0 and here.argmax() == child)
    prompt_alone = bool(prompt_top and others.max() <= CLOSE * here[child])
    prompt_silent = all(float(prompts[name][child]) == 0 for name in CLASSES if name != CLASSES[c])
    words_pass = win_rate > WIN_RATE_MIN and elsewhere <= FIRES_ELSEWHERE_MAX and gain > 0
    prompts_pass = prompt_alone and prompt_silent
    return ClassVerdict(
        context_class=CLASSES[c],
        child=child,
        test_tokens=members,
        precision=hits / fired if fired else 0.0,
        recall=hits / members if members else 0.0,
        f1=2 * hits / (fired + members) if fired + members else 0.0,
        win_rate=win_rate,
        fires_elsewhere=elsewhere,
        boost=gain,
        prompt_top=prompt_top,
        prompt_alone=prompt_alone,
        prompt_silent=prompt_silent,
        words_pass=words_pass,
        prompts_pass=prompts_pass,
        passed=None if members < TOKENS_MIN else words_pass and prompts_pass,
    )


def overall(passed: Sequence[bool | None]) -> str:
    """`yes`, `k/m`, `no`, or `undecided` when a class that could change the verdict has too few tokens."""
    if any(p is None for p in passed):
        return "undecided"
    k = sum(bool(p) for p in passed)
    return "yes" if k == len(passed) else "no" if k == 0 else f"{k}/{len(passed)}"
