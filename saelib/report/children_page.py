"""The page of a split: what a feature is, what it is made of, how well that is told, and what it costs the SAE.

It reads a `Split` and computes nothing that a verdict rests on: only examples and pieces of text are encoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import markupsafe
import numpy as np
import pandas as pd

from saelib.interpret.features import logit_effects
from saelib.report.child_examples import Beside, Example, Passage, child_examples, parent_examples, passages
from saelib.report.children_charts import (
    CHILD_COLOURS,
    OTHER,
    coloured,
    contexts_svg,
    finite,
    k_curve_svg,
    relation_cells,
    strip,
    token_spans,
)
from saelib.report.feature_page import sources
from saelib.report.html_view import HtmlView
from saelib.report.page import environment, show, show_count, show_seconds
from saelib.split.detectors import mcc
from saelib.split.result import Split
from saelib.split.yardstick import Reason

MOST_BARS, MOST_CARDS, MOST_RELATED = 20, 12, 12
PRODUCT, REST, RANDOM = "rest + children", "rest alone", "random decoder"
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


def children_page(split: Split, prompts: Sequence[str] = ()) -> HtmlView:
    """The page of a split: shows itself in a notebook, `.save("index.html")` writes it and its `.json` sibling.

    Args:
        prompts: texts on which to show which child fires where; none takes pieces of the test text.

    Raises:
        UserError: a prompt on which the parent nowhere exceeds its threshold.
    """
    origin = sources(split.original, split.acts.model, split.acts.stores["test"])
    return HtmlView(
        template="children.html.j2",
        title=f"What is feature {split.parent.feature} made of?",
        context=_context(split, prompts),
        record={**split.to_json(), "sources": {name: text for name, text in origin.items() if text}},
        kicker=_kicker(split),
        text=f"{' '.join([*beaten_by(split), verdict_sentence(split)])}\n{split.children.to_string(index=False)}",
    )


def split_html(split: Split) -> str:
    """A split in brief, as JupyterLab shows it: verdict, parent, a bar a child, controls and swap."""
    context = {
        "title": f"What is feature {split.parent.feature} made of?",
        "kicker": _kicker(split),
        "warnings": beaten_by(split),
        "verdict": _verdict(split),
        "parent_sentence": parent_sentence(split),
        "children": [{**bar, "anchor": ""} for bar in bars(split.children)[:MOST_CARDS]],
        "n_children": len(split.children),
        "why_not": why_not(split),
        "controls": _controls(split),
        "swap": _swap(split.swap),
        "cost": _cost(split),
    }
    return environment().get_template("split_brief.html.j2").render(**context)


def _context(split: Split, prompts: Sequence[str]) -> dict[str, Any]:
    beside = Beside(
        split.original, split.parent.feature, split.sae, np.array(split.children["feature"], dtype=np.int64), split.acts
    )
    on = split.tokens.on["test"]
    fires = beside.children_on(on.x)
    shown = list(range(len(split.children)))
    found = child_examples(beside, on, split.tokens.off["test"], fires, shown[:MOST_CARDS])
    pieces = _prompts(split, prompts) if prompts else passages(beside, on, fires) if shown else []
    names = _names(split.children)
    return {
        "warnings": beaten_by(split),
        "verdict": _verdict(split),
        "why_not": why_not(split),
        "headline": _headline(split),
        "parent": _parent(split, parent_examples(beside, on, split.tokens.weak["test"])),
        "bars": bars(split.children),
        "most_bars": MOST_BARS,
        "contexts": _contexts(split),
        "judged": _judged(split),
        "cards": [_card(split, j, found[j], fires[:, j]) for j in shown[:MOST_CARDS]],
        "folded": [_fold(split, j) for j in shown[MOST_CARDS:]],
        "pieces": _pieces(pieces, names),
        "from_prompts": bool(prompts),
        "relations": _relations(split, names),
        "swap": _swap(split.swap),
        "controls": _controls(split),
        "against_random": against_random(split),
        "k_curve": k_curve_svg(split.k_curve),
        "cost": _cost(split),
    }


# --- words ---------------------------------------------------------------------------------------------------------------


def verdict_sentence(split: Split) -> str:
    """The verdict in one sentence, with the engine's own count where it gives one."""
    together = split.verdict.name == "NOT_SPLIT" and len(split.children) > 0 and split.added[2].low > 0
    sentence = VERDICTS.get("TOGETHER" if together else split.verdict.name, str(split.verdict.value))
    said = str(split.verdict_text).strip()
    plain = split.verdict.name.lower().replace("_", " ")
    return sentence if not said or said.lower().replace("_", " ") == plain else f"{sentence[:-1]} ({said})."


