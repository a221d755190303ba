"""What the whole study costs under a profile: tokens, hours, disk and memory, from rates measured here or given."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelib.acts.batches import GROUP_BATCHES
from saelib.acts.store import POSITIONS
from saelib.base.checkpoints import KEPT_CHECKPOINTS
from saelib.base.device import choose_device, finish
from saelib.lm.mini_lm import MiniLM, MiniLMConfig
from saelib.lm.model import OneLayerModel
from saelib.sae.initial import init_random
from saelib.sae.sae import SAEConfig
from saelib.sae.train import train
from saelib.sae.train_config import TrainConfig
from saelib.study.profiles import Profile
from saelib.study.runs import RUNS
from saelib.text.cut import token_dtype
from saelib.text.tokens import CONTEXT_LENGTH

_FLOAT = 4
_ADAM = 3
"""Copies of the parameters in a checkpoint: the weights and Adam's two moments. In memory there is the gradient, too."""
_VOCABULARY = {"mini": 8_192, "smollm2": 49_152, "gelu-1l": 48_262}


@dataclass(frozen=True)
class Rates:
    """Tokens a second of the two things that take time."""

    harvest: float
    train: float
    source: str
    """Where they come from, as the plan says it."""


H100 = Rates(5.0e5, 1.05e6, "measured on an NVIDIA H100 at gelu-1l's shape, fp32 (docs/performance.md), not here")
"""What a study made for a GPU is told at where there is none; on one the rates are measured."""


@dataclass(frozen=True)
class RunPlan:
    """The cost of a profile's study. Counts in tokens, times in hours of one run at a time, sizes in bytes."""

    profile: str
    runs: int
    harvest_tokens: int
    train_tokens: int
    """Of the narrow SAE, at each coefficient that may be tried, and of all runs."""
    harvest_hours: float
    train_hours: float
    longest_run_hours: float
    disk_bytes: int
    memory_bytes: int
    """Of one run: parameters, gradients, Adam, a group of batches, a batch's activations."""
    rates: Rates

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As text has it."""
        hours = self.harvest_hours + self.train_hours
        return [
            f"{self.runs} runs and the narrow SAE: {self.train_tokens:,} training tokens, {self.harvest_tokens:,} harvested",
            f"{_hours(hours)} one run at a time: {_hours(self.harvest_hours)} to harvest, {_hours(self.train_hours)} to "
            f"train (the longest run {_hours(self.longest_run_hours)})",
            f"{self.disk_bytes / 1e9:.1f} GB of disk, {self.memory_bytes / 1e9:.1f} GB of memory a run",
            f"rates: {self.rates.train:,.0f} tokens/s to train, {self.rates.harvest:,.0f} to harvest; {self.rates.source}",
        ]


def run_plan(profile: Profile, rates: Rates) -> RunPlan:
    """Work out the plan of a profile's whole study."""
    contexts = profile.train_contexts + profile.select_contexts + profile.test_contexts
    harvested = contexts * POSITIONS
    steps = [profile.steps(run.short) for run in RUNS]
    trained = (sum(steps) + profile.narrow_steps * len(profile.l1_grid)) * profile.batch_size
    wide = _FLOAT * (2 * profile.d_in * profile.d_sae_wide + profile.d_sae_wide + profile.d_in)
    token_bytes = np.dtype(token_dtype(_VOCABULARY.get(profile.model, 2**17))).itemsize
    disk = (
        harvested * profile.d_in * 2  # bf16
        + contexts * CONTEXT_LENGTH * token_bytes
        + len(RUNS) * wide
        + profile.jobs * KEPT_CHECKPOINTS * _ADAM * wide
    )
    memory = (
        (_ADAM + 1) * wide
        + GROUP_BATCHES * profile.batch_size * profile.d_in * 2
        + 3 * profile.batch_size * profile.d_sae_wide * _FLOAT
    )
    return RunPlan(
        profile=profile.name,
        runs=len(RUNS),
        harvest_tokens=harvested,
        train_tokens=trained,
        harvest_hours=harvested / rates.harvest / 3600,
        train_hours=trained / rates.train / 3600,
        longest_run_hours=max(steps) * profile.batch_size / rates.train / 3600,
        disk_bytes=disk,
        memory_bytes=memory,
        rates=rates,
    )


def measured_rates(profile: Profile, steps: int | None = None) -> Rates:
    """Measure both rates on the profile's device, in some seconds, on random weights of the profile's sizes.

    Training is measured at its start, where half of the features are active; later steps are cheaper. The harvest is that
    of a 1-layer model; an early layer of a larger model costs its depth more.
    """
    device = choose_device(profile.device)
    on_gpu = device.type != "cpu"
    steps = steps or (300 if on_gpu else 3)
    read = _random_model(profile).on(device).bulk()
    tokens = torch.randint(3, 64, (256 if on_gpu else 16, CONTEXT_LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        read(tokens)
        finish(device)
        began = time.perf_counter()
        read(tokens).bfloat16().cpu()
        harvest = tokens.numel() / (time.perf_counter() - began)
    cfg = SAEConfig(profile.d_in, profile.d_sae_wide, profile.hook_name, profile.model, False)
    with tempfile.TemporaryDirectory() as workdir:
        seconds = train(
            init_random(cfg, torch.Generator().manual_seed(0)).on(device), _RandomBatches(profile, device),
            TrainConfig(
                l1_coeff=profile.l1_grid[0], n_steps=steps, seed=0, batch_size=profile.batch_size, checkpoint_every=steps
            ),
            workdir=Path(workdir),
        ).seconds  # fmt: skip
    rate = steps * profile.batch_size / seconds
    if on_gpu:
        return Rates(harvest, rate, f"measured on {torch.cuda.get_device_name(device)}")
    where = f"measured on this machine's processor, {torch.get_num_threads()} threads"
    return Rates(harvest, rate, f"{where}, at the start of training")


def given_rates(tokens_per_second: float) -> Rates:
    """One rate for training and harvesting, as the user measured or expects it."""
    return Rates(tokens_per_second, tokens_per_second, "as given, not measured here; harvesting taken as no faster")


def _random_model(profile: Profile) -> OneLayerModel:
    """A 1-layer model of the profile's width; only the embedding of a few tokens, since no logits are made."""
    import tokenizers

    heads = max(1, profile.d_in // 64)
    weights = MiniLM(MiniLMConfig(profile.d_in, heads, CONTEXT_LENGTH, 64), torch.Generator().manual_seed(0)).tensors()
    return OneLayerModel("random", weights, tokenizers.Tokenizer(tokenizers.models.BPE()), "random")


class _RandomBatches:
    def __init__(self, profile: Profile, device: torch.device) -> None:
        self.batch_size, self.d_in, self.key = profile.batch_size, profile.d_in, "random"
        x = torch.randn(self.batch_size, self.d_in, generator=torch.Generator().manual_seed(0))
        self._x = x.to(device)

    def batch(self, step: int, out: Tensor | None = None) -> Tensor:
        """The same batch at every step."""
        return self._x


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h ({hours / 24:,.0f} days)"
