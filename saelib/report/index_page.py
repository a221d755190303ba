"""The study at a glance: the published table beside ours, the answer in a few sentences, and where to read on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

from saelib.base.cache import atomic_path, ensure_dir, write_json
from saelib.base.errors import UserError
from saelib.base.provenance import provenance
from saelib.base.stats import fisher_p
from saelib.report.page import Page, as_page, is_missing, pairs, plain, show, show_count, write_page

_WORDS = {1: "the best feature", 2: "the best two features", 4: "the best four features"}
_HYPHENS = {"number": "“-” after a number", "count": "“-” after a count word"}
_S = "how far {} of each class (number, count) tell it apart among held-out hyphens: 0 as the parent's own size, 1 as a probe"
GRADED_COLUMNS: dict[str, str] = {
    name: text
    for k, words in _WORDS.items()
    for name, text in {
        f"S_{k}": f"separation, {_S.format(words)}",
        f"S_{k}_low": f"lower end of the 95% interval of S_{k} (documents drawn anew)",
        f"S_{k}_high": f"upper end of the 95% interval of S_{k}",
    }.items()
}
GRADED_COLUMNS |= {
    f"mcc_{k}_{name}": f"Matthews correlation of {words} with {text}"
    for name, text in _HYPHENS.items()
    for k, words in _WORDS.items()
}
GRADED_COLUMNS |= {
    f"{what}_{name}": f"Matthews correlation of {words} with {text}"
    for what, words in (("ceiling", "a linear probe of the activations"), ("floor", "the parent's own size"))
    for name, text in _HYPHENS.items()
}
"""The graded outcome, measured on every hyphen that joins two words; choices on select, numbers from test."""

RESULT_COLUMNS: dict[str, str] = {
    "run": "number in the study's table; runs 13 and up are the plain controls it lacks",
    "size": "wide or narrow (in the study 4096 and 512 features)",
    "d_sae": "features of the SAE trained here",
    "seed": "seed of the initialisation and of the order of the data",
    "init_from_narrow": "whether the SAE starts from the narrow SAE's weights and biases",
    "normalised": "whether decoder rows are scaled to unit norm at that start",
    "filtered": "whether training sees only data on which the parent feature fires above its threshold",
    "loss": "standard, or with the parent feature's activation set to zero in the loss",
    "published": "whether the study saw the split (its own judgement, by eye); empty for the controls",
    **GRADED_COLUMNS,
    "verdict": "whether it is seen here, by the same test made mechanical: a feature of its own for each class",
    "score": "the rigorous verdict: split, partial k/3, not split, or undecided (a class with too few test tokens)",
    "candidates": "candidate children: features that fire where the parent does and lower the error there",
    "number": "whether “-” after a number has a feature of its own",
    "count": "whether “-” after a count word (multi, single, double) has a feature of its own",
    "compound": "whether “-” in another compound has a feature of its own",
    "f1_number": "F1 of the best feature for “-” after a number, among held-out hyphens",
    "f1_count": "F1 of the best feature for “-” after a count word, among held-out hyphens",
    "f1_compound": "F1 of the best feature for “-” in another compound, among held-out hyphens",
    "child_number": "that feature's index",
    "child_count": "that feature's index",
    "child_compound": "that feature's index",
    "steps": "training steps",
    "tokens": "tokens trained on: steps times batch size, repeats included",
    "l0": "features active a token on held-out text, mean",
    "fvu": "fraction of variance unexplained on held-out text",
    "loss_recovered": "share of the model's loss that the SAE keeps: 0 as with the site zero-ablated, 1 as with it left alone",
    "dead_share": "share of features that never fired on held-out text",
    "seconds": "wall time of the training",
}
"""Name and meaning of each column of results.csv, in its order. An empty cell: not measured, or not applicable."""

CLASSES = {
    "number": "“-” after a number (3-, 60-)",
    "count": "“-” after a count word (multi-, single-)",
    "compound": "“-” in other compounds (long-standing)",
}
QUESTION = (
    "A narrow sparse autoencoder holds one feature for “-”. Can that feature be split into the finer ones a wider "
    "dictionary holds (after a number, after a count word, in other compounds) by how the wide one is trained: "
    "filtered data, a warm start, or a loss without the parent?"
)


class Figure(TypedDict, total=False):
    """A picture for the index and what it shows."""

    path: str | Path
    caption: str


class Facts(TypedDict, total=False):
    """What `build_index` is told besides the table; a missing entry leaves its part of the page out."""

    question: str
    answer: Sequence[str]
    """Replaces the sentences computed from the table."""
    remarks: Sequence[str]
    """Sentences added after them."""
    figures: Sequence[Figure]
    seen: Sequence[str]
    not_seen: Sequence[str]
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


SETTINGS = ("size", "seed", "init_from_narrow", "normalised", "filtered", "loss", "published")


def write_results_csv(results: pd.DataFrame, path: Path, published: Any = None) -> pd.DataFrame:
    """Write results.csv atomically: the columns of `RESULT_COLUMNS` in their order, then any others, one row a run.

    How a run was trained is filled in from the run table (`published`, default `saelib.study.runs.RUNS`) where `results` does
    not say; any other documented column it lacks is written empty. `answer`, a page's sentence, is left out. Returns
    the frame as written, sorted by run.
    """
    if "run" not in results.columns or results["run"].duplicated().any():
        raise UserError("results must have one row a run", list(results.get("run", [])), "give each run one row")
    others = [name for name in results.columns if name not in {*RESULT_COLUMNS, "answer", "zero_parent"}]
    specs = {spec["run"]: spec for spec in run_specs(published)}
    rows = [{**specs.get(int(row["run"]), {}), **_settings(row)} for row in results.to_dict("records")]
    frame = pd.DataFrame(rows).reindex(columns=[*RESULT_COLUMNS, *others]).sort_values("run").reset_index(drop=True)
    frame = frame.convert_dtypes()
    with atomic_path(Path(path)) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return frame


def run_specs(published: Any = None) -> list[dict[str, Any]]:
    """The run table as dicts: from `saelib.study.runs.RUNS`, a frame, or any rows that are mappings or have its attributes."""
    if published is None:
        from saelib.study.runs import RUNS as published
    if isinstance(published, pd.DataFrame):
        published = published.to_dict("records")
    names = ("run", *SETTINGS, "zero_parent")
    found = [
        spec if isinstance(spec, Mapping) else {name: getattr(spec, name) for name in names if hasattr(spec, name)}
        for spec in published
    ]
    return [{"run": int(spec["run"]), **_settings(spec)} for spec in found]


def _settings(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row without its missing values, and with the loss in words."""
    known = {str(name): plain(value) for name, value in row.items() if plain(value) is not None}
    if (zeroed := known.pop("zero_parent", None)) is not None:
        known.setdefault("loss", "parent zeroed" if zeroed else "standard")
    return known