def _value(row: pd.Series, column: str) -> float:
    return float(row[column]) if column in row and row[column] is not None else float("nan")


def _row(frame: pd.DataFrame, name: str) -> pd.Series | None:
    found = frame[frame["name"] == name]
    return None if found.empty else found.iloc[0]


def beaten_by(split: Split) -> list[str]:
    """A sentence for every control that tells the contexts apart as well as rest + children; none is as it should be."""
    ours = _row(split.controls, PRODUCT)
    if ours is None or not finite(_value(ours, "S_2")):
        return []
    said = []
    for _, row in split.controls.iterrows():
        if row["name"] in NOT_RIVALS or not finite(_value(row, "S_2")) or row["S_2"] < ours["S_2"]:
            continue
        said.append(
            f"Read this first: the control “{row['name']}” tells the contexts apart as well as rest + children do "
            f"(S₂ {row['S_2']:.2f} against {ours['S_2']:.2f})."
        )
    rest = _row(split.controls, REST)
    if rest is not None and finite(_value(rest, "S_2")) and rest["S_2"] >= ours["S_2"] and len(split.children):
        said.append(
            f"Read this first: without any child the rest of the SAE does as well (S₂ {rest['S_2']:.2f} against "
            f"{ours['S_2']:.2f})."
        )
    return said


def against_random(split: Split) -> str:
    """How far the children beat a random frozen decoder, the strongest null, in separation and in FVU on P."""
    ours, null = _row(split.controls, PRODUCT), _row(split.controls, RANDOM)
    if ours is None or null is None or not finite(_value(ours, "S_2"), _value(null, "S_2")):
        return ""
    gap = ours["S_2"] - null["S_2"]
    said = (
        f"Against a random frozen decoder with a trained encoder, a strong null, the children are "
        f"{'ahead' if gap > 0 else 'behind'} by {abs(gap):.2f} in S₂"
    )
    if finite(_value(ours, "fvu_on_p"), _value(null, "fvu_on_p")):
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


# --- parts -----------------------------------------------------------------------------------------------------------------


def _kicker(split: Split) -> str:
    cfg = split.original.cfg
    site = f" on {cfg.hook_name}" if cfg.hook_name else ""
    return f"feature {split.parent.feature} of an SAE with {cfg.d_sae:,} features{site}, language model {split.acts.model.name}"


def _names(children: pd.DataFrame) -> list[str]:
    return [
        str(name) if name and str(name) != "nan" else f"child {feature}"
        for name, feature in zip(children["name"], children["feature"], strict=True)
    ]


def _verdict(split: Split) -> dict[str, str]:
    name = split.verdict.name
    colour = {"SPLIT": "yes", "PARTIAL": "partial", "UNDECIDED": "partial", "GRADED": "partial"}.get(name, "no")
    return {"pill": name.lower().replace("_", " "), "class": colour, "sentence": verdict_sentence(split)}


def _headline(split: Split) -> list[tuple[str, str, str]]:
    """Name, number and a note under it."""
    S = split.separation[PRODUCT].S[2] if PRODUCT in split.separation else None
    added = split.added.get(2)
    after, before = (_at(split.swap, "on P", f"fvu_{when}") for when in ("after", "before"))
    cost = {name: show_seconds(split.cost.get(name)) for name in ("seconds", "seconds_training")}
    shown = [
        ("children", show(len(split.children)), ""),
        ("share of all test tokens", f"{100 * split.parent.rate:.2g}%", f"{split.parent.n_on['test']:,} tokens"),
        ("separation S₂ (0 free, 1 probe)", *_parted(S)),
        ("children add, of what the rest lacks", *_parted(added)),
        ("FVU on P, after the swap", f"{after:.3f}" if finite(after) else "", f"{before:.3f} before"),
        ("time in all", cost["seconds"], f"{cost['seconds_training']} training"),
        ("seeds agree (IoU on P)", "" if split.stability is None else f"{split.stability:.2f}", ""),
    ]
    return [(name, text, note) for name, text, note in shown if text]


