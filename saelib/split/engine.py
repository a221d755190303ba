"""Split one feature of an SAE: parent, children, judge, controls. `saelib.split(...)` and everything else call `split_feature`.

gather P -> contexts, yardstick -> K, children -> thresholds -> the exported SAE -> separation, leak, verdict, swap, controls
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse import csc_array
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.base.errors import UserError
from saelib.base.progress import report_progress
from saelib.sae.sae import SAE
from saelib.split import controls
from saelib.split.children import ChildrenConfig, Dictionary, Pools, train_children, train_several
from saelib.split.contexts import LEAST, label, member
from saelib.split.detectors import feature_mcc
from saelib.split.exported import as_jumprelu, child_numbers, encoder_input, inner_target, replace_parent
from saelib.split.leak import Firings, choose_theta, leak
from saelib.split.names import name_child
from saelib.split.parent import gather
from saelib.split.result import Split, describe_parent
from saelib.split.separation import LEAST_ROOM, Added, Separation, added, measure
from saelib.split.stability import iou, matched_iou
from saelib.split.swap import swap_table
from saelib.split.tokens import SPLITS, ParentTokens, TokenSet
from saelib.split.verdict import gather_evidence, judge
from saelib.split.yardstick import Yardstick, interval, make_yardstick

K_GRID = (8, 16, 32, 64, 128)
K_GAIN = 0.02
"""The rule for K: the smallest of `K_GRID` after which doubling lowers FVU on P (select) by less than this."""
K_STEPS = 300
"""Steps of each short training of the curve over K."""
LEAST_SHARE = 0.002
"""A child that fires on a smaller share of P on select carries nothing and is dropped."""


@dataclass(frozen=True)
class SplitConfig:
    """How a feature is split."""

    contexts: str = "auto"
    """What children are to be told apart by: `auto`, `hyphen`, `automatic`, or a JSON file of rules."""
    least: int = LEAST
    """Tokens that an automatic context must have on select and on test."""
    tau: float | None = None
    """The parent is on above this; None: the 2024 post's share of its largest activation."""
    K: int | None = None
    """Children; None: by the rule over `K_GRID`."""
    seeds: int = 3
    """Trainings, of which the first is the product; the others say how stable it is."""
    controls: bool = True
    """Also measure the rows to beat."""
    seed: int = 0
    children: ChildrenConfig = field(default_factory=ChildrenConfig)
    """How the children are trained; its K and seed are replaced by the ones above."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError("seeds must be at least 1", self.seeds, "pass 1 or more")
        if self.K is not None and self.K < 1:
            raise UserError("K must be at least 1", self.K, "leave K out, or pass more")


class Made(NamedTuple):
    """Children in the parent's place, with their activations on the tokens that are judged."""

    dictionary: Dictionary
    theta: Float[Tensor, " K"]
    core: Float[Tensor, " d"]
    """What the parent's core writes for a unit of its old activation."""
    sae: SAE
    acts: dict[str, dict[str, np.ndarray]]
    """For `on` (three splits), `weak` and `off` (select and test), the children's activations, below theta 0."""
    context_of: np.ndarray
    """The context that each child marks best on select."""


