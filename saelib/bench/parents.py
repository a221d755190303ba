"""Parents, chosen by a rule that is written down before anything is split.

A feature is *eligible* when it is live and on (above tau, 2/9.23 of its largest activation on select) for 0.1% to 5% of the
select tokens. Eligible features are looked at in an order drawn by the seed; one is a parent when P is large enough
(`saelib.split.parent.gather`) and at least three of its automatic contexts are judged. Features that have enough tokens and
fewer such contexts make a stratum of their own: there nothing can be told apart, and who splits them does so falsely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from saelib.acts.activations import Activations
from saelib.base.cache import atomic_path, content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.bench.backend import side_by_side
from saelib.bench.known import known_sae
from saelib.bench.suite import BenchConfig, Origin
from saelib.sae.kept import sae_key
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows, feature_activations
from saelib.split.contexts import label
from saelib.split.kinds import best_feature_of_kind, find_kind
from saelib.split.methods import JUDGE_CODE
from saelib.split.parent import TAU_SHARE, gather
from saelib.split.yardstick import make_yardstick

SCORER = 1
"""Version of the scorer: raised by hand when the same outputs get other numbers."""
RATES = (0.001, 0.05)
"""Share of select tokens on which a parent is on."""
SEPARABLE = 3
"""Contexts that must be judged."""
CHUNK = 16
"""Features that are looked at side by side."""
LOOKED = 2
"""Features that are looked at for every parent asked for, if the stratum without separable contexts lacks any."""
STRATA = ("separable", "none")
"""`none`: fewer than `SEPARABLE` contexts that a linear probe tells apart."""
PARENT_CODE = ("sae.sae", "sae.stream", "split.contexts", "split.parent", "split.probe", "split.yardstick")


@dataclass(frozen=True)
class Parent:
    """One parent, a row of parents.csv."""

    parent: str
    """`<origin>:<feature>`."""
    origin: str
    side: str
    stratum: str
    """One of `STRATA`."""
    feature: int
    tau: float
    rate: float
    """Share of select tokens on which it is on."""
    n_on: int
    """Tokens of P on test."""
    contexts: int
    """Automatic contexts of previous and next tokens."""
    separable: int
    """Those that are judged."""
    chosen: str
    """How: `rule`, or the name it was asked for by (`hyphen`, ...)."""
    how: str
    """Contexts: `automatic`, or `hyphen`'s classes."""
    group: int
    """Parents of one number overlap, directly or over others, and stand on one side."""
    sae_sha256: str
    """First 16 digits, of the SAE's weights."""
    p_sha256: str
    """First 16 digits, of the rows of P on select and test."""
    scorer: str
    """`SCORER` and a hash of the code that measures."""


def scorer_version() -> str:
    """What measures: the number raised by hand, and a hash of the code."""
    return f"{SCORER}-{code_version(*JUDGE_CODE)[:8]}"


