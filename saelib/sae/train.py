"""Train one SAE: the loop of the 2024 post, resumable to the bit.

Order inside a step, as in the post: loss and gradients; decoder rows to unit norm and their gradients orthogonal to
them; Adam; every `reinit_every` steps re-initialise dead features.

Departures from the post, and why:

* Dead features are found by counting on the training tokens since the last re-initialisation, not on separate batches:
  it costs nothing.
* A re-initialised feature's Adam moments are set to zero, so that the old feature's momentum does not push the new one,
  and its decoder row is normalised at once instead of one step later.
* No re-initialisation near the end (`TrainConfig.reinit_guard`): a feature needs time before it is judged.
* A zeroed parent counts as firing where its encoder's activation is positive: it is zeroed in the loss only, so it is not
  dead and not re-initialised.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.cache import content_key, locked
from saelib.base.checkpoints import Checkpoints
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.memory import keep_freed_memory
from saelib.sae.divergence import DivergenceCheck
from saelib.sae.sae import PARAMETERS, SAE, require_trainable
from saelib.sae.step import choose_route, loss_and_grads, normalise_decoder
from saelib.sae.train_config import TrainConfig
from saelib.sae.train_state import TrainState

TRAINING_CODE = (
    "acts.batches", "acts.filter", "base.kernels", "sae.dense_step", "sae.gradients", "sae.initial", "sae.low_precision",
    "sae.sae", "sae.sparse_step", "sae.step", "sae.train", "sae.train_config", "sae.train_state",
)  # fmt: skip
"""The modules that determine a training: its initial weights, its batches and its steps. Their code is part of its key."""


@runtime_checkable
class Batches(Protocol):
    """Where training activations come from. `batch` depends on the seed and the step alone, so there is no state to resume."""

    @property
    def batch_size(self) -> int:
        """Tokens a batch."""

    @property
    def d_in(self) -> int:
        """Width of an activation."""

    def batch(self, step: int, out: Float[Tensor, "batch d_in"] | None = None) -> Float[Tensor, "batch d_in"]:
        """The float32 batch of this step; it may be written into `out`, and is then that tensor."""


class Hooks(NamedTuple):
    """What is called while an SAE is trained; none of it changes a weight."""

    probe: Callable[[SAE], dict[str, float]] | None = None
    """Called with the SAE at each logged step; its columns are added to the history."""
    on_step: Callable[[int, int], None] | None = None
    """Called with (steps done, n_steps) after each step."""
    snapshots: Mapping[int, Callable[[SAE], object]] | None = None
    """`snapshots[n]` is called with the SAE as it is after n steps, before any checkpoint of that step; a run that is resumed may
    call it again, with the same weights."""


class TrainResult(NamedTuple):
    """What `train` returns."""

    sae: SAE
    history: pd.DataFrame
    """One row a logged step: step, tokens, loss, l2, l1, l0, dead_share, seconds, then what the probe returned.
    Losses are those of that step's batch *before* its update, tokens those trained on before it: step 0 is the initial
    SAE. `dead_share` is the share of features that have not fired since the row before."""
    seconds: float
    """Time spent training, over all resumed parts."""
    n_tokens: int
    """Tokens trained on."""


def train(
    sae: SAE,
    batches: Batches,
    cfg: TrainConfig,
    *,
    workdir: Path,
    hooks: Hooks | None = None,
    name: str = "SAE",
) -> TrainResult:
    """Train a copy of `sae`; continue from the newest intact checkpoint in `workdir` if there is one.

    A run that was killed and resumed ends with the same bits as one that was not, at the same number of threads.

    Raises:
        UserError: batches do not fit the SAE; the checkpoints in `workdir` are damaged or of another run; or the run is
            no longer sound (see `saelib.sae.divergence`): the message names the step, the tensor and the last good checkpoint.
    """
    hooks = hooks or Hooks()
    keep_freed_memory()
    require_trainable(sae.cfg)
    _check_fit(sae, batches, cfg)
    with locked(Path(workdir)):
        state = TrainState(copy.deepcopy(sae), cfg)
        checkpoints = Checkpoints(Path(workdir), _run_key(sae, batches, cfg), name)
        found = checkpoints.newest(state.tensors(), state.scalars())
        if found is not None:
            state.restore(found)
        check = DivergenceCheck(
            name, state.device, lambda: next((str(path) for path in checkpoints.paths()), "none yet")
        )
        # Batches are copied into memory of our own: a matrix product may round differently at another alignment.
        x = torch.empty(cfg.batch_size, sae.cfg.d_in, device=state.device)
        started = time.perf_counter() - state.seconds
        while state.step < cfg.n_steps:
            if (served := batches.batch(state.step, x)) is not x:
                x.copy_(served)
            route = choose_route(state.active_share, state.device)
            result = loss_and_grads(state.params, x, cfg.l1_coeff, cfg.zero_parent, route, cfg.objective)
            check.observe(state.step, result.totals[-1])
            state.count(result, cfg.batch_size)
            state.seconds = time.perf_counter() - started
            if state.step % cfg.log_every == 0 or state.step == cfg.n_steps - 1:
                check.require_finite(state.step, state.params._asdict(), batches.batch)
                state.log(result, cfg, hooks.probe)
                limit = max(state.rows[0]["loss"], x.square().sum(1).mean().item())
                check.require_progress(state.step, result.loss, limit, state.rows[-1]["dead_share"])
            if cfg.objective == "study":
                normalise_decoder(state.params.W_dec, result.grads.W_dec)
            state.update(result.grads)
            state.step += 1
            if cfg.reinit_due(state.step):
                state.resample_dead(cfg)
            if hooks.snapshots and state.step in hooks.snapshots:
                hooks.snapshots[state.step](state.sae)
            if state.step % cfg.checkpoint_every == 0 or state.step == cfg.n_steps:
                check.require_finite(state.step, state.tensors(), batches.batch)
                checkpoints.write(state.step, state.tensors(), state.scalars())
            if hooks.on_step is not None:
                hooks.on_step(state.step, cfg.n_steps)
    return TrainResult(state.finished_sae(), pd.DataFrame(state.rows), state.seconds, cfg.n_steps * cfg.batch_size)


def _run_key(sae: SAE, batches: Batches, cfg: TrainConfig) -> str:
    """A hash of all that determines the run: configuration, initial weights, the code, and the `key` of batches that have one."""
    weights = hashlib.sha256()
    for name in PARAMETERS:
        weights.update(getattr(sae, name).detach().cpu().contiguous().numpy().tobytes())
    config = {key: value for key, value in dataclasses.asdict(cfg).items() if key != "checkpoint_every"}
    return content_key(
        config=config,
        weights=weights.hexdigest(),
        batches=getattr(batches, "key", None),
        code=code_version(*TRAINING_CODE),
    )


def _check_fit(sae: SAE, batches: Batches, cfg: TrainConfig) -> None:
    if batches.d_in != sae.cfg.d_in:
        rule = f"activations must have the SAE's d_in={sae.cfg.d_in}"
        raise UserError(rule, batches.d_in, "harvest at the SAE's site")
    if batches.batch_size != cfg.batch_size:
        rule = f"batches must hold batch_size={cfg.batch_size} tokens"
        raise UserError(rule, batches.batch_size, "use one batch size")
    if cfg.zero_parent is not None and not 0 <= cfg.zero_parent < sae.cfg.d_sae:
        rule = f"feature must be in [0, d_sae={sae.cfg.d_sae})"
        raise UserError(rule, cfg.zero_parent, "pass a feature of this SAE")
