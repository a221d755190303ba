"""Measure whatever a method made of a parent: separation, what it adds, leak, swap, in one row of numbers.

A dictionary is measured with the rest of the SAE beside it, as it is exported; a whole SAE by itself; activations with the rest
beside them. The yardstick is the parent's (`saelib.split.yardstick`), the same for all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csc_array, hstack

from saelib.sae.sae import SAE
from saelib.sae.stream import sparse_acts
from saelib.split import wide
from saelib.split.children import Dictionary
from saelib.split.detectors import KS, best_threshold, feature_mcc
from saelib.split.exported import child_numbers
from saelib.split.feature_parts import blocks, chosen_acts, leak_shares, rest_rows
from saelib.split.methods import Method, Outcome, Task, make
from saelib.split.separation import Added, Separation, added, in_room_of, measure, summary
from saelib.split.split_count import split_count
from saelib.split.stability import iou
from saelib.split.swap import Swaps
from saelib.split.tokens import SPLITS
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
        self.rest_separation = measure(work.yardstick, self.rest, work.yardstick.judged)
        self._swaps: Swaps | None = None

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
            made = asked.install(found, method.prune, method.most_leak)
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
            alone = {s: csc_array(rest_rows(found[s], work, s)) for s in SPLITS}
            beside = self._beside(alone)
        nothing = alone["test"].shape[1] == 0
        separation = self.rest_separation if nothing else measure(asked.yardstick, beside, yardstick.judged)
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
                self._swaps = self._swaps or Swaps(task.acts, work.original, work.tokens.on["test"].rows)
                table = self._swaps.table(sae)
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
            row["S_2_alone"] = measure(yardstick, alone, yardstick.judged).S[2].value
        return row

    @torch.no_grad()
    def _fires(
        self, sae: SAE | None, numbers: tuple[int, ...], theta: Float[np.ndarray, " K"]
    ) -> Bool[np.ndarray, "n_test K"]:
        on = self.work.tokens.on["test"]
        if sae is None:
            return np.zeros((len(on), 0), dtype=bool)
        return chosen_acts(sae, on.x, list(numbers)) > theta

    @torch.no_grad()
    def _on_parent(self, sae: SAE) -> dict[str, float]:
        """FVU and L0 on P of test."""
        on = self.work.tokens.on["test"]
        error, active = 0.0, 0.0
        for x in blocks(on, sae):
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
            theta = self._thresholds(chosen_acts(sae, self.used["select"].x, features), contexts)
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
        acts = csc_array(chosen_acts(sae, self.used["select"].x, list(numbers)))
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
    judged = work.yardstick.judged
    rest = rest or measure(work.yardstick, {s: work.rest_acts(s) for s in SPLITS}, judged)
    children = work.alone(made.acts["on"], judged)
    found = work.judge(made, {"rest": rest, "children": children}, None)
    return {"verdict": str(found.verdict), "passed": float(found.passed), "S_2_alone": children.S[2].value}
