"""Train an SAE with sae-lens's own trainer on the embedded model's activations, and let sae-lens save it.

    make test-saelens                                                        # makes the environment that has sae-lens ...
    .venv-saelens/bin/python scripts/train_with_saelens.py my-sae            # ... in which this runs

What `saelib split` is shown on: an SAE that nothing of saelib has touched. sae-lens's standard SAE with its default objective, on
the study's train split; the coefficient is the profile's, a token. Prints the feature that best marks "-" on the select split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens import __version__
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

from saelib.acts.store import ShuffledBatches, View
from saelib.sae.sae import load_sae
from saelib.study import study
from saelib.study.profiles import get_profile


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where sae-lens saves the SAE")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    profile = get_profile(args.profile)
    study.prepare(profile)
    model, l1_coeff = study.language_model(profile), study.coefficient(profile).l1_coeff * profile.batch_size
    shuffled = ShuffledBatches(View(study.activations(profile, "train")), profile.batch_size, args.seed)

    def batches() -> Iterator[torch.Tensor]:
        for step in range(args.steps):
            yield shuffled.batch(step).float().clone()

    torch.manual_seed(args.seed)
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=model.d_in, d_sae=args.d_sae, l1_coefficient=l1_coeff, l1_warm_up_steps=args.steps // 10
        )
    )
    for name, value in {"hook_name": model.hook_name, "model_name": model.name}.items():
        sae.cfg.metadata[name] = value
    total = args.steps * profile.batch_size
    cfg = SAETrainerConfig(
        total_training_samples=total, train_batch_size_samples=profile.batch_size, lr=profile.lr, lr_end=profile.lr / 10,
        lr_decay_steps=args.steps // 5, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    SAETrainer(cfg, sae, batches()).fit()
    sae.save_inference_model(str(args.folder))

    ours = load_sae(args.folder)
    best = study.rank_parents(profile, ours).iloc[0]
    quality = study.quality_of(profile, ours)
    print(
        f"sae-lens {__version__}: {args.d_sae} features, {total:,} tokens, L0 {quality.l0:.1f}, FVU {quality.fvu:.2f}"
    )
    print(f'feature {int(best["feature"])} marks "-" best: F1 {best["f1"]:.2f} on the select split')
    return 0


if __name__ == "__main__":
    sys.exit(main())
