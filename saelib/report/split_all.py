"""`saelib split --all`: every feature of an SAE that passes the parent rule, split; an index that sorts.

It is an overview (`saelib.split.parent.OVERVIEW`): of each parent a sample of the tokens that `saelib split --feature` looks at,
those of many parents found in one pass. A feature's folder holds split.json, its tables and a page in brief; the new SAE is left
out, since `saelib split --feature` makes it again in seconds. What a folder says that it was made of is not made again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from saelib.acts.activations import Activations
from saelib.base.cache import atomic_path, content_key, ensure_dir
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.base.table import plain_value
from saelib.bench.backend import one_thread, side_by_side
from saelib.bench.parents import eligible, survey
from saelib.report.children_page import split_html
from saelib.report.html_view import HtmlView
from saelib.sae.kept import sae_key
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE
from saelib.sae.stream import Firings, stream
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.methods import JUDGE_CODE, LOCAL_CODE
from saelib.split.parent import OVERVIEW
from saelib.study.texts import activations

COLUMNS: dict[str, str] = {
    "feature": "the parent",
    "verdict": "strict verdict",
    "rate": "share of test tokens on which it is on",
    "children": "children that were kept",
    "S_2": "separation of rest + children",
    "S_2_rest": "of the rest alone",
    "gain": "the difference",
    "added_2": "what the children add of what is left",
    "passed": "contexts with a child of their own",
    "judged": "contexts that a probe tells apart",
    "leak": "foreign leak of the children, weighted by how often they fire",
    "fvu_on_P_before": "FVU on P before the swap",
    "fvu_on_P_after": "and after it",
    "names": "the children that fire most and whose names say when: by share of P times MCC of the name",
    "seconds": "wall time",
    "reason": "why it was not split",
}
"""Name and meaning of the columns of splits.csv, in order."""
SHOWN: dict[str, str] = {
    "feature": "d", "names": "", "verdict": "", "gain": "z.2f", "S_2": "z.2f", "S_2_rest": "z.2f", "passed": "d", "judged": "d",
    "leak": ".1%", "rate": ".2%",
}  # fmt: skip
"""Those on the page, and how a value is written."""

BATCH = 256
"""Parents whose tokens are found in one pass: of each its activation on every token is held, as a sparse column."""


@dataclass(frozen=True)
class AllRequest:
    """What every feature is split with: plain data that travels to a process."""

    folder: str
    """The SAE."""
    out: str
    model: str = "mini"
    text: str = "study"
    contexts: str = "automatic"
    K: int = 64
    seed: int = 0


def split_all(
    request: AllRequest, features: list[int] | None = None, jobs: int | None = None, scheduler: str | None = None
) -> Path:
    """Split every feature that is live and on for 0.1% to 5% of the select tokens, or those named. Returns the index.

    Raises:
        UserError: the SAE, the model or the text is not there, or no feature passes the rule.
    """
    out = ensure_dir(Path(request.out).expanduser())
    sae = load_sae(request.folder)
    acts = activations(request.model, request.text, sae=sae, device="cpu")
    features = eligible(survey(sae, acts)) if features is None else features
    if not features:
        raise UserError("a feature must be on for 0.1% to 5% of the tokens", "none of the SAE's", "use more text")
    began, rows = time.perf_counter(), []
    report_progress("features", 0, len(features))
    batches = [tuple(features[i : i + BATCH]) for i in range(0, len(features), BATCH)]
    work = [(request, feature, batch) for batch in batches for feature in batch]
    for done, (_, row) in enumerate(side_by_side(_one, work, jobs, scheduler), 1):
        rows.append(row)
        report_progress("features", done, len(features))
    frame = pd.DataFrame(rows, columns=[*COLUMNS]).sort_values("feature").reset_index(drop=True)
    with atomic_path(out / "splits.csv") as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return splits_page(frame, time.perf_counter() - began).save(out / "index.html", standalone=False)


@lru_cache(maxsize=1)
def _opened(request: AllRequest) -> tuple[SAE, Activations]:
    sae = load_sae(request.folder)
    return sae, activations(request.model, request.text, sae=sae, device="cpu")


@lru_cache(maxsize=1)
def _firings(request: AllRequest, features: tuple[int, ...]) -> dict[str, csc_array]:
    """The activations of a batch of parents on every token of each split, found in one pass."""
    sae, acts = _opened(request)
    found = {}
    for split, store in acts.stores.items():
        firings = Firings()
        stream(sae, store, np.array(features), [firings])
        found[split] = firings.table(store.n_tokens, len(features))
    return found


def _one(work: tuple[AllRequest, int, tuple[int, ...]]) -> dict[str, Any]:
    """Split one feature of a batch, or read what its folder says."""
    request, feature, batch = work
    sae, acts = _opened(request)
    folder = ensure_dir(Path(request.out).expanduser() / f"feature-{feature}")
    key = content_key(
        sae=sae_key(sae), stores=[store.key for store in acts.stores.values()], feature=feature,
        how={k: v for k, v in asdict(request).items() if k not in ("folder", "out")},
        code=code_version(*JUDGE_CODE, *LOCAL_CODE),
    )  # fmt: skip
    kept = folder / "row.json"
    if kept.exists() and (found := json.loads(kept.read_text()))["key"] == key:
        return dict(found["row"])
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["feature"] = feature
    cfg = SplitConfig(
        contexts=request.contexts, K=request.K, seeds=1, controls=False, seed=request.seed, samples=OVERVIEW
    )
    try:
        with one_thread():
            found, place = _firings(request, batch), batch.index(feature)
            values = {name: table[:, [place]].toarray()[:, 0] for name, table in found.items()}
            split = split_feature(sae, feature, acts, cfg, values=values)
    except UserError as error:
        row["reason"] = str(error)
    else:
        record = split.to_json()
        children, on = split.children, split.swap.loc["on P"].to_dict()
        fired, weight = children["share"].sum(), children["share"] * children["name_mcc"]
        S, rest = (split.separation[name].S[2].value for name in ("rest + children", "rest"))
        row |= {
            "verdict": split.verdict_text, "rate": split.parent.rate, "children": len(children), "S_2": S, "S_2_rest": rest,
            "gain": S - rest, "added_2": split.added[2].value, "passed": split.judgement.passed,
            "judged": sum(c.judged and c.primary for c in split.separation["rest"].contexts),
            "leak": float((children["leak"] * children["share"]).sum() / fired) if fired else None,
            "fvu_on_P_before": on["fvu_before"], "fvu_on_P_after": on["fvu_after"],
            "names": "; ".join(children["name"][weight.nlargest(4).index]), "seconds": split.cost["seconds"],
        }  # fmt: skip
        row = plain_value(row)
        (folder / "split.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        children.to_csv(folder / "children.csv", index=False)
        brief = HtmlView("splits_one.html.j2", f"Feature {feature}", {"body": split_html(split)}, record)
        brief.save(folder / "index.html", standalone=False)
    with atomic_path(kept) as temporary:
        temporary.write_text(json.dumps({"key": key, "row": row}) + "\n")
    return row


def splits_page(frame: pd.DataFrame, seconds: float) -> HtmlView:
    """The index: a row a feature; a click on a heading sorts."""
    split = frame[frame["reason"].isna()]
    passed = int((split["passed"] > 0).sum())
    whole, part = (int(split["verdict"].astype(str).str.startswith(kind).sum()) for kind in ("split", "partial"))
    rows = []
    for row in split.sort_values("gain", ascending=False, na_position="last").to_dict("records"):
        cells = [
            (
                _sort_key(row[name]),
                "" if pd.isna(row[name]) else format(int(row[name]) if how == "d" else row[name], how),
                how,
            )
            for name, how in SHOWN.items()
        ]
        rows.append({"href": f"feature-{row['feature']}/index.html", "cells": cells})
    gain = split["gain"].mean()
    return HtmlView(
        template="splits.html.j2",
        title=f"{len(split)} features: {whole} split, {part} split in part",
        context={
            "head": [(name, COLUMNS[name], how) for name, how in SHOWN.items()],
            "rows": rows,
            "refused": [(int(r["feature"]), r["reason"]) for r in frame[frame["reason"].notna()].to_dict("records")],
        },
        record={"features": len(frame), "split": len(split), "with_a_context_that_passes": passed, "seconds": seconds},
        kicker="saelib split --all",
        answer=f"In {passed} some context has a child of its own by the strict verdict; separation rises by "
        f"{gain:.2f} on average over the rest of the SAE." if len(split) else "No feature could be split.",
    )  # fmt: skip


def _sort_key(value: Any) -> str:
    """What a cell is sorted by."""
    if value is None or value != value:
        return ""
    return f"{value:.9g}" if isinstance(value, int | float) else str(value)
