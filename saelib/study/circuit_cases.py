"""One parent, one context: the tokens, and the ways of acting on them that are compared (see `saelib.interpret.circuits`).

Behaviours are found on train, features and neurons are chosen on select, every number is of test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelib.acts.store import POSITIONS
from saelib.base.errors import UserError
from saelib.interpret.circuits import Incoming, incoming
from saelib.interpret.damage import Behaviour, behaviour, best_features, log_odds_gradient
from saelib.lm.model import OneLayerModel
from saelib.sae.sae import SAE
from saelib.split.result import Split

ROTATIONS = 5
"""Random directions in the children's span."""
COUNTS = (1, 4)
"""How many features or neurons act together."""


@dataclass(frozen=True)
class CaseTokens:
    """Some tokens of P: of a class, and its siblings."""

    found: Incoming
    """What the MLP reads at them, in components."""
    mid: Float[Tensor, "n d"]
    """The residual stream before the MLP."""
    x: Float[Tensor, "n d"]
    """The MLP's output: what an SAE reads."""
    in_class: Bool[np.ndarray, " n"]
    """Tokens of the class; the others are its siblings."""
    document: Int[np.ndarray, " n"]
    """Where each comes from: what intervals draw."""
    next: Int[np.ndarray, " n"]
    """The token after each."""

    @property
    def residual(self) -> Float[Tensor, "n d"]:
        """The residual stream after the block."""
        return self.mid + self.x


@torch.no_grad()
def case_tokens(split: Split, part: str, context: int, most: int) -> CaseTokens:
    """Tokens of P in one split of the text that are followed by another: at most `most` of a context, and of its siblings.

    Raises:
        UserError: the model has more than one layer, or a side has no token.
    """
    model, tokens, labels = one_layer(split), split.tokens.on[part], split.labels
    of_class = labels.member[part][:, context]
    usable = tokens.next >= 0
    rng = np.random.default_rng(0)
    sides = [
        np.flatnonzero(usable & mask) for mask in (of_class, labels.counts[part] & ~of_class)
    ]  # siblings take part and are not of the class
    if not all(len(side) for side in sides):
        got = f"{len(sides[0])} and {len(sides[1])} on {part}"
        raise UserError("a case needs tokens of the class and siblings", got, "choose another context")
    kept = np.sort(np.concatenate([rng.choice(side, min(most, len(side)), replace=False) for side in sides]))
    place, position = np.divmod(tokens.rows[kept], POSITIONS)
    contexts = torch.from_numpy(np.asarray(split.acts.stores[part].contexts)[place].astype(np.int64))
    found = incoming(model, contexts, torch.from_numpy(position.astype(np.int64) + 1))
    mid = found.residual_mid
    x = model.mlp_out(mid[None])[0]
    return CaseTokens(found, mid, x, of_class[kept], tokens.document[kept], tokens.next[kept])


def one_layer(split: Split) -> OneLayerModel:
    """The split's language model.

    Raises:
        UserError: it has more than one layer.
    """
    if not isinstance(split.acts.model, OneLayerModel):
        raise UserError("circuits are asked of a one-layer model", split.acts.model.name, "use profile mini")
    return split.acts.model


def case_behaviour(split: Split, context: int) -> Behaviour:
    """What follows the context against what follows its siblings, from P on train; errors as in `behaviour`."""
    tokens, labels = split.tokens.on["train"], split.labels
    part = labels.counts["train"]
    return behaviour(tokens.next[part], labels.member["train"][part, context])


# --- ways of acting ------------------------------------------------------------------------------------------------------


class Way(NamedTuple):
    """A way of acting: at strength 1 it takes `removed(tokens)` away from the residual stream."""

    name: str
    family: str
    """`parent`, `child`, `wide`, `neuron` or `rotation`."""
    size: int
    """Features or neurons that act together."""
    removed: Callable[[CaseTokens], Tensor]
    read: Tensor | None = None
    """The encoder column, (d,), where it is one feature (or one rotation of the children's)."""
    write: Tensor | None = None
    """The decoder row, (d,), where it is one feature."""


