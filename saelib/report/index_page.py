"""The study at a glance: what the hyphen is made of, the published table beside ours, the claims, and where to read on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

from saelib.base.cache import atomic_path, ensure_dir, write_json
from saelib.base.errors import UserError
from saelib.base.provenance import provenance
from saelib.base.table import frame_of, meanings, write_csv
from saelib.report.children_charts import strip
from saelib.report.children_tables import bars
from saelib.report.left_open import left_open_html
from saelib.report.page import Page, as_page, is_missing, pairs, plain, show, show_count, write_page
from saelib.study.arms import ArmRun
from saelib.study.children_rows import CHILDREN, ChildrenResult
from saelib.study.claims import ClaimResult, Kind
from saelib.study.results import RunResult
from saelib.study.runs import RUNS

TABLES: dict[str, tuple[str, type]] = {
    "runs": ("results.csv", RunResult),
    "children": ("children.csv", ChildrenResult),
    "claims": ("claims.csv", ClaimResult),
    "arms": ("arms.csv", ArmRun),
}
"""The tables of a study: their files, and the dataclasses that say what each column means."""
QUESTION = (
    "A narrow sparse autoencoder holds one feature for “-”. Can that feature be split into the finer ones a wider "
    "dictionary holds (after a number, after a count word, in other compounds) by how the wide one is trained: "
    "filtered data, a warm start, or a loss without the parent? Or by children in its place?"
)
SPLIT_PAGE = "09_split_page"
"""The page on the study's own parent and its children."""
MOST_CHILDREN = 12


class Figure(TypedDict, total=False):
    """A picture for the index and what it shows."""

    path: str | Path
    caption: str


class Facts(TypedDict, total=False):
    """What `build_index` is told besides the tables; a missing entry leaves its part of the page out."""

    question: str
    remarks: Sequence[str]
    """Sentences added to those computed from the tables."""
    answers: Mapping[str, str]
    """Name of a page -> its answer in a sentence."""
    figures: Sequence[Figure]
    model: Mapping[str, Any]
    """The model card's numbers, as shown."""
    text_manifest: Mapping[str, Any]
    """Counts, and `packages` or `sources`: a list of mappings, one a source of text."""
    sae: Mapping[str, Any]
    """The narrow SAE and the parent: feature, threshold, l1 coefficient and the rule that chose it."""
    seconds_total: float
    with_claims: bool
    """Whether the claims, with the training of their arms, are part of that time; `work_seconds` leaves them out."""
    work_seconds: Mapping[str, float]
    """By kind of work, whatever went side by side."""
    peak_memory_bytes: int
    cache_bytes: int


Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by the names of `TABLES`, and `made_of`: the children of the study's parent, as `Split.children` has them."""


def write_tables(tables: Tables, folder: Path) -> None:
    """Write the CSV of every table that has rows."""
    for name, (file, table) in TABLES.items():
        if tables.get(name):
            write_csv(table, tables[name], folder / file)


def table_rows(runs: Sequence[Mapping[str, Any]], pages: Sequence[Page]) -> list[dict[str, Any]]:
    """One dict a run of the table: how it was to be trained, ours where it was made, and its page; controls come last."""
    ours = {int(row["run"]): {k: plain(v) for k, v in row.items()} for row in runs}
    by_run = {page.run: page for page in pages if page.run is not None}
    rows = []
    for spec in RUNS:
        found = ours.get(spec.run, {})
        row = {**dict.fromkeys(meanings(RunResult)), **vars(spec), **found, "run": spec.run, "done": spec.run in ours}
        row["loss"] = row["loss"] or ("parent zeroed" if spec.zero_parent else "standard")
        row |= {"control": spec.published_classes is None, "page": by_run.get(spec.run)}
        row |= {"S_2_text": _interval(row, "S_2"), "verdict_class": _STRICT.get(row["verdict"], "partial")}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["control"], row["run"]))