@torch.no_grad()
def survey(sae: SAE, acts: Activations) -> pd.DataFrame:
    """Every feature on select: feature, largest, rate (share of tokens above tau)."""
    store, size = acts.stores["select"], block_rows(sae.cfg.d_sae)
    largest = torch.zeros(sae.cfg.d_sae)
    for rows, x in store.blocks(size):
        largest = torch.maximum(largest, sae.encode(x).amax(0))
        report_progress("survey of features", rows.stop // 2, store.n_tokens)
    above = torch.zeros(sae.cfg.d_sae)
    for rows, x in store.blocks(size):
        above += (sae.encode(x) > TAU_SHARE * largest).sum(0)
        report_progress("survey of features", (store.n_tokens + rows.stop) // 2, store.n_tokens)
    rate = torch.where(largest > 0, above / store.n_tokens, 0.0)
    return pd.DataFrame({"feature": np.arange(sae.cfg.d_sae), "largest": largest.numpy(), "rate": rate.numpy()})


def eligible(found: pd.DataFrame, rates: tuple[float, float] = RATES) -> list[int]:
    """Features that are live and neither rare nor dense."""
    keep = (found["largest"] > 0) & found["rate"].between(*rates)
    return [int(j) for j in found.loc[keep, "feature"]]


def choose_parents(
    origin: Origin, cfg: BenchConfig, n: int, n_none: int, named: Sequence[str] = (), jobs: int | None = None
) -> list[Parent]:
    """Parents of one SAE: up to `n` by the rule and `n_none` of the stratum without separable contexts, in an order drawn by 0.

    Args:
        named: kinds of token (`hyphen`, `digit`, `code`) whose best-marking feature is taken besides, where it has the tokens.
    """
    sae, acts = origin.open()
    if origin.world is not None:
        feature = known_sae(origin.world)[1]
        looked = examine(origin, feature, cfg)
        return [_parent(origin, sae, looked, "rule", "automatic")]
    table = pd.DataFrame(
        kept_json(
            "surveys",
            content_key(
                sae=sae_key(sae), store=acts.stores["select"].key, code=code_version("bench.parents", "sae.sae")
            ),
            lambda: survey(sae, acts).to_dict("list"),
        )
    )
    features = eligible(table)
    order = np.random.default_rng(0).permutation(len(features))
    found: dict[str, list[Parent]] = {stratum: [] for stratum in STRATA}
    most = {"separable": n, "none": n_none}
    left = LOOKED * n
    while len(order) and any(len(found[s]) < most[s] for s in (STRATA if left > 0 else STRATA[:1])):
        chunk, order, left = order[:CHUNK], order[CHUNK:], left - CHUNK
        looks = dict(side_by_side(_look, [(origin, features[i], cfg) for i in chunk], jobs))
        for looked in (looks[place] for place in range(len(chunk))):
            stratum = str(looked["stratum"])
            if stratum and len(found[stratum]) < most[stratum]:
                found[stratum].append(_parent(origin, sae, looked, "rule", "automatic"))
        report_progress(f"parents of {origin.name}", sum(map(len, found.values())), sum(most.values()))
    asked = [p for kind in named if (p := _named(origin, sae, acts, kind, cfg)) is not None]
    taken = {p.feature for p in asked}
    return [*asked, *(p for part in found.values() for p in part if p.feature not in taken)]


def _look(given: tuple[Origin, int, BenchConfig]) -> dict[str, object]:
    return examine(*given)


def examine(origin: Origin, feature: int, cfg: BenchConfig, how: str = "automatic") -> dict[str, object]:
    """What a feature is as a parent: feature, tau, rate, n_on, contexts, separable, stratum (empty where it is none), p_sha256.

    Kept in the cache.
    """
    sae, acts = origin.open()
    key = content_key(
        sae=sae_key(sae), stores=[acts.stores[s].key for s in ("train", "select", "test")], feature=feature, how=how,
        least=origin.sized(cfg).least, code=code_version(*PARENT_CODE, "bench.parents"),
    )  # fmt: skip
    kept: dict[str, object] = kept_json("parent-candidates", key, lambda: _examined(origin, feature, cfg, how))
    return kept


def _examined(origin: Origin, feature: int, cfg: BenchConfig, how: str) -> dict[str, object]:
    sae, acts = origin.open()
    out: dict[str, object] = {"feature": feature, "stratum": "", "contexts": 0, "separable": 0}
    try:
        tokens = gather(acts, sae, feature)
    except UserError as error:
        return out | {"reason": str(error)}
    out |= {
        "tau": tokens.tau,
        "rate": tokens.n_on["select"] / tokens.n_tokens["select"],
        "n_on": tokens.n_on["test"],
        "p_sha256": rows_hash(tokens.on["select"].rows, tokens.on["test"].rows),
        "stratum": "none",
    }
    texts = {split: np.asarray(acts.stores[split].contexts) for split in acts.stores}
    try:
        labels = label(acts.model, tokens.on, texts, how, origin.sized(cfg).least)
    except UserError as error:  # no frequent token beside it
        return out | {"reason": str(error)}
    yardstick = make_yardstick(tokens.on, labels)
    separable = int(yardstick.averaged.sum())
    least = min(SEPARABLE, sum(c.primary for c in labels.contexts)) if labels.named or origin.world else SEPARABLE
    out |= {"contexts": sum(c.primary for c in labels.contexts), "separable": separable}
    return out | {"stratum": "separable" if separable >= max(least, 1) else "none"}


def rows_hash(*parts: np.ndarray) -> str:
    """16 hex digits over rows of a store."""
    digest = hashlib.sha256()
    for rows in parts:
        digest.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def _parent(origin: Origin, sae: SAE, looked: dict[str, object], chosen: str, how: str) -> Parent:
    given = {k: looked[k] for k in ("feature", "tau", "rate", "n_on", "contexts", "separable", "p_sha256")}
    return Parent(
        parent=f"{origin.name}:{looked['feature']}", origin=origin.name, side=origin.side, stratum=str(looked["stratum"]),
        chosen=chosen, how=how, group=-1, sae_sha256=sae_key(sae), scorer=scorer_version(), **given,  # type: ignore[arg-type]
    )  # fmt: skip


def _named(origin: Origin, sae: SAE, acts: Activations, kind: str, cfg: BenchConfig) -> Parent | None:
    """The feature that best marks a kind of token on select (F1 of where it fires); None where it has too few tokens, or the
    tokenizer has none of the kind."""
    if not find_kind(acts.model, kind):
        return None
    best = best_feature_of_kind(acts.stores["select"], sae, acts.model, kind)
    how = "hyphen" if kind == "hyphen" else "automatic"
    looked = examine(origin, best, cfg, how)
    return _parent(origin, sae, looked, kind, how) if looked["stratum"] else None


# --- sides -----------------------------------------------------------------------------------------------------------------


def p_rows(origin: Origin, parent: Parent) -> np.ndarray:
    """Rows of P on select."""
    sae, acts = origin.open()
    return np.flatnonzero(feature_activations(acts.stores["select"], sae, parent.feature) > parent.tau)


# --- parents.csv -------------------------------------------------------------------------------------------------------------


def write_parents(parents: Sequence[Parent], path: Path) -> Path:
    """Write parents.csv; its own SHA-256 stands in `parents.sha256` beside it."""
    frame = pd.DataFrame([asdict(p) for p in parents], columns=[f.name for f in fields(Parent)])
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
    return path


def read_parents(path: Path) -> list[Parent]:
    """Read parents.csv.

    Raises:
        UserError: it is missing, has other columns, or is not as `parents.sha256` says.
    """
    if not path.is_file():
        raise UserError("parents must be in a CSV", path, "choose them: saelib bench --choose 20")
    sums = path.with_suffix(".sha256")
    if sums.is_file() and sums.read_text().split()[:1] != [hashlib.sha256(path.read_bytes()).hexdigest()]:
        raise UserError(
            "parents.csv must be as it was written (parents.sha256)", path, "take it from the repository anew"
        )
    frame = pd.read_csv(path, dtype={"sae_sha256": str, "p_sha256": str, "scorer": str, "chosen": str, "parent": str})
    names = [f.name for f in fields(Parent)]
    if list(frame.columns) != names:
        raise UserError(
            f"parents.csv must have the columns {', '.join(names)}", ", ".join(frame.columns), "write it anew"
        )
    whole = ("feature", "n_on", "contexts", "separable", "group")
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    return [Parent(**(row | {k: int(row[k]) for k in whole})) for row in rows]
