"""What the study costs on a GPU at gelu-1l's shape, measured end to end, and a split there against the processor.

    python benchmarks/on_gpu.py [--json] [--quick] [--device cuda] [--tf32]

harvest     text of random tokens through a one-layer model with random weights (d_model 512, d_mlp 2048, vocabulary 48,262), its
            `blocks.0.hook_mlp_out` written to disk in bf16 with checksums, as `saelib.acts.store.harvest` does
training    `saelib.sae.train.train` of 4,096 features on that store, batches of 4,096 served from disk, after a warm-up
twelve_runs the post's twelve runs at 2e9 tokens each but the short one (2.6e7), one after the other, at that rate; each reads as
            many tokens of text once
split       `saelib.split` of the hyphen of a made-up text in the embedded model, on the GPU and on the processor
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from made_up_split import documents, hyphen_sae
from timing import D_VOCAB, random_model

from saelib.acts.activations import harvest_documents
from saelib.acts.batches import ShuffledBatches, View
from saelib.acts.store import POSITIONS, harvest
from saelib.base import provenance
from saelib.base.device import DEVICES, choose_device, finish
from saelib.lm.model import load_embedded
from saelib.sae.initial import init_random
from saelib.sae.sae import SAEConfig
from saelib.sae.train import Hooks, train
from saelib.sae.train_config import TrainConfig
from saelib.split.engine import SplitConfig, split_feature

RUNS_TOKENS = 11 * 2e9 + 2.6e7
"""Tokens of the post's twelve runs."""
WARM_UP = 20


class RandomText:
    """Contexts of random tokens, with what `harvest` asks of a token store."""

    key = "random"

    def __init__(self, n_contexts: int) -> None:
        self.all = np.random.default_rng(0).integers(3, D_VOCAB, (n_contexts, 128)).astype(np.uint16)

    def contexts(self, split: str) -> np.ndarray:
        """All of them."""
        return self.all


def read_and_train(device: torch.device, n_contexts: int, steps: int, tf32: bool) -> tuple[float, float]:
    """Tokens a second of harvesting and of training."""
    model = random_model().on(device)
    text = RandomText(n_contexts)
    harvest(model, text, "train", 256)  # type: ignore[arg-type]  # loads, compares with transformer_lens
    began = time.perf_counter()
    store = harvest(model, text, "train", n_contexts)  # type: ignore[arg-type]
    reading = n_contexts * POSITIONS / (time.perf_counter() - began)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cfg = TrainConfig(l1_coeff=3e-4, n_steps=WARM_UP + steps, lr=1e-4, checkpoint_every=10**9, log_every=100)
    marks: dict[int, float] = {}

    def on_step(done: int, total: int) -> None:
        if done in (WARM_UP, total):
            finish(device)
            marks[done] = time.perf_counter()

    sae = init_random(SAEConfig(512, 4096, model.hook_name, "random", False), torch.Generator().manual_seed(0)).on(
        device
    )
    with tempfile.TemporaryDirectory() as workdir:
        batches = ShuffledBatches(View(store), cfg.batch_size, 0)
        train(sae, batches, cfg, workdir=Path(workdir), hooks=Hooks(on_step=on_step))
    return reading, steps * cfg.batch_size / (marks[cfg.n_steps] - marks[WARM_UP])


def split_seconds(device: torch.device) -> tuple[float, float]:
    """Seconds of a whole split, and S_2 of what came out."""
    acts = harvest_documents(load_embedded(), documents())
    sae = hyphen_sae(acts).requires_grad_(False)
    acts = replace(acts, model=acts.model.on(device))
    began = time.perf_counter()
    found = split_feature(sae, 3, acts, SplitConfig(contexts="hyphen"))
    return time.perf_counter() - began, float(found.controls["S_2"].iloc[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and no more")
    parser.add_argument("--quick", action="store_true", help="less text and fewer steps: under a minute")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--tf32", action="store_true", help="train with TF32 products; text is read in fp32")
    args = parser.parse_args()
    device = choose_device(args.device)
    few = args.quick or device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAELIB_CACHE"] = folder
        reading, training = read_and_train(
            device, 2_560 if few else 25_600, 30 if device.type == "cpu" else 2_000, args.tf32
        )
        found: dict[str, float | str] = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "processor",
            "harvest_tokens_per_second": round(reading),
            "training_tokens_per_second": round(training),
            "twelve_runs_hours": round(RUNS_TOKENS * (1 / reading + 1 / training) / 3600, 2),
        }
        for where in dict.fromkeys(("cpu", device.type)):
            seconds, s_2 = split_seconds(choose_device(where))
            found |= {f"split_seconds_{where}": round(seconds, 2), f"split_S_2_{where}": round(s_2, 3)}
    if args.json:
        print(json.dumps(found))
        return
    print(f"{provenance.device()}, torch {torch.__version__}, {datetime.date.today().isoformat()}")
    for name, value in found.items():
        print(f"{name:32}{value}")


if __name__ == "__main__":
    main()
