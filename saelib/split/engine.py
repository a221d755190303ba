"""Split one feature of an SAE: parent, children, judge, controls. `saelib.split(...)` and everything else call `split_feature`.

gather P -> contexts, yardstick -> K, children -> thresholds -> the exported SAE -> separation, leak, verdict, swap, controls
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.base.errors import UserError
from saelib.base.memory import give_back_freed_memory
from saelib.base.progress import report_progress
from saelib.base.threads import one_thread
from saelib.sae.sae import SAE
from saelib.split.children import ChildrenConfig, Dictionary, train_children
from saelib.split.children_table import children_table
from saelib.split.contexts import LEAST, MOST_CONTEXTS
from saelib.split.controls import (
    control_row,
    k_means,
    other_rows,
    product_rows,
    random_decoder,
    small_sae,
    wrong_parent,
)
from saelib.split.effects import child_effects
from saelib.split.exported import child_numbers
from saelib.split.how_many import choose_K
from saelib.split.methods import OURS, Method, Task, get_method, make
from saelib.split.parent import Samples, gather
from saelib.split.result import Split, describe_parent
from saelib.split.silent import silent_firings
from saelib.split.stability import iou, overall, stability
from saelib.split.swap import swap_table
from saelib.split.wide import WideConfig
from saelib.split.work import Made, Work
from saelib.split.yardstick import require_separable


@dataclass(frozen=True)
class SplitConfig:
    """How a feature is split."""

    contexts: str = "auto"
    """What children are to be told apart by: `auto`, `hyphen`, `automatic`, or a JSON file of rules."""
    least: int = LEAST
    """Tokens that an automatic context must have on select and on test."""
    most: int = MOST_CONTEXTS
    """Automatic contexts of each kind (previous, next, current token): the most frequent ones."""
    tau: float | None = None
    """The parent is on above this; None: the 2024 post's share of its largest activation."""
    K: int | None = None
    """Children; None: by `saelib.split.how_many`, or as many as the method has of its own."""
    method: str = OURS
    """How children are made: a local method of `saelib.split.methods`."""
    seeds: int = 3
    """Trainings, of which the first is the product; the others say how stable it is."""
    controls: bool = True
    """Also measure the rows to beat."""
    seed: int = 0
    require_separable: bool = False
    """Refuse contexts none of which counts (see `saelib.split.yardstick.require_separable`), in place of judging by nothing."""
    samples: Samples = field(default_factory=Samples)
    """How much of the text is looked at."""
    children: ChildrenConfig = field(default_factory=ChildrenConfig)
    """How the children are trained; its K and seed are replaced by the ones above."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError("seeds must be at least 1", self.seeds, "pass 1 or more")
        if self.K is not None and self.K < 1:
            raise UserError("K must be at least 1", self.K, "leave K out, or pass more")

    @property
    def training(self) -> ChildrenConfig:
        """How the children of the first seed are trained; their K is still open."""
        return replace(self.children, seed=self.seed)


@dataclass(frozen=True)
class Product:
    """One parent's children."""

    method: Method
    K: int
    trained: Dictionary
    """As they were trained."""
    made: Made
    """In the parent's place, without those that carry nothing."""
    k_curve: pd.DataFrame
    """Columns K, fvu, chosen."""
    seconds: float
    """Training."""
    tokens: int
    """That training saw, repeats included."""


@dataclass(frozen=True)
class Beside:
    """What was trained beside the product."""

    stability: np.ndarray | None
    """Each child's IoU on P with those of other seeds it is matched to; None where one seed was trained."""
    controls: list[dict[str, float | str]]
    """The rows to beat; none where no controls were asked for."""


