"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from saelib.base.errors import UserError
from saelib.sae.step import Objective


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run besides the initial SAE and the batches."""

    l1_coeff: float
    """Coefficient of the activations summed over features *and over the batch* (see `saelib.sae.step`)."""
    n_steps: int
    """Optimiser steps."""
    seed: int = 0
    """Seeds the re-initialisation of dead features."""
    lr: float = 1e-4
    """Adam's learning rate, constant (post: 1e-4)."""
    beta1: float = 0.9
    """Adam's first moment decay (post: 0.9)."""
    beta2: float = 0.99
    """Adam's second moment decay (post: 0.99)."""
    batch_size: int = 4096
    """Tokens a batch (post: 4096)."""
    objective: Objective = "study"
    """What a unit of activation costs (see `saelib.sae.step`). "decoder_norm" leaves the decoder rows at any length, and its
    `l1_coeff` is a token's: SAELens's default objective."""
    zero_parent: int | None = None
    """Feature whose activation the loss sets to zero; None is the standard loss."""
    reinit_every: int = 30_000
    """Steps between re-initialisations of dead features (post: 30,000); 0 never."""
    reinit_threshold: float = 10**-5.5
    """A feature that fired on a smaller share of tokens since the last re-initialisation is dead (post: 10^-5.5)."""
    reinit_guard: int | None = None
    """No re-initialisation when fewer steps than this remain; None means `reinit_every`. The post has none: 0."""
    log_every: int = 100
    """Steps between rows of the history (post: 100)."""
    checkpoint_every: int = 500
    """Steps between checkpoints; it does not affect the result."""

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, rule: str, remedy: str) -> None:
            if not ok:
                raise UserError(f"{name} must be {rule}", repr(getattr(self, name)), remedy)

        for name in ("n_steps", "batch_size", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1", "give a positive number of steps or tokens")
        require(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", "give another number")
        for name in ("lr", "l1_coeff", "reinit_threshold"):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value >= 0,
                name,
                "finite and not negative",
                "start from the value of the 2024 post",
            )
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, "in [0, 1)", "the 2024 post uses 0.9 and 0.99")
        require(self.objective in get_args(Objective), "objective", f"one of {get_args(Objective)}", "name one of them")
        for name in ("reinit_every", "reinit_guard", "zero_parent"):
            require((getattr(self, name) or 0) >= 0, name, "zero or more", "give a number of steps, or a feature")

    def reinit_due(self, step: int) -> bool:
        """Whether dead features are re-initialised after `step` updates."""
        guard = self.reinit_every if self.reinit_guard is None else self.reinit_guard
        return self.reinit_every > 0 and step % self.reinit_every == 0 and self.n_steps - step >= max(guard, 1)
