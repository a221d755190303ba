"""Milliseconds for one training step: the reference port (autograd), the dense and the sparse route.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py [--active 10 40 200 500] [--repeats 7] [--json FILE]

The three take turns, so that whatever else the machine does hits them alike; medians are shown. `--active` is the number of
active features a token, set through the encoder biases. On a busy machine read the ratios, not the times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference_trainer import ReferenceTrainer

from saelib.sae import PARAMETERS, SAE, SAEConfig, init_random
from saelib.step import Params, Route, loss_and_grads, normalise_decoder


def sae_with_activity(x: torch.Tensor, d_sae: int, n_active: float) -> SAE:
    """A random SAE whose encoder bias leaves about `n_active` features a token positive on x."""
    cfg = SAEConfig(d_in=x.shape[1], d_sae=d_sae, hook_name="none", model_name="none")
    sae = init_random(cfg, torch.Generator().manual_seed(0))
    with torch.no_grad():
        pre = x[:512] @ sae.W_enc
        rank = max(1, round(pre.numel() * (1 - n_active / d_sae)))
        sae.b_enc.fill_(-pre.flatten().kthvalue(rank).values.item())
    return sae


def product_step(sae: SAE, x: torch.Tensor, route: Route) -> Callable[[], None]:
    """A whole step as `saelib.train` does it, on copies that stay as they are (learning rate zero)."""
    params = Params(*(tensor.clone() for tensor in Params.of(sae)))
    W_enc_t = params.W_enc.t().contiguous()
    params = params._replace(W_enc=W_enc_t.t())
    leaves = [W_enc_t, params.b_enc, params.W_dec, params.b_dec]
    adam = torch.optim.Adam(leaves, lr=0.0, betas=(0.9, 0.99), fused=True)

    def step() -> None:
        grads = loss_and_grads(params, x, 1e-4, route=route).grads
        normalise_decoder(params.W_dec, grads.W_dec)
        for leaf, grad in zip(leaves, (grads.W_enc.t(), *grads[1:]), strict=True):
            leaf.grad = grad
        adam.step()

    return step


def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    x = torch.randn(args.batch, args.d_in, generator=torch.Generator().manual_seed(1))
    rows = []
    for n_active in args.active:
        sae = sae_with_activity(x, args.d_sae, n_active)
        reference = ReferenceTrainer({name: getattr(sae, name) for name in PARAMETERS}, 1e-4, lr=0.0)
        contestants: dict[str, Callable[[], object]] = {
            "reference": lambda trainer=reference: trainer.step(x),
            "dense": product_step(sae, x, "dense"),
            "sparse": product_step(sae, x, "sparse"),
        }
        if args.no_reference:
            del contestants["reference"]
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for repeat in range(args.repeats + 1):
            for name, run in contestants.items():
                started = time.perf_counter()
                run()
                if repeat:  # the first round warms up
                    times[name].append(1e3 * (time.perf_counter() - started))
        l0 = loss_and_grads(Params.of(sae), x, 1e-4).l0
        rows.append({"active": l0, **{name: statistics.median(values) for name, values in times.items()}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--active", type=float, nargs="+", default=[10, 40, 200, 500, 1000])
    parser.add_argument("--d-in", type=int, default=256)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-reference", action="store_true", help="leave the slow one out")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    rows = measure(args)
    names = [name for name in rows[0] if name != "active"]
    print(f"d_in {args.d_in}, d_sae {args.d_sae}, batch {args.batch}, {torch.get_num_threads()} threads; ms a step")
    print("active a token " + "".join(f"{name:>12}" for name in names))
    for row in rows:
        print(f"{row['active']:14.1f} " + "".join(f"{row[name]:12.1f}" for name in names))
    if args.json:
        shape = {"d_in": args.d_in, "d_sae": args.d_sae, "batch": args.batch, "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps({**shape, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
