"""Where a whole run ends, trained by saelib and by the study's own trainer, beside the spread between seeds.

    python benchmarks/final_loss.py [--json] [--profile mini]

The plain controls (runs 13 to 15, three seeds) are taken from the cache, or trained. The study's trainer in plain autograd
(`saelib/sae/definition.py`) gets the initial weights, the batches and the re-initialisation of run 13, and all are measured on
the same held-out text. Told for each quantity: both values, their difference, and the standard deviation between the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from saelib.acts.batches import ShuffledBatches, View
from saelib.sae.definition import PlainTrainer
from saelib.sae.gradients import Params
from saelib.sae.initial import init_random, kaiming_uniform, unit_rows
from saelib.sae.sae import PARAMETERS, SAE
from saelib.sae.step import loss_and_grads
from saelib.study import selection, study, trainings
from saelib.study.profiles import Profile, get_profile
from saelib.study.runs import get_run

CONTROLS = (13, 14, 15)
LAST = 50
"""The training loss is averaged over so many last steps' batches, all on the final weights."""


def measured(profile: Profile, sae: SAE, batches: ShuffledBatches, l1_coeff: float) -> dict[str, float]:
    """The study's loss on the last batches, and quality on held-out text."""
    steps = range(profile.wide_steps - LAST, profile.wide_steps)
    losses = [loss_and_grads(Params.of(sae), batches.batch(step), l1_coeff).loss for step in steps]
    quality = study.quality_of(profile, sae)
    return {
        "loss": statistics.mean(losses),
        "fvu": quality.fvu,
        "l0": quality.l0,
        "loss_recovered": quality.loss_recovered,
    }


def batches_of(profile: Profile, run: int) -> ShuffledBatches:
    return ShuffledBatches(View(study.activations(profile, "train")), profile.batch_size, get_run(run).seed)


def trained_by_reference(profile: Profile, run: int) -> tuple[SAE, float]:
    """A run of the plain control by the study's trainer, and its seconds."""
    ours = trainings.trained_run(profile, run).sae
    plan = trainings._run_plan(profile, get_run(run), selection.parent(profile), "context", profile.wide_steps)
    initial = init_random(plan.sae_cfg, torch.Generator().manual_seed(plan.cfg.seed))
    weights = {name: getattr(initial, name) for name in PARAMETERS}
    trainer = PlainTrainer(weights, plan.cfg.l1_coeff, plan.cfg.lr, (plan.cfg.beta1, plan.cfg.beta2))
    generator = torch.Generator().manual_seed(plan.cfg.seed ^ 0x5EED5EED)
    batches, fired, tokens = batches_of(profile, run), torch.zeros(ours.cfg.d_sae), 0
    began = time.perf_counter()
    for step in range(plan.cfg.n_steps):
        x = batches.batch(step)
        with torch.no_grad():
            fired += (trainer.loss(x).acts > 0).sum(0)
        tokens += len(x)
        trainer.step(x)
        if plan.cfg.reinit_due(step + 1):
            reinitialise(trainer, fired < plan.cfg.reinit_threshold * tokens, generator)
            fired.zero_()
            tokens = 0
        if step % 50 == 0:
            print(f"reference: step {step} of {plan.cfg.n_steps}", file=sys.stderr)
    seconds = time.perf_counter() - began
    sae = SAE(ours.cfg)
    sae.load_state_dict({name: value.detach() for name, value in trainer.params.items()})
    return sae, seconds


@torch.no_grad()
def reinitialise(trainer: PlainTrainer, silent: torch.Tensor, generator: torch.Generator) -> None:
    """What the study does to silent features, with the draws that ours makes."""
    d_in, d_sae = trainer.params["W_enc"].shape
    fresh = {
        "W_enc": kaiming_uniform((d_in, d_sae), generator),
        "b_enc": torch.zeros(d_sae),
        "W_dec": unit_rows(kaiming_uniform((d_sae, d_in), generator)),
    }
    for name, values in fresh.items():
        parameter = trainer.params[name]
        moments = trainer.optimiser.state[parameter]
        where = (slice(None), silent) if name == "W_enc" else silent
        parameter.data[where] = values[where]
        moments["exp_avg"][where] = moments["exp_avg_sq"][where] = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and no more")
    parser.add_argument("--profile", default="mini")
    args = parser.parse_args()
    profile = get_profile(args.profile)
    l1_coeff = study.coefficient(profile).l1_coeff
    ours = {run: trainings.trained_run(profile, run) for run in CONTROLS}
    rows = {run: measured(profile, result.sae, batches_of(profile, run), l1_coeff) for run, result in ours.items()}
    sae, seconds = trained_by_reference(profile, CONTROLS[0])
    reference = measured(profile, sae, batches_of(profile, CONTROLS[0]), l1_coeff)
    found = {
        name: {
            "saelib": rows[CONTROLS[0]][name],
            "reference": value,
            "difference": rows[CONTROLS[0]][name] - value,
            "between_seeds": statistics.stdev(row[name] for row in rows.values()),
        }
        for name, value in reference.items()
    }
    answer = {**found, "seconds": {"saelib": ours[CONTROLS[0]].seconds, "reference": seconds}, "seeds": len(CONTROLS)}
    if args.json:
        print(json.dumps(answer))
        return
    print(f"profile {profile.name}, run {CONTROLS[0]}, {profile.wide_steps * profile.batch_size:,} tokens")
    for name, row in found.items():
        print(f"{name:16}" + "  ".join(f"{key} {value:.5g}" for key, value in row.items()))
    print(f"seconds: saelib {answer['seconds']['saelib']:.0f} (as it was trained), reference {seconds:.0f}")


if __name__ == "__main__":
    main()
