"""From an executed notebook to a page that opens offline, with a JSON sibling that says where every number came from.

In a notebook: `headline(...)` records the numbers that are its answer, `watermark(...)` where they came from.
Afterwards: `render_page` writes `<name>.html` and `<name>.json`; `saelib.report.index_page` writes the page that joins them.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import nbformat

from saelib.base.cache import cache_dir, write_json
from saelib.base.errors import UserError
from saelib.base.provenance import provenance
from saelib.report.page import TEMPLATES, Page, as_page, neighbours, pairs, plain, write_page
from saelib.report.tables import TABLE_MIME, write_tables
from saelib.report.views import VIEW_MIME, bundle, view_html

__all__ = ["Page", "collect_headline", "collect_watermark", "headline", "render_page", "watermark"]

HEADLINE_MIME = "application/vnd.saelib.headline+json"
WATERMARK_MIME = "application/vnd.saelib.watermark+json"


class Record(dict[str, Any]):
    """A dict that was displayed when it was made, and so shows nothing as the last value of a cell."""

    def _ipython_display_(self) -> None:
        return None


def _display(mime: str, record: dict[str, Any], text: str) -> Record:
    """Show `record` in the running kernel, if there is one, as `mime`; `text` is for front ends that do not know it."""
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            # files sort a dict's keys: the order they were given in travels beside them
            display({mime: record, "text/plain": text}, raw=True, metadata={mime: {"order": list(record)}})
    return Record(record)


def headline(**numbers: Any) -> dict[str, Any]:
    """Record the numbers (or short texts) that answer a notebook's question; of several calls later values win.

    They head the page and stand in its JSON. `answer="..."` is a sentence, shown above the numbers. numpy and torch
    scalars are welcome; what is not finite is recorded as null.
    """
    record = plain(numbers)
    return _display(HEADLINE_MIME, record, " · ".join(f"{name} {text}" for name, text in pairs(record)))


def watermark(
    *, seeds: Mapping[str, int] | None = None, text_manifest: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Record where this notebook's numbers came from: versions, commit, device, threads, seeds, text (the page's footer)."""
    record = plain(
        {**provenance(), "seeds": dict(seeds or {}), "text_manifest": dict(text_manifest or {}) or None, **more}
    )
    commit = f"{record['commit']}{' + changes' if record['dirty'] else ''}" if record["commit"] else "no repository"
    return _display(WATERMARK_MIME, record, f"saelib {record['versions']['saelib']} · {commit} · {record['device']}")


