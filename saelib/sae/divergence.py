"""Stop a training that has diverged: losses are recorded at every step without waiting for the device, and judged when logged.

A run stops when its loss is no longer finite, when it is far above where it began, or when no feature fires any more.
The message names the step, the tensor and the last good checkpoint; a state that fails these checks is never saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from saelib.base.errors import UserError

DIVERGED = 100.0
"""A run has diverged when its loss exceeds this many times both its first loss and the loss of a zero reconstruction. A run
that trains ends below both."""


class DivergenceCheck:
    """The check of one run; `last_good()` names its newest checkpoint, for the message."""

    def __init__(self, name: str, device: torch.device, last_good: Callable[[], str]) -> None:
        self.name, self.last_good = name, last_good
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad_loss = torch.zeros((), dtype=torch.float64, device=device)

    def observe(self, step: int, loss: float | Tensor) -> None:
        """Remember the first step whose loss is not finite; nothing is read back from the device."""
        value = torch.as_tensor(loss, dtype=torch.float64, device=self._bad_step.device)
        first = ~value.isfinite() & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self._bad_loss = torch.where(first, value, self._bad_loss)

    def require_finite(
        self, step: int, tensors: Mapping[str, Tensor], batch: Callable[[int], Tensor] | None = None
    ) -> None:
        """Raise if a loss since the start, or a tensor now, was not finite; `batch` gives the data of a step again.

        Raises:
            UserError: with the step, the first bad tensor and the last good checkpoint.
        """
        bad_step = int(self._bad_step)
        bad = next((name for name, value in tensors.items() if not value.isfinite().all()), None)
        if bad_step < 0 and bad is None:
            return
        if bad_step >= 0 and batch is not None and not batch(bad_step).isfinite().all():
            bad = "the batch"
        loss = f"{float(self._bad_loss)} at step {bad_step}" if bad_step >= 0 else f"a finite one at step {step}"
        self._stop("loss must stay finite", f"{loss} (first bad tensor: {bad or 'the loss itself'}", "activations")

    def require_progress(self, step: int, loss: float, limit: float, dead_share: float) -> None:
        """Raise if no feature has fired since the last row, or the loss has left `DIVERGED` times `limit` behind.

        limit: the larger of the run's first loss and the loss of rebuilding this batch as zero.

        Raises:
            UserError: with the step, what was seen and the last good checkpoint.
        """
        if dead_share == 1:
            got = f"all of them silent at step {step} (tensor: feature_acts"
            self._stop("some feature must fire", got, "SAE's b_enc and the activations")
        if loss > DIVERGED * limit:
            got = f"{loss:.3g} at step {step}, where {limit:.3g} is what zeros would give or it began with (tensor: the loss"
            self._stop("loss must not run away", got, "activations")

    def _stop(self, rule: str, got: str, look_at: str) -> None:
        got = f"{got}; last good checkpoint: {self.last_good()})"
        raise UserError(f"{self.name}: {rule}", got, f"lower lr or l1_coeff, or check the {look_at}")
