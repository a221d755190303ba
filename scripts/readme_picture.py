"""Draw the picture of a real split for the README: reads `reports/split-hyphen/`, writes `docs/split.svg`.

    python scripts/readme_picture.py

The eight children whose names say best where they fire (MCC of name and firing), each with its share of the parent's tokens and
the text where it is strongest.
"""

from __future__ import annotations

import json
from collections.abc import Container
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "reports" / "split-hyphen"
PICTURE = ROOT / "docs" / "split.svg"
MOST_CHILDREN = 8
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""One a context, in the order of `contexts` in split.json."""
BEFORE, AFTER = 30, 16
"""Characters of an example on either side of its token."""


class Example(NamedTuple):
    """A piece of text around the token on which a child is strongest."""

    before: str
    token: str
    after: str


def chosen(split: dict[str, Any], carded: Container[int]) -> list[dict[str, Any]]:
    """The children that are shown, the largest share first."""
    named = sorted(
        (child for child in split["children"] if child["feature"] in carded), key=lambda child: -child["name_mcc"]
    )[:MOST_CHILDREN]
    return sorted(named, key=lambda child: -child["share"])


def examples(page: str) -> dict[int, Example]:
    """The first example of each child's card on the page, the first whose characters are whole if there is one."""
    found = {}
    for card in BeautifulSoup(page, "html.parser").select('section.card[id^="child-"]'):
        read = [
            Example(
                "".join(span.get_text() for span in reversed(marked.find_previous_siblings("span"))),
                marked.get_text(),
                "".join(span.get_text() for span in marked.find_next_siblings("span")),
            )
            for marked in card.select("table.ex span.at")
        ]
        if read:
            whole = [example for example in read if "\ufffd" not in "".join(example)]
            found[int(str(card["id"]).removeprefix("child-"))] = (whole or read)[0]
    return found


def picture(split: dict[str, Any], page: str) -> str:
    """A bar a child, its name on the left, an example on the right."""
    texts, parent = examples(page), split["parent"]
    children = chosen(split, texts)
    contexts = [context["name"] for context in split["contexts"]]
    row, top, width, bar_at, text_at = 27, 96, 960, 300, 536
    height = top + row * len(children) + 34
    largest = max(child["share"] for child in children)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="16" font-weight="bold">What the hyphen’s feature is made of: '
        f"{len(children)} of {len(split['children'])} children</text>",
        f'<text x="16" y="49" font-size="12" fill="#666">Feature {parent["feature"]} of a sparse autoencoder fires on '
        f"{parent['rate']:.2%} of all tokens, {parent['purity']:.0%} of them a “-” that joins words. "
        "Children are named from the text beside the token.</text>",
    ]
    for x, anchor, words in (
        (bar_at - 10, "end", "a child fires"),
        (bar_at, "start", "on this share of the feature’s tokens"),
    ):
        out.append(f'<text x="{x}" y="{top - 12}" font-size="11" fill="#888" text-anchor="{anchor}">{words}</text>')
    out.append(f'<text x="{text_at}" y="{top - 12}" font-size="11" fill="#888">where it is strongest</text>')
    for i, child in enumerate(children):
        y, colour = top + row * i, COLOURS[contexts.index(child["context"]) % len(COLOURS)]
        length = 170 * child["share"] / largest
        out += [
            f'<text x="{bar_at - 10}" y="{y + 14}" font-size="12" text-anchor="end">{escape(child["name"])}</text>',
            f'<rect x="{bar_at}" y="{y + 1}" width="{length:.1f}" height="18" rx="2" fill="{colour}" fill-opacity=".85"/>',
            f'<text x="{bar_at + length + 6:.1f}" y="{y + 14}" font-size="11" fill="#555">{child["share"]:.1%}</text>',
        ]
        example = texts[child["feature"]]
        before, after = (" ".join(part.split("\n")) for part in (example.before, example.after))
        out.append(
            f'<text x="{text_at}" y="{y + 14}" font-size="12" fill="#444">…{escape(before[-BEFORE:].lstrip())}'
            f'<tspan fill="{colour}" font-weight="bold">{escape(example.token)}</tspan>{escape(after[:AFTER].rstrip())}…</text>'
        )
    x, legend = 176.0, top + row * len(children) + 18
    out.append(f'<text x="16" y="{legend}" font-size="11" fill="#888">the context it marks best:</text>')
    shown = {child["context"] for child in children}
    for name, colour in zip(contexts, COLOURS, strict=False):
        if name in shown:
            out += [
                f'<rect x="{x:.0f}" y="{legend - 9}" width="10" height="10" rx="2" fill="{colour}"/>',
                f'<text x="{x + 15:.0f}" y="{legend}" font-size="11" fill="#555">{escape(name)}</text>',
            ]
            x += 40 + 7 * len(name)
    return "\n".join([*out, "</svg>"]) + "\n"


def current_picture() -> str:
    """The picture of the committed report."""
    split = json.loads((REPORT / "split.json").read_text(encoding="utf-8"))
    return picture(split, (REPORT / "index.html").read_text(encoding="utf-8"))


if __name__ == "__main__":
    PICTURE.write_text(current_picture(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
