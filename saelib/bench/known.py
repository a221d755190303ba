"""Parents whose true children are known: made-up text, a made-up model and an SAE by hand, in the shapes of real ones.

    x = on (s u + alpha s0 sum_c child_c v_c) + elsewhere + sum_k f_k w_k + noise

`u` is the parent's direction; child c is on where the word before is the c-th of its own (and sometimes another beside it, in a
correlated world), `v_c` are orthonormal, `w_k` many background features, more than dimensions (superposition), of which the SAE
reads some. The children's directions also stand on a few other words, where the parent is silent: what reads them alone leaks.
A world with alpha = 0 is an impostor: the same words, and nothing in the activations that tells them apart.

A world may also be sae-lens's: then features, hierarchy and magnitudes are those of `sae_lens.synthetic`, drawn once by
`scripts/make_saelens_worlds.py`, and a token's activation is one of the samples of its kind (parent silent, parent with child c,
parent alone).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from jaxtyping import Bool, Float, Int, Integer
from safetensors.torch import load_file
from torch import Tensor

from saelib.acts.activations import SPLITS, Activations
from saelib.acts.store import POSITIONS, ActivationStore
from saelib.base.cache import cache_dir, content_key, file_sha256, kept_folder
from saelib.base.code_version import code_version
from saelib.base.errors import UserError
from saelib.lm.model import LanguageModel
from saelib.sae.initial import unit_rows
from saelib.sae.sae import SAE, SAEConfig

HOOK = "known.hook"
FILLERS = 200
_MIXES = 1 << 15
"""Distinct noises; a token's is a hash of its place and of the words up to it."""


@dataclass(frozen=True)
class World:
    """A made-up parent."""

    name: str
    shares: tuple[float, ...] = (0.2, 0.2, 0.2)
    """Share of the parent's tokens on which each child is on by its own word; the rest of them have no child."""
    alpha: float = 0.55
    """A child's strength, as a share of the parent's; 0 is an impostor."""
    correlation: float = 0.0
    """Chance that the next child is on beside one."""
    n_background: int = 96
    """Background features, in `d_in` dimensions."""
    d_in: int = 32
    rate: float = 0.04
    """Share of tokens on which the parent is on."""
    contexts: tuple[int, int, int] = (600, 300, 300)
    """Contexts of train, select and test."""
    seed: int = 0
    pool: str = ""
    """File of sae-lens's samples; empty for a world of our own."""

    def __post_init__(self) -> None:
        if not self.shares or sum(self.shares) > 1 or min(self.shares) <= 0:
            raise UserError("shares of children must be above 0 and add up to at most 1", self.shares, "mend them")
        if len(self.shares) + 1 > self.d_in:
            raise UserError(f"at most d_in - 1 = {self.d_in - 1} children fit", len(self.shares), "raise d_in")

    @property
    def key(self) -> str:
        """Hash of everything that determines it."""
        if self.pool and not Path(self.pool).is_file():
            raise UserError("a world of sae-lens must have its file", self.pool, "make bench-saes writes it")
        facts = asdict(self) | {"pool": file_sha256(Path(self.pool)) if self.pool else ""}
        return content_key(world=repr(facts))

    @property
    def true_children(self) -> int:
        """How many there are to be found."""
        return len(self.shares) if self.alpha > 0 else 0


def saelens_world(path: Path, children: int) -> World:
    """A world whose samples `scripts/make_saelens_worlds.py` draws into a file, and how many children it has there."""
    return World(path.stem, shares=(min(0.2, 0.8 / children),) * children, pool=str(path))


def _held(world: World) -> dict[str, Tensor]:
    """sae-lens's feature vectors and samples."""
    held = load_file(world.pool)
    pools = sum(name.startswith("pool_") for name in held)
    if pools != len(world.shares) + 2:
        raise UserError(
            f"{world.name} must have {len(world.shares)} children", pools - 2, "make bench-saes writes it anew"
        )
    return held


def worlds(seed: int = 0) -> tuple[World, ...]:
    """The worlds of the benchmark: several numbers of children, rare and correlated ones, a crowded space, impostors."""
    plain = World("plain", seed=seed)
    return (
        replace(plain, name="known-3"),
        replace(plain, name="known-2", shares=(0.3, 0.3)),
        replace(plain, name="known-8", shares=(0.1,) * 8),
        replace(plain, name="known-rare", shares=(0.4, 0.15, 0.05)),
        replace(plain, name="known-correlated", correlation=0.3),
        replace(plain, name="known-crowded", n_background=256),
        replace(plain, name="known-none", alpha=0.0),
        replace(plain, name="known-none-8", shares=(0.1,) * 8, alpha=0.0),
    )


