"""Texts of a split page, coloured by the parent and by the child that is strongest on each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import markupsafe
import numpy as np

from saelib.report.child_examples import Passage
from saelib.report.children_charts import (
    CHILD_COLOURS,
    OTHER,
    coloured,
    token_spans,
)
from saelib.split.result import Split


def prompt_passages(split: Split, prompts: Sequence[str]) -> list[Passage]:
    """Prompts as passages: each token's parent and children.

    Raises:
        UserError: a prompt on which the parent never fires.
    """
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


def coloured_passages(pieces: Sequence[Passage], names: Sequence[str]) -> list[dict[str, Any]]:
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
