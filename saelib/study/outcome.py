"""What came of one dictionary of the study: the graded outcome first, the strict verdict second.

The strict verdict is that of `saelib.split.verdict`, with the dictionary's features in the children's place. Per class
(number, count), on the hyphens that join words:

* the child is the feature that marks the class best on select, above a threshold chosen there; the rest, to which it must
  add, is the narrow SAE without the parent;
* its leak is the share of its firings on tokens that are no hyphen at all, at the text's natural rates.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.table import as_row, column, columns_of, from_row
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows
from saelib.split.classes import CLASSES, hyphen_mask
from saelib.split.leak import Firings, choose_theta, leak
from saelib.split.parent import Samples, sample_rows
from saelib.split.separation import Separation
from saelib.split.tokens import SPLITS
from saelib.split.verdict import Judgement, Verdict, gather_evidence, judge
from saelib.study import graded, selection, study, texts
from saelib.study.graded import GRADED_CLASSES, Graded
from saelib.study.profiles import Profile

OUTCOME_CODE = (
    "base.stats", "sae.sae", "sae.stream", "split.classes", "split.contexts", "split.detectors", "split.leak",
    "split.parent", "split.probe", "split.separation", "split.tokens", "split.verdict", "split.yardstick", "study.graded",
    "study.outcome",
)  # fmt: skip
"""What computes a kept outcome."""


@dataclass(frozen=True)
class Strict:
    """The strict verdict on one dictionary."""

    verdict: Verdict = column(
        "strict verdict: does each class (number, count) have a feature of its own?", enum=Verdict
    )
    passed: int = column("classes (number, count) whose best feature passes every bound")
    required: int = column(
        "classes for which a feature is required: those that the rest of the narrow SAE leaves untold"
    )
    failed: str = column("what the best features do not pass, by class")
    feature_number: int | None = column("the feature that marks “-” after a number best on select")
    feature_count: int | None = column("the feature that marks “-” after a count word best on select")
    feature_compound: int | None = column("the feature that marks “-” in other compounds best on select")

    def features(self) -> dict[str, int]:
        """Class -> the feature that marks it best, where one does."""
        found = {name: getattr(self, f"feature_{name}") for name in (*GRADED_CLASSES, "compound")}
        return {name: j for name, j in found.items() if j is not None}


@dataclass(frozen=True)
class Outcome:
    """Both outcomes of one dictionary."""

    graded: Graded = columns_of(Graded)
    strict: Strict = columns_of(Strict)
    l0_hyphens: float = column("features active on a hyphen that joins words, select, mean")


def outcome(profile: Profile, chosen: selection.Parent, sae: SAE) -> Outcome:
    """How far an SAE's features tell the hyphens that join words apart, and the strict verdict; kept in the cache."""
    narrow = study.narrow_sae(profile).sae
    key = content_key(
        stores=[study.activations(profile, split).key for split in SPLITS],
        sae=sae_key(sae),
        parent=[sae_key(narrow), chosen],
        code=code_version(*OUTCOME_CODE),
    )

    def compute() -> dict[str, object]:
        found = graded.measured(profile, chosen, sae)
        strict = _strict(profile, chosen, sae, found)
        return as_row(Outcome(Graded.of(found), strict, graded.l0_on_hyphens(profile, sae)))

    result: Outcome = from_row(Outcome, kept_json("outcomes", key, compute))
    return result


