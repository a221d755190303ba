"""Draw the benchmark's worlds that sae-lens makes: features, hierarchy, firing and magnitudes by `sae_lens.synthetic`.

    .venv-saelens/bin/python scripts/make_saelens_worlds.py reports/splitbench/worlds     # part of make bench-saes

A root is the parent, its children are mutually exclusive, and background features, more than dimensions, fire beside them. The
samples are sorted by what is on (nothing of the tree, the parent with child c, the parent alone) and saved with the feature
vectors; `saelib.bench.known` lays them under a text in which the word before says which child is on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sae_lens import __version__
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, HierarchyNode, hierarchy_modifier
from safetensors.torch import save_file

WORLDS = {"saelens-3": (3, 96), "saelens-8": (8, 96), "saelens-crowded": (3, 256)}
"""Name: children, background features."""
D_IN, SEED = 32, 0
KEPT, KEPT_OFF = 4096, 32_768
"""Samples of each kind on which the parent is on, and of those on which it is not."""
PARENT, CHILD, BACKGROUND = 4.0, 2.2, 1.5
"""Mean magnitudes; the standard deviation is 0.15 of them."""


@torch.no_grad()
def main() -> None:
    """Write a file a world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, (m, background) in WORLDS.items():
        torch.manual_seed(SEED)
        n_features = 1 + m + background
        with torch.enable_grad():
            vectors = FeatureDictionary(n_features, D_IN, seed=SEED).feature_vectors.detach()
        mean = torch.tensor([PARENT] + [CHILD] * m + [BACKGROUND] * background)
        chance = torch.tensor([0.5] + [0.15] * m + [0.04] * background)
        tree = HierarchyNode(0, [HierarchyNode(c) for c in range(1, m + 1)], mutually_exclusive_children=True)
        generator = ActivationGenerator(
            n_features, chance, 0.15 * mean, mean, modify_activations=hierarchy_modifier(tree)
        )
        kinds: list[list[torch.Tensor]] = [[] for _ in range(m + 2)]
        wanted = [KEPT_OFF] + [KEPT] * (m + 1)
        while any(sum(map(len, kind)) < n for kind, n in zip(kinds, wanted, strict=True)):
            features = generator.sample(50_000)
            parent, children = features[:, 0] > 0, features[:, 1 : m + 1] > 0
            x = features @ vectors + 0.05 * torch.randn(len(features), D_IN)
            x = torch.cat([x, features[:, m + 1 :]], 1)  # with the background features, to say where these are on
            for c in range(m):
                kinds[1 + c].append(x[parent & children[:, c]])
            kinds[0].append(x[~parent])
            kinds[m + 1].append(x[parent & ~children.any(1)])
        held = [torch.cat(kind)[:n] for kind, n in zip(kinds, wanted, strict=True)]
        pool = {f"pool_{i}": x[:, :D_IN].bfloat16().contiguous() for i, x in enumerate(held)}
        pool |= {f"others_{i}": (x[:, D_IN:] > 0).contiguous() for i, x in enumerate(held)}
        about = {"name": name, "children": m, "sae_lens": __version__, "seed": SEED}
        save_file(
            {"vectors": vectors.contiguous(), **pool},
            args.folder / f"{name}.safetensors",
            {"world": json.dumps(about)},
        )
        print(json.dumps(about))


if __name__ == "__main__":
    main()