@torch.no_grad()
def written(sae: SAE, numbers: Int[Tensor, " k"], x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """What some features add to the reconstruction: sum_j a_j d_j."""
    return sae.contributions(sae.encode(x), x)[:, numbers] @ sae.W_dec[numbers]


def feature_way(name: str, family: str, sae: SAE, numbers: Int[Tensor, " k"]) -> Way:
    """Take some features' contributions away."""
    alone = int(numbers[0]) if len(numbers) == 1 else None
    read, write = (None, None) if alone is None else (sae.W_enc[:, alone].detach(), sae.W_dec[alone].detach())
    return Way(name, family, len(numbers), lambda tokens: written(sae, numbers, tokens.x), read, write)


@torch.no_grad()
def hidden(model: OneLayerModel, mid: Float[Tensor, "n d"]) -> Float[Tensor, "n d_mlp"]:
    """The MLP's neurons."""
    weights = model.weights
    normed = F.layer_norm(mid, mid.shape[-1:], weights["blocks.0.ln2.w"], weights["blocks.0.ln2.b"])
    return F.gelu(normed @ weights["blocks.0.mlp.W_in"] + weights["blocks.0.mlp.b_in"])


def neuron_way(model: OneLayerModel, numbers: Int[Tensor, " k"]) -> Way:
    """Take some neurons' outputs away."""
    W_out = model.weights["blocks.0.mlp.W_out"]
    name = f"{len(numbers)} neurons" if len(numbers) > 1 else f"neuron {int(numbers[0])}"
    return Way(
        name, "neuron", len(numbers), lambda tokens: hidden(model, tokens.mid)[:, numbers] @ W_out[numbers]
    )  # fmt: skip


def rotation_way(sae: SAE, children: Int[Tensor, " K"], seed: int) -> Way:
    """Take away what the children write along a random direction r of their span: (v . r) r, v = sum_j c_j e_j.

    r is the unit vector along g E, its read direction W g, for one draw of g ~ N(0, 1)^K.
    """
    g = torch.randn(len(children), generator=torch.Generator().manual_seed(seed))
    r = F.normalize(g @ sae.W_dec[children].detach(), dim=0)
    read = sae.W_enc[:, children].detach() @ g

    def removed(tokens: CaseTokens) -> Tensor:
        return (written(sae, children, tokens.x) @ r)[:, None] * r

    return Way(f"rotation {seed}", "rotation", 1, removed, read)


@torch.no_grad()
def worth(
    acts: Float[Tensor, "n F"], rows: Float[Tensor, "F d"], gradient: Float[Tensor, "n d"]
) -> Float[Tensor, "n F"]:
    """What each feature is worth for the behaviour at each token, to first order: a_j (d_j . gradient)."""
    return acts * (gradient @ rows.T)


def ways(split: Split, select: CaseTokens, of: Behaviour, wide: SAE) -> tuple[Way, ...]:
    """The parent, the best children, wide features and neurons for a behaviour, alone and `COUNTS` together, and rotations."""
    model, gradient = one_layer(split), log_odds_gradient(one_layer(split), select.residual, of)
    children = torch.tensor(split.numbers)
    found = [feature_way("parent", "parent", split.original, torch.tensor([split.parent.feature]))]
    with torch.no_grad():
        acts: Mapping[str, Tensor] = {
            "child": split.sae.contributions(split.sae.encode(select.x), select.x)[:, children],
            "wide": wide.contributions(wide.encode(select.x), select.x),
            "neuron": hidden(model, select.mid),
        }
        rows = {
            "child": split.sae.W_dec[children], "wide": wide.W_dec, "neuron": model.weights["blocks.0.mlp.W_out"],
        }  # fmt: skip
    for family, values in acts.items():
        value = worth(values, rows[family], gradient)
        for count in COUNTS:
            if count > value.shape[1]:
                continue
            best = best_features(value, select.in_class, count)
            if family == "neuron":
                found.append(neuron_way(model, best))
                continue
            sae, numbers = (split.sae, children[best]) if family == "child" else (wide, best)
            name = f"{family} {int(numbers[0])}" if count == 1 else f"{count} of the {family}'s"
            found.append(feature_way(name, family, sae, numbers))
    found += [rotation_way(split.sae, children, seed) for seed in range(ROTATIONS)]
    return tuple(found)
