"""How much faster a training step is than the study's own trainer, and than those of other libraries, at one shape, side by side.

    python benchmarks/train_step.py [--json] [--quick] [--threads 2] [--batch 4096] [--d-in 512] [--d-sae 4096]
                                    [--device cpu]

A step is everything between two batches: loss, gradients, decoder norms, Adam, the counting of silent features. The
learning rate is zero, so that each step of a contestant does the same work. Contestants take turns; a speed-up is the
ratio of the times in one round, and its median and quartiles over the rounds are told; `null` where a library is not installed
(`benchmarks/peers.py` says how to install SAELens and dictionary_learning).

* reference: the study's trainer in plain autograd (`saelib/sae/definition.py`), on the study's objective, once with about
  40 active features a token (through the encoder biases) and once at random initialisation.
* saelens_fp32, saelens_autocast: SAELens's own trainer's `step`, fp32 and bf16 autocast, on its default objective (L1 weighted
  by decoder norms), against ours on that objective, at about 40 active. Its step also clips the gradient's norm.
* dictionary_learning: `StandardTrainer.update`, on the objective nearest to the study's (decoder rows of unit norm, the same two
  terms, Adam), against ours on the study's, at about 40 active. It counts no silent features, as by default.
* saelens_batchtopk, saelens_matryoshka, dictionary_learning_batchtopk: **their objective is another one**. This is a step of a
  wide SAE of the same shape, not the same arithmetic: those SAEs keep the largest activations of a batch, 40 a token (k is
  `--active`), and have no L1 term, and Matryoshka's loss has four nested reconstructions (d_sae / 8, / 4, / 2 and all); ours is
  an L1 step with about as many features active. The ratio tells what a training of that size costs in either library, not which
  computes one objective faster. fp32, random weights. SAELens's are held against ours on SAELens's objective,
  dictionary_learning's, which keeps decoder rows at unit norm, against ours on the study's.
* roofline_share: what the step's necessary work would take at the best rates measured here, over what it takes. Necessary:
  one product of batch and encoder in the fastest format, one read of an fp32 row of d_in for each active entry in each of
  four passes (pre-activation, decoder, two gradients) at the rate at which this machine reads a matrix of W_dec's size,
  and seven passes over the parameters for Adam at the rate at which it copies large memory. On a GPU: the arithmetic of the
  dense step's five products (10 batch d_in d_sae) at the rate of a large fp32 product there.

BatchTopK, Matryoshka and dictionary_learning take part in every second round, after one warm-up and not three, so that `--quick`
stays under a minute.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import peers
from timing import CPU, seconds, spread

from saelib.base import provenance
from saelib.base.device import DEVICES, choose_device
from saelib.sae import low_precision
from saelib.sae.definition import PlainTrainer
from saelib.sae.initial import init_random
from saelib.sae.sae import PARAMETERS, SAE, SAEConfig
from saelib.sae.step import Objective, choose_route, loss_and_grads, normalise_decoder
from saelib.sae.train_config import TrainConfig
from saelib.sae.train_state import TrainState

L1_STUDY = 1e-4  # summed over the batch
L1_TOKEN = 0.4  # a token's; the time does not depend on either

OVER = {
    "speedup_vs_reference": ("reference, 40 active", "saelib, 40 active"),
    "speedup_vs_reference_init": ("reference, init", "saelib, init"),
    "speedup_vs_saelens_fp32": ("SAELens fp32", "saelib, SAELens's objective"),
    "speedup_vs_saelens_autocast": ("SAELens autocast", "saelib, SAELens's objective"),
    "speedup_vs_saelens_batchtopk": ("SAELens BatchTopK", "saelib, SAELens's objective"),
    "speedup_vs_saelens_matryoshka": ("SAELens Matryoshka", "saelib, SAELens's objective"),
    "speedup_vs_dictionary_learning": ("dictionary_learning", "saelib, 40 active"),
    "speedup_vs_dictionary_learning_batchtopk": ("dictionary_learning BatchTopK", "saelib, 40 active"),
}
"""Which contestant is held against which of ours."""
EVERY_SECOND_ROUND = (
    "SAELens BatchTopK", "SAELens Matryoshka", "dictionary_learning", "dictionary_learning BatchTopK",
)  # fmt: skip


def sae_with_activity(x: torch.Tensor, d_sae: int, n_active: float | None) -> SAE:
    """A random SAE; with `n_active`, its encoder bias leaves about so many features a token positive on x."""
    cfg = SAEConfig(d_in=x.shape[1], d_sae=d_sae, hook_name="none", model_name="none")
    sae = init_random(cfg, torch.Generator().manual_seed(0))
    if n_active is not None:
        with torch.no_grad():
            pre = x[:512] @ sae.W_enc
            rank = max(1, round(pre.numel() * (1 - n_active / d_sae)))
            sae.b_enc.fill_(-pre.flatten().kthvalue(rank).values.item())
    return sae


class Ours:
    """The loop of `saelib.train.train`, without batches, history and checkpoints."""

    def __init__(self, sae: SAE, x: torch.Tensor, objective: Objective) -> None:
        l1_coeff = L1_STUDY if objective == "study" else L1_TOKEN
        self.cfg = TrainConfig(l1_coeff=l1_coeff, n_steps=1, lr=0.0, batch_size=len(x), objective=objective)
        self.x, self.state, self.totals = x, TrainState(copy.deepcopy(sae), self.cfg), torch.zeros(4)

    def step(self) -> None:
        """One step, as `train` takes it."""
        state, cfg = self.state, self.cfg
        route = choose_route(state.active_share, state.device)
        result = loss_and_grads(state.params, self.x, cfg.l1_coeff, None, route, cfg.objective)
        state.count(result, len(self.x))
        if cfg.objective == "study":
            normalise_decoder(state.params.W_dec, result.grads.W_dec)
        state.update(result.grads)
        self.totals = result.totals


def milliseconds(run: Callable[[], object], device: torch.device = CPU, calls: int = 1) -> float:
    """As `seconds`."""
    return 1e3 * seconds(run, device, calls)


def roofline_ms(x: torch.Tensor, d_sae: int, l0: float) -> tuple[float, dict[str, float]]:
    """Milliseconds for the step's necessary work at the best measured rates, and its parts."""
    batch, d_in = x.shape
    if x.device.type != "cpu":
        a, b = (torch.randn(8192, 8192, device=x.device) for _ in range(2))
        rate = 2 * 8192**3 / min(milliseconds(lambda: a @ b, x.device, 3) for _ in range(5))
        products = 10 * batch * d_in * d_sae / rate
        return products, {"products": products}
    w = torch.randn(d_sae, d_in)
    out = torch.empty(batch, d_sae)  # not part of the work: the step keeps its memory
    formats = [(low_precision.rounded(x, kind), low_precision.rounded(w, kind)) for kind in low_precision.FORMATS]
    product = min(
        min(milliseconds(lambda c=c, v=v: low_precision.rough_product(c.values, v.values, out)) for _ in range(5))
        for c, v in formats
    )
    reading = min(milliseconds(w.sum) for _ in range(20)) / w.numel()
    large, target = torch.ones(32 * 2**20), torch.ones(32 * 2**20)
    moving = min(milliseconds(lambda: target.copy_(large)) for _ in range(5)) / (2 * large.numel())
    parts = {
        "product": product,
        "active entries": 4 * batch * l0 * d_in * reading,
        "parameters": 7 * 2 * w.numel() * moving,
    }
    return sum(parts.values()), parts


