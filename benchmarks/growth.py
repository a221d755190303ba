"""How time and memory grow: of a split and of a wide SAE's steps with the store, with the SAE, and with the number of parents.

    python benchmarks/growth.py [--json] [--quick] [--tokens 1e6,1e7,1e8] [--d-sae 2048,16384,65536] [--parents 1,10,100,1000]
                                [--folder DIR]

The activations are a made-up world of 512 dimensions (`saelib.bench.known`), its text written again and again until the store has
the tokens asked for: 1,024 bytes each, 102 GB for 100M. Copies beyond the first 16M tokens share the blocks of the first on a
file system that can (Btrfs, XFS): `--folder` on one needs 17 GB, and every byte is still read from the disk. A store is removed
after its last point. The SAE reads the world's parent and 511 background features; the rest of its features are random, 16 of
them active a token. Every point of `split` and `wide` is a process of its own.

    split    one parent, 64 children, no controls: seconds, peak_mb (resident)
    wide     a step of 4,096 tokens of an SAE with d_sae features on the same store: seconds a step, peak_mb of the process
    parents  many parents of one SAE of 64 dimensions split side by side on all cores, as `saelib split --all` does: seconds in
             all, peak_mb of the process that hands them out, until then

`exponents` are slopes of log(seconds) and log(peak_mb) over log(size): 0 does not grow, 1 grows in proportion.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib.externals.loky import get_reusable_executor
from tools_memory import peak_mb

from saelib.acts.batches import ShuffledBatches, View
from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.base.provenance import device
from saelib.bench.backend import one_thread, side_by_side
from saelib.bench.known import KnownActivations, World, known_activations, known_sae
from saelib.sae.initial import unit_rows
from saelib.sae.sae import SAE
from saelib.sae.train import train
from saelib.sae.train_config import TrainConfig
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.parent import OVERVIEW, Samples
from saelib.text.tokens import CONTEXT_LENGTH

WORLDS = {
    False: World("growth", n_background=1024, d_in=512, contexts=(1000, 500, 500)),
    True: World("growth-quick", n_background=256, d_in=64, contexts=(150, 80, 80)),
}
"""Of a whole measurement, and of `--quick`."""
READ = {False: 511, True: 127}
OWN = 16_000_000
"""Tokens of a store that are written; what is beyond them shares their blocks where the file system can."""
ACTIVE = 16
"""Random features that are active a token."""
WIDE_STEPS = {False: 10, True: 3}
CHILDREN_STEPS = {False: 1000, True: 100}
SMALL_SAE, SMALL_STORE = 256, 40_000
"""Features and tokens with which many parents are split, always of the small world: a thousand are done within the hour."""
LEAST = {False: 20, True: 5}
"""Tokens that a context must have: the words of a world are drawn alike, so that each stands beside few of a parent's."""


