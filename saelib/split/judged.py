"""Measure whatever a method made of a parent: separation, what it adds, leak, swap, in one row of numbers.

A dictionary is measured with the rest of the SAE beside it, as it is exported; a whole SAE by itself; activations with the rest
beside them. The yardstick is the parent's (`saelib.split.yardstick`), the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csc_array, hstack
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.base.errors import UserError
from saelib.base.table import plain_value
from saelib.sae.sae import SAE
from saelib.sae.stream import block_rows, sparse_acts
from saelib.split import wide
from saelib.split.children import Dictionary
from saelib.split.children_table import children_table
from saelib.split.detectors import KS, best_threshold, feature_mcc
from saelib.split.engine import SplitConfig, choose_K
from saelib.split.exported import child_numbers
from saelib.split.methods import Method, Outcome, Task, get_method, make
from saelib.split.parent import gather
from saelib.split.result import ParentSummary, describe_parent, write_result
from saelib.split.separation import Added, Separation, added, in_room_of, measure, summary
from saelib.split.split_count import split_count
from saelib.split.stability import iou
from saelib.split.swap import swap_table
from saelib.split.tokens import SPLITS, TokenSet
from saelib.split.work import LEAST_SHARE, Made, Work, columns

Sparse = dict[str, csc_array]
"""For each split, activations on the yardstick's tokens of P."""

COLUMNS: dict[str, str] = {
    **{f"S_{k}": f"separation of previous and next tokens (or named contexts) by {k} feature(s)" for k in KS},
    "S_2_low": "lower end of its 95% interval over documents",
    "S_2_high": "upper end",
    "added_2": "what is added to the rest of the SAE, by two features, of what is left there",
    "S_2_current": "S_2 of current tokens, apart: a lookup",
    "mcc_2": "mean MCC behind S_2",
    "ceiling": "mean MCC of a linear probe on the same contexts",
    "floor": "mean MCC of the parent's size, or of the token itself",
    "S_2_alone": "S_2 of the new features without the rest of the SAE",
    "fvu_on_P": "fraction of variance unexplained on P (test)",
    "l0_on_P": "features active on a token of P",
    "fvu": "the same on test text in general",
    "loss_recovered_on_P": "share of the model's loss that the SAE keeps, on P",
    "loss_recovered": "the same on test text in general",
    "leak": "foreign share of the firings of the new features (wide: of those that mark the contexts), at natural rates",
    "missed": "their share where the parent is silent and the token is in their context",
    "features": "features in the parent's place; of a wide SAE those that fire on at least 0.2% of P",
    "sibling_iou": "mean over children of the largest IoU with another child on P",
    "split_count": "features a judged context is split over, by k-sparse probes; mean",
    "verdict": "the strict verdict (local methods)",
    "passed": "contexts that pass it",
    "judged": "contexts that are judged and averaged in",
    "tokens_sae": "tokens trained on, repeats included",
    "tokens_lm": "tokens the language model read",
    "arithmetic": "multiplications and additions of training, as if dense",
    "seconds": "wall time of making it, for this parent alone",
    "seconds_shared": "training time of a wide SAE; one that depends on no parent serves all",
}
"""Name and meaning of the measures, in order."""


@dataclass(frozen=True)
class Judged:
    """What one method made of one parent."""

    method: str
    separation: Separation
    """Of what a person gets: rest + children, or the whole wide SAE."""
    added: Added
    """What that is above the rest."""
    row: dict[str, float | str]
    """The measures of `COLUMNS`."""
    sae: SAE | None
    """The new SAE; None for a readout."""
    numbers: tuple[int, ...]
    """Numbers in it of the new features; of a wide SAE those that fire on at least 0.2% of P."""
    fires: Bool[np.ndarray, "n_test K"] = field(repr=False)
    """Where they fire on P of test: above theta; features of a wide SAE above where each best marks its context (select)."""
    made: Made | None = field(default=None, repr=False)
    """A local method's children in the parent's place."""


