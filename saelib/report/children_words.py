"""What the page of a split says in sentences: verdict, parent, what beats the children, why something is not split."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saelib.report.children_charts import (
    finite,
)
from saelib.report.page import show
from saelib.split.leak import MOST_FOREIGN
from saelib.split.methods import OURS
from saelib.split.result import Split
from saelib.split.yardstick import Reason

PRODUCT, REST, RANDOM = "rest + children", "rest alone", "random decoder"


NAMED = 0.5
"""A name says where its child fires from this MCC on, over P of test."""
BEYOND = 0.2
"""A child says something new where the best feature of the rest is this much behind in MCC."""
NOT_RIVALS = (PRODUCT, REST, "children alone")
"""Rows of the controls that are no control."""


VERDICTS = {
    "SPLIT": "It splits: children mark contexts of their own that the rest of the SAE did not tell apart.",
    "PARTIAL": "It splits in part: some contexts have a child of their own, others have none.",
    "NOT_SPLIT": "Nothing to split here: no child marks a context well enough to count as a feature of its own.",
    "TOGETHER": "No child marks a context well enough to count as a feature of its own, but together they help.",
    "UNDECIDED": "Undecided: there are too few tokens to tell.",
    "NO_SUCH_PARENT": "No such parent: most tokens on which this feature fires are not in the contexts asked about.",
    "ALREADY_TOLD_APART": "Nothing to add: the rest of the SAE tells these contexts apart already.",
    "GRADED": "Graded: the feature covers a continuum, which children cut at arbitrary places.",
}
"""A verdict as a sentence."""


FAILED = {
    "no child": "No child marks",
    "added": "The child may add too little to what the rest tells apart already, for",
    "precision": "The child may fire on too many of the parent's other tokens, for",
    "foreign leak": "The child may fire too often outside the parent's tokens, for",
}
"""What a context's child does not pass."""


def verdict_sentence(split: Split) -> str:
    """The verdict in one sentence, with the engine's own count where it gives one."""
    together = split.verdict.name == "NOT_SPLIT" and len(split.children) > 0 and split.added[2].low > 0
    sentence = VERDICTS.get("TOGETHER" if together else split.verdict.name, str(split.verdict.value))
    said = str(split.verdict_text).strip()
    plain = split.verdict.name.lower().replace("_", " ")
    return sentence if not said or said.lower().replace("_", " ") == plain else f"{sentence[:-1]} ({said})."


def cell_value(row: pd.Series, column: str) -> float:
    """A cell as a number, NaN where it is not there."""
    return float(row[column]) if column in row and row[column] is not None else float("nan")


def _row(frame: pd.DataFrame, name: str) -> pd.Series | None:
    found = frame[frame["name"] == name]
    return None if found.empty else found.iloc[0]


def beaten_by(split: Split) -> list[str]:
    """A sentence for every control that tells the contexts apart as well as rest + children; none is as it should be."""
    ours = _row(split.controls, PRODUCT)
    if ours is None or not finite(cell_value(ours, "S_2")):
        return []
    said = []
    for _, row in split.controls.iterrows():
        if row["name"] in NOT_RIVALS or not finite(cell_value(row, "S_2")) or row["S_2"] < ours["S_2"]:
            continue
        said.append(
            f"Read this first: the control “{row['name']}” tells the contexts apart as well as rest + children do "
            f"(S₂ {row['S_2']:.2f} against {ours['S_2']:.2f})."
        )
    rest = _row(split.controls, REST)
    if rest is not None and finite(cell_value(rest, "S_2")) and rest["S_2"] >= ours["S_2"] and len(split.children):
        said.append(
            f"Read this first: without any child the rest of the SAE does as well (S₂ {rest['S_2']:.2f} against "
            f"{ours['S_2']:.2f})."
        )
    return said


def against_random(split: Split) -> str:
    """How far the children beat a random frozen decoder, the strongest null, in separation and in FVU on P."""
    ours, null = _row(split.controls, PRODUCT), _row(split.controls, RANDOM)
    if ours is None or null is None or not finite(cell_value(ours, "S_2"), cell_value(null, "S_2")):
        return ""
    gap = ours["S_2"] - null["S_2"]
    said = (
        f"Against a random frozen decoder with a trained encoder, a strong null, the children are "
        f"{'ahead' if gap > 0 else 'behind'} by {abs(gap):.2f} in S₂"
    )
    if finite(cell_value(ours, "fvu_on_p"), cell_value(null, "fvu_on_p")):
        more = ours["fvu_on_p"] <= null["fvu_on_p"]
        said += (
            f", {'and' if more == (gap > 0) else 'but'} leave {ours['fvu_on_p']:.3f} of the variance on P unexplained "
            f"where it leaves {null['fvu_on_p']:.3f}"
        )
    return said + "."


def parent_sentence(split: Split) -> str:
    """What the parent is, in plain words."""
    parent = split.parent
    one_in = round(1 / parent.rate) if parent.rate > 0 else 0
    said = (
        f"Feature {parent.feature} is above its threshold {show(float(parent.tau))} on one token in {one_in:,} "
        f"({show(int(parent.n_on['test']))} test tokens; its largest activation is {show(float(parent.largest))})."
    )
    words = _most_of(parent.over_represented, "current")
    if words:
        said += f" {words}"
    if parent.purity is not None and finite(parent.purity):
        said += f" Of these tokens {100 * parent.purity:.0f}% are in the contexts asked about"
        if parent.recall is not None and finite(parent.recall):
            said += f", and it fires on {100 * parent.recall:.0f}% of all that are"
        said += "."
    return said