def _collect(notebook: Any, mime: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            record = dict(output.get("data", {}).get(mime, {}))
            order = output.get("metadata", {}).get(mime, {}).get("order", [])
            found |= {name: record[name] for name in [*order, *record] if name in record}
    return found


def collect_headline(notebook: Any) -> dict[str, Any]:
    """Everything an executed notebook (an nbformat node) recorded by `headline`."""
    return _collect(notebook, HEADLINE_MIME)


def collect_watermark(notebook: Any) -> dict[str, Any]:
    """Everything an executed notebook recorded by `watermark`."""
    return _collect(notebook, WATERMARK_MIME)


def render_page(
    executed: Path,
    out_html: Path,
    *,
    title: str,
    result: Mapping[str, Any] | None = None,
    pages: Sequence[Any] = (),
    standalone: bool = False,
) -> dict[str, Any]:
    """Write `out_html`, its `.json` sibling and its tables from an executed notebook; return what the sibling holds.

    executed: an .ipynb with outputs. title: the page's name in the browser tab (its heading is the notebook's H1).
    result: what the runner knows (`parameters`, `headline`, `seconds`, `seeds`, `text_manifest`, `device`, `threads`);
    what it leaves out is taken from the notebook. pages: all pages in reading order, for previous and next (see
    `as_page` for what may name one).
    standalone: everything inside the one file, and no navigation.
    """
    executed, out_html, known = Path(executed), Path(out_html), dict(result or {})
    try:
        notebook = nbformat.read(executed, as_version=4)
    except (OSError, UnicodeDecodeError, ValueError, nbformat.reader.NotJSONError) as error:
        raise UserError("a page is made from an executed notebook", executed, "run the notebook first") from error
    record = page_record(notebook, name=out_html.stem, title=title, known=known)
    heading, body, has_views = notebook_body(notebook)
    before, after = neighbours([as_page(page) for page in pages], out_html.stem)
    answer = record["headline"].get("answer")
    write_page(
        out_html,
        "page.html.j2",
        standalone=standalone,
        scripts={"circuitsvis.js": bundle()} if has_views else {},
        title=title,
        heading=heading or title,
        answer=answer if isinstance(answer, str) else None,
        headline=pairs(record["headline"], skip=["answer"]),
        body=markupsafe.Markup(body),
        record=record,
        before=before,
        after=after,
        navigation=not standalone,
    )
    write_json(out_html.with_suffix(".json"), record)
    write_tables(notebook, out_html.parent, out_html.stem)
    return record


def page_record(notebook: Any, *, name: str, title: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON sibling: parameters, versions, commit, dirty flag, seeds, device, threads, wall time, headline, text."""
    papermill = notebook.metadata.get("papermill", {})
    # what the kernel recorded beats what the runner knows, and this process (which may be a later one) comes last
    source = {
        **provenance(),
        **{key: known[key] for key in known if known[key] is not None},
        **collect_watermark(notebook),
    }
    parameters = known.get("parameters") or dict(papermill.get("parameters", {}))
    seeds = source.get("seeds") or {
        key: value for key, value in parameters.items() if key == "seed" or key.endswith("_seed")
    }
    own = (
        "versions",
        "commit",
        "dirty",
        "seeds",
        "device",
        "threads",
        "platform",
        "text_manifest",
        "headline",
        "parameters",
        "seconds",
    )
    more = {key: value for key, value in collect_watermark(notebook).items() if key not in own}
    record = {
        "page": name,
        "title": title,
        "parameters": parameters,
        "headline": {**collect_headline(notebook), **(known.get("headline") or {})},
        "versions": source["versions"],
        "commit": source["commit"],
        "dirty": source["dirty"],
        "seeds": seeds,
        "device": source["device"],
        "platform": source["platform"],
        "threads": source["threads"],
        "wall_seconds": known.get("seconds", papermill.get("duration")),
        "text_manifest": source.get("text_manifest"),
        **more,
    }
    return dict(plain(record))


# -- the notebook's own content ---------------------------------------------------------------------------------------


def notebook_body(notebook: Any) -> tuple[str | None, str, bool]:
    """(the H1's text, the cells as HTML, whether circuitsvis views are among them)."""
    from nbconvert.exporters import HTMLExporter  # slow to import, and kernels import this module for `headline` alone
    from traitlets.config import Config

    notebook = copy.deepcopy(notebook)
    heading = _take_heading(notebook)
    has_views = _tidy_outputs(notebook)
    priority = ["text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/plain"]
    exporter = HTMLExporter(
        config=Config({"NbConvertBase": {"display_data_priority": priority}}),
        extra_template_basedirs=[str(TEMPLATES)],
        template_name="notebook",
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    return heading, _unlink_outside(body), has_views


def _take_heading(notebook: Any) -> str | None:
    """Remove and return the first H1: the page shows it above the answer."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (
            match := re.search(r"^# +(.+?)\s*#*\s*$", cell.source, flags=re.MULTILINE)
        ):
            cell.source = (cell.source[: match.start()] + cell.source[match.end() :]).strip()
            return re.sub(r"[`*_]{1,2}(\S(?:.*?\S)?)[`*_]{1,2}", r"\1", match.group(1))
    return None


def _tidy_outputs(notebook: Any) -> bool:
    """Make outputs fit to print, in place; return whether there are views.

    Records go (they head and foot the page), views become their HTML, tables lose pandas' inline style and get aligned
    numbers, progress lines keep their last state, and paths of this machine are shortened.
    """
    has_views = False
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip() or cell.get("outputs")]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        cell.metadata["preview"] = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
        cell.metadata["figure"] = f"figure, cell {number + 1}"
        kept: list[Any] = []
        for output in cell.outputs:
            data = output.get("data", {})
            if not {HEADLINE_MIME, WATERMARK_MIME, TABLE_MIME}.isdisjoint(data):
                continue
            if VIEW_MIME in data:
                has_views = True
                output["data"] = {"text/html": view_html(data[VIEW_MIME])}
            elif "text/html" in data:
                data["text/html"] = align_tables(_shorten_paths(data["text/html"]))
            elif "text/plain" in data:
                data["text/plain"] = _shorten_paths(data["text/plain"])
            if output.output_type == "stream":
                output["text"] = _shorten_paths(last_states(output["text"]))
                if kept and kept[-1].output_type == "stream" and kept[-1]["name"] == output["name"]:
                    kept[-1]["text"] += output["text"]
                    continue
            if output.output_type == "error":
                output["traceback"] = [_shorten_paths(line) for line in output["traceback"]]
            kept.append(output)
        cell.outputs = kept
    return has_views


def last_states(text: str) -> str:
    """What a terminal shows: after a carriage return the line is written over."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _shorten_paths(text: str) -> str:
    """This machine's folders by their meaning: a page is read elsewhere."""
    here = {
        str(cache_dir()): "$SAELIB_CACHE",
        sys.prefix: "$PREFIX",
        str(Path(__file__).resolve().parents[2]): "$SAELIB",
        str(Path.home()): "~",
    }
    for folder in sorted(here, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(re.escape(folder) + r"(?=[/\"'\s:),]|$)", here[folder].replace("\\", r"\\"), text)
    return text


def align_tables(html: str) -> str:
    """Drop pandas' `<style scoped>` and `border`, let wide tables scroll, align the columns that hold only numbers."""
    if "<table" not in html:
        return html
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for style in soup.find_all("style", attrs={"scoped": True}):
        style.decompose()
    for table in soup.find_all("table"):
        table.attrs.pop("border", None)
        rows = [row.find_all(["td", "th"], recursive=False) for row in table.find_all("tr")]
        body = [cells for cells in rows if any(cell.name == "td" for cell in cells)]
        for column in range(max(map(len, body), default=0)):
            texts = [row[column].get_text(strip=True) for row in body if len(row) > column]
            if any(texts) and all(_NUMBER.fullmatch(text) for text in texts):
                for row in rows:
                    if len(row) > column and not row[column].get("colspan"):
                        _add_class(row[column], "num")
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    return str(soup)


def _add_class(tag: Any, name: str) -> None:
    tag["class"] = [*tag.get("class", []), name]


_NUMBER = re.compile(r"[-+−]?[\d,]*\.?\d+(e[-+]?\d+)?\s?%?|NaN|nan|None|NA|<NA>|-?inf|", re.IGNORECASE)


def _unlink_outside(html: str) -> str:
    """A link to another host becomes its text and its address in words: a page refers to nothing outside itself."""
    link = re.compile(r'<a\b[^>]*?\bhref="((?:[a-z]+:)?//[^"]*)"[^>]*>(.*?)</a>', re.IGNORECASE | re.DOTALL)

    def spell(match: re.Match[str]) -> str:
        address = re.sub(r"^([a-z]+:)?//", "", match.group(1))
        return match.group(2) if address.rstrip("/") in match.group(2) else f"{match.group(2)} ({address})"

    return link.sub(spell, html)
