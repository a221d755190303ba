"""The pages of a run: each notebook's, the index that joins them, and the folder that they go to."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelib.base.cache import disk_errors, ensure_dir, read_json
from saelib.base.errors import UserError
from saelib.report.notebook_source import notebooks_dir
from saelib.report.page import Page
from saelib.report.study_plan import CLAIMS, EVIDENCE, FOR_A_RUN, PlannedPage

if TYPE_CHECKING:
    from saelib.report.index_page import Tables

RESULTS = "05_results"
_WITH_FIGURES = (
    "02_choose_parent",
    RESULTS,
    "06_training_efficiency",
    *EVIDENCE,
)  # whose figures the index shows, too
NARROW_SAE = "narrow_sae"
"""Folder of a report in which the study's narrow SAE lies, for `saelib split` and everything else that opens an SAE."""
_SAE_FACTS = (
    "parent",
    "tau",
    "purity",
    "recall",
    "max_activation",
    "l1_coeff",
    "meets_rule",
    "l0",
    "fvu",
    "loss_recovered",
)


def render(page: PlannedPage, folder: Path, pages: Sequence[PlannedPage] = ()) -> Path:
    """Render a finished notebook to `<stem>.html` and its JSON sibling; `pages` are those to link to."""
    from saelib.report.report import render_page

    found = page.require_finished()
    out = folder / f"{page.stem}.html"
    render_page(found.path, out, title=page.title, result=found.result, pages=_links(pages))
    return out


def finish_report(
    folder: Path, profile: str, tables: Tables, pages: Sequence[PlannedPage], record: dict[str, Any]
) -> Path:
    """Write the tables' CSV files, the narrow SAE and `index.html`; `record` is what `run.json` holds."""
    from saelib.report.index_page import build_index, write_tables
    from saelib.study.profiles import get_profile
    from saelib.study.study import narrow_sae

    write_tables(tables, folder)
    narrow_sae(get_profile(profile)).sae.save(folder / NARROW_SAE)
    return build_index(folder, profile, tables, _links(pages), _facts(folder, profile, pages, record))


def _facts(folder: Path, profile: str, pages: Sequence[PlannedPage], record: dict[str, Any]) -> dict[str, Any]:
    """What the index tells besides the tables, from the model's card, the notebooks' records and `run.json`."""
    from saelib.report.figures import save_figures
    from saelib.study.profiles import get_profile

    whole = record.get("uninterrupted")
    facts: dict[str, Any] = {
        # a command that found trainings in the cache did not take the time the whole study takes
        "seconds_total": whole["wall_seconds"] if whole else None,
        "with_claims": CLAIMS in whole["executed"] if whole else False,
        "work_seconds": whole["work_seconds"] if whole else None,
        "peak_memory_bytes": max(part["peak_memory_bytes"] for part in (record["command"], whole) if part) or None,
        "cache_bytes": record["command"]["cache_bytes"],
    }
    by_notebook = {page.notebook: page for page in pages}
    facts["figures"] = [
        figure
        for name in _WITH_FIGURES
        if name in by_notebook
        for figure in save_figures(by_notebook[name].require_finished().path, folder / "assets", name)
    ]
    headlines = [by_notebook[name].require_finished().result["headline"] for name in FOR_A_RUN]
    facts["sae"] = {name: value for line in reversed(headlines) for name, value in line.items() if name in _SAE_FACTS}
    recorded = {page.stem: page.require_finished().result["headline"] for page in pages if page.run is None}
    facts["answers"] = {stem: line["answer"] for stem, line in recorded.items() if "answer" in line}
    manifest = read_json(folder / f"{pages[0].stem}.json").get("text_manifest")
    if manifest:
        facts["text_manifest"] = manifest
    from saelib.lm.model import EMBEDDED_FOLDER

    card = EMBEDDED_FOLDER.parent / get_profile(profile).model / "card.json"
    if card.exists():
        facts["model"] = read_json(card)
    return facts


def _links(pages: Sequence[PlannedPage]) -> list[Page]:
    return [Page(page.stem, page.title, page.run) for page in pages]


def reports_dir(reports: Path | None, profile: str) -> Path:
    """`<reports>/<profile>`, by default `reports/` of the checkout; made, and checked to be writable."""
    folder = (reports or notebooks_dir().parent / "reports").absolute() / profile
    check_writable(folder, "reports folder must be writable", "pass --reports with another folder")
    return folder


def check_writable(folder: Path, rule: str | None = None, remedy: str | None = None) -> None:
    """Make a folder and write a byte in it, or raise a `UserError` under the rule and remedy given."""
    try:
        ensure_dir(folder)
        with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
    except UserError as error:
        if rule is None:
            raise
        raise UserError(rule, error.got, remedy) from error
