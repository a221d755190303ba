"""Draw the rooms of `saelib/` and the imports between them, read from the source: writes `docs/rooms.svg`.

    python scripts/draw_rooms.py

`arrows` is what `tests/test_rooms.py` holds to the direction: a room imports only from rooms before it in `ROOMS`.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from typing import NamedTuple

from saelib.base.code_version import imported_names

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"

ROOMS = {
    "base": "errors, cache, checksums, progress, provenance",
    "text": "documents to contexts of tokens",
    "lm": "language models behind one interface",
    "acts": "activations: harvested once, served shuffled",
    "sae": "the SAE, its formats, its training",
    "interpret": "what a feature does",
    "split": "parent, children, judge, controls",
    "study": "the 2024 post, reproduced",
    "bench": "many parents, many methods",
    "report": "notebooks run, pages written",
    "top": "cli.py, doctor.py, __init__.py",
}
"""In the order of imports: each may import from those before it. `top` is what lies in `saelib/` itself."""


class Arrow(NamedTuple):
    """One import from one room of something in another."""

    file: str
    line: int
    source: str
    """The room that imports."""
    target: str
    """The room that is imported."""


def arrows(package: Path) -> list[Arrow]:
    """Every import between rooms, those inside functions, under TYPE_CHECKING and by a string included."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        source = parts[0] if len(parts) > 1 else "top"
        for line, name in imported_names(path.read_text(encoding="utf-8"), package.name):
            if name == "saelib.__version__":  # a constant, set before any room is loaded
                continue
            first = name.split(".")[1] if "." in name else ""
            target = first if (package / first).is_dir() and first else "top"
            if target != source:
                found.append(Arrow("/".join((package.name, *parts)), line, source, target))
    return found


def upward(found: list[Arrow]) -> list[Arrow]:
    """The arrows that point the wrong way; a room that is not in `ROOMS` counts as above all."""
    place = {room: i for i, room in enumerate(ROOMS)}
    return [arrow for arrow in found if place.get(arrow.target, len(ROOMS)) > place.get(arrow.source, -1)]


# --- the picture -----------------------------------------------------------------------------------------------------

ROW, TOP, BOX = 46, 62, (16, 400)
COLOURS = ("#5b6168", "#8c6d31", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#b22222", "#6a51a3", "#3b7d4f", "#a6761d")


def picture(found: list[Arrow], rooms: list[str]) -> str:
    """The rooms as boxes, the lowest at the bottom; an arc a pair, from the importer down to the imported, wide for many."""
    counts = Counter((arrow.source, arrow.target) for arrow in found)
    y = {room: TOP + ROW * i + ROW / 2 for i, room in enumerate(reversed(rooms))}
    height, width = TOP + ROW * len(rooms) + 14, 720
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{BOX[0]}" y="26" font-size="15" font-weight="bold" fill="#222">The rooms of saelib/</text>',
        f'<text x="{BOX[0]}" y="46" font-size="12" fill="#777">An arc leads from a room down to one that it imports from; '
        "the wider, the more imports.</text>",
    ]
    heads: list[str] = []
    for source, target in sorted(counts, key=lambda pair: y[pair[0]] - y[pair[1]]):
        n, begin, end = counts[source, target], y[source], y[target]
        reach = BOX[1] + 10 + 1.08 * abs(end - begin) ** 0.93
        colour = COLOURS[rooms.index(target) % len(COLOURS)]
        curve = f"M{BOX[1]} {begin + 5:.0f} C{reach:.0f} {begin + 5:.0f} {reach:.0f} {end - 5:.0f} {BOX[1] + 7} {end - 5:.0f}"
        out.append(
            f'<path d="{curve}" fill="none" stroke="{colour}" stroke-opacity=".62" stroke-width="{0.8 + 0.55 * n**0.5:.1f}">'
            f"<title>{source} imports from {target}</title></path>"
        )
    for room in {target for _, target in counts}:
        point, colour = y[room] - 5, COLOURS[rooms.index(room) % len(COLOURS)]
        heads.append(f'<path d="M{BOX[1] + 1} {point:.0f} l10 -5 v10 z" fill="{colour}"/>')
    out += sorted(heads)
    for i, room in enumerate(rooms):
        colour, middle = COLOURS[i % len(COLOURS)], y[room]
        box = f'<rect x="{BOX[0]}" y="{middle - 17:.0f}" height="34"'
        out += [
            f'{box} width="{BOX[1] - BOX[0]}" rx="5" fill="#f6f7f8" stroke="{colour}"/>',
            f'{box} width="6" rx="3" fill="{colour}"/>',
            f'<text x="{BOX[0] + 16}" y="{middle + 5:.0f}" font-size="14" font-weight="bold" fill="#222">{room}</text>',
            f'<text x="{BOX[0] + 100}" y="{middle + 4:.0f}" font-size="11" fill="#555">{escape(ROOMS[room])}</text>',
        ]
    return "\n".join([*out, "</svg>"]) + "\n"


def current_picture() -> str:
    """The picture of what is in the checkout now."""
    package = ROOT / "saelib"
    rooms = [room for room in ROOMS if room == "top" or (package / room).is_dir()]
    return picture(arrows(package), rooms)


if __name__ == "__main__":
    PICTURE.write_text(current_picture(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