def verdict_class(verdict: Any) -> str:
    """`yes`, `partial`, `no` or `` (nothing said), from the study's words or ours."""
    if is_missing(verdict):
        return ""
    if isinstance(plain(verdict), bool):
        return "yes" if verdict else "no"
    text = str(verdict).strip().lower()
    if text.startswith("partial") or text[:1].isdigit():
        return "partial"
    if text.startswith(("yes", "split")):
        return "yes"
    return "no" if text.startswith("no") else ""


def table_rows(results: pd.DataFrame, published: Any, pages: Sequence[Page]) -> list[dict[str, Any]]:
    """One dict a run: the published table's cells, ours where that run was made, and its page; controls come last."""
    specs = {spec["run"]: spec for spec in run_specs(published)}
    ours = {int(row["run"]): _settings(row) for row in results.to_dict("records")} if len(results) else {}
    by_run = {page.run: page for page in pages if page.run is not None}
    rows = []
    for run in dict.fromkeys([*specs, *ours]):
        spec, found = specs.get(run, {}), ours.get(run, {})
        row = {**dict.fromkeys(RESULT_COLUMNS), **spec, **found, "run": run, "published": spec.get("published")}
        kind, done = verdict_class(row["published"]), run in ours
        row |= {"done": done, "control": not kind, "page": by_run.get(run), "published_class": kind}
        row |= {"verdict_class": verdict_class(row["verdict"]) if done else ""}
        row |= {"published_short": re.split(r":| \(", row["published"] or "")[0]}
        row |= {"marks": [(name, _mark(row[name])) for name in CLASSES]}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["control"], row["run"]))


def _mark(value: Any) -> tuple[str, str]:
    """(class, sign) of a per-class mark."""
    kind = verdict_class(value)
    return kind, {"yes": "✓", "no": "✗", "partial": "½", "": ""}[kind]


