"""Run the benchmark: one piece a parent and a method, side by side, kept as soon as it is there.

Pieces of one parent share its tokens and yardstick, so they are handed out a parent at a time; each piece is written to the cache
when it is done, and what is there is not done again. Where they run is joblib's business: local processes (loky), or a Dask
cluster (`scheduler`). Every piece runs in one thread, so that its numbers do not depend on where it ran.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from saelib.acts.activations import Activations
from saelib.base.cache import cache_dir, content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.device import choose_device, in_key
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.table import plain_value
from saelib.bench.backend import one_thread, side_by_side
from saelib.bench.known import KnownActivations
from saelib.bench.matching import match
from saelib.bench.parents import Parent, rows_hash, scorer_version
from saelib.bench.suite import BenchConfig, Origin
from saelib.bench.table import ROW, as_table
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.split.judged import Judge, Judged
from saelib.split.methods import JUDGE_CODE, Method, Task, get_method
from saelib.split.parent import gather
from saelib.split.stability import overall, stability
from saelib.split.tokens import ParentTokens
from saelib.split.work import Work

DEFAULT_METHODS = (
    "children-8", "children-16", "children-32", "children-64", "children-128", "children-cheap", "children-dear",
    "children-clean", "again", "named", "named-128", "named-clean", "no-negatives", "no-target", "wrong-parent", "matryoshka",
    "subspace", "residual", "small-sae", "k-means", "spherical-k-means", "ica", "random-decoder", "permuted", "rest",
    "quantiles", "supervised", "all-data", "all-data-clean", "all-data-3", "context-filter", "token-filter", "warm",
    "warm-zeroed",
)  # fmt: skip
"""Methods of a whole run; wide SAEs of ten times the tokens or four times the features are asked for by name."""
QUICK_METHODS = ("children-16", "rest", "k-means", "random-decoder", "all-data")
BENCH_CODE = (*JUDGE_CODE, "bench.known", "bench.matching", "bench.run")
KIND = "splitbench"
"""Where pieces are kept in the cache."""


@dataclass(frozen=True)
class Pieces:
    """One parent's share of the work, as it travels to a process or a machine: all of it plain data."""

    origin: Origin
    parent: Parent
    methods: tuple[str, ...]
    cfg: BenchConfig
    cache: str = field(default="")
    """The cache of who asks; a worker that sees that folder uses it, another its own."""


def methods_of(parent: Parent, methods: Sequence[str], few: set[str]) -> tuple[str, ...]:
    """The methods that are run for a parent: those that train a wide SAE for each parent only for the parents in `few`."""
    chosen = [(name, get_method(name)) for name in methods]
    costly = {name for name, m in chosen if m.kind == "wide" and m.per_parent}
    return tuple(n for n, _ in chosen if n not in costly or parent.parent in few)


def subset(parents: Sequence[Parent], n: int) -> set[str]:
    """`n` parents of each side, drawn by a hash of their names, and all known ones."""
    out = {p.parent for p in parents if p.side == "known"}
    for side in ("dev", "test"):
        names = [p.parent for p in parents if p.side == side and p.stratum == "separable"]
        out |= set(sorted(names, key=lambda name: content_key(drawn=name))[:n])
    return out


