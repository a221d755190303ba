"""`saelib bench`: from a suite to a folder with parents.csv, splitbench.csv, leaderboard.csv and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from saelib.base.cache import ensure_dir
from saelib.base.device import choose_device
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.bench.parents import Parent, choose_parents, p_rows, read_parents, write_parents
from saelib.bench.run import DEFAULT_METHODS, QUICK_METHODS, run_bench
from saelib.bench.sides import assign_sides
from saelib.bench.suite import BenchConfig, Origin, read_suite, world_origins
from saelib.bench.table import as_table, read_table, write_table
from saelib.report.bench_page import write_bench
from saelib.split.children import ChildrenConfig
from saelib.split.methods import get_method

NAMED = ("hyphen", "digit", "code")
"""Parents that are taken by name besides those of the rule, from every SAE that has them."""
QUICK = BenchConfig(seeds=1, children=ChildrenConfig(n_steps=400))


@dataclass(frozen=True)
class BenchRequest:
    """What is asked for."""

    out: Path
    """Folder of the tables and the page."""
    suite: Path | None = None
    """JSON file of SAEs; None is `suite.json` in `out`."""
    methods: tuple[str, ...] = ()
    """None: the default ones."""
    parents: tuple[str, ...] = ()
    """Only these: `<SAE>:<feature>`, or an SAE's name. None: all of parents.csv."""
    choose: int | None = None
    """Choose this many parents of each SAE anew, and a quarter as many without separable contexts."""
    quick: bool = False
    """The eight made-up worlds and five methods: needs neither text nor model."""
    jobs: int | None = None
    scheduler: str | None = None
    device: str = "cpu"
    """Where methods run: cpu, cuda, or auto."""


def bench(request: BenchRequest) -> Path:
    """Run what is asked for; what is kept is not done again. Its rows join those of the table that is there. Returns the page.

    Raises:
        UserError: an unknown method, parent or SAE; parents that are not as parents.csv says; no cluster; no such device; a table
            of other columns.
    """
    out = ensure_dir(Path(request.out).expanduser())
    methods = request.methods or (QUICK_METHODS if request.quick else DEFAULT_METHODS)
    for name in methods:
        get_method(name)
    cfg = replace(QUICK if request.quick else BenchConfig(), device=device_of(request))
    origins = world_origins() if request.quick else read_suite(request.suite or out / "suite.json")
    beside = {name for name in request.parents if name.partition(":")[0] not in {origin.name for origin in origins}}
    refuse(sorted(beside))  # before parents are chosen, which takes minutes
    path, results = out / "parents.csv", out / "splitbench.csv"
    there = read_table(results) if results.is_file() else as_table([])
    before = read_parents(path) if path.is_file() else []
    if request.quick or request.choose is not None:
        parents = chosen(origins, cfg, request.choose or 1, request.jobs)
        write_parents(parents, path)
    else:
        parents = read_parents(path)
    asked = only(parents, request.parents)
    made = run_bench(origins, asked, methods, cfg, request.jobs, request.scheduler)
    rows = merged(there, made, before, parents)
    rows = read_table(write_table(rows, results))  # so that the page says what the table says
    report_progress("page", 0, 1)
    return write_bench(rows, out, {origin.name: origin.model for origin in origins})


def device_of(request: BenchRequest) -> str:
    """The device of all rows: `auto` is settled here. Whether there is a GPU where a cluster's pieces run its workers say.

    Raises:
        UserError: an unknown name, or a GPU where torch sees none.
    """
    if request.device == "cuda" and request.scheduler is not None:
        return "cuda"
    return choose_device(request.device).type


def merged(
    there: pd.DataFrame, made: pd.DataFrame, before: Sequence[Parent], parents: Sequence[Parent]
) -> pd.DataFrame:
    """The rows of two tables, one a parent, method and seed: where both have it, that which is made now.

    A row of the old table stays where its parent is still the same one (`before`, `parents`), on the side it has now.
    """

    def same(p: Parent) -> Parent:
        return replace(p, side="", group=0, scorer="")

    was = {p.parent: same(p) for p in before}
    sides = {p.parent: p.side for p in parents if was.get(p.parent) == same(p)}
    kept = there[there["parent"].isin(list(sides))]
    kept = kept.assign(side=kept["parent"].map(sides))
    rows = [{str(k): v for k, v in row.items()} for part in (kept, made) for row in part.to_dict("records")]
    return as_table(list({(row["parent"], row["method"], row["seed"]): row for row in rows}.values()))


def chosen(origins: Sequence[Origin], cfg: BenchConfig, n: int, jobs: int | None) -> list[Parent]:
    """The parents of a suite, by the rule, with their sides."""
    found: list[Parent] = []
    for i, origin in enumerate(origins):
        report_progress("parents of SAEs", i, len(origins))
        found += choose_parents(origin, cfg, n, max(n // 4, 1), () if origin.world else NAMED, jobs)
    by_name = {origin.name: origin for origin in origins}
    rows = [p_rows(by_name[p.origin], p) for p in found]
    return assign_sides(found, rows, [by_name[p.origin].family for p in found])


def only(parents: Sequence[Parent], names: Sequence[str]) -> list[Parent]:
    """The parents that are named, by themselves or by their SAE; all where none is.

    Raises:
        UserError: a name that is neither.
    """
    known = {p.parent for p in parents} | {p.origin for p in parents}
    refuse([name for name in names if name not in known])
    return [p for p in parents if not names or p.parent in names or p.origin in names]


def refuse(unknown: Sequence[str]) -> None:
    """Stop at names that are no parents.

    Raises:
        UserError: there is one.
    """
    if unknown:
        raise UserError("a parent must be in parents.csv", ", ".join(unknown), "name an SAE, or <SAE>:<feature>")
