"""The parent: one feature of an SAE, the tokens it fires on, and what the rest of the SAE leaves for it to explain.

Notation: the SAE gives activations a(x) and a reconstruction x_hat; p is the parent, tau its threshold, d_p its decoder row.

    P    = tokens with a_p(x) > tau
    y(x) = x - x_hat(x) + a_p(x) d_p        what the rest leaves for the parent (and its children) to explain; `parent_target`

One streaming pass over each split's store finds P, a sample of the parent's weaker tokens and a sample of tokens on which it
is silent. Activations are held of these alone; of every other token the parent's own activation is (4 bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.sae.sae import SAE
from saelib.sae.stream import feature_activations, rows_at_once, sample_key
from saelib.split.tokens import SPLITS, ParentTokens, TokenSet

TAU_SHARE = 2 / 9.23
"""Default threshold, as a share of the parent's largest activation: that of the 2024 post (2 of 9.23)."""
_ROWS = 1 << 23
"""Rows among which a sample is drawn at once: some 30 bytes each are held meanwhile."""
LEAST_ON = 200
"""A parent with fewer tokens in P on train, or a quarter of it on select and test, is refused."""


@dataclass(frozen=True)
class Samples:
    """How much of a text is looked at."""

    on: int = 60_000
    """Tokens of P that are kept a split; a parent with more is sampled, and its natural rate is remembered."""
    weak: int = 20_000
    """Weaker tokens kept a split."""
    off_train: int = 100_000
    """Tokens of train kept on which the parent is silent: negatives."""
    off: int = 200_000
    """The same of select and of test, for thresholds; the leak is counted on all such tokens of test."""
    swapped_on: int = 300
    """Test contexts with tokens of P that the model reads with the SAE in place; of a deep model a fifth of them."""
    swapped: int = 48
    """The same of all test contexts; of a deep model a third."""
    unjudged: bool = True
    """Whether separation is measured on contexts that are not judged too; no verdict and no S_k rests on them."""


OVERVIEW = Samples(on=12_000, weak=4_000, off_train=25_000, off=50_000, swapped_on=48, swapped=16, unjudged=False)
"""For many parents at once: the same numbers with wider intervals. The leak is counted on all silent tokens here too: of a sample
its interval is so wide that hardly a context passes."""


@torch.no_grad()
def parent_target(sae: SAE, feature: int, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """What the rest leaves for the parent, in the space the decoder writes to.

    y = x - x_hat(x) + a_p(x) d_p; for an SAE that normalises its input, in units of the normalised activation.
    """
    found = []
    for rows in x.split(rows_at_once(sae.cfg.d_sae)):
        acts = sae.encode(rows)
        acts[:, feature] = 0
        found.append((rows - sae.decode(acts, rows)) / sae.normalised(rows).scale)
    return torch.cat(found)


def gather(
    acts: Activations, sae: SAE, feature: int, tau: float | None = None, samples: Samples | None = None,
    values: Mapping[str, Float[np.ndarray, " n"]] | None = None,
) -> ParentTokens:  # fmt: skip
    """Find P and samples of the rest in one pass a split.

    Args:
        tau: the parent is on above this; None is `TAU_SHARE` of its largest activation on the select split.
        values: the parent's activation on every token of each split, where a pass for many parents has found them.

    Raises:
        UserError: the feature is not one of the SAE, the SAE belongs to other activations, the parent never fires on the
            text, or P has fewer than `LEAST_ON` train tokens (a quarter of it on select or test).
    """
    if not 0 <= feature < sae.cfg.d_sae:
        raise UserError(f"feature must be in [0, d_sae={sae.cfg.d_sae})", feature, "pass a feature of the SAE")
    most, values = samples or Samples(), values or {s: _values(acts.stores[s], sae, feature, s) for s in SPLITS}
    largest = float(values["select"].max(initial=0.0))
    if largest <= 0:
        got = f"feature {feature} never fires on {len(values['select']):,} select tokens"
        raise UserError("the parent must fire on the text", got, "use more text, or another feature")
    tau = TAU_SHARE * largest if tau is None else tau
    if not (np.isfinite(tau) and 0 <= tau < largest):
        rule = f"tau must be a number from 0 to below the parent's largest activation, {largest:.3g}"
        raise UserError(rule, tau, "leave tau out, or lower it")
    parts: dict[str, dict[str, TokenSet]] = {"on": {}, "weak": {}, "off": {}}
    counts: dict[str, dict[str, int]] = {"on": {}, "weak": {}, "off": {}}
    for split in SPLITS:
        a = values[split]
        chosen = {"on": a > tau, "weak": (a > 0) & (a <= tau), "off": a == 0}
        off = most.off_train if split == "train" else most.off
        for name, n in (("on", most.on), ("weak", most.weak), ("off", off)):
            kept = sample_rows(chosen[name], n)
            counts[name][split] = int(np.count_nonzero(chosen[name]))
            part = token_set(acts, split, kept, a[kept])
            parts[name][split] = part.packed() if name == "off" and split != "train" else part
        least = LEAST_ON if split == "train" else LEAST_ON // 4
        if counts["on"][split] < least:
            rule = f"the parent must exceed tau={tau:.3g} on at least {least} {split} tokens"
            raise UserError(rule, counts["on"][split], "lower tau, use more text, or choose another feature")
    return ParentTokens(
        feature=feature, tau=tau, on=parts["on"], weak=parts["weak"], off=parts["off"],
        n_tokens={split: store.n_tokens for split, store in acts.stores.items()},
        n_on=counts["on"], n_weak=counts["weak"], n_off=counts["off"],
        silent=values["test"] == 0,
    )  # fmt: skip


@torch.no_grad()
def _values(store: ActivationStore, sae: SAE, feature: int, split: str) -> Float[np.ndarray, " n"]:
    """The parent's activation on every token of a store."""
    report_progress(f"parent on {split}", 0, store.n_tokens)
    out = feature_activations(store, sae, feature)
    if not np.isfinite(out).all():
        raise UserError("activations must be finite", f"NaN or infinity on {split}", "harvest them again")
    return out


def sample_rows(chosen: Bool[np.ndarray, " n"], most: int) -> Integer[np.ndarray, " _"]:
    """At most `most` of the chosen rows, always the same ones, ascending."""
    kept = np.zeros(0, dtype=np.int64)
    for begin in range(0, len(chosen), _ROWS):
        kept = np.concatenate([kept, begin + np.flatnonzero(chosen[begin : begin + _ROWS])])
        if len(kept) > most:
            kept = kept[np.argpartition(sample_key(kept), most)[:most]]
    return np.sort(kept)


def token_set(
    acts: Activations, split: str, rows: Integer[np.ndarray, " n"], parent: Float[np.ndarray, " n"], read: bool = True
) -> TokenSet:
    """The tokens on some rows of a split; `parent` is the parent's activation on them. Without `read`, `x` has no columns."""
    return TokenSet(
        rows=rows,
        x=acts.read(split, rows) if read else torch.empty(len(rows), 0),
        parent=parent,
        document=acts.documents(split, rows),
        previous=acts.beside(split, rows, -1),
        current=acts.beside(split, rows, 0),
        next=acts.beside(split, rows, 1),
    )