def answer_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The study's answer in our runs, as sentences whose numbers are counted from the table's rows."""
    done = [row for row in rows if row["done"] and row["verdict_class"]]
    if not done:
        return ["No training run has a verdict yet."]
    wide = [row for row in done if not _is_narrow(row, rows)]
    arms = {
        "trained on filtered data": [row for row in wide if row["filtered"] and not row["control"]],
        "trained on all the data with the parent zeroed in the loss": [
            row for row in wide if not row["filtered"] and not row["control"]
        ],
        "of the plain control (all the data, random start, standard loss)": [row for row in wide if row["control"]],
    }
    told = [f"{_split(arm)} of {len(arm)} runs {name}" for name, arm in arms.items() if arm]
    sentences = []
    if told:
        listed = told[0] if len(told) == 1 else ", ".join(told[:-1]) + " and " + told[-1]
        sentences.append(f"A feature of its own for each of the three kinds of “-” appeared in {listed}.")
    filtered, unfiltered = arms["trained on filtered data"], [row for row in wide if not row["filtered"]]
    if filtered and unfiltered:
        a, b = (_split(filtered), len(filtered)), (_split(unfiltered), len(unfiltered))
        p = fisher_p(*a, *b)
        judged = "too few runs to tell the two apart" if p > 0.05 else "unlikely to be chance alone"
        sentences.append(
            f"Filtered against unfiltered that is {a[0]} of {a[1]} against {b[0]} of {b[1]} "
            f"(Fisher’s exact p = {p:.2g}): {judged}."
        )
    if compared := [row for row in done if row["published_class"]]:
        same = [row for row in compared if row["published_class"] == row["verdict_class"]]
        sentences.append(
            f"Our verdict is the published one in {len(same)} of {len(compared)} runs" + _which(compared, same) + "."
        )
    if wide:
        own = [f"{CLASSES[name]} in {sum(verdict_class(row[name]) == 'yes' for row in wide)}" for name in CLASSES]
        sentences.append(f"Of {len(wide)} wide runs, a feature of its own is held by {', '.join(own)}.")
    if undecided := [str(row["run"]) for row in rows if row["done"] and not row["verdict_class"]]:
        sentences.append(f"Without a verdict, and counted in none of these: {', '.join(undecided)}.")
    measured = {"l0": "L0", "fvu": "FVU", "loss_recovered": "loss recovered"}
    if spans := [span for name, words in measured.items() if (span := _span(wide, name, words))]:
        sentences.append(f"Quality across the wide SAEs: {', '.join(spans)}.")
    return sentences


def _is_narrow(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Run 12 of the study trains a dictionary of the narrow SAE's size: it is no wide run."""
    sizes = [other["size"] for other in rows if isinstance(other["size"], int)]
    return row["size"] == "narrow" or (isinstance(row["size"], int) and row["size"] < max(sizes))


def _split(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row["verdict_class"] == "yes" for row in rows)


def _which(compared: Sequence[Mapping[str, Any]], same: Sequence[Mapping[str, Any]]) -> str:
    other = [str(row["run"]) for row in compared if row not in same]
    return f" (it differs in {'run' if len(other) == 1 else 'runs'} {', '.join(other)})" if other else ""


def _span(rows: Sequence[Mapping[str, Any]], name: str, words: str) -> str:
    values = [float(row[name]) for row in rows if not is_missing(row[name])]
    return f"{words} {min(values):.3g} to {max(values):.3g}" if values else ""


def build_index(
    reports_dir: Path,
    profile: str,
    results: pd.DataFrame,
    pages: Sequence[Any],
    published: Any = None,
    facts: Facts | Mapping[str, Any] | None = None,
    *,
    assets: str = "assets",
) -> Path:
    """Write `index.html` and `index.json` into `reports_dir`; return the page's path.

    results: a frame with the columns of `RESULT_COLUMNS` (any may be missing), one row a finished run.
    published: the study's table (RunSpec-like objects, mappings or a frame; default: `saelib.study.runs.RUNS`); rows whose
    `published` is empty are controls. pages: in reading order (see `as_page` for what may name one).
    facts: see `Facts`. Figures are copied under the assets folder.
    """
    reports_dir, told = ensure_dir(Path(reports_dir)), dict(facts or {})
    listed = [as_page(page) for page in pages]
    rows = table_rows(results, published, listed)
    manifest = dict(told.get("text_manifest") or {})
    sources = manifest.pop("packages", None) or manifest.pop("sources", None) or []
    record = {
        "profile": profile,
        "question": told.get("question") or QUESTION,
        "answer": [*(told.get("answer") or answer_sentences(rows)), *(told.get("remarks") or [])],
        "runs": [{name: row[name] for name in RESULT_COLUMNS} for row in rows],
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
        columns=RESULT_COLUMNS,
        classes=CLASSES,
        reading=[page for page in listed if page.run is None],
        runs=[page for page in listed if page.run is not None],
        record=record,
        figures=copy_figures(told.get("figures") or [], reports_dir, assets),
        seen=told.get("seen") or [],
        not_seen=told.get("not_seen") or [],
        model=pairs(told.get("model")),
        sae=pairs(told.get("sae")),
        text=pairs(manifest),
        sources=_source_table(sources),
        seconds_total=told.get("seconds_total"),
        with_claims=bool(told.get("with_claims")),
        work=told.get("work_seconds") or {},
        peak_memory=told.get("peak_memory_bytes"),
        cache_bytes=told.get("cache_bytes"),
        has_csv=(reports_dir / "results.csv").exists(),
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
