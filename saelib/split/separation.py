"""Separation: how far a dictionary's features tell a parent's contexts apart, between what is free and what is possible.

    S_k = sum_c (mcc_k - floor) / sum_c (ceiling - floor)                 over judged primary contexts; primary outcome S_2
    added_k = (mcc_k(rest + children) - mcc_k(rest)) / (ceiling - mcc_k(rest))   where that is >= 0.2 on select

Every MCC is of test tokens; every choice is made on select. Nothing is clipped. Intervals draw documents once and
recompute every term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csc_array, issparse

from saelib.base.errors import UserError
from saelib.split.detectors import KS, feature_mcc, forward_path, no_path
from saelib.split.tokens import SPLITS
from saelib.split.yardstick import Interval, Reason, Yardstick, interval, make_yardstick

__all__ = [
    "KS",
    "Added",
    "ContextSeparation",
    "Interval",
    "Separation",
    "Yardstick",
    "added",
    "make_yardstick",
    "measure",
]

LEAST_ROOM = 0.2
"""Ceiling less the rest's MCC on select from which children are asked to add something."""


@dataclass(frozen=True)
class ContextSeparation:
    """One context."""

    context: str
    """Its name."""
    kind: str
    """`class`, `rule`, `previous`, `next` or `current`."""
    primary: bool
    """Whether it is averaged into S_k where it is judged."""
    n_select: int
    """Its tokens on select."""
    n_test: int
    """Its tokens on test."""
    mcc: dict[int, Interval]
    """For k = 1, 2, 4 features, MCC on test."""
    features: tuple[int, ...]
    """The features chosen, in order: columns of the activations that were measured."""
    ceiling: Interval
    """MCC on test of a linear probe."""
    floor: Interval
    """MCC on test of the parent's size or the token itself."""
    judged: bool
    """Ceiling - floor >= 0.3 on select, and enough tokens."""
    reason: str
    """Why it is not judged (a `Reason`); empty where it is."""


@dataclass(frozen=True)
class Separation:
    """One dictionary on one parent's contexts."""

    contexts: tuple[ContextSeparation, ...]
    """In the order of the yardstick."""
    S: dict[int, Interval]
    """For k = 1, 2, 4, the ratio of sums; NaN where no primary context is judged."""
    raw: dict[int, Interval]
    """For k = 1, 2, 4, the mean MCC of the judged primary contexts."""
    select_mcc: dict[int, Float[np.ndarray, " m"]] = field(repr=False)
    """For k = 1, 2, 4, MCC on select of each context's detector."""
    fires: dict[int, Bool[np.ndarray, "n_test m"]] = field(repr=False)
    """For k = 1, 2, 4, where each context's detector fires on the used test tokens."""
    draws: dict[int, Float[np.ndarray, "draws m"]] = field(repr=False)
    """For k = 1, 2, 4, MCC on test: first of all documents, then of every draw."""

    def frame(self) -> pd.DataFrame:
        """One row a context; an interval fills three columns: `mcc_1`, `mcc_1_low`, `mcc_1_high`."""
        rows = []
        for c in self.contexts:
            row: dict[str, Any] = {"context": c.context, "kind": c.kind, "primary": c.primary, "judged": c.judged}
            row |= {"reason": c.reason, "n_select": c.n_select, "n_test": c.n_test}
            named = {f"mcc_{k}": value for k, value in c.mcc.items()} | {"ceiling": c.ceiling, "floor": c.floor}
            for name, (value, low, high) in named.items():
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            rows.append(row | {"features": " ".join(map(str, c.features))})
        return pd.DataFrame(rows)


def measure(yardstick: Yardstick, acts: Mapping[str, Any], among: Bool[np.ndarray, " m"] | None = None) -> Separation:
    """Measure a dictionary.

    Args:
        acts: for train, select and test its activations on P, (n, F), at least 0: an array, a tensor or a scipy sparse
            matrix, with a row for every token of P or only for those of `yardstick.used`.
        among: the contexts that are measured, such as those that are judged; the others get NaN. None: all.

    Raises:
        UserError: rows that are neither, splits of different width, negative or infinite activations.
    """
    sparse = {split: _sparse(yardstick, split, acts[split]) for split in SPLITS}
    if len(widths := {part.shape[1] for part in sparse.values()}) != 1:
        raise UserError("the splits must have the same features", sorted(widths), "encode them with one dictionary")
    member = yardstick.member
    asked = np.ones(len(yardstick.contexts), dtype=bool) if among is None else among
    single = feature_mcc(sparse["select"], member["select"])
    nothing = no_path(sparse["test"].shape[0])
    paths = [
        forward_path(sparse, {s: member[s][:, c] for s in ("train", "select")}, single[:, c]) if asked[c] else nothing
        for c in range(len(asked))
    ]
    fires = {k: np.stack([path.fires[k] for path in paths], axis=1) for k in KS}
    draws = {k: np.where(asked, yardstick.documents.mcc(fires[k], member["test"]), np.nan) for k in KS}
    ratio, mean = summary(yardstick, draws)
    return Separation(
        contexts=tuple(_context(yardstick, c, draws, path.features) for c, path in enumerate(paths)),
        S=ratio,
        raw=mean,
        select_mcc={k: np.array([path.select_mcc[k] for path in paths]) for k in KS},
        fires=fires,
        draws=draws,
    )


