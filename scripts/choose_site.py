"""Choose where in SmolLM2 an SAE is put: the site at which a linear probe best tells the hyphen's classes apart.

    python scripts/choose_site.py [--layers 16]     # docs/smollm2_sites.csv, about ten minutes on 2 cores

Every site of the first layers is read in one pass, on contexts that hold a hyphen joining words. The probe of each class is
fitted on train; its ridge, its threshold and the MCC written here are those of select. The rule: the shallowest site whose mean
MCC over the classes is within `TOLERANCE` of the best one's, since harvesting costs a forward pass up to it, and, of one layer,
the MLP's output before the residual stream. Sites where two dimensions hold more than a tenth of the variance on all tokens
of these contexts (massive activations) are left out: an SAE would spend itself on these.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.cache import atomic_path
from saelib.lm.hf_model import layers_of
from saelib.lm.smollm2 import load_smollm2
from saelib.split.classes import CLASSES, hyphen_labels, hyphen_mask
from saelib.split.probe import probe
from saelib.study import study
from saelib.study.profiles import get_profile

OUT = Path(__file__).parents[1] / "docs" / "smollm2_sites.csv"
CONTEXTS = {"train": 5000, "select": 2000}
TOLERANCE, MOST_SHARE = 0.02, 0.1
SITES = ("hook_mlp_out", "hook_resid_post")


def hyphens(store: ActivationStore, model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of hyphens that join words, and their classes."""
    rows = np.flatnonzero(hyphen_mask(store, model))
    label = hyphen_labels(store, model, rows)
    return rows[label >= 0], label[label >= 0]


@torch.no_grad()
def read(
    module: Any, contexts: np.ndarray, rows: np.ndarray, layers: int
) -> tuple[dict[tuple[int, str], Tensor], dict[tuple[int, str], float]]:
    """Of every site the activations on some rows, fp32, and the share of two dimensions in the variance of all tokens."""
    found: dict[tuple[int, str], list[Tensor]] = {}
    sums: dict[tuple[int, str], Tensor] = {}
    held: dict[tuple[int, str], Tensor] = {}

    class Reached(Exception):
        pass

    def keep(layer: int, site: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            held[layer, site] = output[0] if isinstance(output, tuple) else output
            if (layer, site) == (layers - 1, SITES[-1]):
                raise Reached

        return hook

    def batches() -> Iterator[np.ndarray]:
        chosen = np.unique(rows // POSITIONS)
        yield from np.array_split(chosen, max(len(chosen) // 16, 1))

    with ExitStack() as stack:
        for n, layer in enumerate(layers_of(module)[:layers]):
            assert isinstance(layer.mlp, nn.Module)
            stack.callback(layer.mlp.register_forward_hook(keep(n, SITES[0])).remove)
            stack.callback(layer.register_forward_hook(keep(n, SITES[1])).remove)
        for batch in batches():
            with suppress(Reached):
                module(torch.from_numpy(contexts[batch].astype(np.int64)), use_cache=False)
            own = rows[np.isin(rows // POSITIONS, batch)]
            at = torch.from_numpy(np.searchsorted(batch, own // POSITIONS)), torch.from_numpy(own % POSITIONS + 1)
            for place, value in held.items():
                found.setdefault(place, []).append(value[at].float())
                every = value[:, 1:].flatten(0, 1).double()
                moments = torch.stack([torch.ones_like(every[0]) * len(every), every.sum(0), every.square().sum(0)])
                sums[place] = sums.get(place, 0) + moments
            print(f"context {batch[-1]} of {len(contexts)}", flush=True)
    shares = {}
    for place, (n, first, second) in sums.items():
        variance = (second / n - (first / n).square()).sort(descending=True).values
        shares[place] = float(variance[:2].sum() / variance.sum())
    return {place: torch.cat(parts) for place, parts in found.items()}, shares


def main() -> None:
    """Read, fit, write, and name the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    profile = get_profile("smollm2")
    model, tokens = load_smollm2(profile.hook_name), study.tokens(profile)
    x, member, shares = {}, {}, {}
    for split, n in CONTEXTS.items():
        contexts = np.asarray(tokens.contexts(split)[:n])
        store = ActivationStore(Path(), {"n_contexts": len(contexts)}, contexts)
        rows, label = hyphens(store, model)
        member[split] = label[:, None] == np.arange(len(CLASSES))
        x[split], shares[split] = read(model.module, contexts, rows, args.layers)
    out = []
    for place in x["train"]:
        each = {split: x[split][place] for split in x} | {"test": x["select"][place][:1]}
        marked = probe(each, member)
        out.append({
            "hook_name": f"blocks.{place[0]}.{place[1]}", **dict(zip(CLASSES, marked.select_mcc, strict=True)),
            "mean": marked.select_mcc.mean(), "share_of_two": shares["train"][place],
        })  # fmt: skip
    frame = pd.DataFrame(out)
    n_of = {split: " ".join(f"{c} {n}" for c, n in zip(CLASSES, member[split].sum(0), strict=True)) for split in member}
    allowed = frame["share_of_two"] <= MOST_SHARE
    near = allowed & (frame["mean"] >= frame["mean"][allowed].max() - TOLERANCE)
    frame["chosen"] = np.arange(len(frame)) == int(near.to_numpy().argmax())
    frame = frame.assign(n_train=n_of["train"], n_select=n_of["select"])
    with atomic_path(OUT) as temporary:
        frame.round(4).to_csv(temporary, index=False)
    print(frame.drop(columns=["n_train", "n_select"]).to_string())


if __name__ == "__main__":
    main()
