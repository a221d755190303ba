"""Choose the narrow SAE of a profile: width, L1 coefficient and steps, on select data, before any split is looked at.

    python scripts/choose_narrow.py            # the grid below at profile mini: docs/narrow_choice.csv, about half an hour

Rule: of the SAEs of the grid whose L0 on select lies in the profile's `l0_range`, those whose best feature marks word-joining
hyphens with an F1 (at its best threshold) within `WITHIN` of the best one's; of these the narrowest, since a coarse feature is
what is to be split; of these the one with the highest F1. Purity and recall are those at that threshold, on select.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import pandas as pd

from saelib.base.cache import atomic_path
from saelib.study import selection, study
from saelib.study.profiles import get_profile

WIDTHS = (256, 512, 1024)
COEFFICIENTS = (6e-4, 1e-3, 1.4e-3, 2e-3)
STEPS = (1500,)
WITHIN = 0.02
OUT = Path(__file__).parents[1] / "docs" / "narrow_choice.csv"


def main() -> None:
    """Train the grid and write the table; what is trained already is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    args = parser.parse_args()
    base, rows = get_profile(args.profile), []
    for steps, width, l1_coeff in itertools.product(args.steps, WIDTHS, COEFFICIENTS):
        profile = replace(
            base, d_sae_narrow=width, narrow_steps=steps, l1_grid=(l1_coeff,), l0_range=(0.0, float(width))
        )
        quality = study.coefficient(profile).grid.iloc[0]
        chosen = selection.parent(profile)
        fit = selection.parent_fit(profile, chosen, "select")
        rows.append(
            {"d_sae": width, "steps": steps, "l1_coeff": l1_coeff, "l0": quality["l0"], "fvu": quality["fvu"],
             "loss_recovered": quality["loss_recovered"], "feature": chosen.feature, "tau": chosen.tau, "f1": fit.f1,
             "purity": fit.purity, "recall": fit.recall}
        )  # fmt: skip
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False, header=len(rows) == 1), flush=True)
    table = pd.DataFrame(rows)
    low, high = base.l0_range
    fits = table[table["l0"].between(low, high)]
    near = fits[fits["f1"] >= fits["f1"].max() - WITHIN]
    narrowest = near[near["d_sae"] == near["d_sae"].min()]
    table["chosen"] = table.index == narrowest["f1"].idxmax()
    with atomic_path(OUT) as temporary:
        table.round(6).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
