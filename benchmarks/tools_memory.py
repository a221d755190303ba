"""Peak memory and time of the tools at a size that does not fit in memory as a dense feature matrix.

    OMP_NUM_THREADS=1 python benchmarks/tools_memory.py [--features 4096] [--tokens 5000000] [--folder DIR] [--limit-mb 3000]

A random SAE on 64 dimensions, about 20 active features a token, and a store of that many tokens on disk. In one pass:
the top and the quantile examples, density and histogram of every feature; then the firing of one feature with all. The
dense matrix of activations alone would take features x tokens x 4 bytes (82 GB). Exit code 1 when the limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.interpret.compare import co_firing
from saelib.interpret.examples import Found, example_frame
from saelib.interpret.features import density_frame, histogram_frame
from saelib.sae.initial import unit_rows
from saelib.sae.sae import SAE, SAEConfig
from saelib.sae.stream import Best, Counts, Histogram, stream
from saelib.text.tokens import CONTEXT_LENGTH

D_IN = 64
BIAS = -2.58  # 0.5% of a standard normal lie above 2.58: 20 of 4096 active
CHUNK = 1000  # contexts


def made_store(folder: Path, n_tokens: int) -> ActivationStore:
    """Normal activations, every token its own: nothing is cached that would not be."""
    n_contexts = -(-n_tokens // POSITIONS)
    generator = torch.Generator().manual_seed(0)
    with open(folder / "acts.bin", "wb") as file:
        for begin in range(0, n_contexts, CHUNK):
            n = min(CHUNK, n_contexts - begin) * POSITIONS
            x = torch.randn(n, D_IN, generator=generator).bfloat16()
            file.write(x.view(torch.int16).numpy().tobytes())
    np.zeros((n_contexts, CONTEXT_LENGTH), dtype=np.uint16).tofile(folder / "contexts.bin")
    contexts = np.memmap(folder / "contexts.bin", dtype=np.uint16, mode="r", shape=(n_contexts, CONTEXT_LENGTH))
    return ActivationStore(folder, {"key": "made", "d_in": D_IN, "n_contexts": n_contexts}, contexts)


def made_sae(d_sae: int) -> SAE:
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=d_sae, hook_name="", model_name="made"))
    with torch.no_grad():
        sae.W_dec.copy_(unit_rows(torch.randn(d_sae, D_IN, generator=torch.Generator().manual_seed(1))))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(BIAS)
    return sae


def peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins at what the process that started this one had reached
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path, n_features: int, n_tokens: int) -> dict[str, float]:
    torch.set_num_threads(1)
    sae, store = made_sae(n_features), made_store(folder, n_tokens)
    found: dict[str, float] = {"features": n_features, "tokens": store.n_tokens, "peak_mb_before": peak_mb()}
    began = time.perf_counter()
    every = np.arange(n_features)
    counts, histogram = Counts(n_features), Histogram(n_features)
    top, drawn = Best(n_features, 20), Best(n_features, 1000, by="sample")
    stream(sae, store, None, [counts, histogram, top, drawn])
    found["pass_seconds"], found["peak_mb_pass"] = time.perf_counter() - began, peak_mb()
    examples = [example_frame(sae, None, store, f, Found(f, top, drawn, (0.9, 0.5, 0.1), 10)) for f in range(20)]
    density = density_frame(every, counts)
    assert int(histogram_frame(every, histogram)["tokens"].sum()) == int(counts.active.sum())
    assert all(len(frame) == 50 for frame in examples), "20 at the top and 10 at each of three quantiles"
    found["active_a_token"] = float(density["density"].sum())
    began = time.perf_counter()
    co_firing(sae, store, 0)
    found["co_firing_seconds"] = time.perf_counter() - began
    found["peak_mb"] = peak_mb()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path, help="where the store is written (default: a temporary folder)")
    parser.add_argument("--limit-mb", type=float, default=3000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(Path(folder), args.features, args.tokens)
    print(json.dumps({key: round(value, 1) for key, value in found.items()}))
    return int(found["peak_mb"] > args.limit_mb)


if __name__ == "__main__":
    raise SystemExit(main())
