"""Replacing: after a warm start, who takes over from the parent, and when; and what speeds it up (the 2024 post's next step 3).

A wide SAE that starts as the narrow one holds the parent at its old number. Its first steps are recorded one by one, on select
hyphens that join words and on which the narrow SAE's parent is on: for each class the share of tokens whose largest feature (by
`|a_j d_j|`) is the parent, another copy of the narrow SAE, or a fresh feature; the feature that is largest most often besides the
parent, and its cosine to the parent's old row; loss and FVU on these tokens.

A class is *replaced* at the first step from which on the parent is the largest feature on less than half of its tokens.

Interventions change the initial SAE only:

    decoder     the parent's decoder row is drawn anew              encoder     its encoder column and bias are
    both        both are                                            children    both, and fresh features start as the children
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.acts.batches import ShuffledBatches
from saelib.base.cache import content_key, kept_json
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.sae.initial import init_from_narrow, kaiming_uniform, unit_rows
from saelib.sae.kept import sae_key, train_once, weights_hash
from saelib.sae.sae import SAE
from saelib.sae.scaled import finite_acts
from saelib.split.children import ChildrenConfig
from saelib.split.classes import CLASSES
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.parent import parent_target
from saelib.study import selection, study, texts, trainings
from saelib.study.hyphen_scale import separation_of
from saelib.study.profiles import Profile, get_profile

INTERVENTIONS = ("none", "decoder", "encoder", "both", "children")
WATCHED = 256
"""Select tokens of each class that are looked at after every step."""
END_TOKENS = 20_000
"""Test tokens on which FVU off P is measured at the end."""
_CODE = ("sae.scaled", "study.replacing")
_CHILDREN_CODE = (*_CODE, "split.children", "split.engine", "split.exported", "split.how_many", "split.work")


@dataclass(frozen=True)
class ReplacingArm:
    """A warm start that is watched."""

    name: str
    text: str
    intervention: str = "none"
    """One of `INTERVENTIONS`."""
    zero_parent: bool = False
    """Whether the loss sets the parent's activation to zero."""

    @property
    def code(self) -> tuple[str, ...]:
        """What computes it."""
        return _CHILDREN_CODE if self.intervention == "children" else _CODE


ARMS = (
    ReplacingArm("warm", "as it is"),
    ReplacingArm("zeroed", "parent zeroed in the loss", zero_parent=True),
    ReplacingArm("decoder", "parent's decoder row drawn anew", "decoder"),
    ReplacingArm("encoder", "parent's encoder column drawn anew", "encoder"),
    ReplacingArm("both", "parent's row and column drawn anew", "both"),
    ReplacingArm("children", "children in the parent's place", "children"),
)


# --- where a training starts -------------------------------------------------------------------------------------------


class Starts(NamedTuple):
    """Features that take the parent's place."""

    W_enc: Float[Tensor, "d K"]
    b_enc: Float[Tensor, " K"]
    W_dec: Float[Tensor, "K d"]


@torch.no_grad()
def intervene(
    sae: SAE, feature: int, how: str, generator: torch.Generator, place: tuple[int, Starts] | None = None
) -> SAE:
    """A copy of a warm start in which the parent is changed.

    Args:
        how: one of `INTERVENTIONS`.
        place: for `children`, the first of the features they replace, and the children.

    Raises:
        UserError: an unknown intervention; children without a place, or more than there are features from there on.
    """
    if how not in INTERVENTIONS:
        raise UserError(f"intervention must be one of {', '.join(INTERVENTIONS)}", repr(how), "pass one of these")
    out = copy.deepcopy(sae)
    d_in, d_sae = out.W_enc.shape
    column = kaiming_uniform((d_in, d_sae), generator)[:, feature]
    row = unit_rows(kaiming_uniform((d_sae, d_in), generator))[feature]
    if how in ("encoder", "both", "children"):
        out.W_enc[:, feature] = column
        out.b_enc[feature] = 0
    if how in ("decoder", "both", "children"):
        out.W_dec[feature] = row
    if how == "children":
        if place is None or place[0] + len(place[1].b_enc) > d_sae:
            raise UserError("children need features to replace", d_sae, "pass a first feature with room after it")
        at = slice(place[0], place[0] + len(place[1].b_enc))
        out.W_enc[:, at], out.b_enc[at], out.W_dec[at] = place[1].W_enc, place[1].b_enc, place[1].W_dec
    return out


