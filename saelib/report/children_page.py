"""The page of a split: what a feature is, what it is made of, how well that is told, and what it costs the SAE.

It reads a `Split` and computes nothing that a verdict rests on: only examples and pieces of text are encoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saelib.interpret.features import logit_effects
from saelib.report.child_examples import Beside, Example, child_examples, parent_examples, passages
from saelib.report.children_charts import (
    k_curve_svg,
    token_spans,
)
from saelib.report.children_tables import (
    MOST_BARS,
    MOST_CARDS,
    added_text,
    bars,
    context_rows,
    control_list,
    cost_rows,
    headline_parts,
    judged_rows,
    mark_rows,
    percent_text,
    relation_parts,
    swap_rows,
    verdict_parts,
)
from saelib.report.children_words import (
    against_random,
    beaten_by,
    cell_value,
    child_names,
    kicker_line,
    leak_sentence,
    leaks,
    named_sentence,
    parent_sentence,
    verdict_sentence,
    visible,
    why_not,
)
from saelib.report.feature_page import sources
from saelib.report.html_view import HtmlView
from saelib.report.page import environment, show
from saelib.report.passages import coloured_passages, prompt_passages
from saelib.split.result import Split

UNFINISHED = (
    "Not finished: other seeds and the controls are still being trained. The same command writes this page again when they are "
    "there, and the verdict may change with them."
)
WIDE_ROWS = (
    "A wide SAE is not among these rows: saelib split with --method all-data (or context-filter, token-filter, warm) trains one "
    "on the same text and prints it, measured alike, beside the rest."
)


def children_page(
    split: Split, prompts: Sequence[str] = (), finished: bool = True, wide_rows: str = WIDE_ROWS
) -> HtmlView:
    """The page of a split: shows itself in a notebook, `.save("index.html")` writes it and its `.json` sibling.

    Args:
        prompts: texts on which to show which child fires where; none takes pieces of the test text.
        finished: whether other seeds and controls are there; a page without them says so at its top.
        wide_rows: where whole wide SAEs stand, which are not among the controls.

    Raises:
        UserError: a prompt on which the parent nowhere exceeds its threshold.
    """
    origin = sources(split.original, split.acts.model, split.acts.stores["test"])
    return HtmlView(
        template="children.html.j2",
        title=f"What is feature {split.parent.feature} made of?",
        context=_context(split, prompts, finished) | {"wide_rows": wide_rows},
        record={
            **{name: value for name, value in split.to_json().items() if name != "children"},  # those are in split.json
            "finished": finished,
            "sources": {name: text for name, text in origin.items() if text},
        },
        kicker=kicker_line(split),
        text=f"{' '.join([*beaten_by(split), verdict_sentence(split)])}\n{split.children.to_string(index=False)}",
    )


def split_html(split: Split) -> str:
    """A split in brief, as JupyterLab shows it: verdict, parent, a bar a child, controls and swap."""
    context = {
        "title": f"What is feature {split.parent.feature} made of?",
        "kicker": kicker_line(split),
        "warnings": beaten_by(split),
        "verdict": verdict_parts(split),
        "parent_sentence": parent_sentence(split),
        "children": [{**bar, "anchor": ""} for bar in bars(split.children)[:MOST_CARDS]],
        "n_children": len(split.children),
        "leak_sentence": leak_sentence(split.children),
        "why_not": why_not(split),
        "controls": control_list(split),
        "swap": swap_rows(split.swap),
        "cost": cost_rows(split),
    }
    return environment().get_template("split_brief.html.j2").render(**context)


def _context(split: Split, prompts: Sequence[str], finished: bool) -> dict[str, Any]:
    beside = Beside(
        split.original, split.parent.feature, split.sae, np.array(split.children["feature"], dtype=np.int64), split.acts
    )
    on = split.tokens.on["test"]
    fires = beside.children_on(on.x)
    shown = list(range(len(split.children)))
    found = child_examples(beside, on, split.tokens.off["test"], fires, shown[:MOST_CARDS])
    pieces = prompt_passages(split, prompts) if prompts else passages(beside, on, fires) if shown else []
    names = child_names(split.children)
    return {
        "warnings": [*([] if finished else [UNFINISHED]), *beaten_by(split)],
        "verdict": verdict_parts(split),
        "why_not": why_not(split),
        "headline": headline_parts(split),
        "parent": _parent(split, parent_examples(beside, on, split.tokens.weak["test"])),
        "bars": bars(split.children),
        "named": named_sentence(split.children),
        "leak_sentence": leak_sentence(split.children),
        "most_bars": MOST_BARS,
        "contexts": context_rows(split),
        "judged": judged_rows(split),
        "cards": [_card(split, j, found[j], fires[:, j]) for j in shown[:MOST_CARDS]],
        "folded": [_fold(split, j) for j in shown[MOST_CARDS:]],
        "pieces": coloured_passages(pieces, names),
        "from_prompts": bool(prompts),
        "relations": relation_parts(split, names),
        "swap": swap_rows(split.swap),
        "controls": control_list(split),
        "against_random": against_random(split),
        "k_curve": k_curve_svg(split.k_curve),
        "cost": cost_rows(split),
    }


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


def _card(split: Split, j: int, examples: list[Example], values: np.ndarray) -> dict[str, Any]:
    row = split.children.iloc[j]
    feature = int(row["feature"])
    facts = [
        ("share of P", f"{100 * row['share']:.1f}%"),
        ("adds", added_text(row)[0] or added_text(row)[1]),
        ("fires where it should not", percent_text(cell_value(row, "leak"))),
        ("theta", show(cell_value(row, "theta"))),
        ("mean where it fires", show(cell_value(row, "mean_activation"))),
        ("cosine with the parent", f"{cell_value(row, 'cosine_parent'):.2f}"),
        ("nearest of the rest, cosine", f"{cell_value(row, 'max_cosine_rest'):.2f}"),
    ]
    return {
        "anchor": f"child-{feature}",
        "feature": feature,
        "name": child_names(split.children)[j],
        "facts": [(name, text) for name, text in facts if text and text != "nan"],
        "copy_of": int(row["copy_of"]) if "copy_of" in row and int(row["copy_of"]) >= 0 else None,
        "leaks": percent_text(cell_value(row, "leak")) if leaks(row) else "",
        "examples": _example_rows(examples, float(split.parent.largest)),
        "marks": mark_rows(split, values),
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
        "name": child_names(split.children)[j],
        "share": percent_text(float(row["share"])),
        "mcc": show(cell_value(row, "mcc")),
        "leak": percent_text(cell_value(row, "leak")),
        "leaks": leaks(row),
        "logits": _logits(split, split.sae, int(row["feature"])),
    }