def _at(frame: pd.DataFrame, row: str, column: str) -> float:
    """A cell, NaN where it is not there."""
    return float(frame[column].to_dict().get(row, np.nan)) if column in frame else float("nan")


def _parted(value: Any) -> tuple[str, str]:
    """A value and, apart, its interval."""
    text, _, interval = _interval(value).partition(" (")
    return text, interval.rstrip(")")


def _interval(value: Any) -> str:
    if value is None or not finite(value[0]):
        return ""
    text, low, high = (f"{number:z.2f}" for number in value)
    return f"{text} ({low} to {high})" if finite(value[1], value[2]) else text


def _parent(split: Split, examples: list[Example]) -> dict[str, Any]:
    parent, over = split.parent, split.parent.over_represented
    positions = []
    for position, words in (("previous", "before it"), ("current", "the token itself"), ("next", "after it")):
        rows = over[over["position"] == position].head(8)
        positions.append(
            {
                "words": words,
                "rows": [
                    {"token": visible(str(token)), "share": float(share), "lift": float(lift)}
                    for token, share, lift in zip(rows["token"], rows["share_in_P"], rows["lift"], strict=True)
                ],
            }
        )
    figures = [
        (
            "tokens of P: train, select, test",
            " · ".join(show(int(parent.n_on[s])) for s in ("train", "select", "test")),
        ),
        ("threshold", show(float(parent.tau))),
        ("purity", "" if parent.purity is None else f"{100 * parent.purity:.0f}%"),
        ("recall", "" if parent.recall is None else f"{100 * parent.recall:.0f}%"),
    ]
    return {
        "sentence": parent_sentence(split),
        "figures": [(name, text) for name, text in figures if text],
        "positions": [entry for entry in positions if entry["rows"]],
        "examples": _example_rows(examples, float(parent.largest), own=True),
        "logits": _logits(split, split.original, parent.feature),
    }


def _logits(split: Split, sae: Any, feature: int) -> list[dict[str, Any]]:
    """Tokens raised and lowered; none where the SAE does not write to the residual stream."""
    model = split.acts.model
    if model.W_U.shape[0] != sae.cfg.d_in:
        return []
    frame = logit_effects(sae.W_dec[feature], model, k=8)
    columns = frame[["top", "top_logit", "bottom", "bottom_logit"]].to_numpy(object)
    return [
        {"top": visible(top), "top_logit": up, "bottom": visible(bottom), "bottom_logit": down}
        for top, up, bottom, down in columns
    ]


def _example_rows(examples: list[Example], largest: float, own: bool = False) -> list[dict[str, Any]]:
    """Examples by band; the parent's own are shaded by the parent, a child's by the child."""
    peak = max((e.child for e in examples), default=0.0)
    high = largest if own else peak
    bands: dict[str, list[dict[str, Any]]] = {}
    for e in examples:
        notes = [
            f"parent {p:.2f}" if own else f"parent {p:.2f}, child {c:.2f}"
            for p, c in zip(e.parent_around, e.child_around, strict=True)
        ]
        bands.setdefault(e.band, []).append(
            {
                "parent": e.parent,
                "parent_share": min(max(e.parent / largest, 0), 1) if largest > 0 else 0,
                "child": e.child,
                "child_share": min(max(e.child / peak, 0), 1) if peak > 0 else 0,
                "text": token_spans(e.tokens, e.parent_around if own else e.child_around, notes, high, e.at),
            }
        )
    return [{"band": band, "rows": rows} for band, rows in bands.items()]