@torch.no_grad()
def children_starts(
    acts: Float[Tensor, "n K"], y: Float[Tensor, "n d"], encoder: tuple[Tensor, Tensor, Tensor]
) -> Starts:
    """Children as features of a ReLU SAE that has no parent beside them.

    Child j's row is the direction of the mean of y (what the rest leaves for the parent) over the tokens on which it is the
    largest child; its encoder (column, bias less threshold) is scaled so that on these tokens its mean activation is the mean of
    y along the row. Children that are largest nowhere are left out.

    Args:
        acts: the children's activations on P.
        encoder: their columns (d, K), biases (K,) and thresholds (K,).

    Raises:
        UserError: no child is largest anywhere.
    """
    W, b, threshold = encoder
    largest = torch.where(acts.amax(1) > 0, acts.argmax(1), -1)
    kept = [j for j in range(acts.shape[1]) if bool((largest == j).any())]
    if not kept:
        raise UserError("some child must fire on the parent's tokens", 0, "train the children again")
    rows, scales = [], []
    for j in kept:
        own = largest == j
        row = torch.nn.functional.normalize(y[own].mean(0), dim=0)
        above = (acts[own, j] - threshold[j]).mean().clamp_min(1e-6)
        rows.append(row)
        scales.append((y[own] @ row).mean() / above)
    scale = torch.stack(scales)
    return Starts(W[:, kept] * scale, (b - threshold)[kept] * scale, torch.stack(rows))


@functools.lru_cache(maxsize=1)
def children_of(profile: Profile) -> Starts:
    """The children of the study's parent as `children_starts`, made once."""
    narrow, chosen = study.narrow_sae(profile).sae, selection.parent(profile)
    training = ChildrenConfig() if profile.children_steps is None else ChildrenConfig(n_steps=profile.children_steps)
    K = profile.children_K or training.K
    cfg = SplitConfig(contexts="hyphen", tau=chosen.tau, K=K, seeds=1, controls=False, children=training)
    split = split_feature(narrow, chosen.feature, texts.of_profile(profile), cfg)
    numbers, x = torch.tensor(split.numbers), split.tokens.on["train"].x
    with torch.no_grad():
        y = parent_target(narrow, chosen.feature, x)
        encoder = (split.sae.W_enc[:, numbers], split.sae.b_enc[numbers], split.sae.threshold[numbers])
        return children_starts(split.sae.encode_features(x, numbers), y, encoder)


# --- what is recorded ----------------------------------------------------------------------------------------------------


class Watch:
    """The probe of a training: who is the largest feature on the watched tokens.

    Columns of a call: for each class c `parent_<c>`, `copy_<c>`, `fresh_<c>`, `none_<c>` (shares of its tokens, adding up to 1),
    `winner_<c>` (the feature that is largest most often, the parent left out; -1 for none) and `winner_cosine_<c>`; `loss_P` and
    `fvu_P`.
    """

    def __init__(self, narrow: SAE, feature: int, x: Float[Tensor, "n d"], label: np.ndarray, price: float) -> None:
        self.feature, self.n_copies, self.price = feature, narrow.cfg.d_sae, price
        self.row = narrow.W_dec[feature].detach().clone()
        self.x, self.label = x, torch.from_numpy(label.astype(np.int64))
        self.spread = (x - x.mean(0)).square().sum()
        self.zero_parent = False

    @torch.no_grad()
    def __call__(self, sae: SAE) -> dict[str, float]:
        """The columns for an SAE."""
        acts = finite_acts(sae, self.x)
        size = acts * sae.W_dec.norm(dim=1)
        top = torch.where(size.amax(1) > 0, size.argmax(1), -1)
        if self.zero_parent:
            acts[:, self.feature] = 0
        square = (sae.decode(acts) - self.x).square().sum(1)
        row = {
            "loss_P": float(square.mean() + self.price * acts.sum(1).mean()),
            "fvu_P": float(square.sum() / self.spread),
        }
        for c, name in enumerate(CLASSES):
            row |= {f"{key}_{name}": value for key, value in self._of_class(sae, top[self.label == c]).items()}
        return row

    def _of_class(self, sae: SAE, top: Tensor) -> dict[str, float]:
        n = len(top)
        if n == 0:
            return dict.fromkeys(("parent", "copy", "fresh", "none", "winner", "winner_cosine"), math.nan)
        parent, none = top == self.feature, top < 0
        fresh = top >= self.n_copies
        counts = {"parent": parent, "copy": ~(parent | none | fresh), "fresh": fresh, "none": none}
        row = {name: float(mask.sum()) / n for name, mask in counts.items()}
        others = top[~(parent | none)]
        if not len(others):
            return row | {"winner": -1.0, "winner_cosine": math.nan}
        winner = int(others.bincount().argmax())
        cosine = torch.nn.functional.cosine_similarity(sae.W_dec[winner], self.row, dim=0)
        return row | {"winner": float(winner), "winner_cosine": float(cosine)}


# --- the trainings -------------------------------------------------------------------------------------------------------


def watched_tokens(profile: Profile) -> tuple[Tensor, np.ndarray]:
    """Select hyphens on which the parent is on, at most `WATCHED` a class, and their classes."""
    chosen, narrow = selection.parent(profile), study.narrow_sae(profile).sae
    rows, label = study.joining_hyphens(profile, "select")
    x = study.activations(profile, "select").rows(rows)
    with torch.no_grad():
        on = (narrow.encode_feature(x, chosen.feature) > chosen.tau).numpy()
    kept = np.sort(np.concatenate([np.flatnonzero(on & (label == c))[:WATCHED] for c in range(len(CLASSES))]))
    return x[torch.from_numpy(kept)], label[kept]