def split_feature(
    sae: SAE, feature: int, acts: Activations, config: SplitConfig | None = None, first: Callable[[Split], object] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> Split:  # fmt: skip
    """Split one feature.

    Args:
        values: as of `gather`.
        first: is given the split as soon as its children are judged, before other seeds and controls are trained.

    Raises:
        UserError: what `gather` and `label` refuse: a feature out of range, an SAE of other activations, a parent that is dead
            or too rare on the text, contexts that are not there.
    """
    began = time.perf_counter()
    cfg, sae = config or SplitConfig(), sae.on(acts.device)
    local_method(cfg)
    tokens = gather(acts, sae, feature, cfg.tau, cfg.samples, values)
    give_back_freed_memory()
    work = Work.of(acts, tokens, sae, cfg.contexts, cfg.least, cfg.most)
    if cfg.require_separable:
        require_separable(work.yardstick)
    product = make_product(work, cfg, acts)
    numbers = np.array(child_numbers(work.sae, len(product.made.theta)))
    counted = silent_firings(acts, tokens, work.labels, product.made.sae, numbers)
    product = replace(product, made=product.made._replace(silent=counted))
    give_back_freed_memory()
    split = _judged(acts, sae, work, product, cfg, began)
    if first and (cfg.controls or cfg.seeds > 1):
        first(split)
    return _completed(split, work, product, make_beside(work, cfg, product, acts), cfg, began)


def _judged(acts: Activations, sae: SAE, work: Work, product: Product, cfg: SplitConfig, began: float) -> Split:
    """All that the product alone says: no other seed, no control."""
    made, tokens, feature = product.made, work.tokens, work.feature
    report_progress("judging", 0, 1)
    separation, adds = work.separate(made, None if cfg.samples.unjudged else work.yardstick.judged)
    children = children_table(acts.model, work, made, separation["rest"])
    order = children.index.to_numpy()
    numbers = child_numbers(work.sae, len(made.theta))
    ordered = [numbers[i] for i in order]
    fires = work.fires(made)
    return Split(
        sae=made.sae,
        parent=describe_parent(acts, sae, tokens, work.labels),
        children=children.assign(stability=np.nan),
        contexts=work.labels.contexts,
        separation=separation,
        added=adds.ratio,
        judgement=work.judge(made, separation, None),
        stability=None,
        swap=swap_table(acts, work.original, made.sae, tokens.on["test"].rows, cfg.samples),
        effects=child_effects(acts, made.sae, ordered, tokens.on["test"], fires[:, order]),
        relations={
            "iou": iou(fires, fires)[np.ix_(order, order)],
            "cosine": _sibling_cosine(made.dictionary.E, work.sae.W_dec[feature].detach())[np.ix_(order, order)],
        },
        k_curve=product.k_curve,
        controls=product_rows(work, made, separation),
        cost={
            "seconds": time.perf_counter() - began,
            "seconds_training": product.seconds,
            "tokens_sae": product.tokens,
            "tokens_lm": sum(tokens.n_tokens.values()),
        },
        acts=acts,
        tokens=tokens,
        labels=work.labels,
        original=sae,
        numbers=ordered,
        method=product.method,
    )


def _completed(split: Split, work: Work, product: Product, beside: Beside, cfg: SplitConfig, began: float) -> Split:
    """The split with its stability between seeds, which the verdict rests on too, and the rows to beat."""
    made, order = product.made, split.children["feature"].to_numpy() - work.sae.cfg.d_sae
    each = beside.stability
    return replace(
        split,
        children=split.children.assign(stability=np.nan if each is None else each[order]),
        judgement=work.judge(made, split.separation, each),
        stability=overall(each, work.fires(made)),
        controls=pd.concat(
            [split.controls, *([pd.DataFrame(beside.controls)] if beside.controls else [])], ignore_index=True
        ),
        cost=split.cost | {"seconds": time.perf_counter() - began},
    )


def local_method(cfg: SplitConfig) -> Method:
    """How children are made.

    Raises:
        UserError: an unknown method, one that gives no children, or one with a number of children of its own beside another K.
    """
    method = get_method(cfg.method)
    if not method.gives_children:
        raise UserError("a split's method must give children", cfg.method, "take saelib.split.split_by for others")
    if method.K is not None and cfg.K not in (None, method.K):
        raise UserError(f"{cfg.method} makes {method.K} children", f"K={cfg.K}", "leave K out")
    return method


def make_product(work: Work, cfg: SplitConfig, acts: Activations | None = None) -> Product:
    """Choose K, make the children and put them in the parent's place.

    Args:
        acts: the activations, for a method that is not ours; synthetic parents have none.
    """
    method = local_method(cfg)
    K, curve = choose_K(work.targets, work.select_pools, cfg.training, cfg.K or method.K)
    give_back_freed_memory()
    report_progress("children", 0, 1)
    began = time.perf_counter()
    dictionary, tokens = _dictionary(work, method, replace(cfg.training, K=K), acts)
    seconds = time.perf_counter() - began
    made = work.install(dictionary, method.prune, method.most_leak)
    return Product(method, K, dictionary, made, curve, seconds, tokens)


def _dictionary(work: Work, method: Method, cfg: ChildrenConfig, acts: Activations | None) -> tuple[Dictionary, int]:
    """Children of one seed, and the tokens that training saw."""
    if method.name == OURS:
        return train_children(work.targets, cfg), cfg.tokens
    assert acts is not None
    task = Task(acts, work, cfg.K, cfg.seed, cfg, WideConfig())
    with one_thread():
        found = make(method, task)
    if not isinstance(found, Dictionary):
        remedy = 'register it as what it is: @method(name, "wide", "one line"), or "readout"'
        raise UserError("a method that makes children must give a Dictionary", type(found).__name__, remedy)
    return found, task.meter.tokens_sae


def make_beside(work: Work, cfg: SplitConfig, product: Product, acts: Activations | None = None) -> Beside:
    """Train children of other seeds, and controls, side by side, and measure each as soon as it is there."""
    give_back_freed_memory()
    method, first = product.method, replace(cfg.training, K=product.K)

    def as_active() -> Dictionary:
        active = (product.trained.encode(work.select_pools.x_on) > 0).float().sum(1).mean()
        return random_decoder(work.targets, first, float(active))

    controls: dict[str, Callable[[], Dictionary | None]] = {
        "random decoder": as_active,
        "children of another parent": lambda: wrong_parent(work, first),
        "small L1 SAE on P": lambda: small_sae(work.pools, first),
        "k-means": lambda: k_means(work.targets, first),
    }

    if method.name != OURS:
        controls["children as they are trained"] = lambda: train_children(work.targets, first)

    def row(name: str) -> dict[str, float | str] | None:
        with one_thread():
            found = controls[name]()
            return None if found is None else control_row(work, name, found)

    def seed(number: int) -> np.ndarray:
        with one_thread():
            found, _ = _dictionary(work, method, replace(first, seed=number), acts)
            return work.fires(work.install(found, method.prune, method.most_leak))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = [pool.submit(row, name) for name in controls if cfg.controls]
        again = [pool.submit(seed, number) for number in range(cfg.seed + 1, cfg.seed + cfg.seeds) if method.seeded]
        tasks: list[Future[Any]] = [*rows, *again]
        for done, _ in enumerate(as_completed(tasks), 1):
            report_progress("controls and other seeds", done, len(tasks))
    give_back_freed_memory()
    measured = [found for task in rows if (found := task.result())]
    others = other_rows(work, product.made, cfg.seed) if cfg.controls else []
    return Beside(stability(work.fires(product.made), [task.result() for task in again]), measured + others)


def _sibling_cosine(E: Tensor, d_p: Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize(d_p, dim=0)
    rest = torch.nn.functional.normalize(E - (E @ unit)[:, None] * unit, dim=1)
    return (rest @ rest.T).cpu().numpy()
