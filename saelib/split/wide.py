"""Wide methods: a whole new SAE instead of children, on all of the training data or a part of it, from a random or a warm start.

A training is kept in the cache under all that determines it, the code included. One on all data from a random start depends on no
parent: it is made once for all of them, and so it is counted (`Meter.seconds_shared`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from saelib.acts.activations import Activations
from saelib.acts.batches import View
from saelib.acts.filter import filter_view
from saelib.base.cache import content_key
from saelib.base.device import in_key
from saelib.base.errors import UserError
from saelib.sae.kept import beginning, sae_key, train_once
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE, SAEConfig, require_fits
from saelib.sae.stream import feature_activations
from saelib.sae.train_config import TrainConfig
from saelib.split.methods import Method, Task, method

L1_SHARE = 0.11
"""Price of a unit of activation, a token, as a share of the activations' root mean square norm, where nothing says at what
price the parent's SAE was trained: that of the study's narrow SAE on the embedded model (256 features, L0 15), which its rule
chose by L0. At 0.3 a wide SAE there has an L0 of 4 on P and an FVU of 0.6: a straw man."""


@dataclass(frozen=True)
class WideConfig:
    """Size and training of a wide SAE."""

    d_sae: int = 2048
    n_tokens: int = 4_096_000
    """Tokens trained on, repeats included."""
    batch_size: int = 4096
    """Tokens a step; a filtered view that holds fewer gives smaller batches."""
    l1_per_token: float | None = None
    """Price of a unit of activation, a token. None: the parent's SAE's own where its metadata says it, else `L1_SHARE`."""
    lr: float = 1e-3
    reinit_every: int = 400
    """Steps between re-initialisations of dead features."""

    def __post_init__(self) -> None:
        for name in ("d_sae", "n_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of a wide SAE must be at least 1", getattr(self, name), "pass more")


@dataclass(frozen=True)
class Recipe:
    """How a wide method differs from the plain one."""

    by: str = "none"
    """What training keeps: `none` (all), `context`, `token`."""
    warm: bool = False
    """Begin as the parent's SAE, with fresh features beside."""
    zeroed: bool = False
    """Silence the parent in the loss; needs a warm start, which gives its number a meaning."""
    times: float = 1.0
    """Budget, as a multiple of `WideConfig.n_tokens`."""
    wider: int = 1
    """Width, as a multiple of `WideConfig.d_sae`."""
    most_leak: float | None = field(default=None)
    """Features with a larger foreign leak (on select) are left out when it is measured."""

    @property
    def per_parent(self) -> bool:
        """Whether the training depends on the parent."""
        return self.by != "none" or self.zeroed


RECIPES: dict[str, tuple[Recipe, str]] = {
    "all-data": (Recipe(), "a whole wide SAE on all data"),
    "all-data-3": (Recipe(times=3.0), "the same on 3 times the tokens"),
    "all-data-10": (Recipe(times=10.0), "the same on 10 times the tokens"),
    "all-data-wider": (Recipe(wider=4), "the same with 4 times the features"),
    "all-data-clean": (Recipe(most_leak=0.2), "its features with a foreign leak of at most 0.2"),
    "context-filter": (Recipe(by="context"), "a wide SAE on the contexts that hold a token of the parent"),
    "token-filter": (Recipe(by="token"), "a wide SAE on the parent's tokens alone"),
    "warm": (Recipe(warm=True), "a wide SAE that begins as the parent's, on all data"),
    "warm-zeroed": (Recipe(warm=True, zeroed=True), "the same with the parent silenced in the loss"),
}


def _register() -> None:
    for name, (recipe, about) in RECIPES.items():

        def make(task: Task, recipe: Recipe = recipe) -> SAE:
            return trained(task, recipe)

        make.__qualname__ = f"wide_{name}"
        method(name, "wide", about, per_parent=recipe.per_parent)(make)


_register()


def most_leak(name: str) -> float | None:
    """The largest foreign leak on select of the features that are measured; None for all of them."""
    return RECIPES[name][0].most_leak if name in RECIPES else None


