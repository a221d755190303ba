"""From an executed notebook to a page that opens offline, with a JSON sibling that says where every number came from.

In a notebook: `headline(...)` records the numbers that are its answer, `watermark(...)` where they came from.
Afterwards: `render_page` writes `<name>.html` and `<name>.json`; `saelib.report.index_page` writes the page that joins them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import nbformat

from saelib.base.cache import write_json
from saelib.base.errors import UserError
from saelib.base.provenance import provenance
from saelib.report.notebook_body import HEADLINE_MIME, WATERMARK_MIME, notebook_body
from saelib.report.page import Page, as_page, neighbours, pairs, plain, write_page
from saelib.report.tables import write_tables
from saelib.report.views import bundle

__all__ = ["Page", "collect_headline", "collect_watermark", "headline", "render_page", "watermark"]

LONGEST_TILE = 60
"""Characters of a number or of words that stand large at the head of a page."""


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
        headline=pairs({k: v for k, v in record["headline"].items() if _fits_a_tile(v)}, skip=["answer"]),
        body=markupsafe.Markup(body),
        record=record,
        before=before,
        after=after,
        navigation=not standalone,
    )
    write_json(out_html.with_suffix(".json"), record)
    write_tables(notebook, out_html.parent, out_html.stem)
    return record


def _fits_a_tile(value: Any) -> bool:
    """A number or a few words stand large at the head of a page; tables and sentences stand in its text."""
    return not isinstance(value, dict) and len(str(value)) <= LONGEST_TILE


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