def split_feature(sae: SAE, feature: int, acts: Activations, config: SplitConfig | None = None) -> Split:
    """Split one feature.

    Raises:
        UserError: what `gather` and `label` refuse: a feature out of range, an SAE of other activations, a parent that is dead
            or too rare on the text, contexts that are not there.
    """
    began = time.perf_counter()
    cfg = config or SplitConfig()
    tokens = gather(acts, sae, feature, cfg.tau)
    work = Work(sae, feature, acts, tokens, cfg)
    K, curve = choose_K(work.targets, work.select_pools, cfg)
    train_cfg = replace(cfg.children, K=K)
    timed = time.perf_counter()
    products = [train_children(work.targets, replace(train_cfg, seed=cfg.seed), work.told("children"))]
    seconds = [time.perf_counter() - timed]
    others = [replace(train_cfg, seed=cfg.seed + i) for i in range(1, cfg.seeds)]
    if others:
        products += train_several(work.targets, others, work.told("children of other seeds"))
        seconds.append(time.perf_counter() - timed - seconds[0])
    made = work.install(products[0])
    again = [work.install(found) for found in products[1:]]
    fires = made.acts["on"]["test"] > 0
    stability = float(np.mean([matched_iou(fires, other.acts["on"]["test"] > 0) for other in again])) if again else None
    report_progress("judging", 0, 1)
    separation, adds = work.separate(made)
    by_context = leak(work.firings(made, "test", work.context_children(separation["children"])), work.zeros(made))
    evidence = gather_evidence(
        work.yardstick, separation["rest"], separation["children"], fires[work.yardstick.used["test"]], by_context
    )
    purity = work.labels.purity() if work.labels.named else 1.0
    judgement = judge(evidence, work.labels.named, purity, stability)
    rows = [_row("rest + children", separation["rest + children"], work.fvu(made), _foreign(work, made))]
    rows += [
        _row("children alone", separation["children"], np.nan, np.nan),
        _row("rest alone", separation["rest"], np.nan, np.nan),
    ]
    if cfg.controls:
        rows += work.control_rows(replace(train_cfg, seed=cfg.seed), made)
    children = work.children_table(made, separation)
    numbers = child_numbers(work.sae, len(made.theta))
    order = children.index.to_numpy()
    cost = {
        "seconds": time.perf_counter() - began,
        "seconds_training": seconds[0],
        "seconds_training_all": sum(seconds),
        "tokens_sae": train_cfg.n_steps * (train_cfg.batch_on + train_cfg.batch_weak + train_cfg.batch_off),
        "tokens_lm": sum(tokens.n_tokens.values()),
    }
    d_p = work.sae.W_dec[feature].detach()
    return Split(
        sae=made.sae,
        parent=describe_parent(acts, sae, tokens, work.labels),
        children=children.reset_index(drop=True),
        contexts=work.labels.contexts,
        separation=separation,
        added=adds.ratio,
        judgement=judgement,
        stability=stability,
        swap=swap_table(acts, work.original, made.sae, tokens.on["test"].rows),
        relations={
            "iou": iou(fires, fires)[np.ix_(order, order)],
            "cosine": _sibling_cosine(made.dictionary.E, d_p)[np.ix_(order, order)],
        },
        k_curve=curve,
        controls=pd.DataFrame(rows),
        cost=cost,
        acts=acts,
        tokens=tokens,
        labels=work.labels,
        original=sae,
        numbers=[numbers[i] for i in order],
    )


def choose_K(pools: Pools, select: Pools, cfg: SplitConfig) -> tuple[int, pd.DataFrame]:
    """K by the rule, from short trainings on train measured on select; the curve has columns K, fvu, chosen."""
    if cfg.K is not None:
        return cfg.K, pd.DataFrame({"K": [cfg.K], "fvu": [np.nan], "chosen": [True]})
    tries = [replace(cfg.children, K=K, n_steps=K_STEPS, seed=cfg.seed) for K in reversed(K_GRID)]  # the longest first
    found = train_several(pools, tries, lambda done, total: report_progress("how many children", done, total))
    fvu = [fvu_on(children, select) for children in reversed(found)]
    falls = [a - b for a, b in itertools.pairwise(fvu)]
    chosen = next((i for i, fall in enumerate(falls) if all(f < K_GAIN for f in falls[i:])), len(K_GRID) - 1)
    return K_GRID[chosen], pd.DataFrame({"K": K_GRID, "fvu": fvu, "chosen": [i == chosen for i in range(len(K_GRID))]})


@torch.no_grad()
def fvu_on(children: Dictionary, pools: Pools) -> float:
    """sum |a v + c E - y|^2 / sum |y - mean(y)|^2 on P."""
    y, left = pools.y_on, pools.beyond_core().y_on
    return float((children.encode(pools.x_on) @ children.E - left).square().sum() / (y - y.mean(0)).square().sum())


