"""One parent at work: its tokens, its yardstick, and what every dictionary in its place is made from and measured by.

`Work` needs tokens and labels, not a model or a text: so real parents, implants and synthetic ones go through the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from scipy.sparse import csc_array, hstack, vstack
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.base.errors import UserError
from saelib.sae.sae import SAE
from saelib.sae.stream import rows_at_once
from saelib.split.children import Dictionary, Pools
from saelib.split.contexts import LEAST, MOST_CONTEXTS, Labels, label, member
from saelib.split.detectors import feature_mcc
from saelib.split.exported import as_jumprelu, child_numbers, replace_parent
from saelib.split.leak import MOST_FOREIGN, SAMPLES, Firings, Leak, choose_theta, foreign_share, leak
from saelib.split.parent import parent_target
from saelib.split.separation import Added, Separation, added, measure
from saelib.split.silent import Silent
from saelib.split.tokens import SPLITS, ParentTokens, TokenSet
from saelib.split.verdict import BOUNDS, Bounds, Judgement, gather_evidence, judge
from saelib.split.yardstick import DRAWS, Yardstick, make_yardstick

_ROWS = 16_384
"""Tokens that are encoded at once."""
LEAST_SHARE = 0.002
"""A child that fires on a smaller share of P on select carries nothing and is dropped."""


class Made(NamedTuple):
    """Children in the parent's place, with their activations on the tokens that are judged."""

    dictionary: Dictionary
    theta: Float[Tensor, " K"]
    core: Float[Tensor, " d"]
    """What the parent's core writes for a unit of its old activation."""
    sae: SAE
    acts: Mapping[str, Mapping[str, np.ndarray]]
    """For `on`, `weak` and `off` of each split, the children's activations, below theta 0; encoded when first asked for."""
    context_of: np.ndarray
    """The context that each child marks best on select."""
    silent: Silent | None = None
    """Where children fire on all tokens of test on which the parent is silent; None: leak is that of the sample."""