def opened(name: str) -> Method:
    """`sae:FOLDER` as a method: an SAE of the same activations that is there already, such as one that sae-lens trained.

    Its cost is read from `metadata`: `tokens` and `seconds`, where they are there.
    """
    folder = Path(name.removeprefix("sae:")).expanduser()

    def make(task: Task) -> SAE:
        sae, store = load_sae(folder), task.acts.stores["train"]
        require_fits(
            sae.cfg,
            d_in=store.d_in,
            hook_name=store.manifest.get("hook_name"),
            center_writing_weights=store.manifest.get("center_writing_weights"),
        )
        said = sae.cfg.metadata
        task.meter.train(int(said.get("tokens", 0)), sae.cfg.d_in, sae.cfg.d_sae)
        task.meter.seconds_shared += float(said.get("seconds", 0.0))
        return sae

    make.__qualname__ = name
    weights = folder if folder.suffix == ".pt" else folder / "sae_weights.safetensors"
    if not weights.is_file():
        rule = "an SAE must be a folder that holds sae_weights.safetensors, or a .pt"
        raise UserError(rule, folder, "pass one that saelib.load_sae reads")
    return Method(name, "wide", f"the SAE in {folder.name}", make, per_parent=False, seeded=False, source=weights)


def trained(task: Task, recipe: Recipe) -> SAE:
    """Train a wide SAE for a parent, or return the one that is kept.

    Raises:
        UserError: a warm start from an SAE that is not a plain ReLU one, or a filter that keeps no token.
    """
    work, store = task.work, task.acts.stores["train"]
    wide = replace(
        task.wide, d_sae=recipe.wider * task.wide.d_sae, n_tokens=max(1, round(recipe.times * task.wide.n_tokens))
    )
    if recipe.warm:
        wide = replace(wide, d_sae=max(wide.d_sae, work.original.cfg.d_sae))
    view = View(store)
    if recipe.by != "none":
        values = feature_activations(store, work.original, work.feature)
        view = filter_view(store, values, work.tokens.tau, recipe.by)
    batch = min(wide.batch_size, view.n_tokens)
    l1 = l1_per_token(work.original, task.acts) if wide.l1_per_token is None else wide.l1_per_token
    cfg = TrainConfig(
        l1_coeff=l1 / batch, n_steps=max(1, math.ceil(wide.n_tokens / batch)), seed=task.seed, lr=wide.lr, batch_size=batch,
        zero_parent=work.feature if recipe.zeroed else None, reinit_every=wide.reinit_every, log_every=100,
    )  # fmt: skip
    origin = work.original.cfg
    sae_cfg = SAEConfig(
        d_in=origin.d_in, d_sae=wide.d_sae, hook_name=origin.hook_name, model_name=origin.model_name,
        center_writing_weights=origin.center_writing_weights,
        metadata={"l1_per_token": l1, "filter": recipe.by, "warm": recipe.warm, "seed": task.seed},
    )  # fmt: skip
    key = content_key(
        store=store.key,
        rows=None if view.index is None else hashlib.sha256(view.index.tobytes()).hexdigest(),
        narrow=sae_key(work.original) if recipe.warm else None,
        sae=sae_cfg.to_dict(),
        train={k: v for k, v in asdict(cfg).items() if k != "checkpoint_every"},
        **in_key(task.acts.device),
    )

    narrow = work.original.on(torch.device("cpu")) if recipe.warm else None
    found = train_once(key, "wide", lambda: beginning(sae_cfg, cfg, view, task.acts.device, narrow), cfg)
    task.meter.train(found.n_tokens, origin.d_in, wide.d_sae)
    # A filter must look at all of the text; without one no more is read than is trained on.
    task.meter.tokens_lm += store.n_tokens if recipe.by != "none" else min(store.n_tokens, found.n_tokens)
    task.meter.seconds_shared += found.seconds
    return found.sae


def l1_per_token(sae: SAE, acts: Activations) -> float:
    """The price of a unit of activation at which the parent's SAE was trained, if it says so; else by `L1_SHARE`."""
    said = sae.cfg.metadata
    if "l1_per_token" in said:
        return float(said["l1_per_token"])
    store = acts.stores["train"]
    x = store.read(np.arange(min(20_000, store.n_tokens))).float()
    return L1_SHARE * float(x.square().sum(1).mean().sqrt())
