"""What every page of a report is made with: templates, shared assets, number formats, a check that nothing is fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import markupsafe

from saelib.base.cache import atomic_path
from saelib.base.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = TEMPLATES / "assets"


@dataclass(frozen=True)
class Page:
    """One page of a report: its file is `<name>.html`, its data `<name>.json`."""

    name: str
    title: str
    run: int | None = None
    """Number of the training run the page shows; None for a page that belongs to no single run."""

    @property
    def href(self) -> str:
        """Its address, relative to the report's folder."""
        return quote(self.name) + ".html"


def as_page(entry: Any) -> Page:
    """A `Page` from whatever names one: a mapping with `title` and `href` or `name`, or an object with `stem` and `title`."""
    if isinstance(entry, Page):
        return entry
    if isinstance(entry, Mapping):
        name = entry.get("name") or Path(entry["href"]).stem
        parameters = (entry.get("result") or {}).get("parameters", {})
        return Page(name, str(entry["title"]), entry.get("run", parameters.get("run")))
    return Page(entry.stem, str(entry.title), getattr(entry, "parameters", {}).get("run"))


def neighbours(pages: Sequence[Page], name: str) -> tuple[Page | None, Page | None]:
    """The pages before and after the one called `name`, in reading order."""
    names = [page.name for page in pages]
    if name not in names:
        return None, None
    here = names.index(name)
    return (pages[here - 1] if here else None), (pages[here + 1] if here + 1 < len(pages) else None)


# -- numbers, as they read on a page --------------------------------------------------------------------------------


def is_missing(value: Any) -> bool:
    """None, NaN and pandas' NA are all "nothing measured here"."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def plain(value: Any) -> Any:
    """A value as JSON holds it: numpy and torch scalars become Python's, what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch: scalars and arrays alike
        single = "float32" in str(getattr(value, "dtype", ""))
        value = value.tolist()
        if single and isinstance(value, float):
            value = float(f"{value:.7g}")  # 31.2, not 31.200000762939453
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if is_missing(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | int | float | str):
        return value
    return str(value)