class Work:
    """One parent's tokens with what every dictionary in its place is made from and measured by."""

    def __init__(self, sae: SAE, feature: int, acts: Activations, tokens: ParentTokens, cfg: SplitConfig) -> None:
        self.original, self.feature, self.acts, self.tokens, self.cfg = sae, feature, acts, tokens, cfg
        self.texts = {split: np.asarray(acts.stores[split].contexts) for split in SPLITS}
        self.labels = label(acts.model, tokens.on, self.texts, cfg.contexts, cfg.least)
        self.yardstick: Yardstick = make_yardstick(tokens.on, self.labels)
        self.sae = as_jumprelu(sae, torch.cat([tokens.off["select"].x[:20_000], tokens.on["select"].x[:200]]))
        self.in_context_off = {
            split: member(acts.model, self.labels.contexts, tokens.off[split], self.texts[split])
            for split in ("select", "test")
        }
        self.rest = [j for j in range(sae.cfg.d_sae) if j != feature]
        self.pools, self.select_pools = self._pools("train"), self._pools("select")
        self.targets = self.pools.beyond_core()
        self._encoded: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def _pools(self, split: str) -> Pools:
        on, weak, off = (getattr(self.tokens, name)[split] for name in ("on", "weak", "off"))

        def x(part: TokenSet) -> Tensor:
            return encoder_input(self.sae, part.x)

        def y(part: TokenSet) -> Tensor:
            return inner_target(self.sae, self.feature, part.x)

        def a(part: TokenSet) -> Tensor:
            return torch.from_numpy(part.parent)

        return Pools(x(on), y(on), a(on), x(weak), y(weak), a(weak), x(off))

    def told(self, label: str) -> Callable[[int, int], None]:
        """Progress of a training."""
        return lambda done, total: report_progress(label, done, total)

    @torch.no_grad()
    def install(self, found: Dictionary, prune: bool = True) -> Made:
        """Put children beside the parent's core: a context each, thresholds on select, the rows refitted, exported, encoded.

        With `prune` children that carry nothing are dropped: they fire on too little of P, or P is no worse without them.
        """
        c = self._encode(lambda x: found.encode(encoder_input(self.sae, x)))
        share = (c["on"]["select"] > 0).float().mean(0)
        found, c, _ = self._kept(found, c, share >= LEAST_SHARE if prune else share >= 0)
        context_of = self._contexts_of(c["on"]["select"].numpy())
        theta = torch.from_numpy(choose_theta(self._firings(c, "select", context_of))).float()
        refitted, _ = self._refit(found, theta)
        keep = torch.ones(len(theta), dtype=torch.bool)
        if prune:
            share = (c["on"]["select"] > theta).float().mean(0)
            keep = (share >= LEAST_SHARE) & self._useful(refitted, theta)
            keep[share.argmax()] = True
        found, theta = Dictionary(found.W[:, keep], found.b[keep], found.E[keep]), theta[keep]
        found, core = self._refit(found, theta)
        scale = found.E.norm(dim=1).clamp_min(1e-6)
        found = Dictionary(found.W * scale, found.b * scale, found.E / scale[:, None])
        theta = theta * scale
        new = replace_parent(self.sae, self.feature, found, theta, core)
        numbers = torch.tensor(child_numbers(self.sae, len(theta)))
        encoded = self._encode(lambda x: new.encode_features(x, numbers))
        acts = {name: {split: value.numpy() for split, value in each.items()} for name, each in encoded.items()}
        return Made(found, theta, core, new, acts, context_of[keep.numpy()])

    def _encode(self, encode: Callable[[Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
        """Activations on P of every split, and on the weak and off tokens of select and test."""
        return {
            name: {s: encode(part.x) for s, part in getattr(self.tokens, name).items() if name == "on" or s != "train"}
            for name in ("on", "weak", "off")
        }

    @staticmethod
    def _kept(
        found: Dictionary, c: dict[str, dict[str, Tensor]], keep: Tensor
    ) -> tuple[Dictionary, dict[str, dict[str, Tensor]], Tensor]:
        if not bool(keep.any()):
            raise UserError("at least one child must fire on the parent's tokens", 0, "lower the price of activation")
        chosen = Dictionary(found.W[:, keep], found.b[keep], found.E[keep])
        return chosen, {name: {s: v[:, keep] for s, v in each.items()} for name, each in c.items()}, keep

    def _contexts_of(self, c: np.ndarray) -> np.ndarray:
        used = self.yardstick.used["select"]
        return feature_mcc(csc_array(c[used]), self.yardstick.member["select"]).argmax(1)

    def _firings(self, c: Mapping[str, Mapping[str, Any]], split: str, context_of: np.ndarray) -> Firings:
        acts = {name: np.asarray(c[name][split]) for name in ("on", "weak", "off")}
        return Firings.of(self.tokens, split, acts, self.in_context_off[split][:, context_of])

    def firings(self, made: Made, split: str, children: np.ndarray) -> Firings:
        """Firings of some children, one a context (repeats allowed): what leak by context is computed from."""
        acts = {name: made.acts[name][split][:, children] for name in ("on", "weak", "off")}
        return Firings.of(self.tokens, split, acts, self.in_context_off[split])

    def zeros(self, made: Made) -> np.ndarray:
        """Thresholds of exported children: what is below theta is 0 already."""
        return np.zeros(len(self.labels.contexts))

    @staticmethod
    def context_children(children: Separation) -> np.ndarray:
        """The child that marks each context best on select; 0 where none does."""
        return np.array([c.features[0] if c.features else 0 for c in children.contexts])

    @torch.no_grad()
    def _useful(self, found: Dictionary, theta: Tensor) -> Tensor:
        """Children whose removal raises the squared error on P of select."""
        pools = self.select_pools.beyond_core()
        c = found.encode(pools.x_on)
        c = c * (c > theta)
        r = pools.y_on - c @ found.E
        # |r + c_j e_j|^2 - |r|^2 = 2 c_j r.e_j + c_j^2 |e_j|^2
        return (2 * c * (r @ found.E.T) + c.square() * found.E.square().sum(1)).sum(0) > 0

    @torch.no_grad()
    def _refit(self, found: Dictionary, theta: Tensor) -> tuple[Dictionary, Tensor]:
        """Decoder rows and core by least squares on thresholded activations: L1 shrinks them, thresholds cut weak ones."""
        pools = self.pools
        a = torch.cat([pools.a_on, pools.a_weak])[:, None]
        y = torch.cat([pools.y_on, pools.y_weak])
        c = found.encode(torch.cat([pools.x_on, pools.x_weak]))
        c = torch.cat([a, c * (c > theta)], 1)
        begin = torch.cat([pools.core()[None], found.E])
        gram = c.T @ c
        ridge = 1e-2 * gram.diagonal()[1:].mean() * torch.eye(len(gram))
        rows = torch.linalg.solve(gram + ridge, c.T @ y + ridge @ begin)
        return Dictionary(found.W, found.b, rows[1:]), rows[0]

    @torch.no_grad()
    def rest_acts(self, split: str) -> np.ndarray:
        """The rest's activations on P."""
        key = ("rest", split)
        if key not in self._encoded:
            self._encoded[key] = self.sae.encode(self.tokens.on[split].x)[:, self.rest]
        return self._encoded[key].numpy()

    def measure(self, columns: dict[str, np.ndarray]) -> Separation:
        """Separation of some activations on P."""
        return measure(self.yardstick, columns)

    def separate(self, made: Made) -> tuple[dict[str, Separation], Added]:
        """The product, the children alone and the rest alone, and what the children add."""
        rest = self.measure({s: self.rest_acts(s) for s in SPLITS})
        children = self.measure(made.acts["on"])
        both = self.measure({s: np.concatenate([self.rest_acts(s), made.acts["on"][s]], axis=1) for s in SPLITS})
        found = {"rest + children": both, "children": children, "rest": rest}
        return found, added(rest, both, self.yardstick)

    @torch.no_grad()
    def fvu(self, made: Made) -> float:
        """sum |x_hat - x|^2 / sum |x - mean|^2 of the exported SAE on P of test."""
        x = self.tokens.on["test"].x
        return float((made.sae(x).x_hat - x).square().sum() / (x - x.mean(0)).square().sum())

    def control_rows(self, cfg: ChildrenConfig, made: Made) -> list[dict[str, float | str]]:
        """The rows to beat, each with the rest beside it, as the children have it."""
        K, rows = len(made.theta), []
        l0 = float((made.acts["on"]["select"] > 0).sum(1).mean())
        dictionaries = {
            "random decoder": lambda: controls.random_decoder(self.targets, replace(cfg, K=K), l0),
            "k-means": lambda: controls.k_means(self.targets, replace(cfg, K=K)),
            "small L1 SAE on P": lambda: controls.small_sae(self.pools, replace(cfg, K=K)),
        }
        for i, (name, make) in enumerate(dictionaries.items()):
            report_progress("controls", i, 5)
            other = self.install(make(), prune=False)
            rows.append(_row(name, self._with_rest(other.acts["on"]), self.fvu(other), _foreign(self, other)))
        edges = np.quantile(self.tokens.on["train"].parent, np.linspace(0, 1, K + 1))
        bands = {s: controls.quantiles(self.tokens.on[s].parent, edges).numpy() for s in SPLITS}
        rows.append(_row("quantiles of the parent", self._with_rest(bands), np.nan, np.nan))
        report_progress("controls", 4, 5)
        permuted = make_yardstick(self.tokens.on, self.labels.permuted(self.cfg.seed))
        shuffled = {s: np.concatenate([self.rest_acts(s), made.acts["on"][s]], axis=1) for s in SPLITS}
        rows.append(
            _row("permuted labels", _borrowed(measure(permuted, shuffled), permuted, self.yardstick), np.nan, np.nan)
        )
        return rows

    def _with_rest(self, columns: dict[str, np.ndarray]) -> Separation:
        return self.measure({s: np.concatenate([self.rest_acts(s), columns[s]], axis=1) for s in SPLITS})

    def children_table(self, made: Made, separation: dict[str, Separation]) -> pd.DataFrame:
        """One row a child, the largest share first; the index is the child's place in the dictionary."""
        y, documents = self.yardstick, self.yardstick.documents
        fires = {s: made.acts["on"][s] > 0 for s in ("select", "test")}
        used = fires["test"][y.used["test"]]
        inside = y.member["test"][:, made.context_of]
        counts = documents.mcc(used, inside)
        hits, firings = documents.sums(used & inside), documents.sums(used)
        precision = np.divide(hits, firings, out=np.zeros_like(hits), where=firings > 0)
        leaks = leak(self._firings(made.acts, "test", made.context_of), np.zeros(len(made.theta)))
        rest = separation["rest"]
        W_dec, E = self.sae.W_dec.detach(), made.dictionary.E
        d_p = W_dec[self.feature]
        to_rest = torch.nn.functional.normalize(W_dec[self.rest], dim=1) @ E.T
        nearest = to_rest.max(0)
        rows = []
        for j in range(len(made.theta)):
            c = int(made.context_of[j])
            room = y.ceiling_draws[:, c] - rest.draws[1][:, c]
            apart = bool(y.reasons[c]) or y.ceiling.select_mcc[c] - rest.select_mcc[1][c] < LEAST_ROOM
            gain = np.divide(counts[:, j] - rest.draws[1][:, c], room, out=np.full(len(room), np.nan), where=room > 0)
            add = interval(np.full(len(room), np.nan) if apart else gain)
            mark, exact = interval(counts[:, j]), interval(precision[:, j])
            named = name_child(self.acts.model, self.tokens.on, {s: fires[s][:, j] for s in fires})
            act = made.acts["on"]["test"][:, j]
            rows.append(
                {
                    "feature": child_numbers(self.sae, len(made.theta))[j],
                    "name": named.name, "name_mcc": named.mcc,
                    "share": float(fires["test"][:, j].mean()), "theta": float(made.theta[j]),
                    "context": self.labels.contexts[c].name,
                    "mcc": mark.value, "mcc_low": mark.low, "mcc_high": mark.high,
                    "precision": exact.value, "precision_low": exact.low, "precision_high": exact.high,
                    "added": add.value, "added_low": add.low, "added_high": add.high,
                    "leak": leaks.foreign[j].value, "leak_high": leaks.foreign[j].high, "missed": leaks.missed[j].value,
                    "cosine_parent": float(torch.nn.functional.cosine_similarity(E[j], d_p, dim=0)),
                    "max_cosine_rest": float(nearest.values[j]),
                    "copy_of": self.rest[int(nearest.indices[j])] if nearest.values[j] > 0.7 else -1,
                    "mean_activation": float(act[act > 0].mean()) if (act > 0).any() else 0.0,
                }
            )  # fmt: skip
        return pd.DataFrame(rows).sort_values("share", ascending=False, kind="stable")


def _row(name: str, separation: Separation, fvu: float, foreign: float) -> dict[str, float | str]:
    row: dict[str, float | str] = {"name": name}
    for k, value in separation.S.items():
        row |= {f"S_{k}": value.value, f"S_{k}_low": value.low, f"S_{k}_high": value.high}
    return row | {"fvu_on_p": fvu, "leak": foreign}


def _foreign(work: Work, made: Made) -> float:
    """Foreign share of all firings of all children together, on test."""
    found = leak(work._firings(made.acts, "test", made.context_of), np.zeros(len(made.theta)), draws=2)
    total = found.firings.sum()
    return float((np.array([f.value for f in found.foreign]) * found.firings).sum() / total) if total else 0.0


def _borrowed(separation: Separation, permuted: Yardstick, yardstick: Yardstick) -> Separation:
    """Separation under permuted labels, in units of the true labels' room: under permuted ones there is none to divide by."""
    among = yardstick.averaged
    room = (yardstick.ceiling_draws - yardstick.floor_draws)[:, among].sum(1)
    S = {}
    for k, draws in separation.draws.items():
        gain = (draws - permuted.floor_draws)[:, among].sum(1)
        S[k] = interval(np.divide(gain, room, out=np.full(len(room), np.nan), where=room > 0))
    return replace(separation, S=S)


def _sibling_cosine(E: Tensor, d_p: Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize(d_p, dim=0)
    rest = torch.nn.functional.normalize(E - (E @ unit)[:, None] * unit, dim=1)
    return (rest @ rest.T).numpy()


__all__ = ["K_GRID", "SplitConfig", "Work", "choose_K", "fvu_on", "split_feature"]