def _most_of(over: pd.DataFrame, position: str) -> str:
    rows = over[over["position"] == position].sort_values("share_in_P", ascending=False).head(3)
    if rows.empty:
        return ""
    tokens = [visible(str(token)) for token in rows["token"]]
    said = [f"“{token}” ({100 * share:.0f}%)" for token, share in zip(tokens, rows["share_in_P"], strict=True)]
    if rows["share_in_P"].iloc[0] > 0.9:
        return f"Nearly all of them are {said[0]}."
    return (
        f"Most often they are {', '.join(said[:-1])} and {said[-1]}."
        if len(said) > 1
        else f"Most often they are {said[0]}."
    )


def visible(token: str) -> str:
    """A token with its spaces and line breaks to be seen."""
    return token.replace(" ", "␣").replace("\r", "").replace("\n", "↵").replace("\t", "⇥")


def named_sentence(children: pd.DataFrame) -> str:
    """How many children have a name that says where they fire, and the best of them."""
    good = children[children["name_mcc"] >= NAMED]
    if good.empty:
        return (
            f"Of {len(children)} children none has a name that says where it fires (MCC of {NAMED:g} on held-out text)"
        )
    names = "; ".join(str(name) for name in good["name"].head(6))
    new = int((good["rest_mcc"] < good["name_mcc"] - BEYOND).sum())
    return (
        f"Of {len(children)} children {len(good)} have a name that says on held-out text where they fire "
        f"(MCC of at least {NAMED:g}): {names}{' …' if len(good) > 6 else ''}; {new or 'none'} of them better, by "
        f"{BEYOND:g} or more, than any single feature of the rest of the SAE"
    )


def leaks(row: pd.Series) -> bool:
    """Whether a child leaks more on test than a threshold was allowed to on select; not where its leak is not known."""
    return cell_value(row, "leak") > MOST_FOREIGN


def leak_sentence(children: pd.DataFrame) -> str:
    """Which children leak too much, the worst first, and the mean over children; empty where no leak is known."""
    known = children[children["leak"].notna()].sort_values("leak", ascending=False, kind="stable")
    if known.empty:
        return ""
    shares = known["leak"].astype(float)
    over = [
        f"{name} ({share:.1%})" for name, share in zip(child_names(known), shares, strict=True) if share > MOST_FOREIGN
    ]
    which = f"{len(over)} of {len(known)} children" if over else "No child"
    verb = "leaks" if len(over) < 2 else "leak"
    return (
        f"{which} {verb} above {MOST_FOREIGN:.0%}{': ' if over else ''}{_listed(over)}; the mean over children is "
        f"{shares.mean():.1%} (aimed at: below {MOST_FOREIGN:.0%})."
    )


def why_not(split: Split) -> list[str]:
    """What was looked for and why it was not found: the page of a feature with nothing to split."""
    if split.verdict.name == "SPLIT":
        return []
    said = []
    measured = split.separation.get(PRODUCT)
    contexts = measured.contexts if measured is not None else ()
    judged = [c for c in contexts if c.judged]
    said.append(
        f"{len(contexts)} contexts were tried, {len(judged)} of them could be judged: a linear probe on the activation tells "
        "them apart, and the parent's own size or the token itself does not."
    )
    reasons: dict[str, list[str]] = {}
    for c in contexts:
        if not c.judged:
            reasons.setdefault(c.reason, []).append(c.context)
    said += [f"Not judged, {reason}: {_listed(names)}." for reason, names in reasons.items()]
    told = [c.context for c in split.judgement.contexts if c.reason == Reason.TOLD_APART]
    if told:
        said.append(f"The rest of the SAE already tells apart: {_listed(told)}.")
    for failed, words in FAILED.items():
        names = [c.context for c in split.judgement.contexts if c.passed is False and failed in c.failed]
        if names:
            said.append(f"{words}: {_listed(names)}.")
    if not len(split.children):
        said.append("No child was kept: none carries anything that the rest leaves unexplained.")
    if split.verdict.name == "NOT_SPLIT":
        said.append(
            "The verdict is strict: of splits put into the hyphen's own activations it saw only the strongest (notebook 08, "
            "docs/results.md), so a weak one may be there."
        )
    said.append(
        {
            "UNDECIDED": "More text would help: every context needs more tokens on select and on test.",
            "NO_SUCH_PARENT": "Try the automatic contexts, or another feature: see below what this one fires on.",
            "GRADED": "Children still rebuild the activation; where they are cut differs from seed to seed.",
        }.get(split.verdict.name, "Try contexts of your own (a file of rules), a lower threshold, or another feature.")
    )
    return said


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = list(names[:most])
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def kicker_line(split: Split) -> str:
    """Which feature of which SAE of which model, and how it was split."""
    cfg = split.original.cfg
    site = f" on {cfg.hook_name}" if cfg.hook_name else ""
    said = f"feature {split.parent.feature} of an SAE with {cfg.d_sae:,} features{site}, language model {split.acts.model.name}"
    return "; ".join([said, *method_words(split)])


def method_words(split: Split) -> list[str]:
    """How the children were made, where they were not made by the method that is the default."""
    method = split.method
    return [] if method.name == OURS else [f"children by --method {method.name}: {method.about}"]


def child_names(children: pd.DataFrame) -> list[str]:
    """The names of the children, by number where the text gave none."""
    return [
        str(name) if name and str(name) != "nan" else f"child {feature}"
        for name, feature in zip(children["name"], children["feature"], strict=True)
    ]