def show(value: Any) -> str:
    """A value as a reader wants it: 12,345 · 0.931 · yes · nothing at all for a missing one."""
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == round(value) and abs(value) >= 1000:
            return f"{value:,.0f}"
        return (
            f"{value:.3g}"
            if 1e-3 <= abs(value) < 1e3 or value == 0
            else f"{value:.2e}"
            if abs(value) < 1
            else f"{value:,.0f}"
        )
    if isinstance(value, list):
        return ", ".join(show(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{label(key)} {show(item)}" for key, item in value.items())
    return value


def show_seconds(seconds: Any) -> str:
    """90.4 -> `1 min 30 s`."""
    if is_missing(seconds):
        return ""
    total = float(seconds)
    if total < 10:
        return f"{total:.1f} s"
    minutes, rest = divmod(round(total), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def show_count(count: Any) -> str:
    """26,214,400 -> `26.2 M`."""
    if is_missing(count):
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(float(count)) >= size:
            return f"{float(count) / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{int(count):,}"


def show_bytes(count: Any) -> str:
    """4_200_000_000 -> `4.2 GB` (powers of ten)."""
    if is_missing(count):
        return ""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if float(count) >= size:
            return f"{float(count) / size:.3g} {unit}"
    return f"{int(count)} B"


def label(name: str) -> str:
    """`loss_recovered` -> `loss recovered`; the field's own abbreviations in capitals."""
    words = str(name).replace("_", " ")
    return re.sub(r"\b(l0|l1|l2|fvu|sae|f1|auroc|mlp|lm)\b", lambda match: match.group().upper(), words)


# -- writing ----------------------------------------------------------------------------------------------------------


@cache
def environment() -> jinja2.Environment:
    """The templates, autoescaped: text reaches a page as text unless it was marked as HTML on purpose."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "show": show,
        "seconds": show_seconds,
        "count": show_count,
        "bytes": show_bytes,
        "label": label,
        "missing": is_missing,
    }
    return env


def script_safe(source: str) -> str:
    """JavaScript that cannot end, or start a comment in, the `<script>` element it is put in."""
    return re.sub(r"<(?=/script|!--|script)", r"\\x3c", source, flags=re.IGNORECASE)


def write_text(path: Path, text: str) -> None:
    """Write atomically; a lone surrogate in a token becomes the replacement character instead of an error."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def write_page(
    path: Path, template: str, *, assets: str = "assets", scripts: Mapping[str, str], standalone: bool, **context: Any
) -> None:
    """Fill `template`; styles and scripts are shared under `<folder of the page>/<assets>/`, or inlined when `standalone`.

    `scripts` maps a file name to JavaScript source, in the order of loading. Raises `UserError` when the page would
    fetch something from another host, or, when standalone, from any other file.
    """
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    sources = {**scripts, "report.js": (ASSETS / "report.js").read_text(encoding="utf-8")}
    if standalone:
        head = [
            f"<style>\n{style}</style>",
            *(f"<script>{script_safe(source)}</script>" for source in sources.values()),
        ]
    else:
        for name, content in {"report.css": style, **sources}.items():
            share_asset(path.parent / assets / name, content)
        head = [f'<link rel="stylesheet" href="{quote(assets)}/report.css">']
        head += [f'<script src="{quote(assets)}/{quote(name)}"></script>' for name in sources]
    html = environment().get_template(template).render(head=markupsafe.Markup("\n".join(head)), **context)
    if outside := outside_references(html):
        raise UserError("a report page must not fetch anything from another host", ", ".join(outside[:3]), "embed it")
    if standalone and (files := file_references(html)):
        raise UserError("a standalone page must refer to no other file", ", ".join(files[:3]), "embed it")
    write_text(path, html)


def share_asset(path: Path, content: str) -> None:
    """Put a shared script or style in place unless it is there already."""
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_text(path, content)


# -- what a page refers to --------------------------------------------------------------------------------------------

_FETCHING = (
    "src",
    "srcset",
    "href",
    "xlink:href",
    "data",
    "action",
    "formaction",
    "poster",
    "background",
    "manifest",
    "ping",
)
_OUTSIDE = re.compile(r"^\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_STYLE_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", re.IGNORECASE)
_SCRIPT_URL = re.compile(
    r"""(?:\bimport\s*\(?|\bfrom|\bfetch\s*\(|\bimportScripts\s*\(|\.src\s*=|\.href\s*=)\s*["'`]([^"'`]*)""",
    re.IGNORECASE,
)


class _References(HTMLParser):
    """Collect every address an HTML document names in a tag, a style or a script: text is not looked at."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in ("style", "script") else ""
        for name, value in attrs:
            if value is None:
                continue
            if name == "srcset":
                self.found += [part.split()[0] for part in value.split(",") if part.split()]
            elif name in _FETCHING:
                self.found.append(value)
            elif name == "style":
                self.found += _STYLE_URL.findall(value)
            elif name == "content" and "url=" in value.lower():  # <meta http-equiv=refresh>
                self.found.append(re.split("url=", value, flags=re.IGNORECASE)[1])

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.found += _STYLE_URL.findall(data)
        elif self._inside == "script":
            self.found += _SCRIPT_URL.findall(data)


def references(html: str) -> list[str]:
    """Every address a document's tags, styles and scripts name."""
    parser = _References()
    parser.feed(html)
    parser.close()
    return parser.found


def outside_references(html: str) -> list[str]:
    """The addresses on other hosts among `references`: none in a page that opens offline."""
    return [address for address in references(html) if _OUTSIDE.match(address)]


def file_references(html: str) -> list[str]:
    """The addresses that are neither inside the page (`#part`, `data:`) nor a mail or web link."""
    return [address for address in references(html) if not re.match(r"\s*(#|data:|$)", address)]


def pairs(values: Mapping[str, Any] | None, skip: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(label, text) of each entry that has something to show, in order."""
    hidden = set(skip)
    shown = [(label(name), show(value)) for name, value in (values or {}).items() if name not in hidden]
    return [(name, text) for name, text in shown if text]