def bars(children: pd.DataFrame) -> list[dict[str, Any]]:
    """A bar a child, in the order of `Split.children`: what the template's `made_of` shows."""
    widest = max(float(children["share"].max()), 1e-9) if len(children) else 1.0
    shown: list[dict[str, Any]] = []
    for j, (name, (_, row)) in enumerate(zip(_names(children), children.iterrows(), strict=True)):
        added = tuple(_value(row, column) for column in ("added", "added_low", "added_high"))
        text, no_more = _adds(row)
        shown.append(
            {
                "anchor": f"child-{int(row['feature'])}" if j < MOST_CARDS else "",
                "feature": int(row["feature"]),
                "name": name,
                "share": float(row["share"]),
                "width": float(row["share"]) / widest,
                "mcc": _value(row, "mcc"),
                "added": text,
                "no_more": no_more,
                "strip": strip(*added, scale=(-0.25, 1.0)) if text else "",
                "leak": _value(row, "leak"),
                "copy_of": int(row["copy_of"]) if "copy_of" in row and int(row["copy_of"]) >= 0 else None,
            }
        )
    return shown


def _adds(row: pd.Series) -> tuple[str, str]:
    """What a child adds with its interval, or in words why there is no number to show."""
    value = tuple(_value(row, column) for column in ("added", "added_low", "added_high"))
    if not finite(*value):
        return "", "nothing asked"
    return ("", "the rest does better") if value[2] <= 0 else (_interval(value), "")


def _contexts(split: Split) -> dict[str, Any]:
    """Floor, ceiling, rest and product of every context, the judged first, best told first."""
    both, rest = split.separation.get(PRODUCT), split.separation.get("rest")
    if both is None:
        return {"svg": "", "more": "", "unjudged": []}
    of_rest = {c.context: c for c in rest.contexts} if rest is not None else {}
    rows: list[dict[str, Any]] = [
        {
            "name": c.context, "n_test": c.n_test, "floor": c.floor.value, "ceiling": c.ceiling.value, "judged": c.judged,
            "primary": c.primary, "reason": c.reason,
            "both": c.mcc[2].value, "both_low": c.mcc[2].low, "both_high": c.mcc[2].high,
            "rest": of_rest[c.context].mcc[2].value if c.context in of_rest else float("nan"),
        }
        for c in both.contexts
    ]  # fmt: skip
    judged = sorted((r for r in rows if r["judged"]), key=lambda r: (not r["primary"], -np.nan_to_num(r["both"])))
    return {
        "svg": contexts_svg(judged[:16]),
        "beside": any(not r["primary"] for r in judged),
        "more": contexts_svg(judged[16:]),
        "n_more": len(judged[16:]),
        "unjudged": [r for r in rows if not r["judged"]],
    }


def _judged(split: Split) -> list[dict[str, Any]]:
    """What the verdict rests on: a row a context for which a child is required."""
    K = len(split.numbers)
    names = dict(zip(split.numbers, _names(split.children), strict=True))
    places = sorted(split.numbers)  # the order of the dictionary that was judged
    rows = []
    for c in split.judgement.contexts:
        if c.passed is None:
            continue
        number = places[c.child] if c.child is not None and c.child < K else None
        rows.append(
            {
                "context": c.context,
                "child": f"{number} {names[number]}" if number is not None else "none",
                "added": _interval(c.added),
                "precision": _interval(c.precision),
                "foreign": _interval(c.foreign),
                "passed": c.passed,
                "failed": ", ".join(c.failed),
            }
        )
    return sorted(rows, key=lambda row: not row["passed"])


def _marks(split: Split, values: np.ndarray) -> list[dict[str, Any]]:
    """The contexts a child marks best, by its firing on the test tokens of P, from the text's own labels."""
    labels = split.labels
    counts = labels.counts["test"]
    member, fired = labels.member["test"][counts], (values > 0)[counts]
    tp = (member & fired[:, None]).sum(0)
    fp, fn = fired.sum() - tp, member.sum(0) - tp
    score = mcc(tp, fp, fn, len(fired) - tp - fp - fn)
    rows = []
    for c in np.argsort(-score, kind="stable")[:3]:
        if score[c] > 0.05:
            precision, recall = tp[c] / max(tp[c] + fp[c], 1), tp[c] / max(member[:, c].sum(), 1)
            rows.append(
                {"context": labels.contexts[c].name, "mcc": float(score[c]), "precision": precision, "recall": recall}
            )
    return rows


