"""How much faster activations are harvested than by transformer_lens, at gelu-1l's shape, side by side.

    python benchmarks/harvest.py [--json] [--quick] [--threads 2] [--device cpu]

Both get the same tokens and return `blocks.0.hook_mlp_out` of a one-layer model with random weights (d_model 512, 8 heads,
d_mlp 2048, context 128, vocabulary 48,262), in fp32; transformer_lens stops at the first layer (`stop_at_layer=1`). They take
turns; the speed-up is the ratio of the times in one round, told as median and quartiles over the rounds. max_rel_error is the
largest difference over the largest entry. Without --json, bf16 and the cost of serving batches from a store are shown too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from timing import D_VOCAB, random_model, seconds, spread

from saelib.acts.batches import ShuffledBatches, View
from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base import provenance
from saelib.base.device import DEVICES, choose_device
from saelib.lm.model import HOOK_NAME


def serving(folder: Path, n_contexts: int, d_in: int = 512, batch: int = 4096) -> float:
    """Microseconds for a token served shuffled from a store on disk, reading included."""
    with (folder / "acts.bin").open("wb") as file:
        for _ in range(n_contexts // 100):
            file.write(np.ones((100 * POSITIONS, d_in), np.int16).tobytes())
    manifest = {"key": "made", "d_in": d_in, "n_contexts": n_contexts}
    batches = ShuffledBatches(View(ActivationStore(folder, manifest, np.zeros((1, 128), np.uint16))), batch, 0)
    steps = n_contexts * POSITIONS // batch
    out = torch.empty(batch, d_in)
    batches.batch(0, out)  # may compile
    return 1e6 * seconds(lambda: [batches.batch(step, out) for step in range(steps)]) / (steps * batch)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and no more")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="default 41, with --quick 9")
    parser.add_argument("--contexts", type=int, help="contexts of 128 tokens a call; default 32, on a GPU 256")
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    args = parser.parse_args()
    rounds = args.rounds or (9 if args.quick else 41)
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # transformer_lens says that it has a successor
    model, device = random_model(), choose_device(args.device)
    hooked, model = model.hooked.to(device, print_details=False), model.on(device)
    contexts = args.contexts or model.contexts_at_a_time
    tokens = torch.randint(0, D_VOCAB, (contexts, 128), generator=torch.Generator().manual_seed(1)).to(device)
    ours, half = model.plain(torch.float32), model.plain(torch.bfloat16)

    def theirs() -> torch.Tensor:
        return hooked.run_with_cache(tokens, names_filter=HOOK_NAME, stop_at_layer=1)[1][HOOK_NAME]

    contestants = {
        "transformer_lens": theirs,
        "saelib": lambda: ours.mlp_out(tokens),
        "saelib, bf16": lambda: half.mlp_out(tokens),
    }
    outputs = {name: run() for name, run in contestants.items()}  # warm up too
    expected = outputs["transformer_lens"]
    errors = {name: float((out - expected).abs().max() / expected.abs().max()) for name, out in outputs.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds):
        for name in list(contestants) if round_ % 2 else reversed(list(contestants)):
            times[name].append(seconds(contestants[name], device))
    speedup = spread([a / b for a, b in zip(times["transformer_lens"], times["saelib"], strict=True)])
    if args.json:
        print(json.dumps({"speedup_vs_transformer_lens": speedup, "max_rel_error": errors["saelib"]}))
        return
    print(
        f"{provenance.device()}, {args.threads} threads, torch {torch.__version__}, {datetime.date.today().isoformat()}"
    )
    for name, values in times.items():
        rate = tokens.numel() / statistics.median(values)
        print(f"{name:24}{rate:10.0f} tokens/s, error {errors[name]:.1e}")
    print(f"speed-up in fp32 {speedup['median']:.2f} ({speedup['p25']:.2f} to {speedup['p75']:.2f})")
    with tempfile.TemporaryDirectory() as folder:
        print(f"serving, d_in 512: {serving(Path(folder), 2000 if args.quick else 6000):.2f} microseconds a token")


if __name__ == "__main__":
    main()
