"""Everything that a step of training changes, as one thing that is kept in checkpoints and restored from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelib.base.checkpoints import Checkpoint
from saelib.sae.gradients import Params
from saelib.sae.initial import kaiming_uniform, unit_rows
from saelib.sae.sae import SAE
from saelib.sae.step import StepResult
from saelib.sae.train_config import TrainConfig


class TrainState:
    """Parameters, Adam, counts and the history. `tensors()` and `scalars()` together are all of it: a checkpoint."""

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
        """The tensors, in their own memory."""
        tensors = {"generator": self.generator.get_state()}
        for name, leaf in self.leaves.items():
            tensors[name] = leaf
            tensors.update({f"adam.{name}.{key}": value for key, value in self.adam.state[leaf].items()})
        return {**tensors, "fired_since_reinit": self.fired_since_reinit, "fired_since_log": self.fired_since_log}

    def scalars(self) -> dict[str, Any]:
        """The rest."""
        names = ("step", "active_share", "tokens_since_reinit", "seconds", "rows")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        for name, own in self.tensors().items():
            own.copy_(saved.tensors[name])  # into our own memory: see `train` on alignment
        self.generator.set_state(saved.tensors["generator"].clone())
        for name, value in saved.scalars.items():
            setattr(self, name, value)

    def count(self, result: StepResult, n_tokens: int) -> None:
        """Add what a step fired."""
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
        """Adam's step."""
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
        """The SAE, its weights in their usual layout."""
        self.sae.W_enc.data = self.sae.W_enc.data.contiguous()
        return self.sae.requires_grad_(True)
