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
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saelib.base.cache import content_key, locked
from saelib.base.checkpoints import Checkpoint, Checkpoints
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.base.memory import keep_freed_memory
from saelib.sae.divergence import DivergenceCheck
from saelib.sae.sae import PARAMETERS, SAE, kaiming_uniform, require_trainable, unit_rows
from saelib.sae.step import Objective, Params, StepResult, choose_route, loss_and_grads, normalise_decoder

TRAINING_CODE = (
    "acts.batches", "acts.filter", "base.kernels", "sae.sae", "sae.low_precision", "sae.step", "sae.train",
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
    probe: Callable[[SAE], dict[str, float]] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    snapshots: Mapping[int, Callable[[SAE], object]] | None = None,
    name: str = "SAE",
) -> TrainResult:
    """Train a copy of `sae`; continue from the newest intact checkpoint in `workdir` if there is one.

    A run that was killed and resumed ends with the same bits as one that was not, at the same number of threads.
    `probe(sae)` is called at each logged step and adds its columns to the history; `on_step(done, n_steps)` is called
    after each step. `snapshots[n]` is called with the SAE as it is after n steps, before any checkpoint of that step; a run
    that is resumed may call it again, with the same weights.

    Raises:
        UserError: batches do not fit the SAE; the checkpoints in `workdir` are damaged or of another run; or the run is
            no longer sound (see `saelib.sae.divergence`): the message names the step, the tensor and the last good checkpoint.
    """
    keep_freed_memory()
    require_trainable(sae.cfg)
    _check_fit(sae, batches, cfg)
    with locked(Path(workdir)):
        state = _State(copy.deepcopy(sae), cfg)
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
                state.log(result, cfg, probe)
                limit = max(state.rows[0]["loss"], x.square().sum(1).mean().item())
                check.require_progress(state.step, result.loss, limit, state.rows[-1]["dead_share"])
            if cfg.objective == "study":
                normalise_decoder(state.params.W_dec, result.grads.W_dec)
            state.update(result.grads)
            state.step += 1
            if cfg.reinit_due(state.step):
                state.resample_dead(cfg)
            if snapshots and state.step in snapshots:
                snapshots[state.step](state.sae)
            if state.step % cfg.checkpoint_every == 0 or state.step == cfg.n_steps:
                check.require_finite(state.step, state.tensors(), batches.batch)
                checkpoints.write(state.step, state.tensors(), state.scalars())
            if on_step is not None:
                on_step(state.step, cfg.n_steps)
    return TrainResult(state.finished_sae(), pd.DataFrame(state.rows), state.seconds, cfg.n_steps * cfg.batch_size)


class _State:
    """Everything a step changes. `tensors()` and `scalars()` together are all of it and go into every checkpoint."""

    def __init__(self, sae: SAE, cfg: TrainConfig) -> None:
        self.sae, self.device = sae.requires_grad_(False), sae.W_enc.device
        # W_enc is stored transposed, as its gradient is made feature by feature; the SAE holds a view of that memory.
        W_enc_t = sae.W_enc.detach().t().clone(memory_format=torch.contiguous_format)
        sae.W_enc.data = W_enc_t.t()
        self.params = Params.of(sae)
        self.leaves = {**self.params._asdict(), "W_enc": W_enc_t}
        self.adam = torch.optim.Adam(list(self.leaves.values()), lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=True)
        for leaf in self.leaves.values():
            zeros = {"exp_avg": torch.zeros_like(leaf), "exp_avg_sq": torch.zeros_like(leaf)}
            self.adam.state[leaf] = {"step": torch.zeros((), dtype=torch.float32, device=self.device), **zeros}
        # Not the seed itself: the initial SAE was likely drawn from it, and a dead feature would be drawn again as it was.
        self.generator = torch.Generator().manual_seed(cfg.seed ^ 0x5EED5EED)
        self.fired_since_reinit = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=self.device)
        self.fired_since_log = torch.zeros_like(self.fired_since_reinit)
        self.tokens_since_reinit = 0
        self.step = 0
        self.active_share = 1.0
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"generator": self.generator.get_state()}
        for name, leaf in self.leaves.items():
            tensors[name] = leaf
            tensors.update({f"adam.{name}.{key}": value for key, value in self.adam.state[leaf].items()})
        return {**tensors, "fired_since_reinit": self.fired_since_reinit, "fired_since_log": self.fired_since_log}

    def scalars(self) -> dict[str, Any]:
        names = ("step", "active_share", "tokens_since_reinit", "seconds", "rows")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: Checkpoint) -> None:
        for name, own in self.tensors().items():
            own.copy_(saved.tensors[name])  # into our own memory: see `train` on alignment
        self.generator.set_state(saved.tensors["generator"].clone())
        for name, value in saved.scalars.items():
            setattr(self, name, value)

    def count(self, result: StepResult, n_tokens: int) -> None:
        self.fired_since_reinit += result.fired
        self.fired_since_log += result.fired
        self.tokens_since_reinit += n_tokens
        if (
            self.device.type == "cpu"
        ):  # elsewhere there is one route, and reading the share back would wait for the device
            self.active_share = result.l0 / len(result.fired)

    def log(self, result: StepResult, cfg: TrainConfig, probe: Callable[[SAE], dict[str, float]] | None) -> None:
        """Add a row; `dead_share` is the share of features that have not fired since the row before."""
        row: dict[str, float] = {"step": self.step, "tokens": self.step * cfg.batch_size}
        row |= {"loss": result.loss, "l2": result.l2, "l1": result.l1, "l0": result.l0}
        row |= {"dead_share": (self.fired_since_log == 0).double().mean().item(), "seconds": self.seconds}
        if probe is not None:
            row |= {key: float(value) for key, value in probe(self.sae).items()}
        self.rows.append(row)
        self.fired_since_log.zero_()

    def update(self, grads: Params) -> None:
        for name, grad in {**grads._asdict(), "W_enc": grads.W_enc.t()}.items():
            self.leaves[name].grad = grad
        self.adam.step()

    def resample_dead(self, cfg: TrainConfig) -> None:
        """Give every dead feature fresh weights, a zero bias and zero Adam moments, and start counting anew."""
        dead = self.fired_since_reinit < cfg.reinit_threshold * self.tokens_since_reinit
        d_in, d_sae = self.params.W_enc.shape
        fresh = {
            "W_enc": kaiming_uniform((d_in, d_sae), self.generator).t(),
            "b_enc": torch.zeros(d_sae),
            "W_dec": unit_rows(kaiming_uniform((d_sae, d_in), self.generator)),
        }
        for name, values in fresh.items():
            leaf = self.leaves[name]
            leaf[dead] = values.to(leaf.device)[dead]
            self.adam.state[leaf]["exp_avg"][dead] = 0
            self.adam.state[leaf]["exp_avg_sq"][dead] = 0
        self.fired_since_reinit.zero_()
        self.tokens_since_reinit = 0

    def finished_sae(self) -> SAE:
        self.sae.W_enc.data = self.sae.W_enc.data.contiguous()
        return self.sae.requires_grad_(True)


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
