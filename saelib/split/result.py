"""What `saelib.split` returns: the SAE with the parent replaced, the children, and all that was measured of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from saelib.acts.activations import Activations
from saelib.base.cache import ensure_dir
from saelib.base.display import html_of
from saelib.base.errors import UserError
from saelib.base.table import plain_value
from saelib.sae.sae import SAE
from saelib.split.contexts import Context, Labels, member
from saelib.split.methods import Method
from saelib.split.separation import Separation
from saelib.split.tokens import ParentTokens
from saelib.split.verdict import Judgement, Verdict
from saelib.split.yardstick import Interval

MOST_OVER_REPRESENTED = 8


@dataclass(frozen=True)
class ParentSummary:
    """What the parent is, before anything is split."""

    feature: int
    """Its number in the SAE."""
    tau: float
    """It is on above this activation."""
    largest: float
    """Its largest activation on test."""
    n_on: dict[str, int]
    """Tokens of P, for each split."""
    rate: float
    """Share of all test tokens that are in P."""
    purity: float | None
    """Share of P (test) that is in the contexts asked about; None for automatic contexts."""
    recall: float | None
    """Share of the test tokens in those contexts that are in P; None for automatic contexts."""
    over_represented: pd.DataFrame
    """Columns position (previous, current, next), token, share_in_P, share_elsewhere, lift: on test, the largest gains first."""


def describe_parent(acts: Activations, sae: SAE, tokens: ParentTokens, labels: Labels) -> ParentSummary:
    """Say what the parent is: how often it is on, what stands at and beside its tokens, how well it fits the contexts."""
    on, off = tokens.on["test"], tokens.off["test"]
    purity = recall = None
    if labels.named:
        purity = labels.purity("test")
        texts = np.asarray(acts.stores["test"].contexts)
        inside = {"on": float(labels.counts["test"].mean()) * tokens.n_on["test"]}
        for name in ("weak", "off"):
            part = getattr(tokens, name)["test"]
            share = member(acts.model, labels.contexts, part, texts).any(1).mean() if len(part) else 0.0
            inside[name] = float(share) * getattr(tokens, f"n_{name}")["test"]
        recall = inside["on"] / max(sum(inside.values()), 1e-9)
    rows = []
    for place in ("previous", "current", "next"):
        here, there = getattr(on, place), getattr(off, place)
        ids, counts = np.unique(here[here >= 0], return_counts=True)
        elsewhere = np.array([(there == i).mean() for i in ids[np.argsort(-counts)[:40]]])
        top = np.argsort(-counts)[:40]
        share = counts[top] / len(here)
        gain = np.argsort(-(share - elsewhere))[:MOST_OVER_REPRESENTED]
        rows += [
            {
                "position": place,
                "token": acts.model.vocabulary[int(ids[top[g]])],
                "share_in_P": float(share[g]),
                "share_elsewhere": float(elsewhere[g]),
                "lift": float(share[g] / max(elsewhere[g], 1 / max(len(there), 1))),
            }
            for g in gain
        ]
    return ParentSummary(
        feature=tokens.feature, tau=tokens.tau, largest=float(on.parent.max()), n_on=tokens.n_on,
        rate=tokens.n_on["test"] / tokens.n_tokens["test"], purity=purity, recall=recall,
        over_represented=pd.DataFrame(rows),
    )  # fmt: skip


@dataclass(frozen=True)
class Split:
    """One feature, split. In a notebook it shows itself."""

    sae: SAE
    """The SAE with the parent replaced by its children: JumpReLU, SAELens format. Everything judged is judged on it."""
    parent: ParentSummary
    """What the parent is."""
    children: pd.DataFrame
    """One row a child, the one whose name says best where it fires first; `docs/splitting.md` lists the columns."""
    contexts: tuple[Context, ...]
    """What children are told apart by."""
    separation: dict[str, Separation]
    """`rest + children` (the product), `children` alone, `rest` alone."""
    added: dict[int, Interval]
    """For k = 1, 2, 4, what the children add to the rest, over the contexts that it does not tell apart already."""
    judgement: Judgement
    """The verdict, with the bounds each context passes."""
    stability: float | None
    """Mean IoU on P of children matched between seeds; None where one seed was trained."""
    swap: pd.DataFrame
    """Rows `on P`, `overall`; fvu, l0 and loss_recovered before and after the swap, on test."""
    effects: pd.DataFrame
    """What the first children do for the right next token (`saelib.split.effects.child_effects`)."""
    relations: dict[str, Float[np.ndarray, "K K"]] = field(repr=False)
    """`iou` of where children fire on P (test) and `cosine` of their decoder rows without the parent's direction."""
    k_curve: pd.DataFrame
    """FVU of y on P (select) against K, from short trainings, and which was chosen."""
    controls: pd.DataFrame
    """One row a dictionary: name, S_1, S_2, S_4 with intervals, fvu_on_p, leak."""
    cost: dict[str, float]
    """seconds, seconds_training (the product's), tokens_sae, tokens_lm."""
    acts: Activations = field(repr=False)
    tokens: ParentTokens = field(repr=False)
    labels: Labels = field(repr=False)
    original: SAE = field(repr=False)
    """The SAE as it was."""
    numbers: list[int] = field(repr=False)
    """The children's numbers in `sae`, in the order of the table."""
    method: Method = field(repr=False)
    """How they were made."""

    @property
    def verdict(self) -> Verdict:
        """What came of it."""
        return self.judgement.verdict

    @property
    def verdict_text(self) -> str:
        """The verdict in words, such as `split: 6 of 8 contexts`."""
        return self.judgement.text

    @torch.no_grad()
    def on(self, text: str) -> pd.DataFrame:
        """Which child fires on which token of a text: position, token, parent, then a column a child that fires somewhere.

        Raises:
            UserError: the parent exceeds tau on none of the text's tokens.
        """
        ids = self.acts.model.to_tokens(text)
        x = self.acts.model.activations(ids)[0, 1:]
        parent = self.original.encode_feature(x, self.parent.feature).cpu()
        if not bool((parent > self.parent.tau).any()):
            got = f"{text!r}, where it reaches {float(parent.max()) if len(parent) else 0.0:.2f}"
            rule = f"the text must hold a token on which the parent exceeds tau={self.parent.tau:.2f}"
            raise UserError(rule, got, "pass a text in which the parent fires")
        found = self.sae.encode_features(x, torch.tensor(self.numbers)).cpu()
        words = self.acts.model.to_str_tokens(ids[0, 1:])
        frame = pd.DataFrame({"position": range(1, len(words) + 1), "token": words, "parent": parent.numpy()})
        for j, (number, name) in enumerate(zip(self.numbers, self.children["name"], strict=True)):
            if bool((found[:, j] > 0).any()):
                frame[f"{number} {name}"] = found[:, j].numpy()
        return frame

    def to_json(self) -> dict[str, Any]:
        """The result as JSON holds it."""
        keep = (
            "feature",
            "name",
            "name_mcc",
            "rest_mcc",
            "share",
            "theta",
            "context",
            "mcc",
            "precision",
            "added",
            "leak",
            "missed",
            "stability",
        )
        product = self.separation["rest + children"]
        judged = [c for c in product.contexts if c.judged and c.primary]

        def mean(values: list[float]) -> float | None:
            return float(np.mean(values)) if values else None

        S = {name: {f"S_{k}": list(value) for k, value in part.S.items()} for name, part in self.separation.items()}
        out: dict[str, Any] = {
            "method": self.method.name,
            "verdict": str(self.verdict),
            "verdict_text": self.verdict_text,
            "parent": {
                "feature": self.parent.feature, "tau": self.parent.tau, "rate": self.parent.rate, "n_on": self.parent.n_on,
                "purity": self.parent.purity, "recall": self.parent.recall,
            },
            "children": self.children[[*keep]].to_dict("records"),
            "separation": {f"S_{k}": value.value for k, value in product.S.items()} | S,
            "added": {str(k): list(value) for k, value in self.added.items()},
            "ceiling": mean([c.ceiling.value for c in judged]),
            "floor": mean([c.floor.value for c in judged]),
            "contexts": [
                {"name": c.context, "kind": c.kind, "judged": c.judged, "reason": str(c.reason), "n_test": c.n_test}
                for c in product.contexts
            ],
            "controls": self.controls.to_dict("records"),
            "swap": self.swap.reset_index().to_dict("records"),
            "stability": self.stability,
            "K": len(self.children),
            **self.cost,
        }  # fmt: skip
        cleaned: dict[str, Any] = plain_value(out)
        return cleaned

    def save(self, folder: str | Path) -> Path:
        """Write `split.json`, the tables `children`, `effects`, `separation`, `verdict`, `controls` and `k_curve` (CSV), and the
        folder `sae`.

        Raises:
            UserError: `folder` is a file, or the disk refuses.
        """
        tables = {
            "children": self.children,
            "effects": self.effects,
            "controls": self.controls,
            "k_curve": self.k_curve,
        }
        tables["separation"] = pd.concat(
            [part.frame().assign(dictionary=name) for name, part in self.separation.items()], ignore_index=True
        )
        tables["verdict"] = self.judgement.frame()
        return write_result(Path(folder), self.to_json(), tables, self.sae)

    def _repr_html_(self) -> str | None:
        return html_of(self)


def write_result(folder: Path, content: dict[str, Any], tables: Mapping[str, pd.DataFrame], sae: SAE | None) -> Path:
    """Write `split.json`, a CSV a table and, where there is one, the SAE in `sae/`. Returns the folder.

    Raises:
        UserError: `folder` is a file, or the disk refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("a split is saved into a folder", f"{folder}, a file", "pass another path")
    ensure_dir(folder)
    (folder / "split.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    for name, frame in tables.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    if sae is not None:
        sae.save(folder / "sae")
    return folder