def measure(args: argparse.Namespace) -> tuple[dict[str, dict[str, float] | None], dict[str, list[float]]]:
    torch.manual_seed(0)
    device = choose_device(args.device)
    calls = 1 if device.type == "cpu" else 50
    x = torch.randn(args.batch, args.d_in)
    trained, fresh = (sae_with_activity(x, args.d_sae, n).on(device) for n in (args.active, None))
    x = x.to(device)
    ours = Ours(trained, x, "study")
    contestants: dict[str, Callable[[], object]] = {
        "reference, 40 active": PlainTrainer(weights(trained), L1_STUDY, lr=0.0).step,
        "saelib, 40 active": ours.step,
        "reference, init": PlainTrainer(weights(fresh), L1_STUDY, lr=0.0).step,
        "saelib, init": Ours(fresh, x, "study").step,
        "saelib, SAELens's objective": Ours(trained, x, "decoder_norm").step,
    }
    for name in ("reference, 40 active", "reference, init"):
        contestants[name] = lambda step=contestants[name]: step(x)
    contestants |= peers.contestants(trained, fresh, x, L1_TOKEN, k=max(1, round(args.active)))
    for package, how in peers.PACKAGES.items():
        if not peers.installed(package):
            print(f"{package} is not installed: its rows are left out ({how})", file=sys.stderr)
    for name, run in contestants.items():  # warm up: compile, choose a format, give Adam its memory
        for _ in range(1 if name in EVERY_SECOND_ROUND else 3):
            run()
    least, parts = roofline_ms(x, args.d_sae, float(ours.totals[2]))
    rounds: dict[str, dict[int, float]] = {name: {} for name in contestants}
    order = list(contestants)
    for round_ in range(args.rounds):
        for name in order if round_ // 2 % 2 else reversed(order):
            if round_ % 2 == 0 or name not in EVERY_SECOND_ROUND:
                rounds[name][round_] = milliseconds(contestants[name], device, calls)

    def ratio(slow: str, fast: str) -> dict[str, float] | None:
        if slow not in rounds:
            return None
        return spread([value / rounds[fast][round_] for round_, value in rounds[slow].items()])

    times = {name: list(values.values()) for name, values in rounds.items()}
    found = {name: ratio(*pair) for name, pair in OVER.items()}
    found["roofline_share"] = spread([least / each for each in times["saelib, 40 active"]])
    times |= {f"roofline: {name}": [value] for name, value in parts.items()} | {
        "active a token": [float(ours.totals[2])]
    }
    return found, times


def weights(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: getattr(sae, name) for name in PARAMETERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and no more")
    parser.add_argument("--quick", action="store_true", help="5 rounds: under a minute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--active", type=float, default=40, help="features active a token")
    parser.add_argument("--rounds", type=int, help="default 25, with --quick 5")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 25)
    torch.set_num_threads(args.threads)
    found, times = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    print(
        f"{provenance.device()}, {args.threads} threads, torch {torch.__version__}, {datetime.date.today().isoformat()}"
    )
    print(f"batch {args.batch}, d_in {args.d_in}, d_sae {args.d_sae}; medians of {args.rounds} rounds (quartiles)")
    for name, values in times.items():
        print(f"{name:41}{statistics.median(values):9.1f}" + ("" if name.startswith("active") else " ms"))
    for name, value in found.items():
        print(
            f"{name:41}" + (f"{value['median']:9.2f} ({value['p25']:.2f} to {value['p75']:.2f})" if value else "   -")
        )


if __name__ == "__main__":
    main()