class Judge:
    """One parent's yardstick with the rest of its SAE, against which any number of methods are measured."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.used = {s: work.tokens.on[s].where(work.yardstick.used[s]) for s in SPLITS}
        self.rest: Sparse = {s: work.rest_acts(s) for s in SPLITS}
        self.rest_separation = measure(work.yardstick, self.rest)

    def run(self, method: Method, task: Task, *, swap: bool = True) -> Judged:
        """Make and measure.

        Args:
            swap: also measure FVU and loss in general, which reads text with the language model.

        Raises:
            UserError: what the method refuses.
        """
        began = time.perf_counter()
        shared = task.meter.seconds_shared
        found = make(method, task)
        seconds = time.perf_counter() - began
        # A kept training took no time now; its own time counts once, for the parent if it depends on it.
        trained = task.meter.seconds_shared - shared
        if method.per_parent:
            seconds, task.meter.seconds_shared = max(seconds, trained), shared
        elif trained:
            seconds = 0.0
        if method.kind != "wide":
            task.meter.tokens_lm += sum(self.work.tokens.n_tokens.values())
        return self._measured(method, task, found, seconds, swap)

    def _measured(self, method: Method, task: Task, found: Outcome, seconds: float, swap: bool) -> Judged:
        work, yardstick = self.work, self.work.yardstick
        asked = self._permuted if method.permuted else work
        row: dict[str, float | str] = dict.fromkeys(COLUMNS, float("nan"))
        made: Made | None = None
        if isinstance(found, Dictionary):
            timed = time.perf_counter()
            made = asked.install(found, method.prune)
            seconds += time.perf_counter() - timed
            sae, numbers = made.sae, tuple(child_numbers(work.sae, len(made.theta)))
            alone: Sparse = {s: columns(made.acts["on"][s][yardstick.used[s]]) for s in SPLITS}
            beside = self._beside(alone)
        elif isinstance(found, SAE):
            sae, alone = found, {s: csc_array(sparse_acts(found, self.used[s].x)) for s in SPLITS}
            if (most := wide.most_leak(method.name)) is not None:
                alone = self._clean(found, alone, most)
            live = np.diff(alone["select"].indptr) >= LEAST_SHARE * alone["select"].shape[0]
            numbers = tuple(np.flatnonzero(live).tolist())
            beside = alone
        else:
            sae, numbers = None, ()
            alone = {s: csc_array(_rows(found[s], work, s)) for s in SPLITS}
            beside = self._beside(alone)
        nothing = alone["test"].shape[1] == 0
        separation = self.rest_separation if nothing else measure(asked.yardstick, beside)
        adds = added(self.rest_separation, separation, yardstick)
        if method.permuted:
            separation = in_room_of(yardstick, separation, asked.yardstick)
            row |= {f"S_{k}": separation.S[k].value for k in KS}
            row |= {"S_2_low": separation.S[2].low, "S_2_high": separation.S[2].high}
        else:
            row |= self._separations(separation, adds, beside, alone, made is not None)
        theta = self._own_thresholds(alone["select"], numbers) if isinstance(found, SAE) else np.zeros(len(numbers))
        fires = self._fires(sae, numbers, theta)
        if sae is not None:
            row |= self._on_parent(sae)
            row |= self._leaks(sae, numbers, separation, chosen_only=made is None)
            if swap:
                table = swap_table(task.acts, work.original, sae, work.tokens.on["test"].rows)
                on, overall = (table.loc[where].to_dict() for where in ("on P", "overall"))
                row |= {"loss_recovered_on_P": float(on["loss_recovered_after"]), "fvu": float(overall["fvu_after"])}
                row["loss_recovered"] = float(overall["loss_recovered_after"])
        if made is not None:
            row |= _strict(asked, made, None if method.permuted else self.rest_separation)
            between = iou(fires, fires)
            np.fill_diagonal(between, 0)
            row["sibling_iou"] = float(between.max(1).mean()) if len(numbers) > 1 else 0.0
        meter = task.meter
        among = yardstick.averaged
        if among.any():
            row["ceiling"], row["floor"] = (
                float(draws[0, among].mean()) for draws in (yardstick.ceiling_draws, yardstick.floor_draws)
            )
        row |= {"features": float(len(numbers) or alone["test"].shape[1]), "judged": float(yardstick.averaged.sum())}
        row |= {
            "tokens_sae": float(meter.tokens_sae),
            "tokens_lm": float(meter.tokens_lm),
            "arithmetic": meter.arithmetic,
            "seconds": seconds,
            "seconds_shared": meter.seconds_shared,
        }
        return Judged(method.name, separation, adds, row, sae, numbers, fires, made)

    def _beside(self, alone: Sparse) -> Sparse:
        return {s: csc_array(hstack([self.rest[s], alone[s]], format="csc")) for s in SPLITS}

    @cached_property
    def _permuted(self) -> Work:
        """The same tokens with contexts dealt out at random, before anything is chosen."""
        work = self.work
        return Work(work.original, work.tokens, work.labels.permuted(0), work.off_member)

    def _separations(
        self, separation: Separation, adds: Added, beside: Sparse, alone: Sparse, local: bool
    ) -> dict[str, float | str]:
        yardstick = self.work.yardstick
        current = yardstick.judged & np.array([c.kind == "current" for c in yardstick.contexts], dtype=bool)
        counts = [
            split_count(beside, {s: yardstick.member[s][:, c] for s in ("train", "select")})[0]
            for c in np.flatnonzero(yardstick.averaged)
        ]
        row: dict[str, float | str] = {f"S_{k}": separation.S[k].value for k in KS}
        row |= {"S_2_low": separation.S[2].low, "S_2_high": separation.S[2].high, "added_2": adds.ratio[2].value}
        row["S_2_current"] = summary(yardstick, separation.draws, current)[0][2].value
        row["mcc_2"] = separation.raw[2].value
        row["split_count"] = float(np.mean(counts)) if counts else float("nan")
        if beside is alone:  # a whole SAE
            row["S_2_alone"] = row["S_2"]
        elif not local and alone["test"].shape[1]:
            row["S_2_alone"] = measure(yardstick, alone).S[2].value
        return row

    @torch.no_grad()
    def _fires(
        self, sae: SAE | None, numbers: tuple[int, ...], theta: Float[np.ndarray, " K"]
    ) -> Bool[np.ndarray, "n_test K"]:
        on = self.work.tokens.on["test"]
        if sae is None:
            return np.zeros((len(on), 0), dtype=bool)
        return _chosen(sae, on.x, list(numbers)) > theta

    @torch.no_grad()
    def _on_parent(self, sae: SAE) -> dict[str, float]:
        """FVU and L0 on P of test."""
        on = self.work.tokens.on["test"]
        error, active = 0.0, 0.0
        for x in _blocks(on, sae):
            out = sae(x)
            error += float((out.x_hat - x).square().sum())
            active += float((out.feature_acts > 0).sum())
        spread = float((on.x - on.x.mean(0)).square().sum())
        return {"fvu_on_P": error / max(spread, 1e-12), "l0_on_P": active / max(len(on), 1)}

    def _leaks(self, sae: SAE, numbers: tuple[int, ...], separation: Separation, chosen_only: bool) -> dict[str, float]:
        """Missed and foreign shares of all firings together; of a wide SAE those of the feature that marks each context best."""
        theta = None
        if chosen_only:
            pairs = [
                (c.features[0], i) for i, c in enumerate(separation.contexts) if c.judged and c.primary and c.features
            ]
            features, contexts = [j for j, _ in pairs], np.array([i for _, i in pairs], dtype=np.int64)
            theta = self._thresholds(_chosen(sae, self.used["select"].x, features), contexts)
        else:
            features, contexts = list(numbers), self._contexts_of(sae, numbers)
        if not features:
            return {}
        missed, foreign, firings = leak_shares(self.work, sae, features, contexts, "test", theta)
        total = max(float(firings.sum()), 1e-12)
        return {"leak": float((foreign * firings).sum() / total), "missed": float((missed * firings).sum() / total)}

    @torch.no_grad()
    def _contexts_of(self, sae: SAE, numbers: tuple[int, ...]) -> np.ndarray:
        """The context that each feature marks best on select."""
        acts = csc_array(_chosen(sae, self.used["select"].x, list(numbers)))
        return feature_mcc(acts, self.work.yardstick.member["select"]).argmax(1)

    def _thresholds(self, acts: Float[np.ndarray, "n K"], contexts: np.ndarray) -> Float[np.ndarray, " K"]:
        """Where each feature marks its context best on select: below it nobody would say that it fires for it."""
        member = self.work.yardstick.member["select"]
        return np.array([best_threshold(acts[:, j], member[:, c]).t for j, c in enumerate(contexts)])

    def _own_thresholds(self, select: csc_array, numbers: tuple[int, ...]) -> Float[np.ndarray, " K"]:
        """For features of a wide SAE, which have none of their own: where each marks best the context it marks best."""
        acts = select[:, list(numbers)]
        contexts = feature_mcc(acts, self.work.yardstick.member["select"]).argmax(1)
        return self._thresholds(acts.toarray(), contexts)

    def _clean(self, sae: SAE, acts: Sparse, most: float) -> Sparse:
        """The columns of features whose foreign leak on select is at most `most`; the others are emptied."""
        live = np.flatnonzero(np.diff(acts["select"].indptr))
        contexts = feature_mcc(acts["select"][:, live], self.work.yardstick.member["select"]).argmax(1)
        theta = self._thresholds(acts["select"][:, live].toarray(), contexts)
        _, foreign, _ = leak_shares(self.work, sae, live.tolist(), contexts, "select", theta)
        keep = np.zeros(acts["select"].shape[1])
        keep[live[foreign <= most]] = 1
        out = {}
        for split, part in acts.items():
            kept = csc_array(part.multiply(keep[None]))
            kept.eliminate_zeros()
            out[split] = kept
        return out


def _strict(work: Work, made: Made, rest: Separation | None) -> dict[str, float | str]:
    """The verdict on exported children (one seed: it cannot read `graded`), and what they tell apart without the rest."""
    rest = rest or measure(work.yardstick, {s: work.rest_acts(s) for s in SPLITS})
    children = work.alone(made.acts["on"])
    found = work.judge(made, {"rest": rest, "children": children}, None)
    return {"verdict": str(found.verdict), "passed": float(found.passed), "S_2_alone": children.S[2].value}


@torch.no_grad()
def leak_shares(
    work: Work, sae: SAE, features: list[int], contexts: np.ndarray, split: str, theta: np.ndarray | None = None
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """For each feature the missed and the foreign share of its firings, and its firings in the text (see `saelib.split.leak`).

    Args:
        contexts: each feature's context, a number in the yardstick.
        split: select or test.
        theta: a feature fires above this; None is 0.
    """
    above = np.zeros(len(features)) if theta is None else theta
    chosen, total = torch.tensor(features), np.zeros(len(features))
    missed, silent = np.zeros(len(features)), np.zeros(len(features))
    inside = work.off_member[split]
    for name in ("on", "weak", "off"):
        part: TokenSet = getattr(work.tokens, name)[split]
        weight = getattr(work.tokens, f"n_{name}")[split] / max(len(part), 1)
        at = 0
        for x in _blocks(part, sae, len(features)):
            fired = sae.encode_features(x, chosen).numpy() > above
            total += weight * fired.sum(0)
            if name == "off":
                silent += weight * fired.sum(0)
                missed += weight * (fired & inside[at : at + len(x)][:, contexts]).sum(0)
            at += len(x)
    safe = np.maximum(total, 1e-12)
    return missed / safe, (silent - missed) / safe, total


def _blocks(part: TokenSet, sae: SAE, n_features: int | None = None) -> Iterator[Tensor]:
    size = block_rows(sae.cfg.d_sae if n_features is None else sae.n_encoded(n_features))
    for begin in range(0, len(part), size):
        yield part.x[begin : begin + size]


@torch.no_grad()
def _chosen(sae: SAE, x: Float[Tensor, "n d_in"], features: list[int]) -> Float[np.ndarray, "n K"]:
    """Some features' activations."""
    if not features:
        return np.zeros((len(x), 0), dtype=np.float32)
    chosen, size = torch.tensor(features), block_rows(sae.n_encoded(len(features)))
    return np.concatenate([sae.encode_features(x[i : i + size], chosen).numpy() for i in range(0, len(x), size)])


