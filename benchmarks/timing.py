"""What the benchmarks of this folder share: how things are timed and told, and a model of gelu-1l's shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers
import torch

from saelib.base.device import finish
from saelib.lm.mini_lm import MiniLM, MiniLMConfig
from saelib.lm.model import OneLayerModel

CPU = torch.device("cpu")
D_VOCAB = 48_262


def seconds(run: Callable[[], object], device: torch.device = CPU, calls: int = 1) -> float:
    """Seconds a call of some calls in a row; on a GPU until it has done them all."""
    finish(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    finish(device)
    return (time.perf_counter() - started) / calls


def random_model() -> OneLayerModel:
    """A one-layer model of gelu-1l's shape with random weights: d_model 512, 8 heads, d_mlp 2048, context 128."""
    weights = MiniLM(MiniLMConfig(512, 8, 128, D_VOCAB), torch.Generator().manual_seed(0)).tensors()
    return OneLayerModel("random", weights, tokenizers.Tokenizer(tokenizers.models.BPE()), "none")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = (round(float(q), 3) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "p25": low, "p75": high, "rounds": len(values)}
