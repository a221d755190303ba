"""Train an SAE with sae-lens's own trainer on a profile's activations, and let sae-lens save it.

    make test-saelens                                                        # makes the environment that has sae-lens ...
    .venv-saelens/bin/python scripts/train_with_saelens.py my-sae            # ... in which this runs
    .venv-saelens/bin/python scripts/train_with_saelens.py my-sae --architecture batchtopk --d-sae 1024 --seed 1

What `saelib split` is shown on, and what the benchmark takes as parents and as peers: SAEs that nothing of saelib has touched, on
the study's train split. `standard` has the profile's coefficient, a token; the others aim at `--l0` active features. sae-lens
saves a BatchTopK SAE as JumpReLU with its threshold. Tokens and seconds are written into the SAE's metadata. Prints the feature
that best marks hyphens that join words on the select split.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    __version__,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from saelib.acts.batches import ShuffledBatches, View
from saelib.sae.load import load_sae
from saelib.study import selection, study
from saelib.study.profiles import get_profile

ARCHITECTURES = ("standard", "batchtopk", "jumprelu", "matryoshka")


def training_sae(args: argparse.Namespace, d_in: int, l1_per_token: float, spread: float) -> Any:
    """An untrained SAE of sae-lens. `spread` is the activations' root mean square norm, in which a JumpReLU's coefficient is."""
    size = {"d_in": d_in, "d_sae": args.d_sae}
    warm_up = args.steps // 10
    if args.architecture == "standard":
        cfg = StandardTrainingSAEConfig(**size, l1_coefficient=l1_per_token, l1_warm_up_steps=warm_up)
        return StandardTrainingSAE(cfg)
    if args.architecture == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=args.l0))
    if args.architecture == "matryoshka":
        widths = sorted({args.d_sae // 16, args.d_sae // 4, args.d_sae})
        return MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(**size, k=args.l0, matryoshka_widths=widths)
        )
    # An active feature costs about what it explains: at l0 of them, the squared norm divided by some l0s. sae-lens's defaults for
    # threshold and bandwidth are meant for activations of norm sqrt(d_in).
    coefficient, unit = args.l0_coefficient or spread**2 / (10 * args.l0), spread / d_in**0.5
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            **size,
            l0_coefficient=coefficient,
            l0_warm_up_steps=warm_up,
            jumprelu_sparsity_loss_mode="step",
            jumprelu_init_threshold=0.01 * unit,
            jumprelu_bandwidth=0.05 * unit,
            jumprelu_ste_to_input=True,
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where sae-lens saves the SAE")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="standard")
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--l0", type=int, default=20, help="active features aimed at, but for standard")
    parser.add_argument("--l0-coefficient", type=float, help="for jumprelu, in place of the rule of thumb")
    args = parser.parse_args()
    profile = get_profile(args.profile)
    study.prepare(profile)
    model, l1_coeff = study.language_model(profile), study.coefficient(profile).l1_coeff * profile.batch_size
    shuffled = ShuffledBatches(View(study.activations(profile, "train")), profile.batch_size, args.seed)
    spread = float(shuffled.batch(0).float().square().sum(1).mean().sqrt())

    def batches() -> Iterator[torch.Tensor]:
        for step in range(args.steps):
            yield shuffled.batch(step).float().clone()

    torch.manual_seed(args.seed)
    sae = training_sae(args, model.d_in, l1_coeff, spread)
    for name, value in {"hook_name": model.hook_name, "model_name": model.name}.items():
        sae.cfg.metadata[name] = value
    total = args.steps * profile.batch_size
    cfg = SAETrainerConfig(
        total_training_samples=total, train_batch_size_samples=profile.batch_size, lr=profile.lr, lr_end=profile.lr / 10,
        lr_decay_steps=args.steps // 5, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    began = time.perf_counter()
    SAETrainer(cfg, sae, batches()).fit()
    cost = {"tokens": total, "seconds": time.perf_counter() - began, "seed": args.seed, "trained_as": args.architecture}
    sae.save_inference_model(str(args.folder))
    path = args.folder / "cfg.json"
    saved = json.loads(path.read_text())
    saved["metadata"] = {**saved.get("metadata", {}), **cost}
    path.write_text(json.dumps(saved, indent=2) + "\n")

    ours = load_sae(args.folder)
    best = selection.rank_parents(profile, ours).iloc[0]
    quality = study.quality_of(profile, ours)
    print(
        f"sae-lens {__version__}: {args.architecture}, {args.d_sae} features, {total:,} tokens, L0 {quality.l0:.1f}, "
        f"FVU {quality.fvu:.2f}"
    )
    print(f'feature {int(best["feature"])} marks "-" best: F1 {best["f1"]:.2f} on the select split')
    return 0


if __name__ == "__main__":
    sys.exit(main())
