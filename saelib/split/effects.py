"""What a child does for the model: the right next token's log-probability with the child, less that without it.

    effect_j = mean over test tokens of P where child j fires of   log p(next | x) - log p(next | x - c_j e_j)

`c_j e_j` is what the child adds to the reconstruction; all else, the SAE's error included, stays as it is. Beside it stands the
same for a random direction of the same length: what any disturbance of that size does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelib.acts.activations import Activations
from saelib.acts.store import POSITIONS, ActivationStore
from saelib.lm.model import LanguageModel, Logits
from saelib.sae.sae import SAE
from saelib.split.tokens import TokenSet
from saelib.split.yardstick import Documents, interval

MOST_CHILDREN = 12
"""The children whose effect is measured; as many have a card on the page."""
MOST_TOKENS = 32
"""Tokens a child, drawn at random from those of P on which it fires."""
At = tuple[Tensor, Tensor]
"""Index of a position in each context of a batch."""


@torch.no_grad()
def child_effects(
    acts: Activations, sae: SAE, numbers: Sequence[int], on: TokenSet, fires: Bool[np.ndarray, "n K"], seed: int = 0
) -> pd.DataFrame:
    """The effect of the first children on the right next token, in nats.

    Args:
        sae: with the children in the parent's place; `numbers` are theirs in it.
        on: P of test; `fires` says where each child fires on it, in the order of `numbers`.

    Returns:
        One row a child: feature, tokens, effect, low, high (95%, documents drawn anew), random (a direction of its length).
    """
    rng, out = np.random.default_rng(seed), []
    generator = torch.Generator().manual_seed(seed)
    followed = on.rows % POSITIONS < POSITIONS - 1  # the last token of a context predicts nothing that is known
    for number, firing in zip(numbers[:MOST_CHILDREN], fires.T, strict=False):
        found = np.flatnonzero(firing & followed)
        chosen = np.sort(rng.choice(found, min(MOST_TOKENS, len(found)), replace=False))
        row = sae.W_dec[number]
        noise = torch.randn(row.shape, generator=generator).to(row)
        lost = {"effect": np.zeros(len(chosen)), "random": np.zeros(len(chosen))}
        for here, at, clean, logits in spliced(acts.model, acts.stores["test"], on.rows[chosen], acts.device):
            target = torch.from_numpy(on.next[chosen][here].astype(np.int64)).to(acts.device)
            x = clean[at]
            size = sae.contributions(sae.encode(x), x)[:, number, None]
            base = true_next(logits(clean, at), target)
            for name, direction in (("effect", row), ("random", noise / noise.norm() * row.norm())):
                without = clean.clone()
                without[at] -= size * direction
                lost[name][here] = (base - true_next(logits(without, at), target)).cpu().numpy()
        documents = Documents.drawn(on.document[chosen])
        with np.errstate(invalid="ignore", divide="ignore"):
            count = documents.sums(np.ones((len(chosen), 1)))
            mean, low, high = interval((documents.sums(lost["effect"][:, None]) / count)[:, 0])
        random = float(lost["random"].mean()) if len(chosen) else np.nan
        out.append(
            {"feature": number, "tokens": len(chosen), "effect": mean, "low": low, "high": high, "random": random}
        )
    return pd.DataFrame(out)


def true_next(logits: Float[Tensor, "n d_vocab"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Log-probability of the token that comes next."""
    return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]


def spliced(
    model: LanguageModel, store: ActivationStore, rows: np.ndarray, device: torch.device | None = None
) -> Iterator[tuple[np.ndarray, At, Tensor, Logits]]:
    """The contexts of some rows, 16 at a time and no longer than they must be: which rows, where they are, `model.splice`."""
    context, position = np.divmod(rows, POSITIONS)
    order = np.argsort(position, kind="stable")  # contexts of like length together
    for begin in range(0, len(rows), 16):
        here = order[begin : begin + 16]
        tokens = np.asarray(store.contexts[context[here]])[:, : position[here].max() + 2].astype(np.int64)
        at = (torch.arange(len(here), device=device), torch.from_numpy(position[here] + 1).to(device))
        yield here, at, *model.splice(torch.from_numpy(tokens).to(device))