def run_bench(
    origins: Sequence[Origin], parents: Sequence[Parent], methods: Sequence[str], cfg: BenchConfig,
    jobs: int | None = None, scheduler: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Every method on every parent: the table of `ROW`, sorted.

    Args:
        jobs: processes side by side on this machine; None as many as there are cores.
        scheduler: address of a Dask scheduler, `tcp://host:8786`, in place of local processes.

    Raises:
        UserError: an unknown method or SAE, a parent that is not as parents.csv says, no cluster at that address, no such device
            where the pieces run.
    """
    by_name = {origin.name: origin for origin in origins}
    if missing := sorted({p.origin for p in parents} - set(by_name)):
        raise UserError(
            "every parent's SAE must be in the suite", ", ".join(missing), "add it, or leave its parents out"
        )
    few = subset(parents, cfg.few_parents)
    rows: list[dict[str, Any]] = []
    work: list[Pieces] = []
    for p in sorted(parents, key=lambda p: (p.origin, p.feature)):
        own = cfg if p.parent in few else replace(cfg, seeds=1)
        bench = _Bench(Pieces(by_name[p.origin], p, methods_of(p, methods, few), own, str(cache_dir())))
        lacking = tuple(name for name in bench.pieces.methods if not bench.is_kept(name))
        for name in bench.pieces.methods:
            rows += bench.kept(name) if name not in lacking else []
        if lacking:
            work.append(replace(bench.pieces, methods=lacking))
    report_progress("parents", 0, len(work))
    if work:
        for done, (place, found) in enumerate(side_by_side(run_pieces, work, jobs, scheduler), 1):
            _Bench(work[place]).keep(found)
            rows += found
            report_progress("parents", done, len(work))
    return as_table(rows)


def run_pieces(pieces: Pieces) -> list[dict[str, Any]]:
    """The rows of one parent: each method's from the cache, or made now."""
    if pieces.cache and Path(pieces.cache).is_dir():
        os.environ["SAELIB_CACHE"] = pieces.cache
    rows: list[dict[str, Any]] = []
    with one_thread():
        bench = _Bench(pieces)
        for name in pieces.methods:
            rows += bench.kept(name)
    return rows


class _Bench:
    """One parent, opened when the first piece is not kept yet."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces, self.origin, self.parent = pieces, pieces.origin, pieces.parent
        self.cfg = pieces.origin.sized(pieces.cfg)
        self.device = torch.device(self.cfg.device)
        """Named, not looked for: who shares the work out needs none."""

    def key(self, name: str) -> str:
        """Of all that determines a piece: parent, SAE, text, method, sizes and code, and the device where it is no processor."""
        own = ("side", "group", "scorer")  # what a parent has from its place among others, or that `code` says better
        return content_key(
            parent={k: v for k, v in asdict(self.parent).items() if k not in own},
            origin=[self.origin.model, self.origin.text, repr(self.origin.world)],
            method=name,
            made_by=get_method(name).version,
            sizes={k: v for k, v in asdict(self.cfg).items() if k not in ("few_parents", "device")},
            code=code_version(*BENCH_CODE),
            **in_key(self.device),
        )

    def is_kept(self, name: str) -> bool:
        """Whether the piece is there."""
        return (cache_dir() / KIND / f"{self.key(name)}.json").exists()

    def kept(self, name: str) -> list[dict[str, Any]]:
        """The rows of a piece, from the cache or made now."""
        rows: list[dict[str, Any]] = kept_json(KIND, self.key(name), lambda: self.make(get_method(name), name))
        return [row | {"side": self.parent.side} for row in rows]  # a side may change with the other parents

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Keep what a worker with a cache of its own made."""
        for name in self.pieces.methods:
            own = [row for row in rows if row["method"] == name]
            kept_json(KIND, self.key(name), functools.partial(list, own))

    def make(self, method: Method, name: str) -> list[dict[str, Any]]:
        """One row a seed."""
        _ = self.tokens  # must be those of parents.csv; what is refused from here on is a row with its reason
        seeds = range((self.cfg.wide_seeds if method.kind == "wide" else self.cfg.seeds) if method.seeded else 1)
        rows, fires = [], []
        for seed in seeds:
            p = self.parent
            row: dict[str, Any] = dict.fromkeys(ROW)
            row |= {
                "parent": p.parent, "origin": p.origin, "side": p.side, "stratum": p.stratum, "feature": p.feature,
                "method": name, "kind": method.kind, "seed": seed, "scorer": scorer_version(),
                "device": self.device.type,
            }  # fmt: skip
            with _peak_memory() as peak:
                try:
                    found = self._run(self.judge, method, seed)
                except UserError as error:
                    rows.append(row | {"reason": str(error)})
                    continue
            fires.append(found.fires)
            rows.append(row | found.row | self._known(method, found) | {"peak_memory": peak()})
        if len(fires) > 1 and fires[0].shape[1]:
            agree = overall(stability(fires[0], fires[1:]), fires[0])
            rows = [row | {"stability": agree} for row in rows]
        return [plain_value(row) for row in rows]

    @functools.cached_property
    def opened(self) -> tuple[SAE, Activations]:
        """The SAE and its activations, on the device."""
        return self.origin.open(choose_device(self.cfg.device))

    @functools.cached_property
    def tokens(self) -> ParentTokens:
        """The parent's tokens, after a look whether it is still the one that was chosen.

        The processor finds them, so that they are the same whatever the device, and reads them to where methods run.
        """
        (sae, _), (_, acts) = self.origin.open(), self.opened
        parent = self.parent
        if (found := sae_key(sae)) != parent.sae_sha256:
            rule = f"the SAE {self.origin.name} must be the one of parents.csv ({parent.sae_sha256})"
            raise UserError(rule, found, "take that SAE, or choose the parents anew")
        tokens = gather(acts, sae, parent.feature, parent.tau)
        if (rows := rows_hash(tokens.on["select"].rows, tokens.on["test"].rows)) != parent.p_sha256:
            rule = f"the tokens of {parent.parent} must be those of parents.csv ({parent.p_sha256})"
            raise UserError(rule, rows, "use the text they were chosen on, or choose the parents anew")
        return tokens

    @functools.cached_property
    def judge(self) -> Judge:
        """The parent's yardstick."""
        sae, acts = self.opened
        return Judge(Work.of(acts, self.tokens, sae, self.parent.how, self.cfg.least))

    def _run(self, judge: Judge, method: Method, seed: int) -> Judged:
        task = Task(self.opened[1], judge.work, self.cfg.K, seed, self.cfg.children, self.cfg.wide)
        return judge.run(method, task, swap=self.cfg.swap and seed == 0)

    def _known(self, method: Method, found: Judged) -> dict[str, Any]:
        acts = self.opened[1]
        if not isinstance(acts, KnownActivations) or found.sae is None:
            return {}
        rows = self.judge.work.tokens.on["test"].rows
        truth = acts.truth("test", rows)
        matched = match(found.fires, truth, acts.background("test", rows))
        out: dict[str, Any] = {"true_children": truth.shape[1], "matched_f1": matched.f1, "found": matched.found}
        return out | ({"false": matched.false} if method.kind != "wide" else {})


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], float]]:
    """A function that says how much memory this process held at most since now (Linux; elsewhere what it holds)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

    def peak() -> float:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return float(line.split()[1]) * 1024
        return float(psutil.Process().memory_info().rss)

    yield peak
