"""A `Split` whose tokens, SAE and children are real and whose judgement is made up: what a page needs, in a second or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from saelib.acts.activations import Activations, harvest_documents
from saelib.lm.model import load_embedded
from saelib.sae.sae import SAE, SAEConfig
from saelib.split import contexts
from saelib.split.children import ChildrenConfig
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.judged import Judge
from saelib.split.parent import gather
from saelib.split.result import Split
from saelib.split.separation import ContextSeparation, Interval, Separation
from saelib.split.verdict import ContextVerdict, Judgement, Verdict
from saelib.split.work import Work
from saelib.split.yardstick import Reason


def around(value: float, half: float = 0.04) -> Interval:
    return Interval(value, value - half, value + half)


def made_up_split(
    acts: Activations, sae: SAE, feature: int, *, K: int = 6, n_steps: int = 150, how: str = "auto"
) -> Split:
    """Children really trained; the numbers of the judge invented, in the shape that the judge gives them."""
    cfg = SplitConfig(contexts=how, K=K, seeds=1, controls=False, children=ChildrenConfig(n_steps=n_steps))
    made = split_feature(sae, feature, acts, cfg)
    labels = made.labels
    separation = {
        name: _separation(labels, level)
        for name, level in (("rest + children", 0.75), ("children", 0.7), ("rest", 0.45))
    }
    names = ["rest + children", "children alone", "rest alone", "random decoder", "k-means", "small L1 SAE on P",
             "permuted labels",
             "quantiles of the parent", "wrong parent"]  # fmt: skip
    level = [0.66, 0.6, 0.47, 0.51, 0.4, 0.58, 0.02, 0.05, 0.2]
    controls = pd.DataFrame({"name": names})
    for k, more in ((1, -0.1), (2, 0.0), (4, 0.08)):
        for end, off_by in (("", 0.0), ("_low", -0.05), ("_high", 0.05)):
            controls[f"S_{k}{end}"] = [v + more + off_by for v in level]
    controls["fvu_on_p"] = [0.16, 0.2, 0.5, 0.41, 0.38, 0.22, np.nan, 0.3, 0.45]
    controls["leak"] = [0.03, 0.03, np.nan, 0.2, 0.4, 0.1, np.nan, 0.0, 0.5]
    swap = pd.DataFrame(
        {"fvu_before": [0.31, 0.214], "fvu_after": [0.16, 0.2131], "l0_before": [31.0, 24.1], "l0_after": [33.4, 24.12],
         "loss_recovered_before": [0.93, 0.951], "loss_recovered_after": [0.95, 0.9511]},
        index=["on P", "overall"],
    )  # fmt: skip

    return replace(
        made, separation=separation, added={k: around(0.5) for k in (1, 2, 4)}, stability=0.71, swap=swap, controls=controls,
        judgement=_judgement(labels, Verdict.SPLIT),
        k_curve=pd.DataFrame({"K": [16, 32, 64], "fvu": [0.24, 0.19, 0.165], "chosen": [False, False, True]}),
        cost={"seconds": 14.2, "seconds_training": 6.1, "tokens_sae": 3_400_000, "tokens_lm": 4_000_000},
    )  # fmt: skip


def judged_as(split: Split, verdict: Verdict) -> Split:
    """The same split with another verdict."""
    return replace(split, judgement=_judgement(split.labels, verdict))


def without_children(split: Split) -> Split:
    """The same parent, no child of which was kept."""
    nothing = np.zeros((0, 0))
    return replace(
        judged_as(split, Verdict.NOT_SPLIT), children=split.children.iloc[:0], numbers=[],
        relations={"iou": nothing, "cosine": nothing}, k_curve=split.k_curve.iloc[:0],
    )  # fmt: skip


def _judgement(labels: contexts.Labels, verdict: Verdict) -> Judgement:
    text = "split: 6 of 8 contexts" if verdict is Verdict.SPLIT else str(verdict)
    rows = [
        ContextVerdict(
            c.name, i, i % 2 == 0, () if i % 2 == 0 else ("added",), "", around(0.4), around(0.8), around(0.05)
        )
        for i, c in enumerate(labels.contexts)
    ]
    return Judgement(verdict, text, tuple(rows))


def _separation(labels: contexts.Labels, level: float) -> Separation:
    rng = np.random.default_rng(int(level * 100))
    rows = []
    for i, context in enumerate(labels.contexts):
        judged = context.primary and i % 4 != 3
        value = level * rng.uniform(0.7, 1.1)
        rows.append(
            ContextSeparation(
                context.name, context.kind, context.primary, int(labels.member["select"][:, i].sum()),
                int(labels.member["test"][:, i].sum()), {k: around(value + 0.03 * k) for k in (1, 2, 4)}, (1, 2),
                around(0.9), around(0.15), judged, Reason.NONE if judged else Reason.NOT_SEPARABLE,
            )
        )  # fmt: skip
    empty = {k: np.zeros((1, len(rows))) for k in (1, 2, 4)}
    fires = {k: np.zeros((1, len(rows)), dtype=bool) for k in (1, 2, 4)}
    return Separation(tuple(rows), {k: around(level) for k in (1, 2, 4)}, {k: around(level) for k in (1, 2, 4)},
                      {k: v[0] for k, v in empty.items()}, fires, empty)  # fmt: skip


WORDS = ["long", "multi", "3", "twin", "7", "single", "well", "double"]
NOUNS = ["term", "headed", "point", "standing", "day", "known"]


def documents(n: int = 70, odd: str = "</script><b>bold</b> &") -> list[str]:
    """Made-up lines with every kind of hyphen, and text that looks like markup."""
    rng = np.random.default_rng(0)

    def line(i: int) -> str:
        plan = f"The {rng.choice(WORDS)}-{rng.choice(NOUNS)} plan number {rng.integers(99)} was read."
        return f"{plan} {odd}" if i % 9 == 0 else plan

    return [" ".join(line(i) for i in range(40)) for _ in range(n)]


def harvested(cache: Path) -> Activations:
    """The embedded model's activations on `documents`, in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELIB_CACHE", str(cache))
        return harvest_documents(load_embedded(), documents())


def judge_on(device: torch.device, acts: Activations, sae: SAE, feature: int) -> tuple[Activations, Judge]:
    """The activations with their model on a device, and the yardstick of a feature there."""
    there, moved = replace(acts, model=acts.model.on(device)), sae.on(device)
    return there, Judge(Work.of(there, gather(there, moved, feature), moved, "hyphen", least=20))


@torch.no_grad()
def hyphen_sae(acts: Activations, d_sae: int = 12, token: str = "-") -> SAE:
    """Feature 3 fires on a token, the others on parts of what is left: directions of some of the tokens themselves."""
    store = acts.stores["train"]
    x = store.rows(slice(None))
    hyphen = torch.from_numpy(np.asarray(store.token_ids) == acts.model.token_id(token))
    cfg = SAEConfig(store.d_in, d_sae, acts.model.hook_name, acts.model.name, False)
    sae = SAE(cfg)
    sae.b_dec.copy_(x.mean(0))
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:d_sae]
    unit = torch.nn.functional.normalize(x[chosen] - sae.b_dec, dim=1)
    unit[3] = torch.nn.functional.normalize(x[hyphen].mean(0) - sae.b_dec, dim=0)
    sae.W_dec.copy_(unit)
    sae.W_enc.copy_(unit.T)
    reads = (x - sae.b_dec) @ unit.T
    sae.b_enc.copy_(-reads.quantile(0.9, dim=0))
    sae.b_enc[3] = -reads[~hyphen, 3].quantile(0.995)
    return sae