def _rows(columns: Any, work: Work, split: str) -> Any:
    """The yardstick's tokens of activations that have a row for every token of P."""
    used, n = work.yardstick.used[split], len(work.tokens.on[split])
    if columns.shape[0] not in (n, len(used)):
        raise UserError(
            f"activations need a row for each of the {n} tokens of P on {split}", columns.shape[0], "mend it"
        )
    return columns[used] if columns.shape[0] == n else columns


# --- `saelib split --method` ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MethodSplit:
    """One feature, split by a method that is not ours: measured as ours is, with the rest alone beside it."""

    method: Method
    parent: ParentSummary
    contexts: pd.DataFrame
    """One row a context, as in `Separation.frame`, and `rest_mcc_2`, what two features of the rest reach."""
    children: pd.DataFrame
    """A local method's children, as in `Split.children`; of a wide SAE, one row a judged context: the feature that marks it."""
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
        narrow = [c for c in ("context", "feature", "name", "share", "mcc", "leak") if c in self.children]
        lines.append(self.children[narrow].head(30).to_string(index=False, float_format=lambda v: f"{v:.2f}"))
        if isinstance(verdict := self.judged.row["verdict"], str):
            lines += ["", f"verdict: {verdict}"]
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
        name: a method; for `children` see `saelib.split`, which also says how stable it is and shows the controls.
        budget: width and tokens of a wide method; None is four times the SAE's width and 4.1M tokens.

    Raises:
        UserError: an unknown method, what it refuses, and what `saelib.split.engine.split_feature` does.
    """
    method, cfg = get_method(name), config or SplitConfig()
    tokens = gather(acts, sae, feature, cfg.tau)
    work = Work.of(acts, tokens, sae, cfg.contexts, cfg.least)
    K = choose_K(work.targets, work.select_pools, cfg)[0] if method.kind != "wide" else 1
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
        _children(acts, judge_, found),
        rows,
        found,
        acts,
    )


def _children(acts: Activations, judge_: Judge, found: Judged) -> pd.DataFrame:
    """A local method's children as in `Split.children`; else, for each judged context, the feature that marks it best on select:
    context, feature, mcc (test), share, leak, missed."""
    work, yardstick = judge_.work, judge_.work.yardstick
    if found.made is not None:
        return children_table(acts.model, work, found.made, judge_.rest_separation).reset_index(drop=True)
    columns = ["context", "feature", "mcc", "share", "leak", "missed"]
    if found.sae is None or not found.numbers:
        return pd.DataFrame(columns=columns)
    own = {s: _chosen(found.sae, judge_.used[s].x, list(found.numbers)) for s in ("select", "test")}
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


__all__ = ["COLUMNS", "Judge", "Judged", "MethodSplit", "leak_shares", "split_by"]