def watch_arm(profile: Profile, arm: ReplacingArm, seed: int) -> study.TrainResult:
    """Train the first steps of one seed of an arm, recorded step by step, or open them.

    The history has a row after every step from 0 to `replacing_steps` - 1, with the columns of `Watch`.
    """
    narrow, chosen = study.narrow_sae(profile).sae, selection.parent(profile)
    l1_coeff, n_steps = study.coefficient(profile).l1_coeff, profile.replacing_steps
    zeroed = chosen.feature if arm.zero_parent else None
    cfg = replace(study.train_config(profile, l1_coeff, n_steps, seed, zeroed), log_every=1, reinit_every=0)
    sae_cfg = study.sae_config(
        profile, profile.d_sae_wide, l1_coeff=l1_coeff, seed=seed, start="narrow", intervention=arm.intervention,
        parent=chosen.feature, tau=chosen.tau, zero_parent=arm.zero_parent, n_steps=n_steps,
    )  # fmt: skip
    key = content_key(
        store=study.activations(profile, "train").key, narrow=weights_hash(narrow), sae=sae_cfg.to_dict(),
        cfg=repr(cfg), watched=WATCHED, code=code_version(*arm.code),
    )  # fmt: skip

    def begin() -> tuple[SAE, ShuffledBatches]:
        generator = torch.Generator().manual_seed(seed)
        warm = init_from_narrow(narrow, sae_cfg, False, generator)
        place = (narrow.cfg.d_sae, children_of(profile)) if arm.intervention == "children" else None
        batches = ShuffledBatches(trainings.view(profile, "context", chosen), profile.batch_size, seed)
        return intervene(warm, chosen.feature, arm.intervention, generator, place), batches

    watch = Watch(narrow, chosen.feature, *watched_tokens(profile), price=l1_coeff * profile.batch_size)
    watch.zero_parent = arm.zero_parent
    return train_once(key, f"replacing-{arm.name}-{seed}", begin, cfg, watch)


@torch.no_grad()
def end_measures(profile: Profile, arm: ReplacingArm, seed: int) -> dict[str, float]:
    """The SAE after the last step, kept in the cache: `S_1`, `S_2` (see `saelib.study.hyphen_scale`), FVU on test tokens with the
    parent on (`fvu_on`) and without (`fvu_off`). A zeroed parent is silent in both FVUs, as in the loss."""
    chosen, sae = selection.parent(profile), watch_arm(profile, arm, seed).sae
    store = study.activations(profile, "test")
    key = content_key(
        sae=sae_key(sae), store=store.key, parent=chosen, zeroed=arm.zero_parent,
        code=code_version(*arm.code, "study.hyphen_scale"),
    )  # fmt: skip

    def measure() -> dict[str, float | None]:
        found = separation_of(profile, chosen, sae)
        value = selection.parent_on(profile, "test", chosen.feature)
        rng = np.random.default_rng(0)
        for name, rows in (("fvu_on", np.flatnonzero(value > chosen.tau)), ("fvu_off", np.flatnonzero(value == 0))):
            kept = np.sort(rng.choice(rows, min(END_TOKENS, len(rows)), replace=False))
            found[name] = fvu(sae, store.rows(kept), chosen.feature if arm.zero_parent else None)
        return {name: number if math.isfinite(number) else None for name, number in found.items()}

    kept = kept_json("replacing", key, measure)
    return {name: math.nan if number is None else float(number) for name, number in kept.items()}


@torch.no_grad()
def fvu(sae: SAE, x: Float[Tensor, "n d"], silenced: int | None = None) -> float:
    """sum |x_hat - x|^2 / sum |x - mean x|^2, with one feature's activation set to 0 where one is named; NaN without spread."""
    acts = finite_acts(sae, x)
    if silenced is not None:
        acts[:, silenced] = 0
    spread = float((x - x.mean(0)).square().sum())
    return float((sae.decode(acts, x) - x).square().sum()) / spread if spread > 0 else math.nan


def run_part_job(profile: str, part: int, parts: int) -> dict[str, int]:
    """Train and measure every `parts`-th seed of all arms: the work behind notebook 14, one process a part."""
    settings = get_profile(profile)
    torch.set_num_threads(settings.threads_per_run)
    mine = [(arm, seed) for arm in ARMS for seed in range(settings.replacing_seeds)][part::parts]
    for i, (arm, seed) in enumerate(mine):
        end_measures(settings, arm, seed)
        report_progress(f"replacing, part {part + 1} of {parts}", i + 1, len(mine))
    return {"trainings": len(mine)}