def _card(split: Split, j: int, examples: list[Example], values: np.ndarray) -> dict[str, Any]:
    row = split.children.iloc[j]
    feature = int(row["feature"])
    facts = [
        ("share of P", f"{100 * row['share']:.1f}%"),
        ("adds", _adds(row)[0] or _adds(row)[1]),
        ("fires where it should not", _percent(_value(row, "leak"))),
        ("theta", show(_value(row, "theta"))),
        ("mean where it fires", show(_value(row, "mean_activation"))),
        ("cosine with the parent", f"{_value(row, 'cosine_parent'):.2f}"),
        ("nearest of the rest, cosine", f"{_value(row, 'max_cosine_rest'):.2f}"),
    ]
    return {
        "anchor": f"child-{feature}",
        "feature": feature,
        "name": _names(split.children)[j],
        "facts": [(name, text) for name, text in facts if text and text != "nan"],
        "copy_of": int(row["copy_of"]) if "copy_of" in row and int(row["copy_of"]) >= 0 else None,
        "examples": _example_rows(examples, float(split.parent.largest)),
        "marks": _marks(split, values),
        "logits": _logits(split, split.sae, feature),
        "effect": _effect(split, feature),
    }


def _effect(split: Split, feature: int) -> str:
    """What taking the child away does to the right next token, in words."""
    found = split.effects[split.effects["feature"] == feature]
    if found.empty or not found["tokens"].iloc[0]:
        return ""
    row = found.iloc[0]
    return (
        f"Without it the right next token loses {show(row['effect'])} nats ({show(row['low'])} to {show(row['high'])}; "
        f"{int(row['tokens'])} tokens on which it fires); with a random direction of its length, {show(row['random'])}."
    )


def _fold(split: Split, j: int) -> dict[str, Any]:
    row = split.children.iloc[j]
    return {
        "feature": int(row["feature"]),
        "name": _names(split.children)[j],
        "share": _percent(float(row["share"])),
        "mcc": show(_value(row, "mcc")),
        "leak": _percent(_value(row, "leak")),
        "logits": _logits(split, split.sae, int(row["feature"])),
    }


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%" if finite(value) else ""


def _prompts(split: Split, prompts: Sequence[str]) -> list[Passage]:
    found = []
    for prompt in prompts:
        frame = split.on(prompt)  # refuses a text without the parent
        children = np.zeros((len(frame), len(split.numbers)))
        for j, number in enumerate(split.numbers):
            columns = [name for name in frame if str(name).startswith(f"{number} ")]
            if columns:
                children[:, j] = frame[columns[0]]
        tokens = tuple(str(token) for token in frame["token"])
        found.append(Passage(tokens, frame["parent"].to_numpy(dtype=float), children, prompt))
    return found


def _pieces(pieces: Sequence[Passage], names: Sequence[str]) -> list[dict[str, Any]]:
    """Texts coloured by the parent, and by the child that is strongest on each token."""
    if not pieces:
        return []
    high = max(float(p.parent.max(initial=0)) for p in pieces)
    out = []
    for p in pieces:
        firing = [[int(j) for j in np.argsort(-row, kind="stable") if row[j] > 0] for row in p.children]
        peaks: dict[int, float] = {}  # of the children that are the strongest somewhere
        for row, active in zip(p.children, firing, strict=True):
            if active:
                peaks[active[0]] = max(peaks.get(active[0], 0.0), float(row[active[0]]))
        lit = sorted(peaks, key=lambda j: -peaks[j])[: len(CHILD_COLOURS)]
        colour = dict(zip(lit, CHILD_COLOURS, strict=False))
        high_child = max(peaks.values(), default=1.0)
        spans = []
        for t, (token, active) in enumerate(zip(p.tokens, firing, strict=True)):
            fired = ", ".join(f"{names[j]} {p.children[t, j]:.2f}" for j in active[:5]) or "no child"
            share = float(p.children[t, active[0]]) / high_child if active else 0.0
            shown = (token.lstrip(" ") or token) if t == 0 else token
            shade = colour.get(active[0], OTHER) if active else OTHER
            spans.append(coloured(shown, shade, share, f"parent {p.parent[t]:.2f}; {fired}"))
        notes = [f"parent {value:.2f}" for value in p.parent]
        out.append(
            {
                "caption": p.caption,
                "parent": token_spans(p.tokens, p.parent.tolist(), notes, high),
                "children": markupsafe.Markup("".join(spans)),
                "legend": [(colour[j], names[j]) for j in lit]
                + ([(OTHER, "another")] if len(peaks) > len(lit) else []),
            }
        )
    return out


