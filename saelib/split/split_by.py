"""Split a feature by a method that gives no children, a wide SAE or activations: what comes out, and its tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from saelib.acts.activations import Activations
from saelib.base.table import plain_value
from saelib.sae.sae import SAE
from saelib.split import wide
from saelib.split.detectors import best_threshold, feature_mcc
from saelib.split.engine import SplitConfig
from saelib.split.feature_parts import chosen_acts, leak_shares
from saelib.split.how_many import choose_K
from saelib.split.judged import Judge, Judged
from saelib.split.methods import Method, Task, get_method
from saelib.split.parent import gather
from saelib.split.result import ParentSummary, describe_parent, write_result
from saelib.split.work import Work


@dataclass(frozen=True)
class MethodSplit:
    """One feature, split by a method that gives no children: measured as they are, with the rest alone beside it."""

    method: Method
    parent: ParentSummary
    contexts: pd.DataFrame
    """One row a context, as in `Separation.frame`, and `rest_mcc_2`, what two features of the rest reach."""
    children: pd.DataFrame
    """One row a judged context: the feature of the wide SAE that marks it."""
    rows: pd.DataFrame
    """Two rows, the method and the rest alone: name, then the columns of `COLUMNS`."""
    judged: Judged
    acts: Activations = field(repr=False)

    def text(self) -> str:
        """For a terminal."""
        shown = ["S_1", "S_2", "S_4", "added_2", "S_2_current", "fvu_on_P", "l0_on_P", "leak"]
        shown += ["tokens_sae", "seconds", "seconds_shared"]
        table = self.rows[["name", *shown]].to_string(index=False, float_format=lambda v: f"{v:.3g}", na_rep="")
        lines = [f"feature {self.parent.feature} by {self.method.name}: {self.method.about}", "", table, ""]
        lines.append(
            self.children.drop(columns="missed").head(30).to_string(index=False, float_format=lambda v: f"{v:.2f}")
        )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON holds it."""
        content: dict[str, Any] = {
            "method": self.method.name,
            "kind": self.method.kind,
            "about": self.method.about,
            "parent": {"feature": self.parent.feature, "tau": self.parent.tau, "rate": self.parent.rate},
            "separation": {f"S_{k}": value for k, value in self.judged.separation.S.items()},
            "added": self.judged.added.ratio,
            "rows": self.rows.to_dict("records"),
            "children": self.children.to_dict("records"),
        }
        plain: dict[str, Any] = plain_value(content)
        return plain

    def save(self, folder: str | Path) -> Path:
        """Write `split.json`, `rows.csv`, `contexts.csv`, `children.csv` and, where there is one, the SAE in `sae/`.

        Raises:
            UserError: `folder` is a file, or the disk refuses.
        """
        tables = {name: getattr(self, name) for name in ("rows", "contexts", "children")}
        return write_result(Path(folder), self.to_json(), tables, self.judged.sae)


def split_by(
    sae: SAE,
    feature: int,
    acts: Activations,
    name: str,
    config: SplitConfig | None = None,
    budget: wide.WideConfig | None = None,
) -> MethodSplit:
    """Split one feature by any method of `saelib.split.methods`.

    Args:
        name: a method; one that gives children has `saelib.split(..., method=name)`, which shows them with their controls.
        budget: width and tokens of a wide method; None is four times the SAE's width and 4.1M tokens.

    Raises:
        UserError: an unknown method, what it refuses, and what `saelib.split.engine.split_feature` does.
    """
    method, cfg, sae = get_method(name), config or SplitConfig(), sae.on(acts.device)
    tokens = gather(acts, sae, feature, cfg.tau)
    work = Work.of(acts, tokens, sae, cfg.contexts, cfg.least)
    K = choose_K(work.targets, work.select_pools, cfg.training, 1 if method.kind == "wide" else cfg.K)[0]
    judge_ = Judge(work)
    budget = budget or wide.WideConfig(d_sae=4 * sae.cfg.d_sae)

    def task() -> Task:
        return Task(acts, work, K, cfg.seed, cfg.children, budget)

    found = judge_.run(method, task())
    nothing = judge_.run(get_method("rest"), task())
    rows = pd.DataFrame([{"name": name, **found.row}, {"name": "rest alone", **nothing.row}])
    contexts = found.separation.frame()
    contexts["rest_mcc_2"] = [c.mcc[2].value for c in judge_.rest_separation.contexts]
    return MethodSplit(
        method,
        describe_parent(acts, sae, tokens, work.labels),
        contexts,
        _children(judge_, found),
        rows,
        found,
        acts,
    )


def _children(judge_: Judge, found: Judged) -> pd.DataFrame:
    """For each judged context, the feature that marks it best on select: context, feature, mcc (test), share, leak, missed."""
    work, yardstick = judge_.work, judge_.work.yardstick
    columns = ["context", "feature", "mcc", "share", "leak", "missed"]
    if found.sae is None or not found.numbers:
        return pd.DataFrame(columns=columns)
    own = {s: chosen_acts(found.sae, judge_.used[s].x, list(found.numbers)) for s in ("select", "test")}
    marks = feature_mcc(csc_array(own["select"]), yardstick.member["select"])
    judged = np.flatnonzero(yardstick.judged)
    if not len(judged):
        return pd.DataFrame(columns=columns)
    best = marks[:, judged].argmax(0)
    features = [found.numbers[j] for j in best]
    member = yardstick.member
    theta = np.array(
        [best_threshold(own["select"][:, j], member["select"][:, c]).t for c, j in zip(judged, best, strict=True)]
    )
    missed, foreign, _ = leak_shares(work, found.sae, features, judged, "test", theta)
    rows = []
    for i, (c, j) in enumerate(zip(judged, best, strict=True)):
        fires = own["test"][:, [j]] > theta[i]
        value = yardstick.documents.mcc(fires, member["test"][:, [c]])[0, 0]
        rows.append(
            {
                "context": yardstick.contexts[c].name,
                "feature": features[i],
                "mcc": float(value),
                "share": float(fires.mean()),
                "leak": float(foreign[i]),
                "missed": float(missed[i]),
            }
        )
    return pd.DataFrame(rows, columns=columns)
