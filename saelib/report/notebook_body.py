"""The cells of an executed notebook as a page shows them: views in place, tables aligned, this machine's paths shortened."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

from saelib.base.cache import cache_dir
from saelib.report.figures import image_uri
from saelib.report.page import TEMPLATES
from saelib.report.tables import TABLE_MIME
from saelib.report.views import VIEW_MIME, view_html

HEADLINE_MIME = "application/vnd.saelib.headline+json"
WATERMARK_MIME = "application/vnd.saelib.watermark+json"


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
    exporter.register_filter("image_uri", image_uri)
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