def grown(folder: Path, n_tokens: int, quick: bool) -> KnownActivations:
    """The world with its splits repeated on disk, half of the tokens in train, until it has at least `n_tokens`."""
    base = known_activations(WORLDS[quick])
    times = -(-n_tokens // sum(store.n_tokens for store in base.stores.values()))
    stores = {}
    for split, store in base.stores.items():
        part = folder / f"{split}-{times}-{store.key[:8]}"
        n, contexts = len(store.contexts) * times, np.ascontiguousarray(store.contexts)
        if not (part / "whole").exists():
            part.mkdir(parents=True, exist_ok=True)
            acts, own = (store.folder / "acts.bin").read_bytes(), max(1, OWN * times // n_tokens)
            for name, data in (("acts.bin", acts), ("contexts.bin", contexts.tobytes())):
                write_again(part / name, data, times, own)
            (part / "whole").touch()
        ids = np.memmap(part / "contexts.bin", dtype=contexts.dtype, mode="r", shape=(n, CONTEXT_LENGTH))
        manifest = store.manifest | {"key": f"{store.key}-{times}", "n_contexts": n}
        stores[split] = ActivationStore(part, manifest, ids)
    return replace(base, stores=stores)


def write_again(path: Path, data: bytes, times: int, own: int) -> None:
    """The data so many times: the first `own` written, the others copied within the file."""
    with open(path, "w+b") as file:
        for _ in range(min(times, own)):
            file.write(data)
        file.flush()
        done, end, fd = len(data) * min(times, own), len(data) * times, file.fileno()
        while done < end:
            done += os.copy_file_range(fd, fd, min(done, end - done), 0, done)


@lru_cache(maxsize=1)
def made_sae(d_sae: int, quick: bool) -> tuple[SAE, int]:
    """The world's SAE with random features beside it, and the parent's number."""
    small, parent = known_sae(WORLDS[quick], READ[quick])
    more = d_sae - small.cfg.d_sae
    sae = SAE(replace(small.cfg, d_sae=d_sae)).requires_grad_(False)
    rows = unit_rows(torch.randn(more, small.cfg.d_in, generator=torch.Generator().manual_seed(0)))
    sizes = torch.quantile(
        known_activations(WORLDS[quick]).read("train", np.arange(4000)) @ rows[:256].T, 1 - ACTIVE / more, dim=0
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([small.W_enc, rows.T], 1))
        sae.W_dec.copy_(torch.cat([small.W_dec, rows]))
        sae.b_enc.copy_(torch.cat([small.b_enc, -sizes.mean().expand(more)]))
    return sae, parent


def split_config(n_steps: int, least: int, samples: Samples) -> SplitConfig:
    """A split without controls."""
    children = ChildrenConfig(n_steps=n_steps)
    return SplitConfig("automatic", least, K=64, seeds=1, controls=False, children=children, samples=samples)


def of_split(folder: Path, n_tokens: int, d_sae: int, quick: bool) -> dict[str, float]:
    """One split."""
    acts = grown(folder, n_tokens, quick)
    sae, parent = made_sae(d_sae, quick)
    began = time.perf_counter()
    split_feature(sae, parent, acts, split_config(CHILDREN_STEPS[quick], LEAST[quick], Samples()))
    return {"seconds": time.perf_counter() - began}


def of_wide(folder: Path, n_tokens: int, d_sae: int, quick: bool) -> dict[str, float]:
    """Some steps of a wide SAE, from one that is as sparse as a trained one."""
    acts, steps = grown(folder, n_tokens, quick), WIDE_STEPS[quick]
    sae, _ = made_sae(d_sae, quick)
    batches = ShuffledBatches(View(acts.stores["train"]), 4096, 0)
    with tempfile.TemporaryDirectory() as work:
        cfg = TrainConfig(n_steps=steps, l1_coeff=1e-3)
        return {"seconds": train(sae.requires_grad_(True), batches, cfg, workdir=Path(work)).seconds / steps}


def of_parents(folder: Path, n_parents: int, d_sae: int, quick: bool) -> dict[str, float]:
    """Many parents side by side: features that the SAE reads, again from the first where there are more parents than those."""
    cfg = split_config(CHILDREN_STEPS[quick], LEAST[True], OVERVIEW)
    work = [(folder, d_sae, i % READ[True], cfg) for i in range(n_parents)]
    grown(folder, SMALL_STORE, True)
    began = time.perf_counter()
    done = sum(found for _, found in side_by_side(_one_parent, work))
    seconds = time.perf_counter() - began
    get_reusable_executor(reuse=True).shutdown(wait=True)  # the next point starts its own
    return {"seconds": seconds, "split": float(done)}


@lru_cache(maxsize=1)
def _opened(folder: Path) -> KnownActivations:
    return grown(folder, SMALL_STORE, True)


def _one_parent(given: tuple[Path, int, int, SplitConfig]) -> bool:
    """Whether the feature has the tokens."""
    folder, d_sae, feature, cfg = given
    try:
        with one_thread():
            split_feature(made_sae(d_sae, True)[0], feature, _opened(folder), cfg)
    except UserError:
        return False
    return True


POINTS: dict[str, Callable[[Path, int, int, bool], dict[str, float]]] = {
    "split": of_split,
    "wide": of_wide,
    "parents": of_parents,
}


def measured(what: str, size: int, d_sae: int, folder: str, quick: bool) -> dict[str, Any]:
    """One point, and the peak memory of the process that it had for itself."""
    found = POINTS[what](Path(folder), size, d_sae, quick)
    return {
        "size": size,
        "d_sae": d_sae,
        **{name: round(x, 3) for name, x in found.items()},
        "peak_mb": round(peak_mb()),
    }


def point(*given: Any) -> dict[str, Any]:
    """One measurement in a process of its own, forked from one that has imported what it needs and done nothing."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["saelib.bench.known", "saelib.sae.train", "saelib.split.engine"])
    with ProcessPoolExecutor(1, mp_context=server) as executor:
        return executor.submit(measured, *given).result()


def slopes(points: list[dict[str, Any]], over: str) -> dict[str, float | None]:
    """Least-squares slope of log(seconds) and log(peak_mb) over log(size)."""
    x = np.log([p[over] for p in points])
    if len(points) < 2:
        return {"seconds": None, "peak_mb": None}
    return {
        name: round(float(np.polyfit(x, np.log([p[name] for p in points]), 1)[0]), 2) for name in ("seconds", "peak_mb")
    }


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(float(part)) for part in text.split(",")]


def main() -> None:
    """Measure every point, then say how it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object, and nothing else")
    parser.add_argument("--quick", action="store_true", help="small stores, small SAEs, few parents")
    parser.add_argument("--tokens", type=numbers)
    parser.add_argument("--d-sae", type=numbers)
    parser.add_argument("--parents", type=numbers)
    parser.add_argument("--folder", help="where stores are written (default: a temporary folder)")
    args = parser.parse_args()
    tokens = args.tokens or ([40_000, 80_000] if args.quick else [1_000_000, 10_000_000, 100_000_000])
    widths = args.d_sae or ([256, 512] if args.quick else [2048, 16_384, 65_536])
    parents = args.parents or ([1, 2] if args.quick else [1, 10, 100, 1000])
    curves: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        args.folder = args.folder or folder
        curves["parents"] = [measured("parents", n, SMALL_SAE, args.folder, args.quick) for n in parents]
        for n, d_sae in [(n, widths[0]) for n in tokens] + [(tokens[0], d) for d in widths[1:]]:
            stores = grown(Path(args.folder), n, args.quick).stores.values()
            for what in ("split", "wide"):
                found = point(what, n, d_sae, args.folder, args.quick)
                for over, belongs in (("tokens", d_sae == widths[0]), ("d_sae", n == tokens[0])):
                    if belongs:
                        curves.setdefault(f"{what} over {over}", []).append(found)
            if n != tokens[0]:
                for store in stores:
                    shutil.rmtree(store.folder)
    exponents = {name: slopes(points, "d_sae" if "d_sae" in name else "size") for name, points in curves.items()}
    if args.json:
        print(json.dumps({"curves": curves, "exponents": exponents}))
        return
    print(f"{device()}, {os.cpu_count()} cores; seconds of `wide` are those of a step")
    for name, points in curves.items():
        print(name, exponents[name])
        for p in points:
            print("   ", p)


if __name__ == "__main__":
    import growth  # under this name the processes that split parents side by side find its functions

    growth.main()
