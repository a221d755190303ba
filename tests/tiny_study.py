"""A whole study of a few seconds, from made-up text to report pages, through the library's own functions: what faults strike.

Nine stages, each of which finds what the ones before it left in the cache. A stage returns hashes of what it made, without
the times that are part of it, so that two runs can be compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from saelib.acts import store as activations
from saelib.base.cache import atomic_dir, cache_dir, content_key, file_sha256, locked, write_json
from saelib.base.table import as_row
from saelib.bench.known import World
from saelib.bench.parents import choose_parents
from saelib.bench.run import run_bench
from saelib.bench.suite import BenchConfig, Origin
from saelib.bench.table import TIMES, write_table
from saelib.report import index_page, report
from saelib.report.notebook_runner import cached_notebook
from saelib.report.split_report import write_split
from saelib.sae.kept import weights_hash
from saelib.sae.load import load_sae
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.study import results, selection, study, texts, trainings
from saelib.study.profiles import SMOKE, Profile
from saelib.study.runs import get_run
from saelib.text import sources

PROFILE = dataclasses.replace(
    SMOKE,
    name="faults",
    text=("made-speeches",),
    train_contexts=96,
    select_contexts=24,
    test_contexts=24,
    evaluate_contexts=16,
    d_sae_narrow=32,
    d_sae_wide=128,
    batch_size=256,
    narrow_steps=30,
    wide_steps=150,
    l1_grid=(5e-3,),
    reinit_every=40,
    log_every=7,
    checkpoint_every=10,
)
RUN = 7  # warm start, filtered, with a probe
CHUNK_CONTEXTS = 12  # so that a harvest has several chunks
CHILDREN = ChildrenConfig(n_steps=60)
CLUSTER = "FAULTS_SCHEDULER"
"""Environment variable with the address of the Dask scheduler on which the benchmark runs."""
WORLD = World("faults", d_in=16, n_background=30, contexts=(100, 60, 60))
_WORDS = (
    "people work country year nation government public power law peace report service system state measure trade "
    "treaty army land river bank interest revenue question principle citizen labor union congress duty spirit".split()
)
_COMPOUNDS = {
    "count": ("two-thirds", "multi-year", "one-half", "three-fold", "single-minded"),
    "number": ("60-day", "3-point", "10-year", "5-cent", "90-mile"),
    "compound": ("long-standing", "well-known", "far-reaching", "self-government", "world-wide"),
}


def make_archive(folder: Path, documents: int = 360) -> sources.Source:
    """A wheel of made-up speeches in `<folder>/archives`, and the source that pins it."""
    rng = random.Random(0)
    path = folder / "archives" / "made_speeches-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(documents):
            lines = []
            for _ in range(8):
                words = rng.choices(_WORDS, k=9)
                if number % 3 == 0:
                    words[4] = rng.choice(rng.choice(list(_COMPOUNDS.values())))
                lines.append(" ".join(words).capitalize() + ".")
            archive.writestr(zipfile.ZipInfo(f"made/speeches/{number:04d}.txt"), "\n".join(lines))
    return sources.Source(
        "made-speeches", "1.0", path.name, file_sha256(path), 0.1, "prose", "speeches", "made up", "MIT"
    )


def set_up(source: sources.Source) -> None:
    """Point the study at the made-up text, and load the model: once, in the process that the others are forked from."""
    study.STUDY_SOURCES = (source,)
    activations._CHUNK_CONTEXTS = CHUNK_CONTEXTS
    assert study.language_model(PROFILE).hooked is not None  # transformer_lens takes seconds to import


# --- the stages ------------------------------------------------------------------------------------------------------


def text(profile: Profile) -> dict[str, str]:
    """Read, clean, split, tokenise, cut."""
    folder = study.tokens(profile).folder
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def harvest(profile: Profile) -> dict[str, str]:
    """The activations of three splits."""
    found = {}
    for split in ("train", "select", "test"):
        store = study.activations(profile, split)
        found[split] = _hash(store.rows(slice(None)).numpy().tobytes() + json.dumps(store.manifest).encode())
    return found


def narrow(profile: Profile) -> dict[str, str]:
    """The narrow SAE and the coefficient it is chosen by."""
    return _training(study.narrow_sae(profile))


def filtering(profile: Profile) -> dict[str, str]:
    """The parent, its threshold, and what training keeps."""
    parent = selection.parent(profile)
    views = {by: trainings.view(profile, by, parent) for by in ("context", "token")}
    return {"parent": repr(parent), **{by: _hash(view.index.tobytes()) for by, view in views.items()}}


def training(profile: Profile) -> dict[str, str]:
    """One run of the table."""
    return _training(trainings.trained_run(profile, RUN))


def scoring(profile: Profile) -> dict[str, str]:
    """The row of the run: quality, outcome and the prompts; without the time that the training took."""
    trained = trainings.trained_run(profile, RUN)
    found = results.run_result(profile, get_run(RUN), selection.parent(profile), trained)
    path = reports_dir() / "scores.json"
    write_json(path, as_row(dataclasses.replace(found, seconds=1.0)))
    return {"scores": file_sha256(path)}


def splitting(profile: Profile) -> dict[str, str]:
    """A split of the parent with its page, tables and SAE."""
    out = reports_dir() / "split"
    cfg = SplitConfig("hyphen", tau=0.0, K=8, seeds=1, controls=False, children=CHILDREN)
    narrow_sae, parent = study.narrow_sae(profile).sae, selection.parent(profile)
    write_split(split_feature(narrow_sae, parent.feature, texts.of_profile(profile), cfg), out)
    tables = {path.name: file_sha256(path) for path in sorted(out.glob("*.csv"))}
    return tables | {"sae": weights_hash(load_sae(out / "sae"))}


def bench(profile: Profile) -> dict[str, str]:
    """Some pieces of the benchmark on a made-up parent, and their table without times; on the Dask cluster of `CLUSTER`."""
    cfg = BenchConfig(K=4, seeds=1, least=10, swap=False, children=CHILDREN)
    origin = Origin(WORLD.name, "known", world=WORLD)
    parents, methods = choose_parents(origin, cfg, 1, 0), ("children-8", "rest", "k-means")
    rows = run_bench([origin], parents, methods, cfg, jobs=1, scheduler=os.environ.get(CLUSTER))
    path = write_table(rows.assign(**dict.fromkeys(TIMES, 0.0)), reports_dir() / "splitbench.csv")
    return {"rows": file_sha256(path)}


def reporting(profile: Profile) -> dict[str, str]:
    """An executed notebook in the cache, its page and record, results.csv, the index."""
    numbers = json.loads((reports_dir() / "scores.json").read_text())
    key = content_key(numbers=numbers)
    folder = cache_dir() / "notebooks" / key
    with locked(folder):  # as `run_notebook` keeps what it has executed
        if cached_notebook(key) is None:
            with atomic_dir(folder) as temporary:
                nbformat.write(_executed(numbers, trainings.train_run), temporary / "executed.ipynb")
                (temporary / "result.json").write_text(json.dumps({"headline": numbers, "seconds": 1.0}))
    kept = cached_notebook(key)
    assert kept is not None
    out = reports_dir() / "pages"
    page = report.Page(f"run-{RUN:02d}", f"Run {RUN}", RUN)
    report.render_page(kept.path, out / f"{page.name}.html", title=page.title, result=kept.result, pages=[page])
    tables = {"runs": [numbers]}
    index_page.write_tables(tables, out)
    index_page.build_index(out, "faults", tables, [page])
    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(out.rglob("*")) if path.is_file()}


STAGES: dict[str, Callable[[Profile], dict[str, str]]] = {
    "text": text,
    "harvest": harvest,
    "narrow": narrow,
    "filter": filtering,
    "training": training,
    "scoring": scoring,
    "report": reporting,
    "split": splitting,
    "bench": bench,
}


def run_stages(names: tuple[str, ...], profile: Profile = PROFILE) -> dict[str, Any]:
    """What each of these stages made."""
    return {name: STAGES[name](profile) for name in names}


def reports_dir() -> Path:
    """Where pages go, in the folder that a fault strikes."""
    return Path(os.environ["SAELIB_CACHE"]) / "reports"


def _training(result: Any) -> dict[str, str]:
    history = result.history.drop(columns="seconds").to_csv(index=False)
    return {"weights": weights_hash(result.sae), "history": _hash(history.encode())}


def _executed(numbers: dict[str, Any], function: Callable[..., Any]) -> Any:
    """A notebook as it is after its execution."""
    table = pd.Series(numbers, name="on test text").to_frame().to_html()
    data = {report.HEADLINE_MIME: {"answer": "Made up.", **numbers}, "text/plain": ""}
    outputs = [
        nbformat.v4.new_output("display_data", data={"text/html": table, "text/plain": str(numbers)}),
        nbformat.v4.new_output("display_data", data=data),
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# What does a tiny run show?", id="title"),
        nbformat.v4.new_code_cell(f"{function.__name__}(settings)", outputs=outputs, execution_count=1, id="run"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
