"""What the benchmark runs on: SAEs that are given and made-up worlds, each with the side it stands on; sizes and device of a run.

A suite is a JSON file: `{"saes": [{"name": ..., "folder": ..., "model": "mini", "text": "study", "side": "test"}, ...],
"worlds": true}`. A relative folder counts from the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from saelib.acts.activations import Activations
from saelib.base.cache import read_json
from saelib.base.errors import UserError
from saelib.bench.known import World, known_activations, known_sae, saelens_world, worlds
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE
from saelib.split.children import ChildrenConfig
from saelib.split.wide import WideConfig
from saelib.study.texts import activations

WORLD_SEED = 9
"""Seed of the made-up worlds of a whole run; methods were made on those of seeds 0 to 3."""
CPU = torch.device("cpu")
SIDES = ("dev", "test", "known")
"""Methods are tuned on `dev` alone; `known` are made-up parents whose true children are known."""


@dataclass(frozen=True)
class BenchConfig:
    """Sizes that all methods share, and the device they run on."""

    K: int = 64
    """Features of a local method, where its name does not say."""
    seeds: int = 3
    """Seeds of a local method that has any, on the parents of `few_parents`; on the others it is run once."""
    wide_seeds: int = 1
    """Seeds of a wide method."""
    few_parents: int = 20
    """Parents a side, drawn at random, for which several seeds are run, and wide methods that train an SAE for each parent."""
    least: int = 100
    """Tokens that an automatic context must have on select and on test."""
    swap: bool = True
    """Also measure the model's loss with the new SAE in place, at the first seed."""
    children: ChildrenConfig = field(default_factory=ChildrenConfig)
    wide: WideConfig = field(default_factory=WideConfig)
    device: str | torch.device = "cpu"
    """Where methods run and are measured: `cpu`, on which a row is the same bits everywhere, or `cuda`. A name, since a worker
    looks for a device of its own; parents are chosen, and their tokens found, on the processor whatever it says."""

    def __post_init__(self) -> None:
        if isinstance(self.device, str) and self.device not in ("cpu", "cuda"):
            raise UserError("device of a benchmark must be cpu or cuda", repr(self.device), "pass one")

    def for_world(self) -> BenchConfig:
        """The sizes for a made-up world of some tens of thousands of tokens."""
        wide = replace(
            self.wide, d_sae=64, n_tokens=min(self.wide.n_tokens, 400_000), batch_size=1024, reinit_every=100
        )
        return replace(self, K=min(self.K, 16), least=min(self.least, 25), wide=wide)


@dataclass(frozen=True)
class Origin:
    """An SAE with the activations it belongs to."""

    name: str
    side: str
    folder: str = ""
    """The SAE's folder, in the SAELens format; `study:PROFILE` is the study's narrow SAE. Empty for a world."""
    model: str = "mini"
    text: str = "study"
    l1_per_token: float | None = None
    """Price of activation at which wide SAEs are trained beside it; None: see `saelib.split.wide.l1_per_token`."""
    swap: bool = True
    """Whether the model's loss with a new SAE in place is measured: with 30 layers that takes minutes a row."""
    world: World | None = None

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise UserError(f"side of an SAE must be one of {', '.join(SIDES)}", repr(self.side), "mend the suite")
        if bool(self.folder) == (self.world is not None):
            raise UserError("an SAE of a suite must have a folder, and a world none", self.name, "mend the suite")

    @property
    def family(self) -> str:
        """SAEs of one model and text: their parents may be the same tokens."""
        return self.name if self.world else f"{self.model}/{self.text}"

    def open(self, device: torch.device = CPU) -> tuple[SAE, Activations]:
        """The SAE and its activations, with SAE and model on a device; the last few are held.

        The activations themselves are those of the processor: harvested on a GPU they differ in their last bits, and with them
        the tokens on which a parent is on.
        """
        return _opened(self) if device == CPU else _moved(self, device)

    def sized(self, cfg: BenchConfig) -> BenchConfig:
        """The sizes for its parents."""
        if self.world is not None:
            return cfg.for_world()
        wide = replace(cfg.wide, l1_per_token=self.l1_per_token or cfg.wide.l1_per_token)
        return replace(cfg, wide=wide, swap=cfg.swap and self.swap)


@lru_cache(maxsize=2)
def _opened(origin: Origin) -> tuple[SAE, Activations]:
    if origin.world is not None:
        return known_sae(origin.world)[0], known_activations(origin.world)
    if origin.folder.startswith("study:"):
        from saelib.study import study
        from saelib.study.profiles import get_profile
        from saelib.study.texts import of_profile

        profile = get_profile(origin.folder.removeprefix("study:"))
        return study.narrow_sae(profile).sae, of_profile(profile)
    sae = load_sae(origin.folder)
    return sae, activations(origin.model, origin.text, sae=sae, device="cpu")


@lru_cache(maxsize=2)
def _moved(origin: Origin, device: torch.device) -> tuple[SAE, Activations]:
    sae, acts = _opened(origin)
    return sae.on(device), replace(acts, model=acts.model.on(device))


def world_origins(seed: int = 0) -> tuple[Origin, ...]:
    """The made-up worlds."""
    return tuple(Origin(world.name, "known", world=world) for world in worlds(seed))


def read_suite(path: Path) -> tuple[Origin, ...]:
    """The SAEs and worlds of a suite.

    Raises:
        UserError: the file is missing or holds something else, or two SAEs share a name.
    """
    if not path.is_file():
        raise UserError("a suite must be a JSON file", path, "pass --suite with one; docs/splitbench.md shows it")
    content: Any = read_json(path, "mend the file")
    if not isinstance(content, Mapping) or not isinstance(content.get("saes", []), list):
        raise UserError("a suite must be a JSON object with a list of saes", json.dumps(content)[:60], "mend it")
    known = {f.name for f in fields(Origin)} - {"world"}
    found: list[Origin] = []
    for entry in content.get("saes", []):
        if (
            not isinstance(entry, Mapping)
            or (unknown := set(entry) - known)
            or not {"name", "side", "folder"} <= set(entry)
        ):
            got = ", ".join(sorted(unknown)) if isinstance(entry, Mapping) and unknown else json.dumps(entry)[:60]
            raise UserError("an SAE of a suite has a name, a side, a folder and may have model, text", got, "mend it")
        folder = str(entry["folder"])
        if not folder.startswith("study:"):
            folder = str((path.parent / Path(folder).expanduser()).resolve())
        found.append(Origin(**{**entry, "folder": folder}))
    if content.get("worlds", True):
        found += world_origins(WORLD_SEED)
    for name, children in content.get("saelens_worlds", {}).items():
        world = saelens_world((path.parent / name).resolve(), int(children))
        found.append(Origin(world.name, "known", world=world))
    names = [origin.name for origin in found]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError("SAEs of a suite must have names of their own", ", ".join(twice), "rename one")
    return tuple(found)