class KnownModel(LanguageModel):
    """Activations as the world says, from a token, the two before it and its place; logits linear in them."""

    hook_name = HOOK
    center_writing_weights = False
    bos_token, eos_token = "<bos>", "<eos>"

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = self.key = f"known-{world.key}"
        m = len(world.shares)
        self.words = ["<bos>", "<eos>", "term", *(f"own{c}" for c in range(m)), *(f"word{i}" for i in range(FILLERS))]
        model = tokenizers.models.WordLevel({word: i for i, word in enumerate(self.words)}, unk_token="<eos>")
        self.tokenizer = tokenizers.Tokenizer(model)
        self.tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        g = torch.Generator().manual_seed(world.seed)
        self._pools: list[Tensor] = []
        if world.pool:
            held = _held(world)
            self.u, self.v, self.w = held["vectors"][0], held["vectors"][1 : m + 1], held["vectors"][m + 1 :]
            self._pools = [held[f"pool_{kind}"].float() for kind in range(m + 2)]
            self._others = [held[f"others_{kind}"] for kind in range(m + 2)]
        else:
            basis = torch.linalg.qr(torch.randn(world.d_in, world.d_in, generator=g))[0].T
            self.u, self.v = basis[0], basis[1 : m + 1]
            self.w = unit_rows(torch.randn(world.n_background, world.d_in, generator=g))
            on = torch.rand(_MIXES, world.n_background, generator=g) < 0.04
            strength = on * (1.0 + torch.rand(_MIXES, world.n_background, generator=g))
            self._others = [on]
            self._rest = strength @ self.w + 0.05 * torch.randn(_MIXES, world.d_in, generator=g)
            self._size = 4.0 * (0.7 + 0.6 * torch.rand(_MIXES, generator=g))
        self._beside = torch.rand(_MIXES, generator=g) < world.correlation
        self.unembed = torch.randn(world.d_in, len(self.words), generator=g)

    n_ctx = property(lambda self: POSITIONS + 1)
    d_vocab = property(lambda self: len(self.words))
    d_in = property(lambda self: self.world.d_in)
    W_U = property(lambda self: self.unembed)

    def on(self, device: torch.device) -> KnownModel:
        """The model on a device: itself when it is there, else a copy."""
        if device == self.device:
            return self
        there = copy.copy(self)
        for name, held in vars(self).items():
            if isinstance(held, Tensor):
                setattr(there, name, held.to(device))
            elif name in ("_pools", "_others"):
                setattr(there, name, [pool.to(device) for pool in held])
        return there

    def _mix(self, tokens: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
        one, two = (torch.nn.functional.pad(tokens, (k, 0))[:, : tokens.shape[1]] for k in (1, 2))
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return (tokens * 31 + one * 1009 + two * 7919 + place * 577) % _MIXES

    def children_on(self, tokens: Int[Tensor, "b t"]) -> Bool[Tensor, "b t m"]:
        """Which true children are on, on the parent's tokens."""
        m, tokens = len(self.world.shares), tokens.to(self.device)
        before = torch.nn.functional.pad(tokens, (1, 0))[:, :-1]
        own = torch.stack([(tokens == 2) & (before == 3 + c) for c in range(m)], -1)
        beside = own.roll(1, -1) & self._beside[self._mix(tokens)][..., None]
        return own | beside

    def background_on(self, tokens: Int[Tensor, "b t"]) -> Bool[Tensor, "b t n"]:
        """Which background features are on."""
        return self._drawn(self._others, tokens.to(self.device))

    def _drawn(self, pools: list[Tensor], tokens: Int[Tensor, "b t"]) -> Tensor:
        """Each token's row in its kind's pool (parent silent, with child c, alone), or in the only pool there is."""
        mix, m = self._mix(tokens), len(self.world.shares)
        if len(pools) == 1:
            return pools[0][mix]
        child = self.children_on(tokens)
        kind = torch.where(child.any(-1), child.int().argmax(-1) + 1, m + 1) * (tokens == 2)
        out = torch.empty(*tokens.shape, pools[0].shape[1], dtype=pools[0].dtype, device=self.device)
        for k, pool in enumerate(pools):
            out[kind == k] = pool[mix[kind == k] % len(pool)]
        return out

    def activations(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t d_in"]:
        """x of the module's equation, rounded as a store rounds it."""
        tokens = tokens.to(self.device)
        mix, m = self._mix(tokens), len(self.world.shares)
        if self._pools:
            return self._drawn(self._pools, tokens)
        size = self._size[mix][..., None]
        child = self.children_on(tokens)
        first = 3 + m
        elsewhere = torch.stack([(tokens >= first + 2 * c) & (tokens < first + 2 * c + 2) for c in range(m)], -1)
        x = self._rest[mix] + size * (tokens == 2)[..., None] * self.u
        x = x + self.world.alpha * size * ((child | elsewhere).float() @ self.v)
        return x.bfloat16().float()

    def splice(self, tokens: Int[Tensor, "b t"]) -> tuple[Tensor, Callable[..., Tensor]]:
        """x, and logits linear in what is put in its place."""
        return self.activations(tokens), lambda x, at=None: (x if at is None else x[at]) @ self.unembed


class KnownActivations(Activations):
    """A world's activations; two contexts a document."""

    def documents(self, split: str, rows: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """The document of each row."""
        return rows // POSITIONS // 2

    @property
    def world(self) -> World:
        """What is known."""
        return self._known.world

    @cached_property
    def _known(self) -> KnownModel:
        assert isinstance(self.model, KnownModel)
        return self.model

    def truth(self, split: str, rows: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, "n m"]:
        """Which true children are on at some rows; no column for an impostor."""
        on = self._at(split, rows, self._known.children_on)
        return on[:, : self.world.true_children]

    def background(self, split: str, rows: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, "n b"]:
        """Which background features are on at some rows."""
        return self._at(split, rows, self._known.background_on)

    def _at(self, split: str, rows: np.ndarray, on: Callable[[Tensor], Tensor]) -> np.ndarray:
        contexts, places = np.unique(rows // POSITIONS, return_inverse=True)
        tokens = torch.from_numpy(np.asarray(self.stores[split].contexts[contexts]).astype(np.int64))
        return on(tokens).cpu().numpy()[places, rows % POSITIONS + 1]


def known_activations(world: World) -> KnownActivations:
    """Make (or open) a world's text and activations."""
    model, stores = KnownModel(world), {}
    for place, split in enumerate(SPLITS):
        contexts = _text(world, world.contexts[place], 10 * world.seed + place)
        key = content_key(world=world.key, split=split, code=code_version("bench.known"))

        def make(folder: Path, contexts: np.ndarray = contexts) -> None:
            x = model.activations(torch.from_numpy(contexts.astype(np.int64)))[:, 1:].reshape(-1, world.d_in)
            (folder / "acts.bin").write_bytes(x.bfloat16().view(torch.int16).numpy().tobytes())

        folder = kept_folder(cache_dir() / "known" / f"{split}-{key}", make)
        manifest: dict[str, Any] = {"key": key, "d_in": world.d_in, "n_contexts": len(contexts), "hook_name": HOOK}
        stores[split] = ActivationStore(folder, manifest | {"center_writing_weights": False}, contexts)
    return KnownActivations(model, stores, {})


def _text(world: World, n_contexts: int, seed: int) -> np.ndarray:
    """Fillers, with the parent's word at random places and before it a child's own word or a filler."""
    rng = np.random.default_rng([world.seed, seed])
    m = len(world.shares)
    contexts = rng.integers(3 + m, 3 + m + FILLERS, (n_contexts, POSITIONS + 1)).astype(np.uint16)
    contexts[:, 0] = 0
    edges = np.cumsum(world.shares)
    at = rng.random(contexts.shape) < world.rate
    at[:, :2] = False
    at[:, 1:] &= ~at[:, :-1]  # never two in a row
    rows, places = np.nonzero(at)
    contexts[rows, places] = 2
    child = np.searchsorted(edges, rng.random(len(rows)), side="right")
    own = child < m
    contexts[rows[own], places[own] - 1] = 3 + child[own]
    return contexts


@torch.no_grad()
def known_sae(world: World, n_read: int = 24) -> tuple[SAE, int]:
    """An SAE that reads the parent and some background features and nothing of the children, and the parent's number."""
    model = KnownModel(world)
    n_read, parent = min(n_read, len(model.w)), 5
    tree = torch.linalg.qr(torch.cat([model.u[None], model.v]).T)[0].T
    background = model.w[:n_read]
    reads = unit_rows(background - background @ tree.T @ tree)
    sae = SAE(SAEConfig(world.d_in, n_read + 1, HOOK, model.name, False))
    order = [*range(parent), n_read, *range(parent, n_read)]
    sae.W_enc.copy_(torch.cat([reads, model.u[None]])[order].T)
    sae.W_dec.copy_(torch.cat([background, model.u[None]])[order])
    sae.b_enc.fill_(-0.7)
    sae.b_enc[parent] = -1.6
    return sae.requires_grad_(False), parent