def judgement(profile: Profile, chosen: selection.Parent, sae: SAE, found: Separation) -> Judgement:
    """The verdict with its evidence; `found` is the SAE's separation."""
    yardstick, rest = graded.yardstick(profile, chosen), _rest(profile, chosen)
    assert yardstick is not None and rest is not None  # `found` was measured with them
    best = np.array([c.features[0] if c.features else 0 for c in found.contexts])
    theta = choose_theta(_firings(profile, sae, best, "select"), _inside(profile, [c.context for c in found.contexts]))
    theta = theta[
        [best.tolist().index(j) for j in best]
    ]  # one threshold a feature, where it is the best for two classes
    used = graded.hyphen_tokens(profile, chosen)["test"].where(yardstick.used["test"])
    fires: Bool[np.ndarray, "n d_sae"] = np.zeros((len(used), sae.cfg.d_sae), dtype=bool)
    with torch.no_grad():
        fires[:, best] = sae.encode_features(used.x, best).numpy() > theta
    evidence = gather_evidence(yardstick, rest, found, fires, leak(_firings(profile, sae, best, "test"), theta))
    return judge(evidence, named=True, purity=selection.parent_fit(profile, chosen).purity)


def _strict(profile: Profile, chosen: selection.Parent, sae: SAE, found: Separation | None) -> Strict:
    if found is None:
        return Strict(Verdict.UNDECIDED, 0, 0, "too few hyphens", None, None, None)
    judged = judgement(profile, chosen, sae, found)
    rows = {row.context: row for row in judged.contexts}
    failed = [
        f"{name}: {', '.join(row.failed) or row.reason}" for name, row in rows.items() if row.failed or row.reason
    ]
    features = {f"feature_{name}": rows[name].child if name in rows else None for name in (*GRADED_CLASSES, "compound")}
    required = sum(row.passed is not None for row in rows.values())
    return Strict(judged.verdict, judged.passed, required, "; ".join(failed), **features)


@functools.lru_cache(maxsize=2)
def _rest(profile: Profile, chosen: selection.Parent) -> Separation | None:
    """The separation of the narrow SAE without the parent."""
    return graded.measured(profile, chosen, study.narrow_sae(profile).sae, without=chosen.feature)


@study.once_a_text
def _leak_rows(profile: Profile, split: str) -> dict[str, np.ndarray]:
    """Every hyphen of a split (`on`), and a sample of the other tokens (`off`)."""
    store = study.activations(profile, split)
    hyphen = hyphen_mask(store, study.language_model(profile))
    return {"on": np.flatnonzero(hyphen), "off": sample_rows(~hyphen, Samples().off)}


def _inside(profile: Profile, contexts: list[str]) -> np.ndarray:
    """Whether each hyphen of select is in each class: 1, 0, or -1 where it joins no words."""
    rows, label = study.joining_hyphens(profile, "select")
    of_all = np.full(len(on := _leak_rows(profile, "select")["on"]), -1, dtype=np.int8)
    of_all[np.searchsorted(on, rows)] = label
    member = of_all[:, None] == [CLASSES.index(name) for name in contexts]
    return np.where(of_all[:, None] < 0, -1, member).astype(np.int8)


@torch.no_grad()
def _firings(profile: Profile, sae: SAE, features: np.ndarray, split: str) -> Firings:
    """Where some features fire on a split's hyphens and off them; there are no weaker tokens."""
    acts, store = texts.of_profile(profile), study.activations(profile, split)
    size, found, documents = block_rows(sae.n_encoded(len(features))), {}, {}
    nothing: Float[np.ndarray, "0 k"] = np.zeros((0, len(features)), dtype=np.float32)
    for name, rows in _leak_rows(profile, split).items():
        blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
        encoded = [sae.encode_features(store.read(block).float(), features).numpy() for block in blocks]
        found[name], documents[name] = np.concatenate([nothing, *encoded]), acts.documents(split, rows)
    n_off = store.n_tokens - len(found["on"])
    return Firings(
        acts=found | {"weak": nothing},
        document=documents | {"weak": documents["on"][:0]},
        weight={"on": 1.0, "weak": 1.0, "off": n_off / max(len(found["off"]), 1)},
        in_context=np.zeros((len(found["off"]), len(features)), dtype=bool),
    )


def with_interval(found: Graded) -> str:
    """S_2 with its interval, as words; empty where it was not measured."""
    return f"{found.S_2:.2f} ({found.S_2_low:.2f} to {found.S_2_high:.2f})" if math.isfinite(found.S_2) else ""