class _Asked(dict[str, Any]):
    """A value for every name, made when first asked for."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Any:
        self[name] = value = self.make(name)
        return value


class Work:
    """One parent's tokens with what every dictionary in its place is made from and measured by."""

    def __init__(
        self, sae: SAE, tokens: ParentTokens, labels: Labels, off_member: Mapping[str, Bool[np.ndarray, "n m"]]
    ) -> None:
        """Take an SAE, its parent's tokens and their contexts.

        Args:
            off_member: for select and test, the contexts of the tokens on which the parent is silent.
        """
        self.original, self.tokens, self.labels, self.off_member = sae, tokens, labels, off_member
        self.feature = tokens.feature
        self.yardstick: Yardstick = make_yardstick(tokens.on, labels)
        self.sae = as_jumprelu(sae, torch.cat([tokens.off["select"].x[:20_000].float(), tokens.on["select"].x[:200]]))
        self.rest = [j for j in range(sae.cfg.d_sae) if j != tokens.feature]
        none = np.zeros(0, dtype=np.int64)
        self.pools = self._pools(*(part["train"] for part in (tokens.on, tokens.weak, tokens.off)))
        self.select_pools = self._pools(
            tokens.on["select"], *(p["select"].where(none) for p in (tokens.weak, tokens.off))
        )
        self.targets = self.pools.beyond_core()
        self._rest_acts: dict[str, csc_array] = {}

    @staticmethod
    def of(
        acts: Activations,
        tokens: ParentTokens,
        sae: SAE,
        how: str = "auto",
        least: int = LEAST,
        most: int = MOST_CONTEXTS,
    ) -> Work:
        """The work on a parent of a text, with the contexts that `label` finds (`how`, `least` and `most` are its)."""
        texts = {split: np.asarray(acts.stores[split].contexts) for split in SPLITS}
        labels = label(acts.model, tokens.on, texts, how, least, most)
        off = {s: member(acts.model, labels.contexts, tokens.off[s], texts[s]) for s in ("select", "test")}
        return Work(sae, tokens, labels, off)

    @torch.no_grad()
    def _pools(self, on: TokenSet, weak: TokenSet, off: TokenSet) -> Pools:
        def x(part: TokenSet) -> Tensor:
            return self.sae.encoder_input(part.x)

        def y(part: TokenSet) -> Tensor:
            return parent_target(self.sae, self.feature, part.x)

        def a(part: TokenSet) -> Tensor:
            return torch.from_numpy(part.parent).to(part.x.device)

        return Pools(x(on), y(on), a(on), x(weak), y(weak), a(weak), x(off))

    @torch.no_grad()
    def install(self, found: Dictionary, prune: bool = True, most_leak: float | None = None) -> Made:
        """Put children beside the parent's core: a context each, thresholds on select, the rows refitted, exported, encoded.

        With `prune` children that carry nothing are dropped: they fire on too little of P, or P is no worse without them.
        With `most_leak`, also those whose foreign leak on select is above it at every threshold.
        """
        raw = found
        c = {name: self._encoded(lambda x: raw.encode(self.sae.encoder_input(x)), name, "select") for name in SAMPLES}
        share = (c["on"] > 0).mean(0)
        found, c = self._kept(found, c, share >= LEAST_SHARE if prune else share >= 0)
        context_of = self._contexts_of(c["on"])
        firings = Firings.of(self.tokens, "select", c, self.off_member["select"][:, context_of])
        bound = MOST_FOREIGN if most_leak is None else most_leak
        above = choose_theta(firings, self._inside()[:, context_of], bound, strict=most_leak is not None)
        able = np.isfinite(above)
        found, c = self._kept(found, c, able)
        context_of, theta = context_of[able], torch.from_numpy(above[able]).float()
        refitted, _ = self._refit(found, theta)
        keep = torch.ones(len(theta), dtype=torch.bool)
        if prune:
            share = torch.from_numpy((c["on"] > theta.numpy()).mean(0))
            keep = (share >= LEAST_SHARE) & self._useful(refitted, theta).cpu()
            keep[share.argmax()] = True
        found, theta = Dictionary(found.W[:, keep], found.b[keep], found.E[keep]), theta[keep].to(found.E.device)
        found, core = self._refit(found, theta)
        scale = found.E.norm(dim=1).clamp_min(1e-6)
        found = Dictionary(found.W * scale, found.b * scale, found.E / scale[:, None])
        theta = theta * scale
        new = replace_parent(self.sae, self.feature, found, theta, core)
        numbers = torch.tensor(child_numbers(self.sae, len(theta)))

        def encode(x: Tensor) -> Tensor:
            return new.encode_features(x, numbers)

        acts = _Asked(lambda name: _Asked(lambda split: self._encoded(encode, name, split)))
        return Made(found, theta, core, new, acts, context_of[keep.numpy()])

    @torch.no_grad()
    def _encoded(self, encode: Callable[[Tensor], Tensor], name: str, split: str) -> np.ndarray:
        """Activations on the parent's tokens (`on`, `weak` or `off`) of a split; judged on the processor."""
        part: TokenSet = getattr(self.tokens, name)[split]
        return torch.cat([encode(rows.float()).cpu() for rows in part.x.split(_ROWS)]).numpy()

    @staticmethod
    def _kept(
        found: Dictionary, c: dict[str, np.ndarray], keep: Bool[np.ndarray, " K"]
    ) -> tuple[Dictionary, dict[str, np.ndarray]]:
        if not keep.any():
            rule = "at least one child must fire on the parent's tokens and keep to the leak it may have"
            raise UserError(rule, 0, "lower the price of activation, or allow more leak")
        if keep.all():
            return found, c
        mask = torch.from_numpy(keep)
        chosen = Dictionary(found.W[:, mask], found.b[mask], found.E[mask])
        return chosen, {name: value[:, keep] for name, value in c.items()}

    def _inside(self) -> Integer[np.ndarray, "n m"]:
        """Whether each token of P of select is in each context: 1, 0, or -1 where it takes no part."""
        takes_part = self.labels.counts["select"][:, None]
        return np.where(takes_part, self.labels.member["select"], -1).astype(np.int8)

    def _contexts_of(self, c: np.ndarray) -> np.ndarray:
        used = self.yardstick.used["select"]
        return feature_mcc(csc_array(c[used]), self.yardstick.member["select"]).argmax(1)

    @torch.no_grad()
    def _useful(self, found: Dictionary, theta: Tensor) -> Tensor:
        """Children whose removal raises the squared error on P of select."""
        pools = self.select_pools.beyond_core()
        c = found.encode(pools.x_on)
        c = c * (c > theta.to(c.device))
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
        c = torch.cat([a, c * (c > theta.to(c.device))], 1)
        begin = torch.cat([pools.core()[None], found.E])
        gram = c.T @ c
        ridge = 1e-2 * gram.diagonal()[1:].mean() * torch.eye(len(gram), device=gram.device)
        rows = torch.linalg.solve(gram + ridge, c.T @ y + ridge @ begin)
        return Dictionary(found.W, found.b, rows[1:]), rows[0]

    @torch.no_grad()
    def rest_acts(self, split: str) -> csc_array:
        """The rest's activations on the tokens of P that the yardstick uses."""
        if split not in self._rest_acts:
            x = self.tokens.on[split].x[torch.from_numpy(self.yardstick.used[split])]
            at_once = min(4096, rows_at_once(self.sae.cfg.d_sae))
            parts = [columns(self.sae.encode(rows)[:, self.rest]) for rows in x.split(at_once)]
            self._rest_acts[split] = csc_array(vstack(parts))
        return self._rest_acts[split]

    def alone(self, acts: Mapping[str, np.ndarray], among: Bool[np.ndarray, " m"] | None = None) -> Separation:
        """Separation of some activations on P, (n, K) for each split; `among` is that of `measure`."""
        return measure(self.yardstick, {s: columns(acts[s][self.yardstick.used[s]]) for s in SPLITS}, among)

    def with_rest(
        self,
        acts: Mapping[str, np.ndarray],
        yardstick: Yardstick | None = None,
        among: Bool[np.ndarray, " m"] | None = None,
    ) -> Separation:
        """The same with the rest of the SAE beside them."""
        used = self.yardstick.used
        both = {s: csc_array(hstack([self.rest_acts(s), columns(acts[s][used[s]])])) for s in SPLITS}
        return measure(yardstick or self.yardstick, both, among)

    def separate(self, made: Made, among: Bool[np.ndarray, " m"] | None = None) -> tuple[dict[str, Separation], Added]:
        """The product, the children alone and the rest alone, and what the children add; `among` is that of `measure`."""
        rest = measure(self.yardstick, {s: self.rest_acts(s) for s in SPLITS}, among)
        both = self.with_rest(made.acts["on"], among=among)
        found = {"rest + children": both, "children": self.alone(made.acts["on"], among), "rest": rest}
        return found, added(rest, both, self.yardstick)

    def fires(self, made: Made) -> Bool[np.ndarray, "n K"]:
        """Where each child fires on P of test."""
        return made.acts["on"]["test"] > 0

    def judge(
        self,
        made: Made,
        separation: Mapping[str, Separation],
        stability: Float[np.ndarray, " K"] | None,
        bounds: Bounds = BOUNDS,
    ) -> Judgement:
        """The verdict on installed children; `stability` is each one's agreement between seeds."""
        children = separation["children"]
        best = np.array([c.features[0] if c.features else 0 for c in children.contexts])  # one a context
        by_context = leak(self._test_firings(made, best, np.arange(len(best))), np.zeros(len(best)))
        fires = self.fires(made)[self.yardstick.used["test"]]
        evidence = gather_evidence(self.yardstick, separation["rest"], children, fires, by_context)
        purity = self.labels.purity() if self.labels.named else 1.0
        return judge(evidence, self.labels.named, purity, stability, bounds)

    def leak(self, made: Made, draws: int = DRAWS) -> Leak:
        """The leak of every child on test, each with its own context."""
        every = np.arange(len(made.theta))
        return leak(self._test_firings(made, every, made.context_of), np.zeros(len(every)), draws)

    def _test_firings(self, made: Made, children: np.ndarray, contexts: np.ndarray) -> Firings:
        """Of some children on test, each with the context that is its own."""
        acts = {name: made.acts[name]["test"][:, children] for name in SAMPLES}
        sampled = Firings.of(self.tokens, "test", acts, self.off_member["test"][:, contexts])
        if (s := made.silent) is None:
            return sampled
        return sampled.with_all_silent(s.acts[:, children], s.document, s.member[:, contexts])

    def foreign(self, made: Made) -> float:
        """Foreign share of all firings of all children together, on test."""
        return foreign_share(self._test_firings(made, np.arange(len(made.theta)), made.context_of))

    @torch.no_grad()
    def fvu(self, made: Made) -> float:
        """sum |x_hat - x|^2 / sum |x - mean|^2 of the exported SAE on P of test."""
        x = self.tokens.on["test"].x
        parts = x.split(rows_at_once(made.sae.cfg.d_sae))
        error = torch.stack([(made.sae(rows).x_hat - rows).square().sum() for rows in parts]).sum()
        return float(error / (x - x.mean(0)).square().sum())


def columns(acts: Tensor | np.ndarray) -> csc_array:
    """Dense activations in compressed columns."""
    across = torch.as_tensor(acts).T.contiguous().cpu().numpy()
    feature, token = np.nonzero(across)
    begins = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=len(across)))])
    return csc_array((across[feature, token], token, begins), shape=across.T.shape)