def _relations(split: Split, names: Sequence[str]) -> dict[str, Any] | None:
    iou, cosine = (np.asarray(split.relations[key], dtype=float) for key in ("iou", "cosine"))
    n = min(len(names), MOST_RELATED)
    if n < 2:
        return None
    a, b = np.triu_indices(len(names), 1)
    closest = np.argsort(-np.maximum(iou[a, b], cosine[a, b]), kind="stable")[:5]
    return {
        "names": list(names[:n]),
        "cells": relation_cells(iou[:n, :n], cosine[:n, :n], names[:n]),
        "closest": [(names[a[i]], names[b[i]], f"{iou[a[i], b[i]]:.2f}", f"{cosine[a[i], b[i]]:.2f}") for i in closest],
        "median_iou": f"{np.median(iou[a, b]):.2f}",
        "n_all": len(names),
    }


def _swap(swap: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a measure: on P and overall, before and after, and whether that is better."""
    rows = []
    for measure, words, better, digits in (
        ("fvu", "variance left unexplained (FVU)", -1, 3),
        ("loss_recovered", "language-model loss recovered", 1, 3),
        ("l0", "active features a token (L0)", 0, 1),
    ):
        cells = []
        for where in ("on P", "overall"):
            before, after = (_at(swap, where, f"{measure}_{when}") for when in ("before", "after"))
            change = after - before
            gain = change * better
            judged = "yes" if gain > 1e-4 else "no" if gain < -1e-4 else ""
            shown = (f"{before:.{digits}f}", f"{after:.{digits}f}", judged, f"{change:+.{digits}f}")
            cells.append(shown if finite(before, after) else ("", "", "", ""))
        rows.append({"words": words, "cells": cells})
    return rows


def _controls(split: Split) -> list[dict[str, Any]]:
    """A row a dictionary: S_1, S_2, S_4 with intervals, FVU on P, leak; the product first and highlighted."""
    rows = []
    frame = split.controls
    low = float(frame["S_2_low"].fillna(0.0).to_numpy(dtype=float).min(initial=0.0))
    scale = (max(low, -0.5), 1.0)
    height = frame["S_2"].fillna(-9.0).to_numpy(dtype=float)
    order = sorted(range(len(frame)), key=lambda i: (frame["name"].iloc[i] != PRODUCT, -height[i]))
    for i in order:
        row = frame.iloc[i]
        ours = row["name"] == PRODUCT
        values = tuple(_value(row, f"S_2{end}") for end in ("", "_low", "_high"))
        rows.append(
            {
                "name": row["name"],
                "ours": ours,
                "strip": strip(*values, scale=scale, ours=ours, width=210),
                "S": [_interval(tuple(_value(row, f"S_{k}{end}") for end in ("", "_low", "_high"))) for k in (1, 2, 4)],
                "fvu": f"{_value(row, 'fvu_on_p'):.3f}" if finite(_value(row, "fvu_on_p")) else "",
                "leak": _percent(_value(row, "leak")),
            }
        )
    return rows


def _cost(split: Split) -> list[tuple[str, str]]:
    cost = split.cost
    shown = [
        ("everything, once activations are there", show_seconds(cost.get("seconds"))),
        ("of it training", show_seconds(cost.get("seconds_training"))),
        ("tokens children were trained on", show_count(cost.get("tokens_sae"))),
        ("tokens the language model read", show_count(cost.get("tokens_lm"))),
    ]
    return [(name, text) for name, text in shown if text]
