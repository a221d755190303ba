"""The trainings of the run table: what each is trained on, from where it starts, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from saelib.acts.batches import ShuffledBatches, View
from saelib.acts.filter import filter_view
from saelib.base.cache import content_key
from saelib.base.device import choose_device, in_key
from saelib.sae.kept import beginning, is_trained, train_once, training_folder, weights_hash
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.scaled import scaled_acts
from saelib.sae.train import TrainResult
from saelib.sae.train_config import TrainConfig
from saelib.study import selection, study
from saelib.study.profiles import Profile
from saelib.study.runs import RunSpec, get_run


def kept_after(
    profile: Profile, spec: RunSpec, chosen: selection.Parent, filter_by: str, n_steps: int, step: int
) -> SAE:
    """The SAE of a finished run as it was after `step` steps; that step must be one that was kept."""
    name, key, *_ = _run_plan(profile, spec, chosen, filter_by, n_steps)
    return load_sae(training_folder(name, key) / f"sae-{step}")


def view(profile: Profile, by: str, chosen: selection.Parent) -> View:
    """The training data under a filter: `none`, `context` or `token`."""
    store = study.activations(profile, "train")
    return filter_view(store, selection.parent_on(profile, "train", chosen.feature), chosen.tau, by)


def _replacing_probe(profile: Profile, chosen: selection.Parent) -> Callable[[SAE], dict[str, float]]:
    """Share of parent-active select hyphens on which the old parent's index is still the top feature."""
    narrow = study.narrow_sae(profile).sae
    x = study.activations(profile, "select").rows(study.joining_hyphens(profile, "select")[0][:4096])
    with torch.no_grad():
        x = x[narrow.encode(x)[:, chosen.feature] > chosen.tau]

    def probe(sae: SAE) -> dict[str, float]:
        acts = scaled_acts(sae, x.to(sae.device))
        still = (acts.argmax(1) == chosen.feature) & (acts[:, chosen.feature] > 0)
        return {"parent_still_top": float(still.float().mean()) if len(still) else float("nan")}

    return probe


class _RunPlan(NamedTuple):
    name: str
    key: str
    cfg: TrainConfig
    sae_cfg: SAEConfig
    by: str


def _run_plan(profile: Profile, spec: RunSpec, chosen: selection.Parent, filter_by: str, n_steps: int) -> _RunPlan:
    """What a run is called and what determines it."""
    store, narrow = study.activations(profile, "train"), study.narrow_sae(profile).sae
    d_sae = profile.d_sae_wide if spec.size == "wide" else profile.d_sae_narrow
    by = filter_by if spec.filtered else "none"
    l1_coeff = spec.l1_scale * study.coefficient(profile).l1_coeff
    cfg = study.train_config(profile, l1_coeff, n_steps, spec.seed, chosen.feature if spec.zero_parent else None)
    start = "narrow" if spec.init_from_narrow else "random"
    sae_cfg = study.sae_config(
        profile, d_sae, l1_coeff=l1_coeff, seed=spec.seed, start=start, normalised=spec.normalised, filter=by,
        parent=chosen.feature, tau=chosen.tau, zero_parent=spec.zero_parent, n_steps=n_steps,
    )  # fmt: skip
    made_on = in_key(choose_device(profile.device))
    key = content_key(store=store.key, narrow=weights_hash(narrow), sae=sae_cfg.to_dict(), cfg=repr(cfg), **made_on)
    return _RunPlan(f"run-{spec.run:02d}", key, cfg, sae_cfg, by)


def train_run(
    profile: Profile, spec: RunSpec, chosen: selection.Parent, filter_by: str, n_steps: int, keep: Sequence[int] = ()
) -> TrainResult:
    """Train one row of the run table.

    `filter_by` is used when the row is filtered. Only a warm start gives the parent's index a meaning in the wide SAE;
    with a random start neither the parent can be zeroed nor its replacing be watched. `keep` are steps after which the
    SAE is kept for `kept_after`.
    """
    plan, narrow = _run_plan(profile, spec, chosen, filter_by, n_steps), study.narrow_sae(profile).sae

    def begin() -> tuple[SAE, ShuffledBatches]:
        data, device = view(profile, plan.by, chosen), choose_device(profile.device)
        return beginning(
            plan.sae_cfg, plan.cfg, data, device, narrow if spec.init_from_narrow else None, spec.normalised
        )

    probe = _replacing_probe(profile, chosen) if spec.init_from_narrow else None
    return train_once(plan.key, plan.name, begin, plan.cfg, probe, keep)


def kept_run(
    profile: Profile, spec: RunSpec, chosen: selection.Parent, filter_by: str, n_steps: int
) -> TrainResult | None:
    """As `train_run`, of a training that is finished and kept; None where there is none: nothing is trained."""
    plan = _run_plan(profile, spec, chosen, filter_by, n_steps)
    return train_run(profile, spec, chosen, filter_by, n_steps) if is_trained(plan.name, plan.key) else None


def trained_run(profile: Profile, run: int) -> TrainResult:
    """A row of the run table as the study trains it: parent and threshold by their rules, filtered by context."""
    spec = get_run(run)
    return train_run(profile, spec, selection.parent(profile), "context", profile.steps(spec.short))