def summary(
    yardstick: Yardstick,
    draws: Mapping[int, Float[np.ndarray, "draws m"]],
    among: Bool[np.ndarray, " m"] | None = None,
) -> tuple[dict[int, Interval], dict[int, Interval]]:
    """S_k and the mean raw MCC, over the judged primary contexts or over those in `among`; NaN where there are none."""
    among = yardstick.averaged if among is None else among
    floor = yardstick.floor_draws[:, among]
    room = (yardstick.ceiling_draws[:, among] - floor).sum(1)
    S = {k: interval(_ratio((value[:, among] - floor).sum(1), room)) for k, value in draws.items()}
    with np.errstate(invalid="ignore"):
        raw = {k: interval(value[:, among].sum(1) / np.float64(among.sum())) for k, value in draws.items()}
    return S, raw


def in_room_of(yardstick: Yardstick, separation: Separation, permuted: Yardstick) -> Separation:
    """Separation under permuted labels, in units of the true labels' room: under permuted ones there is none to divide by.

    Args:
        yardstick: with the true labels.
        separation: measured with `permuted`.
    """
    among = yardstick.averaged
    room = (yardstick.ceiling_draws - yardstick.floor_draws)[:, among].sum(1)
    S = {k: interval(_ratio((d - permuted.floor_draws)[:, among].sum(1), room)) for k, d in separation.draws.items()}
    return replace(separation, S=S)


def _context(
    yardstick: Yardstick, c: int, draws: Mapping[int, np.ndarray], features: tuple[int, ...]
) -> ContextSeparation:
    context = yardstick.contexts[c]
    return ContextSeparation(
        context=context.name,
        kind=context.kind,
        primary=context.primary,
        n_select=int(yardstick.member["select"][:, c].sum()),
        n_test=int(yardstick.member["test"][:, c].sum()),
        mcc={k: interval(value[:, c]) for k, value in draws.items()},
        features=features,
        ceiling=interval(yardstick.ceiling_draws[:, c]),
        floor=interval(yardstick.floor_draws[:, c]),
        judged=bool(yardstick.judged[c]),
        reason=yardstick.reasons[c],
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _sparse(yardstick: Yardstick, split: str, acts: Any) -> csc_array:
    """The activations of the used tokens in compressed columns."""
    used, n = yardstick.used[split], yardstick.n_tokens[split]
    if acts.shape[0] not in (n, len(used)):
        got = f"{acts.shape[0]} rows of {split}"
        raise UserError(
            f"activations need a row for each of the {n} tokens of P, or of the {len(used)} used", got, "pass one"
        )
    whole = acts.shape[0] != len(used)
    if issparse(acts):
        out = csc_array(acts.tocsr()[used] if whole else acts)
        out.eliminate_zeros()
    else:
        dense = torch.as_tensor(acts)
        dense = dense[torch.from_numpy(used)] if whole else dense
        across = dense.T.contiguous().numpy()
        feature, token = np.nonzero(across)
        begins = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=len(across)))])
        out = csc_array((across[feature, token], token, begins), shape=tuple(dense.shape))
    if len(out.data) and not (np.isfinite(out.data).all() and out.data.min() > 0):
        raise UserError(
            "activations must be finite and at least 0", f"{out.data.min()} on {split}", "encode with a ReLU"
        )
    return out


# --- what a split adds --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Added:
    """What children add to the rest of their SAE."""

    contexts: tuple[str, ...]
    """Names, in the order of the yardstick."""
    defined: dict[int, Bool[np.ndarray, " m"]]
    """For k = 1, 2, 4, whether the context is judged and the rest leaves at least `LEAST_ROOM` on select."""
    values: dict[int, tuple[Interval, ...]]
    """For k = 1, 2, 4, each context's added_k; NaN where it is not defined."""
    reasons: dict[int, tuple[Reason, ...]]
    """Why it is not defined; `NONE` where it is."""
    ratio: dict[int, Interval]
    """For k = 1, 2, 4, the ratio of sums over the primary contexts where it is defined."""
    draws: dict[int, Float[np.ndarray, "draws m"]] = field(repr=False)
    """Each context's added_k in every draw of documents."""


def added(rest: Separation, both: Separation, yardstick: Yardstick) -> Added:
    """added_k of rest + children (`both`) against the rest, both measured with this yardstick."""
    primary, judged = yardstick.averaged, yardstick.judged
    defined, values, reasons, ratio, draws = {}, {}, {}, {}, {}
    for k in KS:
        apart = yardstick.ceiling.select_mcc - rest.select_mcc[k] < LEAST_ROOM
        defined[k] = judged & ~apart
        gain = both.draws[k] - rest.draws[k]
        room = yardstick.ceiling_draws - rest.draws[k]
        each = np.divide(gain, room, out=np.full(room.shape, np.nan), where=(room > 0) & defined[k])
        draws[k] = each
        values[k] = tuple(interval(each[:, c]) for c in range(each.shape[1]))
        reasons[k] = tuple(
            Reason.TOLD_APART if judged[c] and apart[c] else reason for c, reason in enumerate(yardstick.reasons)
        )
        among = defined[k] & primary
        ratio[k] = interval(_ratio(gain[:, among].sum(1), room[:, among].sum(1)))
    names = tuple(context.name for context in yardstick.contexts)
    return Added(names, defined, values, reasons, ratio, draws)