_STRICT = {"split": "yes", "not split": "no"}


def _interval(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return "" if is_missing(value) else f"{value:.2f}" + ("" if is_missing(low) else f" ({low:.2f} to {high:.2f})")


def claim_rows(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The claims as the page shows them, in their order; the template groups them by kind."""
    marks = {"supported": "yes", "not supported": "no"}
    shown = []
    for row in claims:
        values = [float("nan") if is_missing(row[name]) else float(row[name]) for name in ("effect", "low", "high")]
        drawn = strip(values[0], values[1], values[2], scale=(-0.5, 0.5))
        text = "" if is_missing(row["low"]) else "{:+.2f} ({:+.2f} to {:+.2f})".format(*values)
        shown.append({**row, "text": text, "strip": drawn, "class": marks.get(row["verdict"], "partial")})
    return shown


def answer_sentences(tables: Tables) -> list[str]:
    """What came out, as sentences whose numbers are counted from the tables' rows."""
    runs = frame_of(RunResult, tables.get("runs", []))
    wide = runs[runs["size"] == "wide"]
    if not len(wide):
        return ["No training run is finished yet."]
    control = wide["published_classes"].isna()
    arms = {
        "wide runs on filtered data": wide[wide["filtered"].astype(bool)],
        "wide runs on all data with the parent zeroed": wide[~wide["filtered"].astype(bool) & ~control],
        "plain wide runs": wide[~wide["filtered"].astype(bool) & control],
    }
    told = []
    separation = [_spread(name, part["S_2"]) for name, part in arms.items()]
    children = frame_of(ChildrenResult, tables.get("children", []))
    separation.append(
        _spread("seeds of children in the narrow SAE", children["S_2"][children["dictionary"] == CHILDREN])
    )
    if any(separation):
        told.append(
            "How far two features a class tell number and count hyphens apart (S₂: 0 as the parent's own size, 1 as a linear "
            f"probe): {'; '.join(filter(None, separation))}."
        )
    judged = runs[runs["published_classes"].notna() & runs["prompts"].notna()]
    if len(judged):
        same = judged["published_classes"] == judged["prompts"]
        told.append(
            f"On the post's own three prompts as many classes have a feature of their own as published in {int(same.sum())} of "
            f"{len(judged)} runs; all three in {int((judged['prompts'] == 3).sum())}, where the post saw "
            f"{int((judged['published_classes'] == 3).sum())}."
        )
    if wide["verdict"].notna().any():
        counts = wide["verdict"].value_counts()
        told.append(
            f"Strict verdict on {len(wide)} wide runs: {', '.join(f'{name} {n}' for name, n in counts.items())}."
        )
    claims = frame_of(ClaimResult, tables.get("claims", []))
    own = claims[claims["kind"] != Kind.CONTROL.value]
    if len(own):
        counts = own["verdict"].value_counts()
        told.append(f"Of {len(own)} claims put to the test: {', '.join(f'{n} {name}' for name, n in counts.items())}.")
    return told


def _spread(name: str, values: pd.Series) -> str:
    found = values.dropna().astype(float)
    return f"{found.mean():.2f} ({found.min():.2f} to {found.max():.2f}) in {len(found)} {name}" if len(found) else ""


def build_index(
    reports_dir: Path,
    profile: str,
    tables: Tables,
    pages: Sequence[Any],
    facts: Facts | Mapping[str, Any] | None = None,
    *,
    assets: str = "assets",
) -> Path:
    """Write `index.html` and `index.json` into `reports_dir`; return the page's path.

    tables: see `Tables`; any may be missing. pages: in reading order (see `as_page` for what may name one).
    facts: see `Facts`. Figures are copied under the assets folder.
    """
    reports_dir, told = ensure_dir(Path(reports_dir)), dict(facts or {})
    listed = [as_page(page) for page in pages]
    rows = table_rows(tables.get("runs", []), listed)
    manifest = dict(told.get("text_manifest") or {})
    sources = manifest.pop("packages", None) or manifest.pop("sources", None) or []
    children = [dict(row) for row in tables.get("made_of", [])]
    made_of = [{**bar, "anchor": ""} for bar in bars(pd.DataFrame(children))] if children else []
    answers = dict(told.get("answers") or {})
    record = {
        "profile": profile,
        "question": told.get("question") or QUESTION,
        "answer": [*answer_sentences(tables), *(told.get("remarks") or [])],
        "runs": [{name: row[name] for name in meanings(RunResult)} for row in rows],
        "claims": [dict(row) for row in tables.get("claims", [])],
        "facts": plain({key: told[key] for key in told if key != "figures"}),
        **provenance(),
    }
    write_page(
        reports_dir / "index.html",
        "index.html.j2",
        assets=assets,
        standalone=False,
        scripts={},
        title=f"Splitting one feature: the study at profile {profile}",
        profile=profile,
        question=record["question"],
        answer=record["answer"],
        rows=rows,
        columns=meanings(RunResult),
        made_of=made_of[:MOST_CHILDREN],
        n_made_of=len(made_of),
        split_page=next((page for page in listed if page.name == SPLIT_PAGE), None),
        claims=claim_rows(tables.get("claims", [])),
        claim_columns=meanings(ClaimResult),
        answers=answers,
        reading=[page for page in listed if page.run is None],
        runs=[page for page in listed if page.run is not None],
        record=record,
        figures=copy_figures(told.get("figures") or [], reports_dir, assets),
        left_open=left_open_html(reports_dir),
        model=pairs(told.get("model")),
        sae=pairs(told.get("sae")),
        text=pairs(manifest),
        sources=_source_table(sources),
        seconds_total=told.get("seconds_total"),
        with_claims=bool(told.get("with_claims")),
        work=told.get("work_seconds") or {},
        peak_memory=told.get("peak_memory_bytes"),
        cache_bytes=told.get("cache_bytes"),
        files=[file for file, _ in TABLES.values() if (reports_dir / file).exists()],
    )
    write_json(reports_dir / "index.json", plain(record))
    return reports_dir / "index.html"


def _source_table(sources: Any) -> dict[str, Any]:
    """Column names and rows of the sources of text; long hashes are cut to their first 12 digits."""
    listed = (
        [{"name": name, **dict(entry)} for name, entry in sources.items()]
        if isinstance(sources, Mapping)
        else [dict(entry) for entry in sources if isinstance(entry, Mapping)]
    )
    names = list(
        dict.fromkeys(
            name for entry in listed for name, value in entry.items() if not isinstance(value, Mapping | list | tuple)
        )
    )

    def cell(name: str, value: Any) -> str:
        if isinstance(value, str) and ("sha" in name or "hash" in name):
            return value[:12]
        return (
            show_count(value)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000
            else show(value)
        )

    return {
        "names": names,
        "rows": [[cell(name, entry.get(name)) for name in names] for entry in listed],
        "numeric": [name for name in names if all(isinstance(entry.get(name), int | float | None) for entry in listed)],
    }


def copy_figures(
    figures: Iterable[Mapping[str, Any] | str | Path], reports_dir: Path, assets: str
) -> list[dict[str, str]]:
    """Copy each picture under the assets folder (unless it is there) and return its relative link and caption."""
    shown = []
    for figure in figures:
        entry: Mapping[str, Any] = figure if isinstance(figure, Mapping) else {"path": figure}
        source = Path(entry["path"])
        source = source if source.is_absolute() or source.exists() else reports_dir / source
        if not source.is_file():
            raise UserError("a figure of the index must be a file", source, "make the figure first or leave it out")
        target = reports_dir / assets / source.name
        if not target.exists() or not source.samefile(target):
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
        shown.append(
            {"src": f"{assets}/{source.name}", "caption": str(entry.get("caption") or source.stem.replace("_", " "))}
        )
    return shown
